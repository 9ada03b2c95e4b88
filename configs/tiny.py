"""The whole method in minutes on two cores, with no download: a teacher that knows the toy world, and three students of a
quarter of its size, who may see the labels of 500 rows. The distilled one also hears what the teacher says of the rest."""
student = "nano"
teacher = "configs/tiny_teacher.py"
data = "toy"
format = "rationale_then_label"  # reason first: the label can lean on it, and one pass learns both
labelled_rows = 500
teacher_writes = "rest"
kd_weight = 1.0
lr = 3e-3  # a small network bears a higher rate than its teacher
max_steps = 1200
eval_every = 200
save_every = 200
max_target = 48
_people = {"max_steps": 600, "teacher_writes": "none", "kd_weight": 0.0, "hidden_weight": 0.0, "on_policy": 0.0, "schedule": ""}  # nothing of a T5
baselines = {
    "labels": {"format": "predict", "rationale_weight": 0.0, **_people},
    "reasons": _people,
}
