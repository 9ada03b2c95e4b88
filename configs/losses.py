"""Every divergence beside the others: a student with people's words for 500 rows, and the teacher's probabilities of each of these words.
    python distill.py configs/losses.py --kd_loss=forward_kl,reverse_kl,jsd,skew_forward_kl,skew_reverse_kl,tvd,soft_ce --seed=1,2,3
    python distill.py configs/losses.py --name=none --kd_weight=0 --seed=1,2,3
With label_weight and rationale_weight 0 it hears the teacher alone; then --labelled_rows=0 gives it more to hear."""
student = "nano"
teacher = "configs/tiny_teacher.py"
data = "toy"
labelled_rows = 500
format = "rationale_then_label"
kd_weight = 1.0
lr = 3e-3
max_steps = 400
eval_every = 400  # the last weights are kept: nothing is chosen
max_target = 48
