"""Two specialists, one apprentice: a student a quarter of their size hears only what two teachers say of both domains. Each word counts by
how well its teacher foretells the example (`teacher_mix`); beside it both alike, and a student that learns from people's words alone."""
student = "nano"
teacher = "configs/park_teacher.py+configs/harbour_teacher.py"
teacher_mix = "confidence"
data = "toy+toy-harbour"
tests = "toy toy-harbour"
format = "rationale_then_label"
label_weight = 0.0
rationale_weight = 0.0
kd_weight = 1.0
lr = 3e-3
max_steps = 1000
eval_every = 200
max_target = 48
baselines = {
    "alike": {"teacher_mix": "fixed"},
    "people": {"kd_weight": 0.0, "label_weight": 1.0, "rationale_weight": 1.0},
}
