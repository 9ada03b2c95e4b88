"""Domain adaptation on real sentences: a student of e-SNLI meets SICK (captions of pictures too, but made by rules, and without reasons).
    python distill.py configs/sick.py --student=out/small --tests="esnli SICK_corrected.tsv?label=label_current_paper" """
student = "out/small"
data = "SICK_corrected.tsv?label=label_current_paper"  # of its three columns of labels: as SICK had them, and corrected twice
format = "predict"  # there are no reasons to learn: the run tells labels alone
train_only = "decoder.*(norm|cross)|last2"  # of a deep student little moves, so that little is forgotten
lr = 3e-4
batch_size = 32
max_steps = 500
eval_every = 100
