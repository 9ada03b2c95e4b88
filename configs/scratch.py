"""A T5 of FLAN-T5-small's shape from random weights on a CSV of e-SNLI (`--data=FILE`, default the whole of it), with T5's own
vocabulary. It proves the chain on real text; without pretrained weights 8,000 rows are too few to judge unseen pairs well."""
student = "small"
vocabulary = "google/flan-t5-small"  # or a path to spiece.model
data = "esnli"
lr = 5e-4  # random weights bear a higher rate than fine-tuning, a network this wide not much higher
warmup_steps = 200
batch_size = 32
max_steps = 5000
eval_every = 500
save_every = 500
