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
import importlib.util
import inspect
import itertools
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

import evaluate
from apprentice import TASKS, Apprentice, read_run, run_main
from data import FORMATS, BucketSampler, DataError, Tokenizer, collate, encode_example, read_examples, train_vocabulary
from model import SIZES, T5, fetch, replace_file


@dataclass(frozen=True)
class Config:
    """Every setting, with its default. Set them in a config file (`lr = 1e-3`) or on the command line (`--lr=1e-3`)."""

    # who learns from whom
    student: str = "nano"  # a hub name, a run folder, or a built-in size (random weights)
    teacher: str = ""  # a hub name, a run folder, or a config file, which is trained first if its run is not there; empty: none
    vocabulary: str = ""  # of a student with random weights: spiece.model, a hub name, or a number of pieces to train; empty: the teacher's
    # what it learns from
    data: str = "toy"  # a name or file, as data.py reads them
    labelled_rows: int = 0  # training rows whose labels and reasons may be used; 0: all
    teacher_writes: bool = False  # the teacher labels and explains the other training rows (Kim & Rush 2016)
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
    test_rows: int = 1000  # rows of the test split in the final table; 0: all
    baselines: dict = field(default_factory=dict)  # {name: settings that differ}: runs trained beside this one, for the table

    def __post_init__(self):
        legal = {"kd_loss": tuple(KINDS), "dtype": ("auto", "float32", "bfloat16"),
                 "format": ("multitask", *(f for f in FORMATS if f != "explain"))}  # fmt: skip
        for key, values in legal.items():
            if getattr(self, key) not in values:
                raise DataError(f"{key} is {getattr(self, key)!r}; it can be {', '.join(values)}")
        for key in ("batch_size", "grad_accumulation", "max_steps", "log_every", "eval_every", "save_every", "eval_rows", "max_source", "max_target"):
            if getattr(self, key) < 1:
                raise DataError(f"{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("labelled_rows", "warmup_steps", "test_rows", "label_weight", "rationale_weight", "kd_weight", "weight_decay"):
            if not 0 <= getattr(self, key) < math.inf:
                raise DataError(f"{key} is {getattr(self, key)}; it must be 0 or more")
        for key in ("temperature", "lr", "grad_clip"):
            if not 0 < getattr(self, key) < math.inf:
                raise DataError(f"{key} is {getattr(self, key)}; it must be above 0")
        if self.label_weight + self.rationale_weight + self.kd_weight == 0:
            raise DataError("label_weight, rationale_weight and kd_weight are all 0: there is nothing to learn from")

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
    if kind is dict:
        if isinstance(text, dict):
            return text
        raise DataError(f"{key} can only be set in a config file")
    if kind is bool:
        if text in (True, False, "true", "false", "True", "False"):
            return text in (True, "true", "True")
        raise DataError(f"{key} is {text!r}; it can be true or false")
    try:
        if kind is int and float(text) != int(float(text)):
            raise ValueError
        return int(float(text)) if kind is int else kind(text)
    except (ValueError, OverflowError, TypeError):
        raise DataError(f"{key} is {text!r}, not {'a whole number' if kind is int else 'a number'}") from None


def read_config(path):
    """The assignments of a config file as {setting: value}."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such config file")
    try:
        spec = importlib.util.spec_from_file_location("config", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except Exception as e:
        raise DataError(f"{path}: {type(e).__name__}: {e}") from None
    return {k: cast(k, v) for k, v in vars(module).items() if not k.startswith("_") and not inspect.ismodule(v)}


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


class Trainer:
    """A student, its teachers and an optimiser. `step` is one update."""

    def __init__(self, student, teachers, config, vocab_size=None):
        self.config, self.device, self.steps = config, config.torch_device, 0
        self.student = student.to(self.device).train()
        bf16 = config.dtype == "bfloat16" or (config.dtype == "auto" and str(self.device).startswith("cuda"))
        self.autocast = torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=bf16)
        self.teachers = [t.to(self.device, torch.bfloat16 if bf16 else None).eval().requires_grad_(False) for t in teachers]
        if config.kd_weight and not teachers:
            raise DataError(f"kd_weight is {config.kd_weight}, but there is no teacher to learn from")
        rows = [m.config.vocab_size for m in (student, *teachers)]
        self.vocab_size = vocab_size or min(rows)  # rows of the heads behind it are padding: no word, and no part of any softmax
        decay = [p for p in student.parameters() if p.dim() > 1]
        other = [p for p in student.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": other, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.99), fused=True)

    def learning_rate(self):
        """Linear warm-up to lr, then linear decay to 0 at max_steps."""
        c = self.config
        return c.lr * min((self.steps + 1) / max(c.warmup_steps, 1), max(c.max_steps - self.steps, 1) / max(c.max_steps - c.warmup_steps, 1), 1.0)

    def step(self, micro_batches):
        """One update from the micro-batches of a window -> {"loss", its parts, "grad_norm", "lr", "tokens"}.

        A part is the mean over all its tokens in the window, so that a window cut into many micro-batches learns what one big
        batch would; label and reason have means of their own, or the few tokens of the label would drown."""
        c = self.config
        batches = [batch.to(self.device) for batch in micro_batches]
        valid = [batch.labels != -100 for batch in batches]  # (B, T); what is told of the N valid tokens of a batch is (N,)
        is_label = [(torch.ones_like(v) if b.label_tokens is None else b.label_tokens)[v] for b, v in zip(batches, valid, strict=True)]
        labels, reasons = sum(x.sum() for x in is_label), sum((~x).sum() for x in is_label)
        parts = max(int(labels > 0) + int(reasons > 0), 1)
        told = torch.zeros(4, device=self.device)  # loss, label, rationale, kd
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for batch, v, label in zip(batches, valid, is_label, strict=True):
            share = torch.where(label, 1 / labels, 1 / reasons)  # of a token in the mean of its part
            told += self.backward(batch, v, label, share, parts)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), c.grad_clip)
        if not torch.isfinite(norm):
            raise DataError(f"step {self.steps + 1}: the gradient is not finite; try a lower lr than {c.lr}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.steps += 1
        return {**dict(zip(("loss", "label", "rationale", "kd"), told.tolist(), strict=True)), "grad_norm": norm.item(),
                "lr": lr, "tokens": sum(int(b.source_mask.sum()) for b in batches) + int(labels + reasons)}  # fmt: skip

    def backward(self, batch, valid, is_label, share, parts):
        """Gradients of one micro-batch -> loss, label, rationale, kd as one tensor. valid (B, T) bool; is_label, share (N,): of each valid
        token, whether it belongs to the label and how much it counts in the mean of its part; parts: how many of the two parts there are."""
        c, target, y = self.config, T5.shift_right(batch.labels), batch.labels[valid]
        weight = share * torch.where(is_label, c.label_weight, c.rationale_weight)
        with self.autocast:
            hidden = self.student.decode(target, self.student.encode(batch.source, batch.source_mask), batch.source_mask)[valid]  # (N, d)
        with torch.inference_mode():
            taught = [t.decode(target, t.encode(batch.source, batch.source_mask), batch.source_mask)[valid] for t in self.teachers] if c.kd_weight else []
        told = torch.zeros(2, len(y), device=self.device)  # cross-entropy and divergence of each token

        def losses(logits, rows):
            ce = F.cross_entropy(logits.float(), y[rows], reduction="none", label_smoothing=c.label_smoothing)
            kd = torch.zeros_like(ce)
            for t, states in zip(self.teachers, taught, strict=False):
                words = F.linear(states[rows], t.head[: self.vocab_size])
                kd = kd + token_divergence(logits, words, c.kd_loss, c.temperature, c.kd_beta, c.kd_skew) / len(taught)
            told[0, rows], told[1, rows] = ce.detach(), kd.detach()
            return [(ce * weight[rows]).sum() + c.kd_weight / parts * (kd * share[rows]).sum()]

        with self.autocast:
            loss = ChunkedHead.apply(hidden, self.student.head[: self.vocab_size], losses, (1.0,))
        loss.sum().backward()
        ce, kd = told * share
        return torch.stack([loss.detach()[0], ce[is_label].sum(), ce[~is_label].sum(), kd.sum() / parts])

    def state_dict(self):
        """All that going on needs, in plain tensors and numbers."""
        cuda = torch.cuda.get_rng_state() if str(self.device).startswith("cuda") else torch.empty(0)
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict(), "steps": self.steps,
                "random": torch.get_rng_state(), "cuda": cuda}  # fmt: skip

    def load_state_dict(self, state):
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        torch.set_rng_state(state["random"])
        if len(state["cuda"]):
            torch.cuda.set_rng_state(state["cuda"])


# --- one run ----------------------------------------------------------------------------------------------------------


def vocabulary_for(config, teacher, texts):
    """The tokenizer of a run, its spiece.model in the run folder."""
    path = config.folder / "spiece.model"
    if not path.is_file():
        if config.student not in SIZES:
            source = fetch(config.student) / "spiece.model"
        elif teacher and not config.vocabulary:
            source = teacher / "spiece.model"
        elif config.vocabulary.isdigit():
            train_vocabulary(texts, path, int(config.vocabulary))
            return Tokenizer(path)
        elif config.vocabulary:
            source = Path(config.vocabulary)
            source = source if source.is_file() else fetch(config.vocabulary, weights=False) / "spiece.model"
        else:
            raise DataError(f"a student of size {config.student} needs a vocabulary: set a teacher, or vocabulary to a number of pieces or a file")
        if not source.is_file():
            raise DataError(f"{source} is missing: put the model's spiece.model there")
        replace_file(path, source.read_bytes())
    return Tokenizer(path)


def teachers_words(config, teacher, examples):
    """The examples with the teacher's own labels and reasons; kept in the run folder as a rationale file."""
    path = config.folder / "teacher.jsonl"
    if not path.is_file():
        print(f"{teacher} labels and explains {len(examples):,} pairs")
        answers = Apprentice.load(teacher, device=config.torch_device).answer([(e.premise, e.hypothesis) for e in examples], 256, progress=True)
        lines = [{"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": a.label, "rationale": a.rationale, "source": str(teacher)}
                 for e, a in zip(examples, answers, strict=True)]  # fmt: skip
        replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return [e for e in read_examples(path) if e.label]


def encode_all(config, tokenizer, examples):
    """{task: [(source ids, target ids, label tokens) of every example]}; rows that lack what a task asks for are left out of all."""
    parts = {part for task in config.tasks for part in FORMATS[task].parts}
    usable = [e for e in examples if (e.label or "label" not in parts) and (e.explanations or "rationale" not in parts)]
    if not usable:
        raise DataError(f"{config.data}: none of {len(examples)} training rows has what format {config.format} needs ({' and '.join(sorted(parts))})")
    if len(usable) < len(examples):
        print(f"{len(examples) - len(usable):,} of {len(examples):,} training rows lack a {' or a '.join(sorted(parts))} and are left out")
    rows = {task: [] for task in config.tasks}
    for e in tqdm(usable, desc="encoding", unit="row", leave=False):
        for task in config.tasks:
            rows[task].append(encode_example(tokenizer, FORMATS[task], e, 0, config.max_source, config.max_target))
    return rows


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
        differ = [k for k in settings if settings[k] != run["settings"].get(k)]
        if differ:
            raise DataError(f"{folder} holds another run: its {differ[0]} is {run['settings'].get(differ[0])!r}, not {settings[differ[0]]!r}; "
                            "choose another --name, or delete the folder")  # fmt: skip
        if run.get("finished"):
            print(f"{folder} is finished")
            return folder
    teacher = teacher_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    examples = read_examples(config.data, "train")
    held_out = [e for e in read_examples(config.data, "validation") if e.label][: config.eval_rows]
    labelled = examples[: config.labelled_rows or len(examples)]
    texts = [text for e in labelled for text in (e.premise, e.hypothesis, *e.explanations)]
    texts += [FORMATS[task].render(e)[0] for e in labelled[:1000] for task in config.tasks]
    if not labelled or not held_out:
        raise DataError(f"{config.data}: {len(labelled)} training and {len(held_out)} labelled validation rows; both are needed")
    tokenizer = vocabulary_for(config, teacher, texts)
    torch.manual_seed(config.seed)
    if config.student in SIZES:
        student = T5(replace(SIZES[config.student], vocab_size=tokenizer.vocab_size))
    else:
        student = T5.from_pretrained(config.student)
    teachers = []
    if config.kd_weight:
        if not teacher:
            raise DataError(f"kd_weight is {config.kd_weight}, but no teacher is set")
        if (teacher / "spiece.model").read_bytes() != (folder / "spiece.model").read_bytes():
            raise DataError(f"teacher {config.teacher} has another vocabulary than the student: set kd_weight=0 and teacher_writes=true")
        teachers = [T5.from_pretrained(teacher)]
    if config.teacher_writes:
        labelled = labelled + teachers_words(config, teacher, examples[len(labelled) :])
    run = {"settings": settings, "origin": origin, "command": " ".join(sys.argv), "git": git_commit(), "finished": False,
           "versions": {"python": platform.python_version(), "torch": torch.__version__}, "device": config.torch_device}  # fmt: skip
    replace_file(folder / "run.json", json.dumps(run, indent=1).encode())
    print(f"\n== {folder}: " + ", ".join(f"{k} {v!r} ({origin.get(k, 'default')})" for k, v in settings.items() if k not in ("baselines", "name")))
    rows = encode_all(config, tokenizer, labelled)
    sampler = BucketSampler([(len(s), len(t)) for s, t, _ in rows[config.tasks[-1]]], config.batch_size, config.seed)
    trainer = Trainer(student, teachers, config, tokenizer.vocab_size)
    print(f"{sum(p.numel() for p in student.parameters()):,} parameters learn from {len(sampler.lengths):,} rows ({len(examples):,} read)")

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
        told = trainer.step([collate([rows[task][i] for i in chosen]) for chosen in window for task in config.tasks])
        step, tokens = trainer.steps, tokens + told["tokens"]
        bar.update()
        if step % config.log_every == 0 or step == config.max_steps:
            seconds = time.time() - started
            eta = seconds / (step - first) * (config.max_steps - step)
            bar.write(f"{step:6d} {step / config.max_steps:4.0%} | loss {told['loss']:.3f} label {told['label']:.3f} reason {told['rationale']:.3f} "
                      f"kd {told['kd']:.3f} | norm {told['grad_norm']:.2f} lr {told['lr']:.1e} | {tokens / seconds:,.0f} tok/s, {eta:.0f} s left")  # fmt: skip
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
                student.save_pretrained(folder)
        if step % config.save_every == 0:
            state_file.parent.mkdir(exist_ok=True)
            torch.save({"trainer": trainer.state_dict(), "sampler": sampler.state_dict(), "best": best}, f"{state_file}.tmp")
            os.replace(f"{state_file}.tmp", state_file)
    bar.close()
    replace_file(folder / "run.json", json.dumps({**run, "finished": True}, indent=1).encode())
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # it is needed no more
    return folder


def teacher_folder(config):
    """Where the teacher's weights are; a teacher that is a config file is trained first."""
    if not config.teacher:
        return None
    if not config.teacher.endswith(".py"):
        return fetch(config.teacher)
    values = {"name": Path(config.teacher).stem, **read_config(config.teacher), "out_dir": config.out_dir, "device": config.device}
    return train(Config(**values), dict.fromkeys(values, config.teacher))


def git_commit():
    """The commit of this code, or empty where there is no repository."""
    try:
        return subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


# --- the table --------------------------------------------------------------------------------------------------------


def score(folder, config):
    """Evaluate a finished run on the test split, once: eval.json, predictions and report in its folder; returns the metrics."""
    if (folder / "eval.json").is_file():
        found = json.loads((folder / "eval.json").read_text())
        if found.get("table_rows") == config.test_rows and found["data"] == config.data:
            return found
    examples = [e for e in read_examples(config.data, "test") if e.label]
    examples = examples[: config.test_rows or len(examples)]
    apprentice = Apprentice.load(folder, device=config.torch_device)
    pairs = [(e.premise, e.hypothesis) for e in examples]
    answers = apprentice.answer(pairs, 128, progress=True)
    times = []
    for pair in pairs[:30]:
        start = time.perf_counter()
        apprentice.answer([pair])
        times.append((time.perf_counter() - start) * 1e3)
    predictions = [{"id": e.id, **asdict(a)} for e, a in zip(examples, answers, strict=True)]
    metrics = evaluate.evaluate(examples, predictions, config.seed)
    result = {"run": str(folder), "about": f"{len(examples):,} rows of {config.data}, split test", "data": config.data, "split": "test",
              "limit": config.test_rows, "seed": config.seed, "num_beams": 1, **metrics, "baselines": evaluate.reference_baselines(examples, config.seed),
              "parameters": sum(p.numel() for p in apprentice.model.parameters()), "answer_ms": statistics.median(times),
              "table_rows": config.test_rows}  # fmt: skip
    evaluate.write_results(folder, result, examples, predictions, apprentice.run.get("settings", {}))
    return result


def table(results, path):
    """Print the runs side by side, and draw accuracy against parameters to `path`."""
    from matplotlib.figure import Figure

    first = next(iter(results.values()))
    majority = next(v for k, v in first["baselines"].items() if k.startswith("majority"))
    lines = [("", "parameters", "accuracy", "95% interval", "valid", "ROUGE-L", "ms an answer"),
             ("majority class", "–", f"{100 * majority['accuracy']:.1f}", "–", "–", "–", "–")]  # fmt: skip
    for name, r in results.items():
        low, high = r["accuracy_interval"]
        reason = f"{100 * r['reasons']['rougeL']['f']:.1f}" if r["reasons"] else "–"
        lines.append((name, f"{r['parameters']:,}", f"{100 * r['accuracy']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", f"{100 * r['valid']:.1f}",
                      reason, f"{r['answer_ms']:.1f}"))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{first['about']}; in percent but for parameters and time")
    for line in lines:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))))
    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, r in results.items():
        low, high = r["accuracy_interval"]
        axes.errorbar(r["parameters"], 100 * r["accuracy"], [[100 * (r["accuracy"] - low)], [100 * (high - r["accuracy"])]], fmt="o", capsize=3, label=name)
    axes.axhline(100 * majority["accuracy"], color="grey", linestyle=":", label="majority class")
    axes.set(xscale="log", xlabel="parameters", ylabel="accuracy on test rows, %")
    axes.legend(fontsize=8, loc="lower right")
    axes.set_ylim(0, 105)
    figure.savefig(path)
    print(f"wrote {path}")


def main(argv=None):
    """Teacher, students, table."""
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        print(__doc__, inspect.getsource(Config), sep="\n")
        return
    runs, origin = read_settings(argv)
    configs = [Config(**values) for values in runs]
    for config in configs:  # a mistake in a baseline shows before hours of training
        for name, other in config.baselines.items():
            replace(config, **{k: cast(k, v) for k, v in other.items()}, name=f"{config.name}-{name}", baselines={})
    results = {}
    for config in configs:
        teacher = teacher_folder(config)
        for name, other in config.baselines.items():
            beside = replace(config, **{k: cast(k, v) for k, v in other.items()}, name=f"{config.name}-{name}", baselines={})
            results[beside.name] = score(train(beside, origin), beside)
        results[config.name] = score(train(config, origin), config)
        if teacher and (teacher / "run.json").is_file():
            results[teacher.name] = score(teacher, replace(config, name=teacher.name))
    table(results, configs[-1].folder / "table.png")
    print(f"results are in {configs[-1].folder}; ask it: python apprentice.py {configs[-1].folder}")


if __name__ == "__main__":
    run_main(main)
