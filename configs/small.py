"""FLAN-T5-small taught by FLAN-T5-large on all of e-SNLI: the two tasks of Distilling step-by-step and the teacher's logits.
One GPU with 24 GB; hours. Both models and the data are downloaded once. FLAN-T5 has seen SNLI and a part of e-SNLI in training:
its scores here are those of a task it knows."""
student = "google/flan-t5-small"
teacher = "google/flan-t5-large"
data = "esnli"
format = "multitask"  # labels and reasons as two tasks: the label costs one short answer, the reason can be left out
label_weight = 1.0
rationale_weight = 1.0  # two means: equal weights mean equal say, however long the reasons are
kd_weight = 0.5  # the teacher was not trained on these prompts: its word counts half of people's
temperature = 2.0  # shows what the teacher thinks of the other words
lr = 3e-4  # fine-tuning: high for AdamW in general, usual for T5 of this size
warmup_steps = 500
batch_size = 64
grad_accumulation = 1
max_steps = 25000  # about three passes over 549,367 rows
eval_every = 1000
eval_rows = 1000
save_every = 1000
test_rows = 0
max_source = 160
max_target = 64
