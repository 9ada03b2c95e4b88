"""Every divergence beside the others: a student that hears nothing but its teacher's probabilities, on the toy world. A minute or less a run;
    python distill.py configs/losses.py --kd_loss=forward_kl,reverse_kl,jsd,skew_forward_kl,skew_reverse_kl,tvd --seed=1,2,3"""
student = "nano"
teacher = "configs/tiny_teacher.py"
data = "toy"
format = "rationale_then_label"
label_weight = 0.0
rationale_weight = 0.0
kd_weight = 1.0
lr = 3e-3
max_steps = 400
eval_every = 400  # the last weights are kept: nothing is chosen
max_target = 48
