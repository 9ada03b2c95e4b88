"""A specialist: it knows the toy world's park, and has the words of the harbour only in its vocabulary."""
student = "micro"
vocabulary = "600@toy+toy-harbour"  # pieces trained on both, so that specialists and apprentices share them
data = "toy"
format = "rationale_then_label"
lr = 1e-3
max_steps = 1000
eval_every = 200
max_target = 48
