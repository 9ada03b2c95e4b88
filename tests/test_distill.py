"""distill.py: losses against arithmetic, a window against one big batch, a killed run against an uninterrupted one, bad settings."""
import ast
import copy
import gc
import json
import math
import operator
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import distill
from apprentice import cast, cut_student, generate
from data import LABELS, Batch, DataError, Tokenizer, read_examples, train_vocabulary
from distill import (
    KINDS,
    Config,
    Trainer,
    distillation_loss,
    linear_distillation_loss,
    main,
    prepare,
    read_config,
    read_settings,
    top_k,
    train,
)
from model import T5, CheckpointError, T5Config, read_safetensors

ROOT = pathlib.Path(__file__).parent.parent


def net(seed, width=16, dropout=0.0, vocab=30):
    torch.manual_seed(seed)
    return T5(T5Config(vocab_size=vocab, d_model=width, d_kv=8, d_ff=24, num_layers=1, num_heads=2, dropout_rate=dropout,
                       feed_forward_proj="gated-gelu", tie_word_embeddings=False))


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


LN2, LN3, TM, SM = math.log(2), math.log(3), 0.5 * math.log(8 / 5) + 0.25 * math.log(2 / 3), 0.125 * math.log(4 / 15) + 0.75 * math.log(3 / 2)
HAND = {  # teacher (4, 2, 2) / 8, student (1, 6, 1) / 8, their middle (5, 8, 3) / 16; TM, SM: KL of teacher and student to the middle
    "forward_kl": 1.25 * LN2 - 0.25 * LN3, "reverse_kl": 0.75 * LN3 - 0.375 * LN2, "jsd": (TM + SM) / 2,
    "skew_forward_kl": TM, "skew_reverse_kl": SM, "tvd": 0.5, "soft_ce": 2.75 * LN2 - 0.25 * LN3}


@pytest.mark.parametrize("kind", KINDS)
def test_three_words_by_hand(kind):
    teacher, student = torch.tensor([[4.0, 2, 2]]).log() + 5, torch.tensor([[1.0, 6, 1]]).log()
    assert distillation_loss(student, teacher, torch.tensor([True]), kind, beta=0.5, skew=0.5).item() == pytest.approx(HAND[kind], rel=1e-5)


def brute(kind, s, t, T, beta, skew):
    """One token, from the definitions over plain probabilities."""
    q, p = ([math.exp(x / T) / sum(math.exp(y / T) for y in xs) for x in xs] for xs in (s, t))
    def kl(a, b):
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
    def mix(share, a, b):
        return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]
    m = mix(beta, p, q)
    return T**2 * {"forward_kl": kl(p, q), "reverse_kl": kl(q, p), "jsd": beta * kl(p, m) + (1 - beta) * kl(q, m),
                   "skew_forward_kl": kl(p, mix(skew, p, q)), "skew_reverse_kl": kl(q, mix(skew, q, p)),
                   "tvd": 0.5 * sum(abs(x - y) for x, y in zip(p, q, strict=True)),
                   "soft_ce": -sum(x * math.log(y) for x, y in zip(p, q, strict=True))}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_its_definition_and_its_gradient_is_the_slope(kind):
    g = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 3, 5, generator=g, dtype=torch.float64), torch.randn(2, 3, 5, generator=g, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    options = dict(kind=kind, temperature=2.0, beta=0.3, skew=0.2)
    want = sum(brute(kind, s[b, i].tolist(), t[b, i].tolist(), 2.0, 0.3, 0.2) for b, i in mask.nonzero().tolist()) / 3
    assert distillation_loss(s, t, mask, **options).item() == pytest.approx(want, rel=1e-10) == distillation_loss(s, t, mask.long(), **options).item()
    with pytest.raises(ValueError, match="temperature is 0, above 0"):
        distillation_loss(s, t, mask, kind, temperature=0)
    assert torch.autograd.gradcheck(lambda x: distillation_loss(x, t, mask, **options), s.clone().requires_grad_())
    assert distillation_loss(s, t, mask & False, **options).item() == 0
    if kind != "soft_ce":
        assert distillation_loss(t, t, mask, **options).item() == pytest.approx(0, abs=1e-12)
    padded = distillation_loss(F.pad(s, (0, 0, 0, 4), value=7.0), F.pad(t, (0, 0, 0, 4)), F.pad(mask, (0, 4)), **options)
    twice = distillation_loss(s.repeat(2, 1, 1), t.repeat(2, 1, 1), mask.repeat(2, 1), **options)
    assert padded.item() == pytest.approx(want, rel=1e-10) and twice.item() == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_and_infinite_logits_stay_finite(kind):
    s = torch.tensor([[0.0, -1e4, 3.0], [1e4, 0.0, 0.0], [0.0, -math.inf, 1.0], [0.0, 1.0, 2.0]])
    t = torch.tensor([[-1e4, 0.0, 3.0], [0.0, 1e4, 0.0], [0.0, -math.inf, 1.0], [-math.inf, 1.0, -math.inf]])
    x = s.clone().requires_grad_()
    loss = distillation_loss(x, t, torch.ones(4, dtype=torch.bool), kind)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all()


def test_what_underflows_stays_exact():
    far = torch.tensor([[0.0, -500.0]])
    assert distillation_loss(far.flip(1), far, torch.tensor([True]), "forward_kl").item() == pytest.approx(500)
    assert distillation_loss(far.flip(1), far, torch.tensor([True]), "skew_forward_kl", skew=0.1).item() == pytest.approx(math.log(10))
    assert distillation_loss(far.flip(1), far, torch.tensor([True]), "jsd", beta=0.5).item() == pytest.approx(math.log(2))


def test_jsd_jumps_at_its_ends_as_trl_writes_it():
    s, t, mask = torch.randn(1, 9), torch.randn(1, 9), torch.tensor([True])
    for beta, kind in ((0, "forward_kl"), (1, "reverse_kl")):
        at, beside = (distillation_loss(s, t, mask, "jsd", beta=b).item() for b in (beta, abs(beta - 1e-4)))
        assert at == distillation_loss(s, t, mask, kind).item() and beside < 0.01 * at


@pytest.mark.parametrize("kind", KINDS)
def test_top_k_puts_the_rest_into_one_bucket(kind):
    g = torch.Generator().manual_seed(1)
    s, t, mask = torch.randn(1, 6, generator=g, dtype=torch.float64), torch.randn(1, 6, generator=g, dtype=torch.float64), torch.tensor([True])
    dense = distillation_loss(s, t, mask, kind, 2.0).item()
    assert distillation_loss(s, top_k(t, 5, 2.0), mask, kind, 2.0).item() == pytest.approx(dense)  # a bucket of one word loses nothing
    best = t[0].topk(2).indices.tolist()
    bucket = [[math.log(p) * 2 for p in (*(x[i] for i in best), sum(x[i] for i in range(6) if i not in best))]
              for x in ((z[0] / 2).softmax(-1).tolist() for z in (s, t))]
    assert distillation_loss(s, top_k(t, 2, 2.0), mask, kind, 2.0).item() == pytest.approx(brute(kind, *bucket, 2.0, 0.5, 0.1))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("upstream, expected", [((1.0, 1.0), (1.0, 1.0)), ((0.3, 0.7), (1.0, 1.0)), ((0.3, 0.7), (0.6, 1.4)), ((0.0, 1.0), (1.0, 1.0))])
def test_the_linear_loss_equals_the_plain_one_and_never_holds_all_logits(kind, upstream, expected, monkeypatch):
    g = torch.Generator().manual_seed(0)
    N, V = 300, 50
    monkeypatch.setattr(distill, "CHUNK", (128 * V, 0))
    h, w, ht, wt = (torch.randn(*shape, generator=g) for shape in ((N, 8), (V, 8), (N, 12), (V - 3, 12)))
    labels = torch.randint(0, V, (N,), generator=g).masked_fill(torch.rand(N, generator=g) < 0.1, -100)
    h.requires_grad_(), w.requires_grad_()
    logits = h @ w.T
    plain = (F.cross_entropy(logits, labels, label_smoothing=0.1), distillation_loss(logits[:, : V - 3], ht @ wt.T, labels != -100, kind, 2.0))
    want = torch.autograd.grad(upstream[0] * plain[0] + upstream[1] * plain[1], (h, w))
    with Largest() as largest:
        ours = linear_distillation_loss(h, w, ht, wt, labels, kind, 2.0, label_smoothing=0.1, weights=expected)
        got = torch.autograd.grad(upstream[0] * ours[0] + upstream[1] * ours[1], (h, w))
    assert largest.numel <= 128 * V
    for a, b in zip(ours, plain, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-5)
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()
    nothing = linear_distillation_loss(h, w, ht, wt, labels * 0 - 100, kind)
    assert [x.item() for x in nothing] == [0, 0]


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
                  [b, b]):
        again, same = after(other)
        assert again["loss"] == pytest.approx(told["loss"], rel=1e-4)
        torch.testing.assert_close(same, weights, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("rows, pieces", [(0, [1] * 6), (4, [4, 2]), (6, [6])])
def test_a_batch_too_large_for_a_cpu_is_cut_and_teaches_the_same(monkeypatch, rows, pieces):
    def counted(self, *args):
        calls.append(args[0])
        return backward(self, *args)

    b, calls, backward = replace(batch(6), weights=torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])), [], Trainer.backward
    told, weights = after([b], hidden_weight=0.3)
    monkeypatch.setattr(Trainer, "backward", counted)
    monkeypatch.setattr(distill, "HELD", rows * 16 * (b.source.shape[1] + b.labels.shape[1]))  # the student is 16 wide
    again, same = after([b], hidden_weight=0.3)
    assert [len(piece.source) for piece in calls] == pieces
    assert again == pytest.approx(told, rel=1e-4)
    torch.testing.assert_close(same, weights, atol=2e-4, rtol=1e-3)


def test_the_teacher_is_still_and_loss_falls():
    teacher = net(1, dropout=0.5).train()
    trainer, b = Trainer(net(0), [teacher], Config(**SETTINGS)), batch()
    before = [p.clone() for p in teacher.parameters()]
    losses = [trainer.step([b])["loss"] for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0] and not teacher.training
    assert all(torch.equal(x, y) for x, y in zip(before, teacher.parameters(), strict=True))


def test_bfloat16_products_tell_nearly_the_same_and_weights_stay_float32():
    full, half = (after([batch(6)], dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert all(half[0][name] == pytest.approx(full[0][name], rel=0.03) for name in ("loss", "label", "rationale", "kd")) and half[1].dtype == torch.float32
    assert half[0]["loss"] != full[0]["loss"]


def test_a_batch_without_parts_is_all_label():
    told, _ = after([batch(split=False)])
    assert told["rationale"] == 0 and told["label"] > 0


# --- every teacher, every student -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two T5 teachers of one vocabulary with random weights, a third of another vocabulary, and a file of someone's rationales."""
    root = tmp_path_factory.mktemp("world")
    rows = read_examples("toy:80", "train")
    train_vocabulary((text for e in rows for text in (e.premise, e.hypothesis, *e.explanations)), root / "spiece.model", 300)
    train_vocabulary((e.premise for e in rows), root / "other.model", 200)
    for name, seed, vocabulary in (("a", 1, "spiece.model"), ("b", 2, "spiece.model"), ("c", 3, "other.model")):
        torch.manual_seed(seed)
        size = T5Config(vocab_size=Tokenizer(root / vocabulary).vocab_size, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2, dropout_rate=0.0,
                        feed_forward_proj="gated-gelu", tie_word_embeddings=False)
        T5(size).save_pretrained(root / name)
        shutil.copy(root / vocabulary, root / name / "spiece.model")
    wrong = {"entailment": "neutral", "neutral": "contradiction", "contradiction": "entailment"}
    secret = read_examples("toy", "test", 1)
    lines = [{"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": e.label if i % 4 else wrong[e.label], "rationale": "it is so.",
              "source": "someone"} for i, e in enumerate(rows + secret)]
    (root / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def settings(world, tmp_path, **other):
    return Config(**dict(student="nano", data="toy:80", device="cpu", out_dir=str(tmp_path), name="run", batch_size=8, lr=3e-3, warmup_steps=0, max_steps=400,
                         vocabulary=str(world / "spiece.model"), eval_rows=8, max_target=24) | other)


def first_lessons(parts, count=2):
    return [batch for i in range(count) for batch in parts[3](list(range(8 * i, 8 * i + 8)))]


TEACHERS = {"one": "a", "hidden states": "a@2+b", "two, fixed": "a@3+b", "two, by confidence": "a+b", "cached": "a", "on policy": "a",
            "and a file": "a+words.jsonl"}
STUDENTS = {"size": dict(student="nano"), "shape": dict(student="nano", student_layers=1, student_width=32), "cut": dict(student="cut", student_layers=2),
            "folder": dict(student="b"), "selective": dict(student="b", train_only="last1|norm"), "LoRA": dict(student="b", lora_rank=2)}


@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_loss_with_every_teacher_and_student(world, tmp_path, teacher, student):
    chosen = {k: str(world / v) if v == "b" else v for k, v in STUDENTS[student].items()}
    extra = {"hidden states": {"hidden_weight": 0.5, "schedule": "kd_weight:0.5"}, "cached": {"teacher_cache": str(tmp_path / "cache")},
             "on policy": {"on_policy": 1.0}, "two, by confidence": {"teacher_mix": "confidence"}}
    names = "+".join(str(world / name) for name in TEACHERS[teacher].split("+"))
    parts = prepare(settings(world, tmp_path, teacher=names, kd_weight=1.0, lr=2e-3, max_target=12, format="label_then_rationale", **chosen,
                             **extra.get(teacher, {})))
    trainer, batches = parts[0], parts[3]([0, 1, 2])
    start = copy.deepcopy(trainer.state_dict())
    for kind in KINDS:
        trainer.config = replace(trainer.config, kd_loss=kind)
        trainer.load_state_dict(copy.deepcopy(start))  # each loss from the same weights
        losses = [trainer.step(batches)["loss"] for _ in range(2)]
        assert all(map(math.isfinite, losses)) and (teacher == "on policy" or losses[-1] < losses[0]), (kind, losses)


def test_illegal_combinations_say_why(world, tmp_path):
    with pytest.raises(DataError, match="another vocabulary.*hidden_weight to 0 and teacher_writes"):
        prepare(settings(world, tmp_path, teacher=str(world / "c"), kd_weight=1.0))
    with pytest.raises(DataError, match="student_layers is 5, but the teacher has 3"):
        prepare(settings(world, tmp_path, teacher=str(world / "a"), student="cut", student_layers=5))
    with pytest.raises(DataError, match="names no parameter"):
        prepare(settings(world, tmp_path, train_only="nowhere"))
    for bad in (dict(on_policy=0.5), dict(student="x/y", student_width=8), dict(student="x/y", student_layers=2), dict(label_weight=0.0, rationale_weight=0.0),
                dict(teacher_cache="x", on_policy=0.5, kd_weight=1.0), dict(teacher_cache="x", hidden_weight=1.0, teacher="a"),
                dict(teacher_cache="x", word_dropout=0.1, kd_weight=1.0, teacher="a"), dict(schedule="kd:1"), dict(hypothesis_only=2.0),
                dict(format="predict", label_weight=0.0),
                dict(word_dropout=1.0), dict(teacher_temperature=1.0, teacher_beams=2, teacher="a", teacher_writes="all"), dict(label_weight=1e39),
                dict(schedule="label_weight:" + "9" * 40), dict(teacher="x.jsonl@0"), dict(teacher_writes="rest", teacher="a")):
        with pytest.raises(DataError, match=next(iter(bad))):
            Config(**bad)
    with pytest.raises(DataError, match="need a T5 as the teacher"):
        main(["configs/tiny_teacher.py", "--kd_weight=1", f"--teacher={world / 'words.jsonl'}"])


def test_a_start_that_failed_leaves_no_vocabulary_behind(world, tmp_path):
    config = settings(world, tmp_path, vocabulary=str(world / "other.model"), teacher="nowhere.jsonl", max_steps=1)
    with pytest.raises(DataError, match="no such file"):
        train(config, {})
    folder = train(replace(config, vocabulary=str(world / "spiece.model"), teacher=""), {})
    assert (folder / "spiece.model").read_bytes() == (world / "spiece.model").read_bytes()
    for _ in range(2):
        with pytest.raises(DataError, match="holds another run: its vocabulary"):
            train(config, {})
        (folder / "log.jsonl").unlink(missing_ok=True)


def test_a_cut_student_has_evenly_spaced_layers_of_its_teacher():
    torch.manual_seed(0)
    teacher = T5(T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=5, num_decoder_layers=3, num_heads=2))
    student = cut_student(teacher, 2)
    assert student.config.num_layers == student.config.num_decoder_layers == 2
    theirs = dict(teacher.named_parameters())
    for name, p in student.named_parameters():
        for mine, his in (("encoder.blocks.1", "encoder.blocks.4"), ("decoder.blocks.1", "decoder.blocks.2")):
            name = name.replace(mine, his)
        assert torch.equal(p, theirs[name]), name


def test_only_what_a_pattern_names_learns():
    for pattern, learns in (("decoder|norm", lambda n: n.startswith("decoder") or "norm" in n),
                            ("^(?!shared|lm_head)", lambda n: n[:6] not in ("shared", "lm_hea")),
                            ("last1", lambda n: ".blocks.0" in n)):
        student = net(0)
        before = {n: p.clone() for n, p in student.named_parameters()}
        trainer = Trainer(student, [net(1)], Config(**SETTINGS | dict(train_only=pattern, weight_decay=0.1)))
        trainer.step([batch()])
        moved = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
        assert moved == {n for n in before if learns(n)}, pattern


@pytest.mark.parametrize("grad_clip", [1e-3, 1e6])
def test_an_update_is_adamw_s_of_clipped_gradients(grad_clip):
    """Clipping is left to the optimiser's fused step; here it is done by PyTorch's function, in float64, before a plain AdamW."""
    student = net(0)
    trainer = Trainer(student, [net(1)], Config(**SETTINGS | dict(grad_clip=grad_clip, weight_decay=0.1)))
    twins = [torch.nn.Parameter(p.detach().double().clone()) for p in trainer.learning]
    other = torch.optim.AdamW([{"params": [p for p in twins if (p.dim() > 1) == matrix], "weight_decay": 0.1 * matrix} for matrix in (True, False)],
                              betas=(0.9, 0.99))
    step = trainer.optimizer.step

    def both():
        for twin, p in zip(twins, trainer.learning, strict=True):
            twin.grad = p.grad.double()
        other.param_groups[0]["lr"] = other.param_groups[1]["lr"] = trainer.optimizer.param_groups[0]["lr"]
        norms.append(float(torch.nn.utils.clip_grad_norm_(twins, grad_clip)))
        step()
        other.step()

    trainer.optimizer.step, norms = both, []
    told = [trainer.step([batch()])["grad_norm"] for _ in range(3)]
    assert told == pytest.approx(norms, rel=1e-5) and 1e-3 < min(norms) < 1e6
    for twin, p in zip(twins, trainer.learning, strict=True):
        torch.testing.assert_close(p.detach().double(), twin.detach(), rtol=1e-4, atol=1e-6)


def test_lora_moves_each_matrix_by_the_gradient_of_its_factors():
    student, b = net(0), batch()
    trainer = Trainer(student, [], Config(**SETTINGS | dict(kd_weight=0.0, lora_rank=2, lora_alpha=6.0, weight_decay=0.0, grad_clip=1e9)))
    before = {n: p.clone() for n, p in student.named_parameters()}
    for _ in range(3):
        trainer.step([b])
    names = [n for n, p in before.items() if p.dim() == 2 and ".blocks." in n]
    assert {n for n, p in student.named_parameters() if not torch.equal(p, before[n])} == set(names)
    A, B = ([x.detach().clone().requires_grad_() for x in xs] for xs in (trainer.lora.A, trainer.lora.B))
    merged = before | {n: before[n] + 3.0 * b_ @ a for n, a, b_ in zip(names, A, B, strict=True)}
    for n, p in student.named_parameters():  # the network holds the sum
        torch.testing.assert_close(p.detach(), merged[n].detach())
    logits = torch.func.functional_call(student, merged, (b.source, T5.shift_right(b.labels), b.source_mask))
    valid, label = b.labels != -100, (b.labels != -100) & b.label_tokens
    ce = F.cross_entropy(logits.flatten(0, 1), b.labels.flatten(), ignore_index=-100, reduction="none").view(b.labels.shape)
    want = torch.autograd.grad(ce[label].mean() + 0.5 * ce[valid & ~label].mean(), (*A, *B))
    got = []
    trainer.optimizer.step = lambda: got.extend(p.grad.clone() for p in trainer.learning)
    trainer.step([b])
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-6)


ROADS = [dict(kd_weight=0.0), dict(kd_loss="jsd", temperature=2.0), dict(hidden_weight=1.0), dict(teacher="A+B", teacher_mix="confidence"),
         dict(lora_rank=2), dict(train_only="decoder", schedule="kd_weight:0"), dict(label_smoothing=0.1, on_policy=1.0)]


def walk(device, static, road, vocab=30, autocast="float32"):
    """Four updates of two micro-batches each, with weights of rows -> (what they told, the student's weights, the trainer)"""
    torch.manual_seed(1)
    teachers = [net(i + 1, width=24, vocab=vocab) for i in range(2 if "+" in road.get("teacher", "") else 1)]
    student = net(0, vocab=vocab)
    torch.manual_seed(2)
    trainer = Trainer(student, teachers, Config(**SETTINGS | dict(device=device, teacher="A", dtype=autocast, max_target=7) | road))
    for A in trainer.lora.A if trainer.lora else ():  # a GPU draws other numbers
        A.data.copy_(torch.randn(A.shape))
    if static and device == "cpu":
        trainer.records = {}
        for p in trainer.graded:
            p.grad = torch.zeros_like(p)
    told, given = [], [replace(batch(seed=seed, split=True), weights=torch.tensor([1.0, 0.5, 2.0, 1.0])) for seed in range(2)]
    for _ in range(4):
        told.append(trainer.step(given))
    return told, {name: p.detach().cpu() for name, p in student.named_parameters()}, trainer


def alike(one, other, share=1e-5):
    for x, y in zip(one[0], other[0], strict=True):
        assert x.keys() == y.keys() and all(abs(x[k] - y[k]) <= share * (1 + abs(x[k])) for k in x), (x, y)
    for name, p in one[1].items():
        torch.testing.assert_close(p, other[1][name], rtol=1e-3, atol=100 * share)


@pytest.mark.parametrize("road", ROADS)
def test_a_step_of_unchanging_shape_teaches_what_the_other_teaches(road, monkeypatch):
    """What a GPU records, padding and all, on a CPU and without a recording."""
    monkeypatch.setattr("distill.Recorded", lambda function, device: function)
    alike(walk("cpu", False, road), walk("cpu", True, road))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
@pytest.mark.parametrize("road, vocab", [*((road, 30) for road in ROADS if "on_policy" not in road), (ROADS[1], 9000), (ROADS[3], 9000)])
def test_gpu_a_recorded_step_teaches_what_a_cpu_teaches(road, vocab):
    """With 9,000 words the losses are compiled."""
    here, there = walk("cpu", False, road, vocab), walk("cuda", True, road, vocab)
    alike(here, there, 1e-4)
    assert all("replay" in repr(work.graphs[()]) for _, work in there[2].records.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
def test_gpu_the_compiled_linear_loss_equals_the_plain_one():
    torch.manual_seed(0)
    h, w, ht, wt = (torch.randn(*s, device="cuda").requires_grad_() for s in ((700, 24), (9000, 24), (700, 32), (9000, 32)))
    labels = torch.randint(9000, (700,), device="cuda").index_fill_(0, torch.arange(0, 700, 9, device="cuda"), -100)
    for kind in ("jsd", "tvd"):
        ours = linear_distillation_loss(h, w, ht, wt, labels, kind, 2.0, label_smoothing=0.1)
        a, b = h @ w.T, (ht @ wt.T).detach()
        plain = F.cross_entropy(a, labels, label_smoothing=0.1), distillation_loss(a, b, labels != -100, kind, 2.0)
        for x, y in zip(ours, plain, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        for x, y in zip(torch.autograd.grad(sum(ours), (h, w)), torch.autograd.grad(sum(plain), (h, w)), strict=True):
            assert (x - y).norm() <= 1e-4 * y.norm(), kind
    assert distill.COMPILED[0] is not distill.with_gradient


def test_a_cache_holds_the_teachers_words_is_asked_once_and_knows_strangers(world, tmp_path):
    config = settings(world, tmp_path, teacher=str(world / "a"), kd_weight=1.0, teacher_cache=str(tmp_path / "cache"), top_k=5, temperature=2.0)
    parts = prepare(config)
    cached, batches = parts[0].teachers[0], first_lessons(parts)
    asked, live = [], cached.live
    cached.live = lambda: asked.append(1) or live()
    model = T5.from_pretrained(world / "a")
    for b in batches + batches:
        valid = b.labels != -100
        found = cached(b, operator.itemgetter(valid))(slice(None))
        logits = model(b.source, T5.shift_right(b.labels), b.source_mask)[valid][:, : parts[1].vocab_size]
        want = top_k(logits, 5, 2.0)
        torch.testing.assert_close(found.log_probs, want.log_probs, rtol=0, atol=4e-3)
        assert (found.ids == want.ids).float().mean() > 0.99
    assert len(asked) == len(batches)
    again = prepare(replace(config, name="again", seed=2))[0].teachers[0]  # another run goes on with the same file
    again.live = None
    again(batches[0], batches[0].labels != -100)
    shutil.copytree(world / "b", tmp_path / "new" / "a")  # another teacher whose folder has the same name
    strangers = (dict(temperature=1.0), dict(data="toy:90"), dict(format="predict"), dict(top_k=6), dict(teacher=str(tmp_path / "new" / "a")))
    for i, other in enumerate(strangers, start=2):
        apart = prepare(replace(config, name="other", **other))[0].teachers[0]
        assert len(list((tmp_path / "cache").iterdir())) == i and not apart.table.any(), "what one says is not what another is taken to say"


def test_teachers_are_mixed_by_weight_or_by_how_well_each_foretells_the_example():
    student, a, b, x = net(0), net(1), net(2), batch(3)
    valid = x.labels != -100
    logits, *taught = (m(x.source, T5.shift_right(x.labels), x.source_mask) for m in (student, a, b))
    kl = [(t.softmax(-1) * (t.log_softmax(-1) - logits.log_softmax(-1))).sum(-1) for t in taught]
    sure = []
    for t in taught:
        lp = t.log_softmax(-1).gather(-1, x.labels.clamp(min=0)[..., None])[..., 0]
        sure.append([lp[i][valid[i]].mean().item() for i in range(3)])
    trust = {"fixed": [[0.75] * 3, [0.25] * 3],
             "confidence": [[3 * math.exp(p) / (3 * math.exp(p) + math.exp(q)) for p, q in zip(*sure, strict=True)],
                            [math.exp(q) / (3 * math.exp(p) + math.exp(q)) for p, q in zip(*sure, strict=True)]]}
    for how, weights in trust.items():
        config = Config(**SETTINGS | dict(temperature=1.0, teacher="a@3+b", teacher_mix=how))
        told = Trainer(net(0), [net(1), net(2)], config).step([x])
        want = 0.0
        for part in (valid & x.label_tokens, valid & ~x.label_tokens):
            want += sum((kl[k] * torch.tensor(weights[k])[:, None])[part].sum().item() for k in range(2)) / part.sum().item() / 2
        assert told["kd"] == pytest.approx(want, rel=1e-4), how
        assert told["kd a"] == pytest.approx(sum(kl[0][m].mean().item() for m in (valid & x.label_tokens, valid & ~x.label_tokens)) / 2, rel=1e-4)


@pytest.mark.parametrize("width", [16, 24])
def test_hidden_states_are_matched_layer_by_layer(width):
    """Against a slow twin that runs the stacks by hand; a student of two layers learns from layers 2 and 4 of four."""
    def deep(seed, layers, width):
        torch.manual_seed(seed)
        return T5(T5Config(vocab_size=30, d_model=width, d_kv=8, d_ff=24, num_layers=layers, num_decoder_layers=layers // 2, num_heads=2, dropout_rate=0.0))

    def states(model, b):
        found, memory = [], model.encode(b.source, b.source_mask)
        for stack, tokens, mask in ((model.encoder, b.source, b.source_mask[:, None, None]),
                                    (model.decoder, T5.shift_right(b.labels), torch.ones(b.labels.shape[1], b.labels.shape[1]).tril().bool())):
            x, bias = model.shared(tokens), stack.position_bias(tokens.shape[1]).masked_fill(~mask, -math.inf)
            other = torch.zeros(len(b.source), 1, 1, b.source.shape[1]).masked_fill(~b.source_mask[:, None, None], -math.inf)
            found.append([])
            for block in stack.blocks:
                x = block(x, bias) if stack is model.encoder else block(x, bias, memory, other)
                found[-1].append(x / x.square().mean(-1, keepdim=True).sqrt() if model is teacher else x)
        return found

    student, teacher, b = deep(0, 2, 16), deep(1, 4, width), batch(6)
    config = Config(**SETTINGS | dict(kd_weight=0.0, hidden_weight=0.7))
    trainer = Trainer(student, [teacher], config)
    valid, want = b.labels != -100, []
    for mine, theirs, mask, pairs in zip(states(student, b), states(teacher, b), (b.source_mask, valid), (((0, 1), (1, 3)), ((0, 1),)), strict=True):
        for m, n in pairs:
            x = trainer.projections[0](mine[m])
            gaps = (x / x.square().mean(-1, keepdim=True).sqrt() - theirs[n]).square().mean(-1)
            parts = (mask,) if mask is b.source_mask else (valid & b.label_tokens, valid & ~b.label_tokens)  # label and reason count alike
            want.append(sum(gaps[part].mean() for part in parts).item() / len(parts) / len(pairs) / 2)
    weights = copy.deepcopy(trainer.state_dict())
    told = trainer.step([b])
    assert told["hidden"] == pytest.approx(sum(want), rel=1e-4)
    assert told["loss"] == pytest.approx(told["label"] + 0.5 * told["rationale"] + 0.7 * sum(want), rel=1e-4)
    after_one = [p.clone() for p in trainer.moving]
    assert (width == 16) == (not len(list(trainer.projections.parameters())))
    trainer.load_state_dict(weights)
    again = trainer.step([rows_of(b, 0, 1), rows_of(b, 2), rows_of(b, 3, 4, 5)])
    assert again["hidden"] == pytest.approx(told["hidden"], rel=1e-4)
    for x, y in zip(trainer.moving, after_one, strict=True):
        torch.testing.assert_close(x, y, atol=2e-4, rtol=1e-3)
    same = Trainer(copy.deepcopy(teacher), [teacher], config).step([b])
    assert same["hidden"] == pytest.approx(0, abs=1e-9), "a copy has nothing to learn"
    states = {"encoder": [torch.randn(6, b.source.shape[1], 8) for _ in range(2)], "decoder": [torch.randn(6, b.labels.shape[1], 8) for _ in range(2)]}
    trainer.teachers[0].states, trainer.projections = states, torch.nn.ModuleList([torch.nn.Identity()])
    twice = {stack: [theirs[0], theirs[0], theirs[1], theirs[1]] for stack, theirs in states.items()}
    count = torch.tensor(1.0)
    assert trainer.hidden_distance(twice, b.source_mask, valid, count, count).item() == pytest.approx(0, abs=1e-9), "a deeper one begins with the first"


def test_words_are_dropped_others_each_time_and_hypotheses_stand_alone(world, tmp_path):
    whole = prepare(settings(world, tmp_path, name="whole"))[3]([0])[0].source[0].tolist()
    parts = prepare(settings(world, tmp_path, word_dropout=0.4, hypothesis_only=0.25, format="predict"))
    seen = [parts[3]([0])[0].source[0].tolist() for _ in range(50)]
    assert all(row[-1] == 1 and (left := iter(whole)) and all(x in left for x in row) for row in seen), "in order, and </s> stays"
    assert 0.5 < sum(map(len, seen)) / 50 / len(whole) < 0.7 and len(set(map(tuple, seen))) > 40
    assert len(parts[2]) == 80 + 20
    last = prepare(settings(world, tmp_path, name="last", hypothesis_only=0.25, format="predict"))[3](list(range(80, 100)))[0]
    prefix = parts[1].encode("predict: premise: hypothesis:")[:-1]
    assert all(row[: len(prefix)].tolist() == prefix for row in last.source)
    assert {parts[1].decode(row[row >= 0].tolist()) for row in last.labels} == {"neutral"}


def test_a_teacher_writes_by_drawing_the_same_words_for_the_same_seed(world, tmp_path):
    texts, teacher = [], shutil.copytree(world / "a", tmp_path / "teacher")
    (teacher / "run.json").write_text('{"settings": {"format": "multitask"}}')
    for name, seed, T in (("x", 1, 1.0), ("y", 1, 1.0), ("z", 2, 1.0), ("greedy", 1, 0.0)):
        prepare(settings(world, tmp_path, name=name, seed=seed, teacher=str(teacher), teacher_writes="rest", labelled_rows=5, teacher_temperature=T,
                         data="toy:12", format="rationale_then_label"))
        texts.append((tmp_path / name / "teacher.jsonl").read_text())
    assert texts[0] == texts[1] and len(set(texts)) == 3
    shutil.copy(world / "b" / "model.safetensors", teacher)  # what other weights wrote is not learnt in their place
    prepare(settings(world, tmp_path, name="z", seed=2, teacher=str(teacher), teacher_writes="rest", labelled_rows=5, teacher_temperature=1.0,
                     data="toy:12", format="rationale_then_label"))
    assert (tmp_path / "z" / "teacher.jsonl").read_text() not in texts
    with pytest.raises(DataError, match="none of what"):  # random weights name no label
        prepare(settings(world, tmp_path, name="all", teacher=str(world / "a"), teacher_writes="all", data="toy:12"))


def test_what_must_fail_is_told_before_anything_is_trained(world, tmp_path):
    for a, b in ("xy", "yx"):
        (tmp_path / f"{a}.py").write_text(f"student = 'nano'\nvocabulary = '300'\nteacher = {str(tmp_path / f'{b}.py')!r}\nkd_weight = 1.0\n")
    with pytest.raises(DataError, match="which of them is to be trained first"):
        main([str(tmp_path / "x.py"), f"--out_dir={tmp_path / 'out'}"])
    with pytest.raises(DataError, match="names no parameter"):
        main(["configs/tiny.py", "--train_only=nowhere", f"--out_dir={tmp_path / 'out'}"])
    for teacher, says in (("configs/tiny_teacher.py+nowhere", "'nowhere' is no folder here"), ("configs/tiny_teacher.py+nowhere.jsonl", "no such file"),
                          (str(world / "a"), "a would be overwritten by this run")):
        with pytest.raises((DataError, CheckpointError), match=says):
            main(["configs/tiny.py", f"--teacher={teacher}", f"--out_dir={tmp_path / 'out' if 'no' in teacher else world}", "--name=a"])
    with pytest.raises(DataError, match="would be overwritten"):
        main(["configs/tiny.py", "--teacher=", "--kd_weight=0", "--teacher_writes=none", f"--student={world / 'b'}", f"--out_dir={world}", "--name=b"])
    with pytest.raises(DataError, match="a tells labels alone; format=rationale_then_label learns reasons too: set format=predict"):
        main(["configs/tiny.py", "--kd_weight=0", "--teacher_writes=all", f"--teacher={world / 'a'}", f"--out_dir={tmp_path / 'out'}"])
    for format in ("predict", "instruction"):
        (shutil.copytree(world / "a", tmp_path / format) / "run.json").write_text(json.dumps({"settings": {"format": format}}))
        with pytest.raises(DataError, match=f"{format} tells labels alone"):
            main(["configs/tiny.py", "--kd_weight=0", "--teacher_writes=all", f"--teacher={tmp_path / format}", f"--out_dir={tmp_path / 'out'}"])
    (tmp_path / "dumb.py").write_text("student = 'nano'\nvocabulary = '300'\nformat = 'predict'\n")
    with pytest.raises(DataError, match="dumb.py tells labels alone"):
        main(["configs/tiny.py", "--kd_weight=0", "--teacher_writes=all", f"--teacher={tmp_path / 'dumb.py'}", f"--out_dir={tmp_path / 'out'}"])
    rows = [json.dumps({"premise": f"a{i}", "hypothesis": "b", "label": "neutral", "split": split}) for i, split in enumerate(("train", "test"))]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match="no labelled validation rows"):
        main(["configs/tiny.py", f"--data={tmp_path / 'rows.jsonl'}", f"--out_dir={tmp_path / 'out'}"])
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, rows[0].replace("train", "validation")]))
    with pytest.raises(DataError, match="no training row of .*rows.jsonl has a label and a rationale, which format=rationale_then_label needs"):
        main(["configs/tiny.py", f"--data={tmp_path / 'rows.jsonl'}", f"--out_dir={tmp_path / 'out'}"])
    (tmp_path / "one.py").write_text("student = 'nano'\nvocabulary = '300'\n")
    with pytest.raises(DataError, match="one.py would be trained in .*one, where this run itself stands"):
        main(["configs/tiny.py", f"--teacher={tmp_path / 'one.py'}", "--name=one", f"--out_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()
    small = dict(student="nano", data="toy:80", device="cpu", name="one", out_dir=str(tmp_path), max_steps=1, batch_size=8, eval_rows=2,
                 vocabulary=str(world / "spiece.model"))
    shutil.copy(world / "words.jsonl", said := tmp_path / "said.jsonl")
    train(one := Config(**small, teacher=str(said)), {})
    said.unlink()
    distill.check(one)  # it is finished, and needs what it learnt from no more
    with pytest.raises(DataError, match="one holds another run: its max_steps is 1, not 2"):
        distill.check(replace(one, max_steps=2))
    way = dict(teacher=str(world / "a"), teacher_writes="all", format="predict")
    for how, says in ((dict(train_only="nowhere", student=str(world / "b")), "names no parameter"),
                      (dict(kd_weight=1.0, teacher=str(world / "c")), "c has another vocabulary")):
        with pytest.raises(DataError, match=says):
            prepare(replace(one, name="two", **way | how))
        assert not (tmp_path / "two" / "teacher.jsonl").exists(), "a teacher writes for hours"
    distill.check(replace(one, baselines={"more": {}}))
    (tmp_path / "own.py").write_text("student = 'a start that is there no more'")
    shutil.copytree(world / "b", tmp_path / "own")
    for student in ({"student": str(tmp_path / "own.py")}, {"student": "cut", "student_layers": 1, "teacher": str(tmp_path / "own.py")}):
        assert distill.form_of(replace(one, name="two", **way | student), ()).config.d_model == T5.from_pretrained(world / "b").config.d_model
    for how, says in ((dict(train_only="nowhere", student=str(world / "b")), "names no parameter"),
                      (dict(student="cut", student_layers=9, teacher=str(world / "a")), "student_layers is 9")):
        with pytest.raises(DataError, match=says):
            distill.check(replace(one, name="two", **way | how))
    distill.check(replace(one, name="two", teacher="", student=str(tmp_path / "to come")), made=[tmp_path / "to come"])
    with pytest.raises(CheckpointError, match="to come"):
        distill.check(replace(one, name="two", teacher="", student=str(tmp_path / "to come")))


def test_on_policy_a_head_with_more_rows_than_words_trains():
    trainer = Trainer(net(0), [net(1)], Config(**SETTINGS | dict(on_policy=1.0, max_target=7)), vocab_size=20)
    for seed in range(5):
        small = batch(seed=seed)
        small.source.remainder_(20)
        assert trainer.own_words(small).labels.max() < 20
        assert math.isfinite(trainer.step([small])["loss"])


def test_a_checkpoint_with_fewer_words_than_its_vocabulary_is_told(world, tmp_path):
    net(1, vocab=40).save_pretrained(tmp_path / "few")
    shutil.copy(world / "spiece.model", tmp_path / "few")
    for way in (dict(student=str(tmp_path / "few"), vocabulary=""), dict(teacher=str(tmp_path / "few"), kd_weight=1.0),
                dict(teacher=str(tmp_path / "few"), kd_weight=1.0, teacher_cache=str(tmp_path / "cache"))):
        with pytest.raises(DataError, match="few: its config.json has 40 words, its spiece.model"):
            prepare(settings(world, tmp_path / "out", **way))


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b""), lambda path: torch.save([1], path), lambda path: torch.save({"best": 1.0}, path)])
def test_a_damaged_state_is_told(world, tmp_path, spoil):
    config = settings(world, tmp_path, max_steps=4, eval_every=4, save_every=2)
    state = config.folder / "checkpoint" / "state.pt"
    state.parent.mkdir(parents=True)
    spoil(state)
    with pytest.raises(DataError, match="state.pt is damaged .*: delete it"):
        distill.train(config, {})


def stopped(config, monkeypatch, at=2):
    """Train a run up to a step; -> its folder"""
    step = Trainer.step
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Trainer, "step", lambda self, batches: step(self, batches) if self.steps < at else refuse(KeyboardInterrupt()))
        train(config, {})
    return config.folder


def refuse(error):
    raise error


def test_a_stopped_run_goes_on_where_there_is_no_gpu_and_with_what_it_learnt_from_alone(world, tmp_path, monkeypatch):
    """A state that was saved on a GPU is read on a CPU; other rows or another teacher under the same names are told."""
    data, teacher = tmp_path / "rows.jsonl", tmp_path / "teacher"
    lines = [json.dumps({"premise": e.premise, "hypothesis": e.hypothesis, "label": e.label, "rationale": "so.", "split": split}) + "\n"
             for split in ("train", "validation") for e in read_examples("toy:80", split)[:40]]
    data.write_text("".join(lines))
    shutil.copytree(world / "a", teacher)
    config = settings(world, tmp_path, data=str(data), teacher=str(teacher), kd_weight=1.0, max_steps=4, eval_every=4, save_every=1)
    with monkeypatch.context() as m:
        m.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        folder = stopped(config, monkeypatch)
    data.write_text("".join(lines[1:]))
    with pytest.raises(DataError, match="run has learnt from other rows or another teacher than there are now"):
        train(config, {})
    data.write_text("".join(lines))
    shutil.copy(world / "b" / "model.safetensors", teacher)
    with pytest.raises(DataError, match="other rows or another teacher"):
        train(config, {})
    shutil.copy(world / "a" / "model.safetensors", teacher)
    with monkeypatch.context() as m, pytest.raises(torch.OutOfMemoryError):  # is no damage
        m.setattr("torch.load", lambda *args, **how: refuse(torch.OutOfMemoryError("CUDA out of memory")))
        train(config, {})
    train(config, {})
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 4 and json.loads((folder / "run.json").read_text())["finished"]
    shutil.copytree(folder, folder / "checkpoint")  # as of a run that was killed right after its end
    assert train(replace(config, device="auto"), {}) == folder and not (folder / "checkpoint").exists(), "where it was made is no matter once it is"


def test_ctrl_c_while_a_state_is_written_is_no_full_disk(world, tmp_path, monkeypatch):
    config = settings(world, tmp_path, max_steps=4, eval_every=4, save_every=1)
    fsync = os.fsync

    def save(state, file):
        try:
            refuse(KeyboardInterrupt())
        finally:  # as torch's writer, which then can't end its file
            refuse(RuntimeError("unexpected pos 17118 vs 0"))

    for error, raised in ((save, KeyboardInterrupt), (lambda state, file: refuse(RuntimeError("unexpected pos")), OSError)):
        with monkeypatch.context() as m, pytest.raises(raised):
            m.setattr("torch.save", error)
            train(config, {})
    assert os.fsync is fsync and train(config, {}) == config.folder


def test_a_recorded_step_keeps_no_trainer_alive(monkeypatch):
    monkeypatch.setattr(distill, "Recorded", lambda function, device: function)
    trainer = Trainer(net(0), [net(1)], Config(**SETTINGS))
    trainer.records = {}
    for p in trainer.graded:
        p.grad = torch.zeros_like(p)
    trainer.step([batch()])
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None, "its memory on the GPU goes at once, not when somebody collects"
    finally:
        gc.enable()


def test_runs_beside_this_one_have_no_name_of_their_own(tmp_path):
    for beside in ({"a": {"name": "b"}}, {"a": {"baselines": {}}}):
        (tmp_path / "x.py").write_text(f"baselines = {beside}")
        with pytest.raises(DataError, match="baselines is .*; a run beside this one has neither name"):
            main([str(tmp_path / "x.py"), f"--out_dir={tmp_path / 'out'}"])


def test_whole_numbers_keep_all_their_digits():
    assert cast("seed", "9007199254740993", {"seed": 1}) == 2**53 + 1 and cast("seed", str(2**63 - 1), {"seed": 1}) == 2**63 - 1
    assert cast("seed", "1e3", {"seed": 1}) == 1000
    for value in (None, 1j, "1.5", "²", [1]):
        with pytest.raises(DataError, match="seed is .*not a whole number"):
            cast("seed", value, {"seed": 1})


def test_on_policy_the_student_writes_and_only_the_teacher_judges():
    torch.manual_seed(5)
    student, teacher, b = net(0), net(1), batch()
    trainer = Trainer(student, [teacher], Config(**SETTINGS | dict(on_policy=1.0, max_target=7, temperature=1.0)))
    before, seen = trainer.own_words, []
    trainer.own_words = lambda batch: seen.append(before(batch)) or seen[-1]
    untaught = {n: p.clone() for n, p in student.named_parameters()}
    told = trainer.step([b])
    (own,) = seen
    assert own.labels.shape[1] <= 7 and all(row[row != -100][-1] == 1 for row in own.labels) and not torch.equal(own.labels, b.labels)
    logits = torch.func.functional_call(student, untaught, (own.source, T5.shift_right(own.labels), own.source_mask))
    taught = teacher(own.source, T5.shift_right(own.labels), own.source_mask)
    want = distillation_loss(logits, taught, own.labels != -100).item()
    assert before(replace(b, weights=torch.ones(len(b.source)) / 2)).weights.tolist() == [0.5] * len(b.source), "rows count as they did"
    assert told["kd"] == pytest.approx(want, rel=1e-4) and told["loss"] == pytest.approx(0.7 * want, rel=1e-4)
    assert (told["label"], told["rationale"]) == (0, 0), "neither has a say in the student's own words"


@pytest.mark.parametrize("way", [dict(lora_rank=2), dict(on_policy=0.5, max_target=6), dict(train_only="decoder")])
def test_every_way_of_learning_goes_on_to_the_same_bits(way):
    def trainer(seed):
        return Trainer(net(seed, dropout=0.2), [net(1)], Config(**SETTINGS | way))

    torch.manual_seed(0)
    whole, b = trainer(0), batch()
    for _ in range(3):
        whole.step([b])
    state = copy.deepcopy(whole.state_dict())
    want = [whole.step([b]) for _ in range(3)]
    part = trainer(7)  # other weights, which the state replaces
    part.load_state_dict(state)
    assert [part.step([b]) for _ in range(3)] == want
    assert all(torch.equal(x, y) for x, y in zip(whole.student.parameters(), part.student.parameters(), strict=True))


def test_what_is_written_between_steps_is_of_the_weights_as_they_are():
    """Generation packs weights, and a fused optimiser changes them without a sign."""
    b, fresh = batch(), net(7)
    trainer = Trainer(net(0), [], Config(**SETTINGS | dict(kd_weight=0.0, lr=0.5)))
    for _ in range(3):
        trainer.step([b])
        fresh.load_state_dict(trainer.student.state_dict())
        ours, theirs = (generate(m, b.source, b.source_mask, max_new_tokens=8, min_new_tokens=8) for m in (trainer.student, copy.deepcopy(fresh)))
        assert ours == theirs


def test_a_micro_batch_without_a_word_to_learn_changes_nothing():
    b = batch(3)
    told, weights = after([b])
    again, same = after([b, replace(b, labels=b.labels * 0 - 100)])
    assert again["loss"] == pytest.approx(told["loss"], rel=1e-5)
    torch.testing.assert_close(same, weights)


def test_a_files_rationales_are_kept_dropped_or_weighed_down_and_its_held_out_premises_left_out(world, tmp_path, capsys):
    for share, rows in ((1.0, 160), (0.0, 140), (0.5, 160)):
        parts = prepare(settings(world, tmp_path / str(share), teacher=f"{world / 'words.jsonl'}@2", other_labels=share))
        assert len(parts[2]) == rows
        weights = parts[3](list(range(rows)))[0].weights.tolist()
        assert sorted(set(weights)) == sorted({1.0, 2.0} | ({2 * share} if share else set())) and weights.count(2.0) == (60 if share < 1 else 80)
        assert "81 answers, 1 of them without a reason or to held-out premises or rows (left out), 20 with another label than gold" in capsys.readouterr().out


def test_what_may_not_be_known_is_not_learnt_from_a_file(world, tmp_path):
    """Labels beyond labelled_rows, premises of any test rows, and rows without what is asked for; a pair without a label contradicts nobody."""
    rows, (foreign,) = read_examples("toy:80", "train"), read_examples("toy-harbour", "test", 1)

    def file(name, lines):
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(tmp_path / name)

    def learnt(teacher, **other):
        found = distill.lessons(settings(world, tmp_path, teacher=teacher, **other), [])
        return [(e.premise, e.label, weight) for examples, weight in found[1:] for e in examples]

    said = file("said.jsonl", [{"id": e.id, **dict.fromkeys(LABELS, "so it is.")} for e in rows])
    assert learnt(f"{said}?pairs=toy:80", labelled_rows=20) == [(e.premise, e.label, 1.0) for e in rows[:20]]
    assert len(learnt(f"{said}?pairs=toy:80")) == 80
    asked = [{"premise": e.premise.upper(), "hypothesis": e.hypothesis, "label": e.label, "rationale": "so."} for e in rows]
    assert len(learnt(file("free.jsonl", asked), labelled_rows=20)) == 80
    assert len(learnt(file("given.jsonl", [{**line, "given": True} for line in asked]), labelled_rows=20)) == 20, "its labels are the data's own"

    compact = json.dumps([{**line, "given": True} for line in asked], separators=(",", ":"))[1:-1].replace("},{", "}\n{")
    (tmp_path / "compact.jsonl").write_text(compact)
    assert len(learnt(str(tmp_path / "compact.jsonl"), labelled_rows=20)) == 20, "as other writers space their JSON"
    verdicts = [{**line, "label": "neutral", "gold": line["label"]} for line in asked]
    assert len(learnt(file("verdicts.jsonl", verdicts) + "?label=gold", labelled_rows=20)) == 20
    turned = file("turned.jsonl", [{**line, "label": LABELS[LABELS.index(line["label"]) - 1]} for line in asked])
    assert len(learnt(turned, labelled_rows=20, other_labels=0.0)) == 60, "who may not know a label finds no other one wrong"

    told = [{"premise": e.premise, "hypothesis": e.hypothesis, "label": "neutral", "rationale": why, "split": "train"}
            for e, why in ((rows[0], "so."), (rows[1], ""), (replace(foreign, premise=foreign.premise.upper()), "so."))]
    bare = file("bare.jsonl", [{**line, "label": ""} for line in told[:2]])
    told = file("told.jsonl", told)
    assert learnt(told, tests="toy toy-harbour", data=bare, other_labels=0.0) == [(rows[0].premise, "neutral", 1.0)]
    assert len(learnt(told, data=bare, format="predict")) == 3
    loud = [{**line, "premise": e.premise.upper(), "split": split} for line, e, split in zip(asked, rows, ["train"] * 4 + ["validation", "test"], strict=False)]
    quiet = file("quiet.jsonl", [{**line, "premise": e.premise} for line, e in zip(asked[:6], rows, strict=False)])
    assert len(learnt(quiet, data=file("loud.jsonl", loud))) == 4, "whatever case the data's held-out premises are in"


def test_a_simulator_notes_whose_answers_it_learns(world, tmp_path):
    (tmp_path / "eval.json").write_text(json.dumps({"weights": "1234"}))
    rows = [{"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": "neutral", "rationale": "so."} for e in read_examples("toy:80", "train")]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = train(settings(world, tmp_path, data=str(tmp_path / "predictions.jsonl"), format="simulate", max_steps=1, eval_every=1), {})
    assert json.loads((folder / "run.json").read_text())["answers_of"] == "1234"


@pytest.mark.skipif("APPRENTICE_REAL" not in os.environ, reason="needs the real data")
def test_people_and_a_language_model_teach_together_and_sick_is_a_domain_to_move_to(tmp_path, capsys):
    real = pathlib.Path(os.environ["APPRENTICE_REAL"])
    esnli, said = real / "data/esnli/esnli_dev.csv", real / "data/esnli/gpt2m_rationales_dev.jsonl"
    rows = len(read_examples(esnli, "train"))
    shared = dict(student="nano", vocabulary=str(real / "t5/spiece.model"), device="cpu", out_dir=str(tmp_path), batch_size=8, warmup_steps=0, eval_rows=4)
    people = prepare(Config(**shared, name="people", data=str(esnli), teacher=f"{said}?pairs={esnli}@0.5"))
    assert len(people[2]) == 4 * rows  # three explanations of people, one of the model
    assert set(people[3](list(range(3 * rows, 4 * rows)))[0].weights.tolist()) == {0.5}
    sick = prepare(Config(**shared, name="sick", data=str(real / "data/sick/SICK_corrected.tsv"), format="predict", train_only="decoder.*(norm|cross)|last1"))
    losses = [sick[0].step(sick[3](list(range(8))))["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]


def test_rows_count_as_much_as_their_weight_says():
    b = batch(4)
    twice, _ = after([rows_of(b, 0, 1, 1, 2, 3, 3, 3)])
    weighed, _ = after([replace(b, weights=torch.tensor([1.0, 2.0, 1.0, 3.0]))])
    for name in ("loss", "label", "rationale", "kd"):
        assert weighed[name] == pytest.approx(twice[name], rel=1e-4), name


def test_all_of_a_rows_explanations_are_learnt(world, tmp_path):
    for i, (explanations, rows) in enumerate(((0, 80 + 15), (2, 80 + 10), (1, 80 + 5))):
        path = tmp_path / "three.jsonl"
        lines = [{"premise": f"p {e.premise}", "hypothesis": e.hypothesis, "label": e.label, "explanations": e.explanations}
                 for e in read_examples("toy", "validation", 5)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        _, tokenizer, lengths, batches_of, *_ = prepare(settings(world, tmp_path / str(i), teacher=str(path), explanations=explanations))
        assert len(lengths) == rows
        learnt = {tokenizer.decode(row[row >= 0].tolist()) for row in batches_of(list(range(80, rows)))[1].labels}
        assert len(learnt) == rows - 80


COMMAND = [sys.executable, "distill.py", "configs/tiny_teacher.py", "--data=toy:600", "--student=nano", "--max_steps=16", "--eval_every=8",
           "--save_every=4", "--log_every=2", "--eval_rows=20", "--test_rows=9", "--batch_size=16"]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = subprocess.run([*COMMAND, f"--out_dir={tmp_path}/a"], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert whole.returncode == 0, whole.stderr
    train = "import sys, distill; runs, origin = distill.read_settings(sys.argv[1:]); distill.train(distill.Config(**runs[0]), origin)"
    part = [sys.executable, "-c", train, *COMMAND[2:], f"--out_dir={tmp_path}/b"]  # the same without the evaluation after it
    process = subprocess.Popen(part, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while not (tmp_path / "b/tiny_teacher/checkpoint/state.pt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not json.loads((tmp_path / "b/tiny_teacher/run.json").read_text())["finished"]
    again = subprocess.run(part, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert again.returncode == 0 and "going on from step" in again.stdout, again.stderr
    a, b = (read_safetensors(tmp_path / x / "tiny_teacher/model.safetensors") for x in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    logs = [[json.loads(line)["step"] for line in (tmp_path / x / "tiny_teacher/log.jsonl").read_text().splitlines()] for x in "ab"]
    assert logs[0] == logs[1]
    differ = subprocess.run([*COMMAND, f"--out_dir={tmp_path}/b", "--lr=1"], cwd=ROOT, capture_output=True, text=True)
    assert differ.returncode == 2 and "lr is 0.001, not 1.0" in differ.stderr


def test_settings_are_cast_and_checked():
    known = asdict(Config())
    assert cast("lr", "1", known) == 1.0 and cast("out_dir", "2024", known) == "2024" and cast("max_steps", "1e3", known) == 1000
    runs, origin = read_settings(["configs/tiny.py", "--temperature=1,2", "--seed=3"])
    assert [r["temperature"] for r in runs] == [1.0, 2.0] and len({r["name"] for r in runs}) == 2 and origin["seed"] == "command line"
    assert [r["name"] for r in read_settings(["configs/tiny.py", "--name="])[0]] == ["tiny"]
    config = Config(max_steps=11, kd_weight=1.0, schedule="kd_weight:0 label_weight:3")
    assert [config.weights(share) for share in (0, 0.5, 1)] == [
        {"label_weight": a, "rationale_weight": 1.0, "kd_weight": b, "hidden_weight": 0.0} for a, b in ((1, 1), (2, 0.5), (3, 0))]
    assert Config(kd_weight=0.0, schedule="kd_weight:1").uses("kd_weight") and not Config().uses("kd_weight", "hidden_weight")
    for key, value, says in (("kd_wieght", "1", "did you mean kd_weight"), ("lr", "fast", "not a number"), ("max_steps", "1.5", "not a whole number"),
                             ("baselines", "yes", "in a config file")):
        with pytest.raises(DataError, match=says):
            cast(key, value, known)
    for bad in (dict(kd_loss="kl"), dict(batch_size=0), dict(temperature=0.0), dict(format="both"), dict(seed=2**70), dict(baselines={"a": 3}),
                dict(teacher="x@0")):
        with pytest.raises(DataError, match=next(iter(bad))):
            Config(**bad)


def test_every_config_is_legal():
    for path in sorted(ROOT.glob("configs/*.py")):
        config = Config(**read_config(path))
        for other in config.baselines.values():
            replace(config, **other)


@pytest.mark.parametrize("args, says", [
    (["configs/none.py"], "no such config file"), (["configs/tiny_teacher.py", "--max_step=3"], "did you mean max_steps"),
    (["configs/tiny_teacher.py", "--data=none.csv"], "no such file"), (["configs/tiny_teacher.py", "--student=nowhere"], "no folder here and no hub name"),
    (["--device=tpu"], "device is 'tpu'"), (["--tests=none.csv"], "none.csv: no such file"), (["mistaken.py"], "mistaken.py: lr is 'abc', not a number"),
    (["mistaken.json"], "mistaken.json: no such config file"), (["--data=train.csv"], "train.csv has no test row with a label"),
    (["--data=toy:20,none.csv"], "none.csv: no such file"),
])
def test_bad_input_is_one_line_and_status_2(tmp_path, args, says):
    (tmp_path / "mistaken.py").write_text("lr = 'abc'")
    (tmp_path / "mistaken.json").write_text('{"lr": 1}')
    (tmp_path / "train.csv").write_text("premise,hypothesis,label,split\na dog,a cat,neutral,train\n")
    args = [re.sub(r"(mistaken|train\.csv)", lambda m: str(tmp_path / m[0]), arg) for arg in args]
    done = subprocess.run([sys.executable, "distill.py", *args, f"--out_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done


def test_arrows_run_downward():
    may = {"model": set(), "data": set(), "apprentice": {"model", "data"}, "evaluate": {"model", "data", "apprentice"},
           "bench": {"model", "data", "apprentice"}, "distill": {"model", "data", "apprentice", "evaluate"}}
    files = list(ROOT.glob("*.py"))
    assert {f.stem for f in files} <= set(may)
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not [n for n in names if n in may and n not in may[file.stem]], file
