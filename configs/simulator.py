"""A simulator: it foretells what another model answers, from the pair, from the model's reason, or from both. How much the reason helps
it beyond giving the answer away is leakage-adjusted simulatability (Hase et al. 2020), which evaluate.py works out with it.
    python evaluate.py out/tiny                                                              writes out/tiny/predictions.jsonl
    python distill.py configs/simulator.py --data=out/tiny/predictions.jsonl                 learns its answers on 80% of the premises
    python evaluate.py out/tiny --simulator=out/simulator                                    scores on the rest"""
student = "micro"
vocabulary = "1000"  # pieces, from the predictions themselves
data = "out/tiny/predictions.jsonl"
format = "simulate"  # three tasks in equal parts: input and reason are each left out in a third of the rows
explanations = 1
lr = 1e-3
max_steps = 600
eval_every = 600  # the last weights are kept: nothing is chosen by rows that evaluate.py scores on
max_source = 192
max_target = 8
