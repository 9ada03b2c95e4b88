"""Domain adaptation: the distilled student of the park learns the harbour from 1,000 rows. Only its decoder moves; beside it only
embeddings and head, everything, and low-rank changes. The table shows both domains before (park) and after: what was gained, what forgotten."""
student = "configs/park.py"
data = "toy-harbour"
labelled_rows = 1000
tests = "toy toy-harbour"
format = "rationale_then_label"
train_only = "decoder"
lr = 2e-3
max_steps = 200
eval_every = 200
max_target = 48
baselines = {
    "embeddings": {"train_only": "shared|lm_head"},
    "all": {"train_only": ""},
    "lora": {"train_only": "", "lora_rank": 8},
}
