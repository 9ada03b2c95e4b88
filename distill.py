"""Teach a small T5 to answer and explain like a larger one.

    python distill.py                            configs/tiny.py: teacher, students and a table, with no download   (minutes, 2 cores)
    python distill.py configs/small.py           FLAN-T5-small taught by FLAN-T5-large on e-SNLI                    (hours, one GPU)
    python distill.py configs/scratch.py --data=FILE     a T5 from random weights on a CSV of e-SNLI
    python distill.py CONFIG.py … --lr=3e-4 --seed=1,2,3     later words win; values with commas train every combination
    python distill.py --help                     every setting

Read in order: the settings, the losses, `Trainer.step` (one update), `train` (one run), `main` (teacher, students, table).
A run stops and goes on at any moment: the same command continues from its last checkpoint, on a CPU to the same bits.
Losses: labels and reasons are two means (Hsieh et al. 2023, "Distilling step-by-step"), the teacher's logits a third
(Hinton et al. 2015). Read next: evaluate.py (what the student kept).
"""

import difflib
import functools
import hashlib
import inspect
import itertools
import json
import math
import os
import platform
import re
import runpy
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

import evaluate
from apprentice import EOS, TASKS, Apprentice, generate, read_run, run_main
from data import FORMATS, Batch, BucketSampler, DataError, Tokenizer, collate, encode_example, read_examples, train_vocabulary
from model import SIZES, T5, fetch, replace_file


@dataclass(frozen=True)
class Config:
    """Every setting, with its default. Set them in a config file (`lr = 1e-3`) or on the command line (`--lr=1e-3`)."""

    # who learns
    student: str = "nano"  # a hub name, a run folder, a config file, a built-in size (random weights), or cut: layers of the teacher
    student_layers: int = 0  # of each stack, for a size and for cut; 0: as there
    student_width: int = 0  # for a size: d_model; heads and d_ff grow along; 0: as there
    vocabulary: str = ""  # of a random student: spiece.model, a hub name, or a number of pieces to train (500, 500@DATA); empty: the teacher's
    train_only: str = ""  # a pattern of parameter names (python model.py lists them): decoder | norm | last2 | ^(?!shared); empty: all learn
    lora_rank: int = 0  # above 0: the matrices of blocks that train_only names learn as W + alpha/rank B A, all else rests
    lora_alpha: float = 16.0
    # from whom: a hub name, run folder or config file (trained first) is a T5 teacher, NAME.jsonl a file of anyone's rationales
    teacher: str = ""  # several: A+B, with weights A@2+B
    teacher_mix: str = "fixed"  # of T5 teachers: fixed (their weights) | confidence (by how well each foretells the example)
    teacher_cache: str = ""  # a folder: the teacher's top_k words for each token are kept there, and it is asked only once
    top_k: int = 64
    teacher_writes: str = "none"  # none | rest | all: the teacher labels and explains the rows beyond labelled_rows, or all in place of people
    teacher_beams: int = 1  # of that writing
    on_policy: float = 0.0  # share of updates in which the student writes, and the teacher judges every word (GKD)
    other_labels: float = 1.0  # how much a teacher's words count where its label is not gold; 0 drops them
    # what it learns from
    data: str = "toy"  # a name or file, as data.py reads them
    labelled_rows: int = 0  # training rows whose labels and reasons may be used; 0: all
    explanations: int = 0  # of a row's explanations that are learnt; 0: all
    format: str = "multitask"  # multitask (predict + explain) | predict | label_then_rationale | rationale_then_label | instruction
    max_source: int = 128  # tokens; longer sources are cut
    max_target: int = 64  # tokens; longer targets are cut
    # the losses: label_weight * CE(label) + rationale_weight * CE(reason) + kd_weight * divergence from the teacher
    label_weight: float = 1.0
    rationale_weight: float = 1.0
    kd_weight: float = 0.0  # above 0 needs a teacher with the same vocabulary
    kd_loss: str = "forward_kl"  # forward_kl | reverse_kl | jsd | skew_forward_kl | skew_reverse_kl | tvd | soft_ce: see KINDS below
    kd_beta: float = 0.5  # of jsd: towards 0 nearer to forward, towards 1 to reverse KL
    kd_skew: float = 0.1  # of the skewed divergences: the share mixed in
    temperature: float = 1.0  # of both softmaxes in the divergence; higher shows more of what the teacher thinks of wrong answers
    label_smoothing: float = 0.0  # share of the cross-entropy's target that all words get alike
    # the optimiser
    lr: float = 1e-3  # peak; warmed up linearly, then decayed linearly to 0
    warmup_steps: int = 50
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # largest norm of the gradient
    batch_size: int = 64  # rows of a micro-batch
    grad_accumulation: int = 1  # micro-batches of an update
    max_steps: int = 1000  # updates
    dtype: str = "auto"  # of the products: float32 | bfloat16 | auto (bfloat16 on a GPU)
    device: str = "auto"  # cpu | cuda | auto
    seed: int = 1
    # the run
    out_dir: str = "out"
    name: str = ""  # the run stands in out_dir/name; empty: the first config file's name
    log_every: int = 25  # steps between lines of log.jsonl
    eval_every: int = 250  # steps between validations, which choose the weights to keep
    eval_rows: int = 300  # validation rows answered each time
    save_every: int = 250  # steps between checkpoints
    tests: str = ""  # data for the table's test rows, several with spaces between; empty: data
    test_rows: int = 1000  # test rows of each; 0: all
    baselines: dict = field(default_factory=dict)  # {name: settings that differ}: runs trained beside this one, for the table

    def __post_init__(self):
        legal = {"kd_loss": tuple(KINDS), "dtype": ("auto", "float32", "bfloat16"), "teacher_mix": ("fixed", "confidence"),
                 "teacher_writes": ("none", "rest", "all"), "format": ("multitask", *(f for f in FORMATS if f != "explain"))}  # fmt: skip
        for key, values in legal.items():
            if getattr(self, key) not in values:
                raise DataError(f"{key} is {getattr(self, key)!r}; it can be {', '.join(values)}")
        ranges = {(1, math.inf): "batch_size grad_accumulation max_steps log_every eval_every save_every eval_rows max_source max_target teacher_beams",
                  (0, math.inf): "student_layers student_width lora_rank labelled_rows explanations warmup_steps test_rows label_weight "
                                 "rationale_weight kd_weight weight_decay",
                  (0, 1): "on_policy other_labels kd_beta label_smoothing", (2, 1000): "top_k"}  # fmt: skip
        for (low, high), keys in ranges.items():
            for key in keys.split():
                if not low <= getattr(self, key) <= high or getattr(self, key) == math.inf:
                    raise DataError(f"{key} is {getattr(self, key)}; it can be {low} {'or more' if high == math.inf else f'to {high}'}")
        for key in ("temperature", "lr", "grad_clip", "lora_alpha", "kd_skew"):
            if not 0 < getattr(self, key) < (1 if key == "kd_skew" else math.inf):
                raise DataError(f"{key} is {getattr(self, key)}; it must be above 0{' and below 1' if key == 'kd_skew' else ''}")
        for wrong, why in (
            (self.label_weight + self.rationale_weight + self.kd_weight == 0,
             "label_weight, rationale_weight and kd_weight are all 0: there is nothing to learn from"),
            (self.on_policy and not self.kd_weight, f"on_policy={self.on_policy}: the teacher judges the student's words by kd_weight, which is 0"),
            (self.teacher_cache and (self.on_policy or self.teacher_mix == "confidence"),
             "teacher_cache holds the likeliest words at the data's own targets; on_policy and teacher_mix=confidence need the teacher live"),
            (self.student_layers and self.student not in (*SIZES, "cut"), f"student_layers shapes a size or cut, not {self.student!r}"),
            (self.student_width and self.student not in SIZES, f"student_width shapes a size with random weights, not {self.student!r}"),
        ):  # fmt: skip
            if wrong:
                raise DataError(why)

    @property
    def teachers(self):
        """[(name, weight)]: "A@2+B" -> [("A", 2.0), ("B", 1.0)]"""
        parts = [re.fullmatch(r"(.+?)(?:@([\d.]+))?", name) for name in self.teacher.split("+") if name]
        return [(part[1], float(part[2] or 1)) for part in parts]

    @property
    def live_teachers(self):
        return [(name, weight) for name, weight in self.teachers if not name.endswith(".jsonl")]

    @property
    def bf16(self):
        return self.dtype == "bfloat16" or (self.dtype == "auto" and self.torch_device.startswith("cuda"))

    @property
    def folder(self):
        return Path(self.out_dir) / self.name

    @property
    def tasks(self):
        return TASKS.get(self.format, (self.format,))

    @property
    def torch_device(self):
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device


def cast(key, text):
    """A setting's value from the command line, by its declared type; DataError says what is legal."""
    kinds = {f.name: f.type for f in fields(Config)}
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, 1)
        raise DataError(f"unknown setting {key}{f'; did you mean {near[0]}?' if near else ''}; python distill.py --help lists them")
    kind = kinds[key]
    if (kind is dict) != isinstance(text, dict) or isinstance(text, (bool, list, tuple)):
        raise DataError(f"{key} is {text!r}; " + ("it can only be set in a config file" if kind is dict else "one number or text is expected"))
    try:
        if kind is int and float(text) != int(float(text)):
            raise ValueError
        return int(float(text)) if kind is int else kind(text)
    except (ValueError, OverflowError):
        raise DataError(f"{key} is {text!r}, not {'a whole number' if kind is int else 'a number'}") from None


def read_config(path):
    """The assignments of a config file as {setting: value}."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such config file")
    try:
        values = runpy.run_path(str(path))
    except Exception as e:
        raise DataError(f"{path}: {type(e).__name__}: {e}") from None
    return {k: cast(k, v) for k, v in values.items() if not k.startswith("_") and not inspect.ismodule(v)}


def read_settings(argv):
    """Command line -> ([{setting: value}, one a combination], {setting: where it came from})."""
    files = [a for a in argv if not a.startswith("-")] or ["configs/tiny.py"]
    values, origin = {"name": Path(files[0]).stem}, {"name": files[0]}
    for file in files:
        new = read_config(file)
        values |= new
        origin |= dict.fromkeys(new, file)
    grid = {}
    for arg in (a for a in argv if a.startswith("-")):
        key, equals, text = arg.lstrip("-").partition("=")
        if not equals:
            raise DataError(f"{arg}: a setting is given as --name=value")
        choices = [cast(key, part) for part in text.split(",")]
        values[key], origin[key] = choices[0], "command line"
        if len(choices) > 1:
            grid[key] = choices
    runs = []
    for choice in itertools.product(*grid.values()):
        chosen = dict(zip(grid, choice, strict=True))
        suffix = "".join(f"-{k}={str(v).replace('/', '_')}" for k, v in chosen.items())
        runs.append(values | chosen | {"name": values["name"] + suffix})
    return runs, origin


# --- losses -----------------------------------------------------------------------------------------------------------

FLOOR = -1e9  # stands for a log-probability of -inf, and unlike it gives 0 times itself = 0


class TopK(NamedTuple):
    """What is kept of a teacher's logits: its k likeliest words, and one bucket with the mass of all others."""

    log_probs: torch.Tensor  # (..., k + 1), softened by the temperature of the loss; the bucket is the last
    ids: torch.Tensor  # (..., k)


def top_k(logits, k, temperature=1.0):
    """logits (..., V) -> TopK"""
    log_probs = soften(logits, temperature)
    kept, ids = log_probs.topk(k)
    return TopK(torch.cat([kept, log_probs.scatter(-1, ids, FLOOR).logsumexp(-1, keepdim=True)], -1), ids)


def soften(logits, temperature=1.0):
    """log softmax(logits / temperature) over the last axis, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits if temperature == 1 else logits / temperature).clamp(min=FLOOR).log_softmax(-1)


def kl(p, q):
    """KL(p || q) of log-probabilities (..., V) -> (...)"""
    return (p.exp() * (p - q)).sum(-1)


def mix(share, p, q):
    """log(share e^p + (1 - share) e^q): by logaddexp, so that what underflows as a probability stays exact."""
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))


def jsd(s, t, beta):
    """Generalised Jensen-Shannon divergence (Agarwal et al. 2024, arXiv 2306.13649, equation 1) as TRL writes it. It goes to 0 at both
    ends of beta; AT the ends it jumps to forward KL (0) and reverse KL (1), of another size: don't sweep beta across them."""
    if beta in (0, 1):
        return kl(s, t) if beta else kl(t, s)
    m = mix(beta, t, s)
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


KINDS = {  # of log-probabilities s (student), t (teacher) (..., V) -> (...)
    "forward_kl": lambda s, t, beta, skew: kl(t, s),  # Hinton et al. 2015, arXiv 1503.02531: covers all the teacher says
    "reverse_kl": lambda s, t, beta, skew: kl(s, t),  # Gu et al. 2024 (MiniLLM), arXiv 2306.08543: seeks what the teacher says most
    "jsd": lambda s, t, beta, skew: jsd(s, t, beta),  # between the two
    "skew_forward_kl": lambda s, t, beta, skew: kl(t, mix(skew, t, s)),  # Ko et al. 2024 (DistiLLM), arXiv 2402.03898: bounded gradients
    "skew_reverse_kl": lambda s, t, beta, skew: kl(s, mix(skew, s, t)),
    "tvd": lambda s, t, beta, skew: (s.exp() - t.exp()).abs().sum(-1) / 2,  # Wen et al. 2023 (f-Distill), arXiv 2307.15190
    "soft_ce": lambda s, t, beta, skew: -(t.exp() * s).sum(-1),  # forward KL + the teacher's entropy: the same gradients, never 0
}


def token_divergence(student_logits, teacher, kind="forward_kl", temperature=1.0, beta=0.5, skew=0.1):
    """Divergence of a student from a teacher at each token. student_logits (..., V); teacher (..., V) logits, or TopK, against which
    the student's other words fall into one bucket too -> (...), times temperature^2, which keeps the gradients' size (Hinton)."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; it can be {', '.join(KINDS)}")
    if not 0 <= beta <= 1 or not 0 < skew < 1:
        raise ValueError(f"beta is {beta}, from 0 to 1, and skew is {skew}, between 0 and 1")
    s = soften(student_logits, temperature)
    if isinstance(teacher, TopK):
        t, ids = teacher
        s = torch.cat([s.gather(-1, ids), s.scatter(-1, ids, FLOOR).logsumexp(-1, keepdim=True)], -1)
    else:
        t = soften(teacher, temperature)
    return KINDS[kind](s, t, beta, skew) * temperature**2


def distillation_loss(student_logits, teacher_logits, mask, kind="forward_kl", temperature=1.0, **options):
    """How far a student is from its teacher. logits (..., V), the teacher's perhaps TopK; mask (...) bool -> scalar: summed over V,
    mean over the mask's True tokens, 0 where there are none. options: beta of jsd, skew of the skewed ones (the share mixed in)."""
    teacher = TopK(*(x[mask] for x in teacher_logits)) if isinstance(teacher_logits, TopK) else teacher_logits[mask]
    return token_divergence(student_logits[mask], teacher, kind, temperature, **options).sum() / mask.sum().clamp(min=1)


class ChunkedHead(torch.autograd.Function):
    """Losses over the logits F.linear(hidden, head), which are never held: with 32,128 words they outweigh all else in training. A chunk
    of tokens at a time goes forward to its losses and at once back to its gradients. hidden (N, d), head (V, d);
    losses(logits (C, V), slice of rows) -> P scalars, summed over the chunks -> (P,). weights: the P gradients that are awaited from
    above (or any multiple of them); others are right too, and do the work a second time."""

    @staticmethod
    def forward(ctx, hidden, head, losses, weights):
        device = hidden.device.type
        ctx.losses, ctx.weights = losses, torch.tensor(weights, device=hidden.device)
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        ctx.save_for_backward(hidden, head)
        sums, *ctx.grads = ChunkedHead.run(ctx, hidden, head, ctx.weights)
        return sums

    @staticmethod
    def run(ctx, hidden, head, weights):
        h, w, chunk = hidden.to(ctx.dtype), head.to(ctx.dtype), 128 if hidden.device.type == "cpu" else 1024  # tokens: 16 or 128 MB of logits
        sums = torch.zeros(len(weights), device=h.device, dtype=torch.promote_types(ctx.dtype, torch.float32))
        grad_hidden, grad_head = torch.empty_like(hidden), torch.zeros_like(head) if ctx.needs_input_grad[1] else None
        with torch.autocast(h.device.type, enabled=False), torch.enable_grad():
            for start in range(0, len(h), chunk):
                rows = slice(start, start + chunk)
                logits = F.linear(h[rows], w).detach().requires_grad_()
                found = torch.stack(ctx.losses(logits, rows))
                (grad,) = torch.autograd.grad(found, logits, weights.to(found.dtype))
                with torch.no_grad():
                    sums += found
                    grad_hidden[rows] = grad @ w
                    if grad_head is not None and grad.dtype == head.dtype:
                        grad_head.addmm_(grad.T, h[rows])
                    elif grad_head is not None:
                        grad_head += grad.T @ h[rows]  # summed in the head's own float32
        return sums, grad_hidden, grad_head

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        scale = grad[0] / ctx.weights[0]
        if not torch.allclose(scale * ctx.weights, grad.float(), rtol=1e-6, atol=0):
            return *ChunkedHead.run(ctx, *ctx.saved_tensors, grad)[1:], None, None
        return *(g if g is None or scale == 1 else g * scale for g in ctx.grads), None, None


def linear_distillation_loss(student_hidden, student_head, teacher_hidden, teacher_head, labels, kind="forward_kl", temperature=1.0,
                             label_smoothing=0.0, weights=(1.0, 1.0), **options):  # fmt: skip
    """Cross-entropy and divergence of the logits hidden @ head.T, a chunk of tokens at a time: never (N, V) numbers at once.
    hidden (N, d), heads (V, d) (of a tied T5 the scale is in the hidden), labels (N,), -100 = ignore -> (cross_entropy, divergence), two
    means over the labels, with gradients for the student's side. weights: what the two will be multiplied with; others cost a second pass."""
    valid = labels != -100
    hidden, teacher, labels = student_hidden[valid], teacher_hidden[valid].detach(), labels[valid]
    count, words = max(len(labels), 1), min(len(student_head), len(teacher_head))

    def losses(logits, rows):
        ce = F.cross_entropy(logits.float(), labels[rows], reduction="sum", label_smoothing=label_smoothing)
        taught = F.linear(teacher[rows], teacher_head[:words].detach())
        return ce / count, token_divergence(logits[:, :words], taught, kind, temperature, **options).sum() / count

    return ChunkedHead.apply(hidden, student_head, losses, weights).unbind()


# --- who teaches, and what learns ---------------------------------------------------------------------------------------


class LiveTeacher:
    """A T5 that is asked. Called with a batch and its valid tokens (B, T), it returns words(rows) -> logits of these of the N tokens."""

    def __init__(self, model, config, vocab_size):
        self.model = model.to(config.torch_device, torch.bfloat16 if config.bf16 else None).eval().requires_grad_(False)
        self.head = self.model.head[:vocab_size]

    @torch.inference_mode()
    def __call__(self, batch, valid):
        hidden = self.model.decode(T5.shift_right(batch.labels), self.model.encode(batch.source, batch.source_mask), batch.source_mask)[valid]
        return lambda rows: F.linear(hidden[rows], self.head)  # (N, d) is kept, (N, V) never made


class CachedTeacher:
    """A teacher whose k likeliest words at every target token of the training rows are kept on disk: asked where a row comes by for the
    first time, never again. The file has a line of 16-bit numbers a token: k + 1 log-probabilities (float16), then k ids; while these
    are 0 the line is unwritten. keys: {a row's key: its target tokens}; live() brings the LiveTeacher when it is needed."""

    def __init__(self, folder, about, keys, config, live):
        self.k, self.temperature, self.device, self.live = config.top_k, config.temperature, config.torch_device, functools.cache(live)
        starts = itertools.accumulate((keys[key] for key in sorted(keys)), initial=0)
        self.place = dict(zip(sorted(keys), starts, strict=False))
        about = {**about, "format": config.format, "data": digest("".join(sorted(keys)).encode()), "top_k": self.k, "temperature": self.temperature}
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "about.json").is_file():
            found = json.loads((folder / "about.json").read_text())
            differ = [k for k in about if found.get(k) != about[k]]
            if differ:
                raise DataError(f"{folder} was made with another {differ[0]} ({found.get(differ[0])}, not {about[differ[0]]}): "
                                "choose another --teacher_cache, or delete it")  # fmt: skip
        file, shape = folder / "top_k.u16", (sum(keys.values()), 2 * self.k + 1)
        self.table = np.memmap(file, np.uint16, "r+" if file.is_file() and file.stat().st_size == 2 * math.prod(shape) else "w+", shape=shape)
        replace_file(folder / "about.json", json.dumps(about, indent=1).encode())

    def __call__(self, batch, valid):
        k, lengths = self.k, valid.sum(1).tolist()
        lines = np.concatenate([np.arange(start, start + n) for start, n in zip((self.place[key] for key in batch.ids), lengths, strict=True)])
        if (self.table[lines, -1] == self.table[lines, -2]).any():  # two ids of a token differ, but where both are 0
            words = self.live()(batch, valid)
            for start in range(0, len(lines), 512):
                rows = slice(start, start + 512)
                kept = top_k(words(rows), k, self.temperature)
                self.table[lines[rows], : k + 1] = kept.log_probs.clamp(min=-6e4).half().cpu().numpy().view(np.uint16)
                self.table[lines[rows], k + 1 :] = kept.ids.cpu().numpy()  # last: what is cut off here stays unwritten
        found = self.table[lines]
        log_probs = torch.from_numpy(found[:, : k + 1].copy().view(np.float16)).to(self.device).float().log_softmax(-1)
        ids = torch.from_numpy(found[:, k + 1 :].astype(np.int64)).to(self.device)
        return lambda rows: TopK(log_probs[rows], ids[rows])


def digest(*pieces):
    """The first 16 digits of the sha256 of some bytes."""
    return hashlib.sha256(b"".join(pieces)).hexdigest()[:16]


def spaced(have, want):
    """`want` of `have` layers, evenly spaced from the first to the last: spaced(12, 3) -> [0, 6, 11]"""
    if want > have:
        raise DataError(f"{want} layers can't be cut from {have}: set student_layers to {have} or less")
    return [round(i * (have - 1) / max(want - 1, 1)) for i in range(want)]


def cut_student(teacher, layers):
    """A T5 with `layers` of the teacher's in each stack and all else as there (Shleifer & Rush 2020, "shrink and fine-tune", arXiv 2010.13002)."""
    config, own = teacher.config, teacher.state_dict()
    kept = {"encoder": spaced(config.num_layers, layers), "decoder": spaced(config.num_decoder_layers, layers)}
    student = T5(replace(config, num_layers=layers, num_decoder_layers=layers))
    student.load_state_dict({name: own[re.sub(r"^(\w+)\.blocks\.(\d+)", lambda m: f"{m[1]}.blocks.{kept[m[1]][int(m[2])]}", name)]
                             for name in student.state_dict()})  # fmt: skip
    return student


def learning_parameters(model, pattern):
    """{name: parameter} that a pattern names; "last2" stands for the last two blocks of each stack."""
    depth = {"encoder": model.config.num_layers, "decoder": model.config.num_decoder_layers}
    pattern = re.sub(r"last(\d+)", lambda m: "(" + "|".join(rf"{s}\.blocks\.{i}\." for s, n in depth.items() for i in range(n - int(m[1]), n)) + ")", pattern)
    try:
        chosen = {name: p for name, p in model.named_parameters() if re.search(pattern, name)}
    except re.error as e:
        raise DataError(f"train_only={pattern!r} is no pattern: {e}") from None
    if not chosen:
        raise DataError(f"train_only={pattern!r} names no parameter; the first three are {', '.join([n for n, _ in model.named_parameters()][:3])}")
    return chosen


class LoRA:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): each matrix W (out, in) learns as W + alpha / rank * B A with B (out, rank)
    starting at 0 and A (rank, in). The network always holds the sum, so forward passes cost nothing more and what is saved is a plain
    checkpoint; the gradient of the sum gives those of A and B by the chain rule. What it saves is the optimiser's memory."""

    def __init__(self, weights, rank, alpha):
        self.weights, self.scale = weights, alpha / rank
        self.base = [w.detach().clone() for w in weights]
        self.A = [nn.Parameter(torch.randn(rank, w.shape[1], device=w.device) * w.shape[1] ** -0.5) for w in weights]
        self.B = [nn.Parameter(torch.zeros(w.shape[0], rank, device=w.device)) for w in weights]

    def pull(self):
        """From the gradients of the sums to those of A and B."""
        for w, A, B in zip(self.weights, self.A, self.B, strict=True):
            A.grad, B.grad, w.grad = self.scale * B.detach().T @ w.grad, self.scale * w.grad @ A.detach().T, None

    @torch.no_grad()
    def merge(self):
        """W = base + scale * B A, after A and B have moved."""
        for w, base, A, B in zip(self.weights, self.base, self.A, self.B, strict=True):
            w.copy_(torch.addmm(base, B, A, alpha=self.scale))


class Trainer:
    """A student, its teachers and an optimiser. `step` is one update."""

    def __init__(self, student, teachers, config, vocab_size=None):
        c = self.config = config
        self.device, self.steps = c.torch_device, 0
        self.student = student.to(self.device).train()
        if c.kd_weight and not teachers:
            raise DataError(f"kd_weight is {c.kd_weight}, but there is no teacher to learn from")
        # rows of the heads behind the vocabulary are padding: no word, and no part of any softmax
        self.vocab_size = vocab_size or min(m.config.vocab_size for m in (student, *teachers))
        self.teachers = [LiveTeacher(t, c, self.vocab_size) if isinstance(t, T5) else t for t in teachers]
        self.teacher_weights = torch.tensor([w for _, w in c.live_teachers] or [1.0] * len(teachers), device=self.device)
        self.autocast = torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=c.bf16)
        chosen = learning_parameters(student, c.train_only)
        if c.lora_rank:
            chosen = {name: p for name, p in chosen.items() if p.dim() == 2 and ".blocks." in name}
        for name, p in student.named_parameters():
            p.requires_grad_(name in chosen)
        self.lora = LoRA(list(chosen.values()), c.lora_rank, c.lora_alpha) if c.lora_rank else None
        self.learning = [*self.lora.A, *self.lora.B] if self.lora else list(chosen.values())
        groups = [{"params": [p for p in self.learning if (p.dim() > 1) == matrix], "weight_decay": c.weight_decay * matrix} for matrix in (True, False)]
        self.optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, 0.99), fused=True)

    def learning_rate(self):
        """Linear warm-up to lr, then linear decay to 0 at max_steps."""
        c = self.config
        return c.lr * min((self.steps + 1) / max(c.warmup_steps, 1), max(c.max_steps - self.steps, 1) / max(c.max_steps - c.warmup_steps, 1), 1.0)

    def step(self, micro_batches):
        """One update from the micro-batches of a window -> {"loss", its parts, "grad_norm", "lr", "tokens"}.

        A part is the mean over all its tokens in the window, so that a window cut into many micro-batches learns what one big
        batch would; label and reason have means of their own, or the few tokens of the label would drown."""
        c = self.config
        own = c.on_policy > 0 and torch.rand(()).item() < c.on_policy
        batches = [self.own_words(b.to(self.device)) if own else b.to(self.device) for b in micro_batches]
        valid = [b.labels != -100 for b in batches]  # (B, T); what is told of the N valid tokens of a batch is (N,)
        is_label = [(torch.ones_like(v) if b.label_tokens is None else b.label_tokens)[v] for b, v in zip(batches, valid, strict=True)]
        counts = [(v.float() if getattr(b, "weights", None) is None else v * b.weights[:, None])[v] for b, v in zip(batches, valid, strict=True)]
        totals = [sum((n * (x == part)).sum() for n, x in zip(counts, is_label, strict=True)) for part in (False, True)]  # of reasons, of labels
        shares = [n / torch.where(x, totals[1], totals[0]) for n, x in zip(counts, is_label, strict=True)]  # of a token in its part's mean
        parts = max(sum(int(total > 0) for total in totals), 1)
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        told = [self.backward(*each, parts, own) for each in zip(batches, valid, is_label, shares, strict=True)]
        if self.lora:
            self.lora.pull()
        norm = torch.nn.utils.clip_grad_norm_(self.learning, c.grad_clip)
        if not torch.isfinite(norm):
            raise DataError(f"step {self.steps + 1}: the gradient is not finite; try a lower lr than {c.lr}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.lora:
            self.lora.merge()
        self.steps += 1
        sums = dict(zip(told[0], sum(torch.stack(list(t.values())) for t in told).tolist(), strict=True))
        return {**sums, "grad_norm": norm.item(), "lr": lr, "tokens": sum(int(b.source_mask.sum()) + len(x) for b, x in zip(batches, is_label, strict=True))}

    def backward(self, batch, valid, is_label, share, parts, own):
        """Gradients of one micro-batch -> {"loss" and its parts: scalar}. valid (B, T) bool; is_label, share (N,): of each valid token,
        whether it belongs to the label and how much it counts in the mean of its part; parts: how many of the two there are."""
        c, target, y = self.config, T5.shift_right(batch.labels), batch.labels[valid]
        weight = share * torch.where(is_label, c.label_weight, c.rationale_weight) * (not own)
        with self.autocast:
            hidden = self.student.decode(target, self.student.encode(batch.source, batch.source_mask), batch.source_mask)[valid]  # (N, d)
        taught = [teacher(batch, valid) for teacher in self.teachers] if c.kd_weight else []
        trust = self.trust(taught, y, valid) * share / parts if taught else 0.0  # (teachers, N)
        told = torch.zeros(1 + len(taught), len(y), device=self.device)  # cross-entropy, divergence from each teacher

        def losses(logits, rows):
            told[0, rows] = (ce := F.cross_entropy(logits.float(), y[rows], reduction="none", label_smoothing=c.label_smoothing)).detach()
            total = (ce * weight[rows]).sum()
            for i, words in enumerate(taught):
                kd = token_divergence(logits, words(rows), c.kd_loss, c.temperature, c.kd_beta, c.kd_skew)
                told[1 + i, rows] = kd.detach()
                total = total + c.kd_weight * (kd * trust[i, rows]).sum()
            return [total]

        with self.autocast:
            loss = ChunkedHead.apply(hidden, self.student.head[: self.vocab_size], losses, (1.0,)).sum()
        loss.backward()
        ce, kd = told[0] * share, told[1:] * share / parts  # (N,), (teachers, N): added up they are means
        found = {"loss": loss.detach(), "label": ce[is_label].sum(), "rationale": ce[~is_label].sum(), "kd": (told[1:] * trust).sum()}
        return found | {f"kd {name}": one.sum() for (name, _), one in zip(c.live_teachers, kd, strict=False) if len(kd) > 1}

    def trust(self, taught, y, valid):
        """How much each teacher's word counts at each token, (teachers, N), 1 in sum: fixed weights, or weights times the likelihood
        that the teacher gives to the example's own words (of two teachers equation 4 of Zhang et al. 2022, CA-MKD, arXiv 2201.00007)."""
        weights = self.teacher_weights[:, None].log().expand(-1, len(y))
        if self.config.teacher_mix == "confidence":
            row, found = valid.nonzero()[:, 0], torch.zeros(len(taught), len(y), device=self.device)
            for start in range(0, len(y), 512):
                rows = slice(start, start + 512)
                found[:, rows] = torch.stack([-F.cross_entropy(words(rows).float(), y[rows], reduction="none") for words in taught])
            mean = torch.zeros(len(taught), len(valid), device=self.device).index_add_(1, row, found) / valid.sum(1).clamp(min=1)
            weights = weights + mean[:, row]
        return weights.softmax(0)

    @torch.no_grad()
    def own_words(self, batch):
        """The batch with targets that the student draws itself (Agarwal et al. 2024, GKD, algorithm 1), every token of one part."""
        c = self.config
        with self.autocast:
            written = generate(self.student, batch.source, batch.source_mask, max_new_tokens=c.max_target - 1, do_sample=True)
        labels = pad_sequence([torch.tensor([*ids, EOS], device=self.device) for ids in written], batch_first=True, padding_value=-100)
        return Batch(batch.source, batch.source_mask, labels)

    def lora_state(self):
        return [x.detach() for x in (*self.lora.base, *self.learning)] if self.lora else []

    def state_dict(self):
        """All that going on needs, in plain tensors and numbers."""
        cuda = torch.cuda.get_rng_state() if str(self.device).startswith("cuda") else torch.empty(0)
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps, "random": torch.get_rng_state(),
                "cuda": cuda, "lora": self.lora_state()}  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state):
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        for mine, saved in zip(self.lora_state(), state["lora"], strict=True):
            mine.copy_(saved)
        torch.set_rng_state(state["random"])
        if len(state["cuda"]):
            torch.cuda.set_rng_state(state["cuda"])



# --- one run ----------------------------------------------------------------------------------------------------------


@dataclass
class Lesson(Batch):
    """A batch whose rows need not count alike."""

    weights: torch.Tensor | None = None  # (B,)


def folder_of(name, config):
    """Where a T5's weights are; one that is a config file is trained first, if its run is not there."""
    if not name.endswith(".py"):
        return fetch(name)
    values = {"name": Path(name).stem, **read_config(name), "out_dir": config.out_dir, "device": config.device}
    return train(Config(**values), dict.fromkeys(values, name))


def vocabulary_for(config, student, teachers, texts):
    """The tokenizer of a run, its spiece.model in the run folder. student: the folder that it starts from, or None."""
    path, (pieces, _, other) = config.folder / "spiece.model", config.vocabulary.partition("@")
    if path.is_file():
        return Tokenizer(path)
    if pieces.isdigit() and not student:
        texts = texts if not other else [text for e in read_examples(other, "train") for text in (e.premise, e.hypothesis, *e.explanations)]
        train_vocabulary(texts, path, int(pieces))
        return Tokenizer(path)
    if not (student or teachers or config.vocabulary):
        raise DataError(f"a student of size {config.student} needs a vocabulary: set a teacher, or vocabulary to a number of pieces or a file")
    source = Path(config.vocabulary)
    if student or not source.is_file():
        source = (student or (fetch(config.vocabulary, weights=False) if config.vocabulary else teachers[0])) / "spiece.model"
    if not source.is_file():
        raise DataError(f"{source} is missing: put the model's spiece.model there")
    replace_file(path, source.read_bytes())
    return Tokenizer(path)


def teachers_words(config, teacher, examples):
    """A rationale file in the run folder: a T5 teacher's own labels and reasons for the examples (Kim & Rush 2016, arXiv 1606.07947)."""
    path = config.folder / "teacher.jsonl"
    if not path.is_file():
        print(f"{teacher} labels and explains {len(examples):,} pairs")
        pairs = [(e.premise, e.hypothesis) for e in examples]
        answers = Apprentice.load(teacher, device=config.torch_device).answer(pairs, num_beams=config.teacher_beams, progress=True)
        lines = [{"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": a.label, "rationale": a.rationale, "source": str(teacher)}
                 for e, a in zip(examples, answers, strict=True)]  # fmt: skip
        replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return path


def lessons(config, teachers, examples, held_out):
    """[(example, how much it counts)]: people's rows that may be used, what the teacher wrote, and rationale files. What a file says
    of held-out premises is left out; where its label is not gold it counts other_labels."""
    labelled = examples[: config.labelled_rows or len(examples)]
    files = [(Path(name), weight) for name, weight in config.teachers if name.endswith(".jsonl")]
    if config.teacher_writes != "none":
        files.append((teachers_words(config, teachers[0], examples if config.teacher_writes == "all" else examples[len(labelled) :]), 1.0))
    found = [(e, 1.0) for e in labelled] if config.teacher_writes != "all" else []
    gold, secret = {(e.premise, e.hypothesis): e.label for e in labelled}, {e.premise for e in held_out}
    for path, weight in files:
        rows = [e for e in read_examples(path) if e.label]
        usable = [e for e in rows if e.premise not in secret]
        agree = [gold.get((e.premise, e.hypothesis), e.label) == e.label for e in usable]
        found += [(e, weight * (1.0 if same else config.other_labels)) for e, same in zip(usable, agree, strict=True)]
        print(f"{path}: {len(rows):,} answers, {len(rows) - len(usable):,} of them to held-out premises (left out), {len(agree) - sum(agree):,} "
              f"with another label than gold (each counts {config.other_labels:g})")  # fmt: skip
    return [(e, weight) for e, weight in found if weight > 0]


def encode_all(config, tokenizer, taught):
    """[(example, weight)] -> {task: [(source ids, target ids, label tokens)]}, weights; a row for each explanation that is learnt. Rows
    that lack what a task asks for are left out of all."""
    parts = {part for task in config.tasks for part in FORMATS[task].parts}
    usable = [(e, w) for e, w in taught if (e.label or "label" not in parts) and (e.explanations or "rationale" not in parts)]
    if not usable:
        raise DataError(f"{config.data}: none of {len(taught)} training rows has what format {config.format} needs ({' and '.join(sorted(parts))})")
    if len(usable) < len(taught):
        print(f"{len(taught) - len(usable):,} of {len(taught):,} training rows lack a {' or a '.join(sorted(parts))} and are left out")
    rows, weights = {task: [] for task in config.tasks}, []
    for e, weight in tqdm(usable, desc="encoding", unit="row", leave=False):
        for k in range(min(len(e.explanations), config.explanations or 99) if "rationale" in parts else 1):
            weights.append(weight)
            for task in config.tasks:
                rows[task].append(encode_example(tokenizer, FORMATS[task], e, k, config.max_source, config.max_target))
    return rows, weights


def make_student(config, start, vocab_size, load, teachers):
    """The network that learns: a loaded one, layers of the teacher, or random weights of a size."""
    if config.student == "cut":
        return cut_student(load(teachers[0]), config.student_layers)
    if start:
        return load(start)
    size = SIZES[config.student]
    width, layers = config.student_width or size.d_model, config.student_layers
    return T5(replace(size, vocab_size=vocab_size, d_model=width, num_heads=max(1, size.num_heads * width // size.d_model),
                      d_ff=size.d_ff * width // size.d_model, num_layers=layers or size.num_layers,
                      num_decoder_layers=layers or size.num_decoder_layers))  # fmt: skip


def prepare(config):
    """All that a run needs -> (trainer, tokenizer, {task: rows}, weights of the rows, validation examples)"""
    teachers = [folder_of(name, config) for name, _ in config.live_teachers]
    start = None if config.student in (*SIZES, "cut") else folder_of(config.student, config)
    config.folder.mkdir(parents=True, exist_ok=True)
    examples = read_examples(config.data, "train")
    held_out = [e for e in read_examples(config.data, "validation") if e.label]
    labelled = examples[: config.labelled_rows or len(examples)]
    if not labelled or not held_out:
        raise DataError(f"{config.data}: {len(labelled)} training and {len(held_out)} labelled validation rows; both are needed")
    texts = [text for e in labelled for text in (e.premise, e.hypothesis, *e.explanations)]
    texts += [FORMATS[task].render(e)[0] for e in labelled[:1000] for task in config.tasks]
    tokenizer = vocabulary_for(config, start or (config.student == "cut" and teachers[0]) or None, teachers, texts)
    torch.manual_seed(config.seed)
    student = make_student(config, start, tokenizer.vocab_size, T5.from_pretrained, teachers)
    taught = lessons(config, teachers, examples, held_out + read_examples(config.data, "test"))
    rows, weights = encode_all(config, tokenizer, taught)
    asked = []
    for (name, _), folder in zip(config.live_teachers, teachers, strict=True) if config.kd_weight else ():
        if (folder / "spiece.model").read_bytes() != (config.folder / "spiece.model").read_bytes():
            raise DataError(f"teacher {name} has another vocabulary than the student: set kd_weight=0 and teacher_writes=all (or rest)")
        load = functools.partial(T5.from_pretrained, folder)
        if config.teacher_cache:
            weights_files = sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin"))
            about = {"teacher": digest(*(f.read_bytes() for f in weights_files)), "vocabulary": digest((folder / "spiece.model").read_bytes())}
            keys = {key_of(row): len(row[1]) for task in config.tasks for row in rows[task]}
            live = lambda load=load: LiveTeacher(load(), config, tokenizer.vocab_size)  # noqa: E731
            asked.append(CachedTeacher(Path(config.teacher_cache) / folder.name, about, keys, config, live))
        else:
            asked.append(load())
    trainer = Trainer(student, asked, config, tokenizer.vocab_size)
    learn, have = sum(p.numel() for p in trainer.learning), sum(p.numel() for p in student.parameters())
    print(f"{learn:,} parameters learn, {learn / have:.1%} of the {have:,} there are, from {len(weights):,} rows ({len(examples):,} read)")
    return trainer, tokenizer, rows, weights, held_out[: config.eval_rows]


def key_of(row):
    """What a row of encode_all is known by in a teacher's cache."""
    return digest(repr(row[:2]).encode())


def lesson(config, rows, weights, task, chosen):
    """The chosen rows of a task as a batch."""
    ids = tuple(key_of(rows[task][i]) for i in chosen) if config.teacher_cache else ()
    return Lesson(**vars(collate([rows[task][i] for i in chosen], ids)), weights=torch.tensor([weights[i] for i in chosen]))


def validate(trainer, tokenizer, config, examples):
    """Accuracy on validation rows, and the answers."""
    apprentice = Apprentice(trainer.student, tokenizer, config.format, config.max_source, config.max_target)
    answers = apprentice.answer([(e.premise, e.hypothesis) for e in examples], 128)
    return sum(a.label == e.label for a, e in zip(answers, examples, strict=True)) / len(examples), answers


def train(config, origin):
    """Train one run to its end, or go on with it; returns its folder. Does nothing where the run is finished."""
    folder = config.folder
    settings = json.loads(json.dumps(asdict(config)))
    if (folder / "run.json").is_file():
        run = read_run(folder)
        was = {**asdict(Config()), **run["settings"]}  # a setting younger than the run stood at its default
        differ = [k for k in settings if settings[k] != was[k]]
        if differ:
            raise DataError(f"{folder} holds another run: its {differ[0]} is {was[differ[0]]!r}, not {settings[differ[0]]!r}; "
                            "choose another --name, or delete the folder")  # fmt: skip
        if run.get("finished"):
            print(f"{folder} is finished")
            return folder
    print(f"\n== {folder}: " + ", ".join(f"{k} {v!r} ({origin.get(k, 'default')})" for k, v in settings.items() if k not in ("baselines", "name")))
    trainer, tokenizer, rows, weights, held_out = prepare(config)
    run = {"settings": settings, "origin": origin, "command": " ".join(sys.argv), "git": git_commit(), "finished": False,
           "versions": {"python": platform.python_version(), "torch": torch.__version__}, "device": config.torch_device}  # fmt: skip
    replace_file(folder / "run.json", json.dumps(run, indent=1).encode())
    sampler = BucketSampler([(len(s), len(t)) for s, t, _ in rows[config.tasks[-1]]], config.batch_size, config.seed)
    state_file, best, log = folder / "checkpoint" / "state.pt", -1.0, folder / "log.jsonl"
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        trainer.load_state_dict(state["trainer"])
        sampler.load_state_dict(state["sampler"])
        best = state["best"]
        print(f"going on from step {trainer.steps}")
    kept = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= trainer.steps] if log.is_file() else []
    replace_file(log, "".join(line + "\n" for line in kept).encode())

    batches, started, tokens, first = iter(sampler), time.time(), 0, trainer.steps
    bar = tqdm(total=config.max_steps, initial=first, desc=config.name, unit="step")
    while trainer.steps < config.max_steps:
        window = [next(batches) for _ in range(config.grad_accumulation)]
        told = trainer.step([lesson(config, rows, weights, task, chosen) for chosen in window for task in config.tasks])
        step, tokens = trainer.steps, tokens + told["tokens"]
        bar.update()
        if step % config.log_every == 0 or step == config.max_steps:
            seconds = time.time() - started
            eta = seconds / (step - first) * (config.max_steps - step)
            parts = " ".join(f"{k} {v:.3f}" for k, v in told.items() if k not in ("grad_norm", "lr", "tokens"))
            bar.write(f"{step:6d} {step / config.max_steps:4.0%} | {parts} | norm {told['grad_norm']:.2f} lr {told['lr']:.1e} | "
                      f"{tokens / seconds:,.0f} tok/s, {eta:.0f} s left")  # fmt: skip
            with open(log, "a") as f:
                f.write(json.dumps({"step": step, **told, "seconds": seconds}) + "\n")
        if step % config.eval_every == 0 or step == config.max_steps:
            accuracy, answers = validate(trainer, tokenizer, config, held_out)
            bar.write(f"validation accuracy {accuracy:.1%} on {len(held_out)} rows" + (", the best so far" if accuracy >= best else ""))
            for e, a in list(zip(held_out, answers, strict=True))[:3]:
                bar.write(f"    {e.premise} | {e.hypothesis}\n    {e.label} -> {a.label}: {a.rationale}")
            with open(log, "a") as f:
                f.write(json.dumps({"step": step, "validation_accuracy": accuracy}) + "\n")
            if accuracy >= best:
                best = accuracy
                trainer.student.save_pretrained(folder)
        if step % config.save_every == 0:
            state_file.parent.mkdir(exist_ok=True)
            torch.save({"trainer": trainer.state_dict(), "sampler": sampler.state_dict(), "best": best}, f"{state_file}.tmp")
            os.replace(f"{state_file}.tmp", state_file)
    bar.close()
    replace_file(folder / "run.json", json.dumps({**run, "finished": True}, indent=1).encode())
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # it is needed no more
    return folder


def git_commit():
    """The commit of this code, or empty where there is no repository."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


# --- the table --------------------------------------------------------------------------------------------------------


def score(folder, data, config):
    """eval.json of a finished run on the test rows of `data`, made where it is not there."""
    path = folder / "eval.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    if (found.get("data"), found.get("split"), found.get("limit")) != (data, "test", config.test_rows):
        evaluate.main([str(folder), f"--data={data}", "--split=test", f"--limit={config.test_rows}", f"--device={config.torch_device}"])
        found = json.loads(path.read_text())
    return found


def table(folders, config):
    """Print the finished runs side by side: accuracy and ROUGE-L on each test data, the mean of the seeds and their spread."""
    datas, groups = config.tests.split() or [config.data], {}
    for folder in folders:
        groups.setdefault(re.sub(r"-seed=\d+", "", folder.name), []).append([score(folder, data, config) for data in datas])
    lines = [("", "seeds", *(f"{what} {data}" for data in datas for what in ("accuracy", "ROUGE-L")))]
    for name, runs in groups.items():
        cells = []
        for found in zip(*runs, strict=True):  # one data, all seeds
            for values in ([r["accuracy"] for r in found], [r["reasons"]["rougeL"]["f"] for r in found if r["reasons"]]):
                spread = f" ({100 * min(values):.1f} to {100 * max(values):.1f})" if len(values) > 1 else ""
                cells.append(f"{100 * statistics.mean(values):.1f}{spread}" if values else "–")
        lines.append((name, str(len(runs)), *cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print("\nIn percent, mean (spread) of the seeds:")
    for line in lines:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))))


def main(argv=None):
    """Teachers, students, table."""
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(__doc__, inspect.getsource(Config), sep="\n")
        return
    runs, origin = read_settings(argv)
    configs = []
    for config in (Config(**values) for values in runs):  # all of them first: a mistake shows before hours of training
        for name, other in config.baselines.items():
            configs.append(replace(config, **{k: cast(k, v) for k, v in other.items()}, name=f"{config.name}-{name}", baselines={}))
        configs.append(config)
    for config in configs:
        needs = {k: v for k, v in asdict(config).items() if k in ("kd_weight", "teacher_cache", "teacher_writes") and v not in (0, "", "none")}
        if not config.live_teachers and (needs or config.student == "cut"):
            raise DataError(f"{config.name}: {needs or 'student=cut'} needs a T5 as its teacher; teacher is {config.teacher!r}")
    folders = []
    for config in configs:
        before = [folder_of(name, config) for name in (*(name for name, _ in config.live_teachers), config.student) if name.endswith(".py")]
        folders += [f for f in (*before, train(config, origin)) if f not in folders]
    table(folders, configs[-1])
    print(f"results are in {folders[-1]}; ask it: python apprentice.py {folders[-1]}")


if __name__ == "__main__":
    run_main(main)
