"""A student of the park alone, distilled from its specialist: where configs/harbour.py starts."""
student = "nano"
teacher = "configs/park_teacher.py"
data = "toy"
format = "rationale_then_label"
kd_weight = 1.0
lr = 3e-3
max_steps = 600
eval_every = 200
max_target = 48
