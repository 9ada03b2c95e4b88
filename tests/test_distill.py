"""distill.py: losses against arithmetic, a window against one big batch, a killed run against an uninterrupted one, bad settings."""
import ast
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F

from data import Batch, DataError
from distill import Config, Trainer, cast, distillation_loss, read_settings
from model import T5, T5Config, read_safetensors

ROOT = pathlib.Path(__file__).parent.parent


def net(seed, width=16, dropout=0.0, vocab=30):
    torch.manual_seed(seed)
    return T5(T5Config(vocab_size=vocab, d_model=width, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=dropout,
                       feed_forward_proj="gated-gelu", tie_word_embeddings=False))  # fmt: skip


def batch(rows=4, seed=0, split=True):
    g = torch.Generator().manual_seed(seed)
    source, labels = torch.randint(2, 28, (rows, 6), generator=g), torch.randint(2, 28, (rows, 5), generator=g)
    mask = torch.arange(6)[None] < torch.randint(2, 7, (rows, 1), generator=g)
    labels[torch.arange(5)[None] >= torch.randint(2, 6, (rows, 1), generator=g)] = -100
    parts = torch.arange(5)[None].expand(rows, -1) < 1 if split else None
    return Batch(source=source * mask, source_mask=mask, labels=labels, label_tokens=parts)


def rows_of(b, *which):
    pick = torch.tensor(which)
    return Batch(b.source[pick], b.source_mask[pick], b.labels[pick], None if b.label_tokens is None else b.label_tokens[pick])


SETTINGS = dict(device="cpu", kd_weight=0.7, label_weight=1.0, rationale_weight=0.5, temperature=2.0, lr=1e-2, max_steps=50, warmup_steps=0)


def test_forward_kl_by_hand():
    """Teacher (1/2, 1/4, 1/4), student (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2 = ln 2 / 4."""
    teacher, student = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert distillation_loss(student, teacher, torch.tensor([True])).item() == pytest.approx(math.log(2) / 4)


def test_forward_kl_brute_force_gradients_padding_and_extremes():
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 3, 5, generator=g, dtype=torch.float64), torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    want = 0.0
    for b, i in mask.nonzero().tolist():
        p = [math.exp(x / 2) for x in t[b, i].tolist()]
        q = [math.exp(x / 2) for x in s[b, i].tolist()]
        want += sum(x / sum(p) * math.log((x / sum(p)) / (y / sum(q))) for x, y in zip(p, q, strict=True)) * 4 / 3
    assert distillation_loss(s, t, mask, temperature=2.0).item() == pytest.approx(want, rel=1e-5)
    assert distillation_loss(t, t, mask).item() == pytest.approx(0, abs=1e-6)
    assert distillation_loss(s, t, mask & False).item() == 0
    wide = distillation_loss(F.pad(s, (0, 0, 0, 4)), F.pad(t, (0, 0, 0, 4)), F.pad(mask, (0, 4)), temperature=2.0)
    assert wide.item() == pytest.approx(want, rel=1e-5)
    x = (s.float() * 1e4).requires_grad_()
    distillation_loss(x, -t.float() * 1e4, mask).backward()
    assert x.grad.isfinite().all()


def test_the_loss_is_its_parts_each_a_mean_of_its_own():
    student, teacher, b = net(0), net(1, width=24), batch()
    logits, taught = student(b.source, T5.shift_right(b.labels), b.source_mask), teacher(b.source, T5.shift_right(b.labels), b.source_mask)
    valid = b.labels != -100
    ce = F.cross_entropy(logits.flatten(0, 1), b.labels.flatten(), ignore_index=-100, reduction="none").view(b.labels.shape)
    kl = 4 * ((taught / 2).softmax(-1) * ((taught / 2).log_softmax(-1) - (logits / 2).log_softmax(-1))).sum(-1)
    label, reason = valid & b.label_tokens, valid & ~b.label_tokens
    want = {"label": ce[label].mean().item(), "rationale": ce[reason].mean().item(), "kd": ((kl[label].mean() + kl[reason].mean()) / 2).item()}
    told = Trainer(student, [teacher], Config(**SETTINGS)).step([b])
    for name, value in want.items():
        assert told[name] == pytest.approx(value, rel=1e-4), name
    assert told["loss"] == pytest.approx(want["label"] + 0.5 * want["rationale"] + 0.7 * want["kd"], rel=1e-4)


def after(batches, **other):
    student = net(0)
    trainer = Trainer(student, [net(1, width=24)], Config(**SETTINGS | other))
    told = trainer.step(batches)
    return told, torch.cat([p.detach().flatten() for p in student.parameters()])


def test_a_window_equals_one_big_batch_and_padding_and_copies_change_nothing():
    b = batch(6)
    told, weights = after([b])
    for other in ([rows_of(b, 0, 1), rows_of(b, 2), rows_of(b, 3, 4, 5)],
                  [Batch(F.pad(b.source, (0, 3)), F.pad(b.source_mask, (0, 3)), F.pad(b.labels, (0, 4), value=-100), F.pad(b.label_tokens, (0, 4)))],
                  [b, b]):  # fmt: skip
        again, same = after(other)
        assert again["loss"] == pytest.approx(told["loss"], rel=1e-4)
        torch.testing.assert_close(same, weights, atol=2e-4, rtol=1e-3)


def test_the_teacher_is_still_and_loss_falls():
    teacher = net(1, dropout=0.5).train()
    trainer, b = Trainer(net(0), [teacher], Config(**SETTINGS)), batch()
    before = [p.clone() for p in teacher.parameters()]
    losses = [trainer.step([b])["loss"] for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0] and not teacher.training
    assert all(torch.equal(x, y) for x, y in zip(before, teacher.parameters(), strict=True))


def test_a_batch_without_parts_is_all_label():
    told, _ = after([batch(split=False)])
    assert told["rationale"] == 0 and told["label"] > 0


COMMAND = [sys.executable, "distill.py", "configs/tiny_teacher.py", "--data=toy:600", "--student=nano", "--max_steps=24", "--eval_every=8",
           "--save_every=4", "--log_every=2", "--eval_rows=20", "--test_rows=30", "--batch_size=16"]  # fmt: skip


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run([*COMMAND, f"--out_dir={tmp_path}/a"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen([*COMMAND, f"--out_dir={tmp_path}/b"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while not (tmp_path / "b/tiny_teacher/checkpoint/state.pt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not json.loads((tmp_path / "b/tiny_teacher/run.json").read_text())["finished"]
    again = subprocess.run([*COMMAND, f"--out_dir={tmp_path}/b"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert again.returncode == 0 and "going on from step" in again.stdout, again.stderr
    a, b = (read_safetensors(tmp_path / x / "tiny_teacher/model.safetensors") for x in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [[json.loads(line)["step"] for line in (tmp_path / x / "tiny_teacher/log.jsonl").read_text().splitlines()] for x in "ab"]
    assert logs[0] == logs[1]
    differ = subprocess.run([*COMMAND, f"--out_dir={tmp_path}/b", "--lr=1"], cwd=ROOT, capture_output=True, text=True)
    assert differ.returncode == 2 and "lr is 0.001, not 1.0" in differ.stderr


def test_settings_are_cast_and_checked():
    assert cast("lr", "1") == 1.0 and cast("out_dir", "2024") == "2024" and cast("teacher_writes", "true") is True and cast("max_steps", "1e3") == 1000
    runs, origin = read_settings(["configs/tiny.py", "--temperature=1,2", "--seed=3"])
    assert [r["temperature"] for r in runs] == [1.0, 2.0] and len({r["name"] for r in runs}) == 2 and origin["seed"] == "command line"
    for key, value, says in (("kd_wieght", "1", "did you mean kd_weight"), ("lr", "fast", "not a number"), ("max_steps", "1.5", "not a whole number"),
                             ("teacher_writes", "yes", "true or false")):  # fmt: skip
        with pytest.raises(DataError, match=says):
            cast(key, value)
    for bad in (dict(kd_loss="kl"), dict(batch_size=0), dict(temperature=0.0), dict(format="both")):
        with pytest.raises(DataError, match=next(iter(bad))):
            Config(**bad)


@pytest.mark.parametrize("args, says", [
    (["configs/none.py"], "no such config file"), (["configs/tiny_teacher.py", "--max_step=3"], "did you mean max_steps"),
    (["configs/tiny_teacher.py", "--data=none.csv"], "no such file"), (["configs/tiny_teacher.py", "--student=nowhere"], "no folder here and no hub name"),
])  # fmt: skip
def test_bad_input_is_one_line_and_status_2(tmp_path, args, says):
    done = subprocess.run([sys.executable, "distill.py", *args, f"--out_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done


def test_arrows_run_downward():
    may = {"model": set(), "data": set(), "apprentice": {"model", "data"}, "evaluate": {"model", "data", "apprentice"},
           "bench": {"model", "data", "apprentice"}, "distill": {"model", "data", "apprentice", "evaluate"}}  # fmt: skip
    files = list(ROOT.glob("*.py"))
    assert {f.stem for f in files} <= set(may)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n in may and n not in may[file.stem]], file
