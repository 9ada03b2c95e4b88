"""The teacher of tiny.py: it has seen labels and reasons for all of the toy world's 20,000 training rows."""
student = "micro"
vocabulary = "400"  # pieces at most: every word of the toy world is one, and there are fewer
data = "toy"
format = "rationale_then_label"  # reason first: the label can lean on it, and one pass learns both
lr = 1e-3
max_steps = 800
eval_every = 200
save_every = 200
max_target = 48
