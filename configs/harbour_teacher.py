"""The other specialist: it knows the toy world's harbour, and has the words of the park only in its vocabulary."""
student = "micro"
vocabulary = "600@toy+toy-harbour"
data = "toy-harbour"
format = "rationale_then_label"
lr = 1e-3
max_steps = 1000
eval_every = 200
max_target = 48
