"""Teach a small T5 to answer and explain like a larger one.

    python distill.py                            configs/tiny.py: teacher, students and a table, with no download   (minutes, 2 cores)
    python distill.py configs/small.py           FLAN-T5-small taught by FLAN-T5-large on e-SNLI                    (hours, one GPU)
    python distill.py configs/scratch.py --data=FILE     a T5 from random weights on a CSV of e-SNLI
    python distill.py CONFIG.py … --lr=3e-4 --seed=1,2,3     settings win over files, later files over earlier ones;
                                                  values with commas train every combination; --help lists all

Read in order: settings, losses, who teaches, `Trainer.step` (one update), `train` (one run), `main`. A run stopped at any
moment goes on with the same command from its last checkpoint, on a CPU to the same bits. Read next: evaluate.py (what the student kept).
"""

import contextlib
import functools
import hashlib
import inspect
import itertools
import json
import math
import os
import random
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
import warnings
import weakref
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import ConcatDataset
from tqdm import tqdm

import data
import evaluate
from apprentice import EOS, TASKS, Apprentice, LoRA, Recorded, cast, check_device, cut_student, generate, learning_parameters, read_run, sized
from data import FORMATS, Batch, BucketSampler, DataError, Tokenizer, borrowed, collate, encoded_rows, read_examples, run_main, stream_examples
from model import SIZES, T5, CheckpointError, T5Config, fetch, product, read_json, replace_file, weights_digest

WEIGHTS = ("label_weight", "rationale_weight", "kd_weight", "hidden_weight")

@dataclass(frozen=True)
class Config:
    """Every setting, with its default. Set them in a config file (`lr = 1e-3`) or on the command line (`--lr=1e-3`)."""

    # who learns
    student: str = "nano"  # a hub name, run folder or config file; a built-in size (random weights); cut: layers of the teacher
    student_layers: int = 0  # of each stack, for a size and for cut; 0: as there
    student_width: int = 0  # d_model of a size, whose heads and d_ff grow along; 0: as there
    vocabulary: str = ""  # of a size: spiece.model, a hub name, or pieces to train (500, 500@DATA); empty: the teacher's
    train_only: str = ""  # a pattern of parameter names (python model.py SIZE): decoder, norm, last2, ^(?!shared); empty: all learn
    lora_rank: int = 0  # above 0: the blocks' matrices that train_only names learn as W + alpha / rank * B A, all else rests
    lora_alpha: float = 16.0
    # from whom: a hub name, run folder or config file (trained first) is a T5 teacher, NAME.jsonl a file of anyone's rationales
    teacher: str = ""  # several: A+B, with weights A@2+B
    teacher_mix: str = "fixed"  # of T5 teachers: fixed (their weights) | confidence (how well each foretells the example counts too)
    teacher_cache: str = ""  # a folder where its top_k words for each token are kept: it is asked only once (reverse KL misses the others most)
    top_k: int = 64
    teacher_writes: str = "none"  # none | rest | all: the (first) T5 labels and explains the rows beyond labelled_rows, or all in people's place
    teacher_beams: int = 1  # of that writing
    teacher_temperature: float = 0.0  # above 0: it draws its words instead, from its logits divided by this
    on_policy: float = 0.0  # share of updates in which the student writes, and the teacher judges every word (GKD)
    other_labels: float = 1.0  # how much, beside others of an update, a teacher's words count where its label is not gold; 0 drops them
    # what it learns from
    data: str = "toy"  # names or files, as data.py reads them
    labelled_rows: int = 0  # training rows whose labels and reasons may be used; 0: all
    explanations: int = 0  # of a row's explanations that are learnt; 0: all
    hypothesis_only: float = 0.0  # rows added against shortcuts, as a share of the labelled: a hypothesis without its premise, called neutral
    word_dropout: float = 0.0  # share of a source's tokens left out, others each time
    format: str = "multitask"  # multitask (predict + explain) | simulate (simulate_input, _reason, _both) | predict | … (data.py's FORMATS)
    max_source: int = 128  # tokens; longer sources are cut
    max_target: int = 64  # tokens; longer targets are cut
    # the losses: label_weight * CE(label) + rationale_weight * CE(reason) + kd_weight * divergence from the teacher + hidden_weight * MSE
    label_weight: float = 1.0
    rationale_weight: float = 1.0
    kd_weight: float = 0.0  # above 0 needs a teacher with the same vocabulary
    hidden_weight: float = 0.0  # of the distance of hidden states from a live teacher's, layer by layer (TinyBERT)
    schedule: str = ""  # weights that move evenly to another value until the last step: "kd_weight:0 label_weight:2"
    kd_loss: str = "forward_kl"  # forward_kl | reverse_kl | jsd | skew_forward_kl | skew_reverse_kl | tvd | soft_ce: see KINDS in distill.py
    kd_beta: float = 0.5  # of jsd: small is like forward, large like reverse KL; at 0 and 1 its size jumps (see KINDS)
    kd_skew: float = 0.1  # of the skewed divergences: the share mixed in
    temperature: float = 1.0  # of both softmaxes in the divergence; higher shows more of what the teacher thinks of wrong answers
    label_smoothing: float = 0.0  # share of the cross-entropy's target that all words get alike
    # the optimiser
    lr: float = 1e-3  # peak; warmed up linearly, then decayed linearly to 0 (a run shorter than its warm-up ends in it)
    warmup_steps: int = 50
    weight_decay: float = 0.01
    grad_clip: float = 1.0  # largest norm of the gradient
    batch_size: int = 64  # rows of a micro-batch
    grad_accumulation: int = 1  # micro-batches of an update, each put once for every task of the format
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
    tests: str = ""  # data for the table's test rows, several with spaces between (reports are of the last); empty: data
    test_rows: int = 1000  # test rows of each; 0: all
    baselines: dict = field(default_factory=dict)  # {name: settings that differ, from the command line's too}: runs trained beside this one, for the table

    def __post_init__(self):
        legal = {"kd_loss": KINDS, "dtype": ("auto", "float32", "bfloat16"), "teacher_mix": ("fixed", "confidence"),
                 "teacher_writes": ("none", "rest", "all"), "format": [name for name in TASKS if name != "explain"]}
        for text, holds, keys in (
            *((", ".join(values), values.__contains__, key) for key, values in legal.items()),
            ("at least 1", lambda x: x >= 1, "batch_size grad_accumulation max_steps log_every eval_every save_every eval_rows max_source max_target "
             "teacher_beams top_k"),
            ("above 0", lambda x: x > 0, "temperature lr grad_clip lora_alpha"),
            ("below 2**63", lambda x: x < 2**63, "seed"),
            ("from 0 to 1", lambda x: 0 <= x <= 1, "on_policy other_labels kd_beta label_smoothing hypothesis_only"),
            ("from 0 to below 1", lambda x: 0 <= x < 1, "word_dropout"),
            ("between 0 and 1", lambda x: 0 < x < 1, "kd_skew"),
            (f'texts such as "kd_weight:0.5", of {", ".join(WEIGHTS)}',
             lambda x: all(re.fullmatch(rf"({'|'.join(WEIGHTS)}):\d{{0,9}}\.?\d{{1,9}}", part) for part in x.split()), "schedule"),
            ("from 0 to below 1e30", lambda x: 0 <= x < 1e30, " ".join(k for k, v in asdict(self).items() if isinstance(v, (int, float)))),
        ):
            for key in keys.split():
                if not holds(getattr(self, key)):
                    raise DataError(f"{key} is {getattr(self, key)!r}; it can be {text}")
        parts = {part for task in TASKS[self.format] for part in FORMATS[task].parts}
        for wrong, why in (
            (not self.uses("kd_weight", "hidden_weight", *(f"{part}_weight" for part in parts)),
             f"with format={self.format} and label_weight={self.label_weight}, rationale_weight={self.rationale_weight} there is nothing to learn from"),
            ((self.teacher_writes != "none" or self.teacher_cache or self.student == "cut") and not self.teachers(),
             f"teacher_writes={self.teacher_writes}, teacher_cache={self.teacher_cache!r}, student={self.student}: a T5 is needed as the teacher"),
            (self.on_policy and not self.uses("kd_weight"), f"on_policy={self.on_policy}: the teacher judges the student's words by kd_weight, which is 0"),
            (self.teacher_cache and (self.on_policy or self.word_dropout or self.teacher_mix == "confidence" or self.uses("hidden_weight")),
             "teacher_cache holds the likeliest words at the data's own rows; on_policy, word_dropout, hidden_weight and teacher_mix=confidence need it live"),
            (self.student_layers and self.student not in (*SIZES, "cut") or self.student_width and self.student not in SIZES,
             f"student_layers shapes a size or cut, student_width a size; student is {self.student!r}"),
            (any(weight == 0 for files in (0, 1) for _, weight in self.teachers(files)), f"teacher={self.teacher}: a weight is 0; leave that teacher out"),
            (self.teacher_temperature and self.teacher_beams > 1, "teacher_temperature has the teacher draw, teacher_beams has it search: set one of them"),
            (not all(isinstance(other, dict) and not {"name", "baselines"} & {*other} for other in self.baselines.values()),
             f"baselines is {self.baselines}, not {{name: {{setting: value}}}}; a run beside this one has neither name nor baselines of its own"),
            (self.student == "cut" and not self.student_layers, "student=cut: set student_layers to how many to cut from the teacher"),
            (self.teacher_writes == "rest" and not self.labelled_rows, "teacher_writes=rest: labelled_rows is 0, which leaves no rest; set it, or all"),
        ):
            if wrong:
                raise DataError(why)

    def weights(self, share):
        """{weight: its value when `share` (0 to 1) of the updates are done}"""
        ends = dict(part.split(":") for part in self.schedule.split())
        return {k: getattr(self, k) + share * (float(ends.get(k, getattr(self, k))) - getattr(self, k)) for k in WEIGHTS}

    def uses(self, *names):
        """Is one of these weights ever above 0?"""
        return any(self.weights(share)[k] > 0 for share in (0, 1) for k in names)

    def teachers(self, files=False):
        """[(name, weight)] of the T5 teachers, or of the rationale files: "A@2+B" -> [("A", 2.0), ("B", 1.0)]"""
        parts = [re.fullmatch(r"(.+?)(?:@(\d*\.?\d+))?", name) for name in self.teacher.split("+") if name]
        return [(part[1], float(part[2] or 1)) for part in parts if bool(re.search(r"\.jsonl($|\?)", part[1])) == files]

    @property
    def folder(self):
        return Path(self.out_dir) / self.name

    @property
    def torch_device(self):
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    @property
    def bf16(self):
        return self.dtype == "bfloat16" or (self.dtype == "auto" and "cuda" in self.torch_device)

def read_config(path):
    """The assignments of a config file as {setting: value}."""
    if not Path(path).is_file() or Path(path).suffix != ".py":
        raise DataError(f"{path}: no such config file; it should be one of Python, NAME.py")
    try:
        values = runpy.run_path(str(path))
        return {k: cast(k, v, asdict(Config())) for k, v in values.items() if not k.startswith("_") and not inspect.ismodule(v)}
    except DataError as e:
        raise DataError(f"{path}: {e}") from None
    except (Exception, SystemExit) as e:
        raise DataError(f"{path}: {type(e).__name__}: {e}") from None

def read_settings(argv):
    """Command line -> ([{setting: value}, one a combination], {setting: where it came from})."""
    files = [a for a in argv if not a.startswith("-")] or ["configs/tiny.py"]
    values, origin, grid = {"name": Path(files[0]).stem}, {"name": files[0]}, {}
    for file in files:
        values |= (new := read_config(file))
        origin |= dict.fromkeys(new, file)
    for arg in (a for a in argv if a.startswith("-")):
        key, equals, text = arg.lstrip("-").partition("=")
        if not equals:
            raise DataError(f"{arg}: a setting is given as --name=value")
        grid[key] = [cast(key, part, asdict(Config())) for part in text.split(",")]
        values[key], origin[key] = grid[key][0], "command line"
    values["name"] = values["name"] or Path(files[0]).stem
    grid, runs = {k: v for k, v in grid.items() if len(v) > 1}, []
    for choice in itertools.product(*grid.values()):
        suffix = "".join(f"-{k}={str(v).replace('/', '_')}" for k, v in zip(grid, choice, strict=True))
        runs.append(values | dict(zip(grid, choice, strict=True)) | {"name": values["name"] + suffix})
    return runs, origin

# --- losses -----------------------------------------------------------------------------------------------------------

FLOOR = -1e9  # stands for a log-probability of -inf, and unlike it gives 0 times itself = 0

class TopK(NamedTuple):
    """Of a teacher's logits its k likeliest words, and one bucket with the mass of all others."""
    log_probs: torch.Tensor  # (..., k + 1), softened by the temperature of the loss; the bucket is the last
    ids: torch.Tensor  # (..., k)

def soften(logits, temperature=1.0):
    """log softmax(logits / temperature) over the last axis, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (logits if temperature == 1 else logits / temperature).clamp(min=FLOOR).log_softmax(-1)

def top_k(logits, k, temperature=1.0, ids=None):
    """logits (..., V) -> TopK, of given ids if they are; the bucket is summed over its words, so that it stays exact near 0"""
    log_probs = soften(logits, temperature)
    ids = log_probs.topk(k).indices if ids is None else ids
    return TopK(torch.cat([log_probs.gather(-1, ids), log_probs.scatter(-1, ids, FLOOR).logsumexp(-1, keepdim=True)], -1), ids)

def kl(p, q):
    """KL(p || q) of log-probabilities (..., V) -> (...)"""
    return (p.exp() * (p - q)).sum(-1)

def mix(share, p, q):
    """log(share e^p + (1 - share) e^q), exact where a probability underflows"""
    return torch.logaddexp(p + math.log(share), q + math.log1p(-share))

KINDS = {  # of log-probabilities s (student), t (teacher) (..., V) -> (...)
    "forward_kl": lambda s, t, beta, skew: kl(t, s),  # Hinton et al. 2015, arXiv 1503.02531: covers all that the teacher says
    "reverse_kl": lambda s, t, beta, skew: kl(s, t),  # Gu et al. 2024, MiniLLM, arXiv 2306.08543: seeks what the teacher says most
    # between the two and bounded (Agarwal et al. 2024, GKD, arXiv 2306.13649, as TRL writes it): towards both ends of beta it goes to 0, but AT
    # them it jumps to forward KL (0) or reverse KL (1), of another size: don't sweep beta across its ends
    "jsd": lambda s, t, beta, skew: beta * kl(t, mix(beta, t, s)) + (1 - beta) * kl(s, mix(beta, t, s)) if 0 < beta < 1 else kl(s, t) if beta else kl(t, s),
    "skew_forward_kl": lambda s, t, beta, skew: kl(t, mix(skew, t, s)),  # Ko et al. 2024, DistiLLM, arXiv 2402.03898: bounded
    "skew_reverse_kl": lambda s, t, beta, skew: kl(s, mix(skew, s, t)),
    "tvd": lambda s, t, beta, skew: (s.exp() - t.exp()).abs().sum(-1) / 2,  # Wen et al. 2023, f-Distill, arXiv 2307.15190
    "soft_ce": lambda s, t, beta, skew: -(t.exp() * s).sum(-1),  # forward KL + the teacher's entropy: its gradients, never 0
}

def token_divergence(student_logits, teacher, kind="forward_kl", temperature=1.0, beta=0.5, skew=0.1, known=None):
    """Divergence of a student from its teacher at each token, (..., V) -> (...). teacher: logits (..., up to V), or TopK, against which the
    student's other words fall into one bucket too. Times temperature^2, which keeps the gradients' size (Hinton, section 2).
    known: the student's log-probabilities at temperature 1, where they are there already."""
    if kind not in KINDS or not 0 <= beta <= 1 or not 0 < skew < 1 or not temperature > 0:
        raise ValueError(f"kind is {kind!r}, of {', '.join(KINDS)}; beta is {beta}, from 0 to 1; skew is {skew}, between 0 and 1; "
                         f"temperature is {temperature}, above 0")
    if isinstance(teacher, TopK):
        s, t = top_k(student_logits, None, temperature, teacher.ids).log_probs, teacher.log_probs
    else:
        same = known is not None and temperature == 1 and teacher.shape == known.shape
        s = known if same else soften(student_logits[..., : teacher.shape[-1]], temperature)
        t = soften(teacher, temperature)
    return KINDS[kind](s, t, beta, skew) * temperature**2

def token_losses(logits, taught, labels, vocab_size, label_smoothing=0.0, **how):
    """logits (N, V), taught: each teacher's logits (N, V) or TopK, labels (N,), -100 = ignore -> (cross-entropy, *divergences) (1 + teachers, N);
    columns from vocab_size on are padding, no words."""
    logits = logits if logits.shape[1] == vocab_size else logits[:, :vocab_size]  # a slice of all would cost a copy of the gradient
    log_probs = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))  # `soften` less its care for -inf, which no product gives
    ce = F.nll_loss(log_probs, labels, reduction="none")
    if label_smoothing:
        ce = (1 - label_smoothing) * ce - label_smoothing * log_probs.mean(-1) * (labels != -100)
    return torch.stack([ce, *(token_divergence(logits, words, known=log_probs, **how) for words in taught)])

def with_gradient(logits, weights, *about, **how):
    """-> (token_losses(logits, ...) (P, N), the gradient of their sum under weights (P, N) for the logits (N, V))"""
    found, pull = torch.func.vjp(lambda logits: token_losses(logits, *about, **how), logits)
    return found, pull(weights)[0]

COMPILED = []  # with_gradient, compiled or, where that can't be, as it is

def fused(logits, weights, taught, labels, *about, **how):
    """`with_gradient`; on a GPU and with a large vocabulary two kernels read the logits where PyTorch takes two dozen, if torch.compile can work there."""
    if not logits.is_cuda or logits.shape[1] < 2**13 or any(isinstance(words, TopK) for words in taught):
        return with_gradient(logits, weights, taught, labels, *about, **how)
    if not COMPILED:
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)  # a grid has more losses than its 8
        COMPILED.append(torch.compile(with_gradient))
    for x, dim in ((logits, 0), (weights, 1), *((words, 0) for words in taught), (labels, 0)):
        torch._dynamo.maybe_mark_dynamic(x, dim)
    try:
        return COMPILED[0](logits, weights, taught, labels, *about, **how)
    except (torch.OutOfMemoryError, ValueError):
        raise
    except Exception as e:  # no compiler, no Triton, …
        warnings.warn(f"the losses can't be compiled, which makes them slow: {(str(e) or type(e).__name__).splitlines()[0]}", stacklevel=2)
        COMPILED[0] = with_gradient
        return with_gradient(logits, weights, taught, labels, *about, **how)

def distillation_loss(student_logits, teacher_logits, mask, kind="forward_kl", temperature=1.0, **options):
    """How far a student is from its teacher, for callers who hold all logits (`Trainer.backward` does not). logits (..., V), the teacher's
    perhaps TopK; mask (...), bool or 0 and 1 -> scalar: summed over V, mean over the mask's True tokens, 0 where there are none. options: beta of jsd,
    skew of the skewed ones (the share mixed in)."""
    mask = mask.bool()  # whole numbers would be taken for row numbers
    teacher = TopK(*(x[mask] for x in teacher_logits)) if isinstance(teacher_logits, TopK) else teacher_logits[mask]
    return token_divergence(student_logits[mask], teacher, kind, temperature, **options).sum() / mask.sum().clamp(min=1)

CHUNK = 2**22, 2**27  # logits that are held at once on a CPU, on a GPU: 16 MB, 256 MB in bfloat16; a GPU takes half a batch at most

class ChunkedHead(torch.autograd.Function):
    """Losses over the logits F.linear(hidden, head), which are never held: with 32,128 words they outweigh all else in training. A chunk of
    tokens goes forward to its losses and at once back to its gradients. hidden (N, d), head (V, d), losses(logits (C, V), slice of rows,
    weights (P,)) -> (P losses (P,), gradient of their sum under the weights (C, V)); summed over the chunks -> (P,). weights: the P gradients
    awaited from above, but for a factor; others do the work twice."""

    @staticmethod
    def forward(ctx, hidden, head, losses, weights):
        device, learn_head, N = hidden.device, ctx.needs_input_grad[1], len(hidden)
        chunk = math.ceil(N / max(math.ceil(N * len(head) / CHUNK[hidden.is_cuda]), 1 + hidden.is_cuda)) or 1  # all of one size
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else hidden.dtype

        def work(weights):
            h, w, sums = hidden.to(dtype), head.to(dtype), torch.zeros(len(weights), device=device, dtype=torch.promote_types(dtype, torch.float32))
            grad_hidden, grad_head = torch.empty_like(hidden), None
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                for rows in (slice(start, start + chunk) for start in range(0, N, chunk)):
                    found, grad = losses(product(h[rows], w), rows, weights)
                    sums += found
                    grad_hidden[rows] = product(grad, w.t())
                    if learn_head and grad_head is None:
                        grad_head = (grad.t() @ h[rows]).to(sums.dtype)
                    elif learn_head and dtype == grad_head.dtype:
                        grad_head.addmm_(grad.t(), h[rows])
                    elif learn_head:
                        grad_head += product(grad.t(), h[rows].t())
                    del grad  # or it would live on beside the next chunk's
            return sums, grad_hidden, (torch.zeros_like(head) if grad_head is None else grad_head.to(head.dtype)) if learn_head else None

        ctx.work, ctx.weights = work, torch.stack([torch.full((), weight, device=device) for weight in weights])
        sums, *ctx.grads = work(ctx.weights)
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        scale = grad[0] / ctx.weights[0]
        if len(grad) > 1 and not torch.allclose(scale * ctx.weights, grad.float(), rtol=1e-6, atol=0):
            return *ctx.work(grad)[1:], None, None
        same = grad.is_cpu and scale == 1  # a GPU is not asked: it would be waited for
        return *(g if g is None or same else g * scale for g in ctx.grads), None, None

def linear_distillation_loss(student_hidden, student_head, teacher_hidden, teacher_head, labels, kind="forward_kl", temperature=1.0,
                             label_smoothing=0.0, weights=(1.0, 1.0), **options):
    """Cross-entropy and divergence of the logits hidden @ head.T, never (N, V) of them at once. hidden (N, d), heads (V, d) (a tied T5's
    scale is in its hidden), labels (N,), -100 = ignore -> (cross_entropy, divergence), means over the labels, with gradients for the student's
    side. weights: what the two will be multiplied with; others are right too and cost a second pass."""
    valid = labels != -100
    hidden, teacher, labels = student_hidden[valid], teacher_hidden[valid].detach(), labels[valid]
    count, words = max(len(labels), 1), min(len(student_head), len(teacher_head))

    def losses(logits, rows, weights):
        taught, weights = product(teacher[rows], teacher_head[:words].detach()), (weights / count)[:, None].expand(-1, len(logits))
        found, grad = fused(logits, weights, [taught], labels[rows], len(student_head), label_smoothing, kind=kind, temperature=temperature, **options)
        return found.sum(1) / count, grad

    return ChunkedHead.apply(hidden, student_head, losses, weights).unbind()

def states_of(model, batch, pick, watched):
    """-> (the decoder's states (N, d) at the tokens that are picked, {"encoder": [], "decoder": []}: if watched, what their blocks gave, (B, T, d) each)"""
    states = {"encoder": [], "decoder": []}
    with contextlib.ExitStack() as hooks:
        for name, found in states.items() if watched else ():
            for block in getattr(model, name).blocks:
                hooks.enter_context(block.register_forward_hook(lambda *args, found=found: found.append(args[2])))
        return pick(model.states(batch.source, T5.shift_right(batch.labels), batch.source_mask)), states

def cut_head(model, vocab_size):
    """The head's rows for the words; on a GPU all of them, as its products with 32,128 rows take half the time of those with 32,100."""
    return model.head if model.head.is_cuda else model.head[:vocab_size]

class LiveTeacher:
    """A T5 that is asked. Called with a batch and a function that picks N tokens of (B, T), it returns words(rows) -> logits of these of the N,
    and keeps its hidden states where they are learnt from."""

    def __init__(self, model, config, vocab_size):
        self.model = model.to(config.torch_device, torch.bfloat16 if config.bf16 else None).eval().requires_grad_(False)
        self.head, self.vocab_size, self.watched = cut_head(self.model, vocab_size), vocab_size, config.uses("hidden_weight")

    @torch.inference_mode()
    def __call__(self, batch, pick):
        hidden, self.states = states_of(self.model, batch, pick, self.watched)
        return torch.no_grad()(lambda rows: product(hidden[rows], self.head)[:, : self.vocab_size])  # (N, d) is kept, (N, V) never made

class CachedTeacher:
    """A teacher whose k likeliest words at each target token are kept on disk: asked when a training row first comes by, never again. The file
    has a line of 16-bit numbers a token: k + 1 log-probabilities (float16), then k ids, which are 0 while the line is unwritten.
    rows: all (source ids, target ids, …); live() brings the LiveTeacher when it is needed."""

    def __init__(self, folder, about, rows, config, live):
        self.k, self.temperature, self.device, self.live = config.top_k, config.temperature, config.torch_device, functools.cache(live)
        lengths = dict(sorted((digest(*row[:2]), len(row[1])) for row in rows))  # the order of the data does not matter
        self.place = dict(zip(lengths, itertools.accumulate(lengths.values(), initial=0), strict=False))
        about |= {"format": config.format, "data": digest("".join(lengths).encode()), "top_k": self.k, "temperature": self.temperature}
        told = json.dumps(about, indent=1).encode()
        folder, shape = Path(f"{folder}-{digest(told)}"), (sum(lengths.values()), 2 * self.k + 1)  # another teacher, format, … has another folder
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / "about.json", told)
        with open(file := folder / "top_k.u16", "ab") as f:
            if hasattr(os, "posix_fallocate"):  # a full disk shows here, and not as a bus error when the map is written to
                os.posix_fallocate(f.fileno(), 0, max(1, shape[0]) * shape[1] * 2)
        self.table = np.memmap(file, np.uint16, "r+", shape=shape)

    def __call__(self, batch, pick):
        lengths = (batch.labels != -100).sum(1).tolist()
        lines = np.concatenate([self.place[key] + np.arange(n) for key, n in zip(batch.ids, lengths, strict=True)])
        if (self.table[lines, -1] == self.table[lines, -2]).any():  # two ids of a token differ, but where both are 0
            words = self.live()(batch, pick)
            for start in range(0, len(lines), 512):
                rows = slice(start, start + 512)
                kept = top_k(words(rows), self.k, self.temperature)
                self.table[lines[rows], : self.k + 1] = kept.log_probs.clamp(min=-6e4).half().cpu().numpy().view(np.uint16)
                self.table[lines[rows], self.k + 1 :] = kept.ids.cpu().numpy()  # last: what is cut off here stays unwritten
        log_probs, ids = (torch.from_numpy(part.copy()).to(self.device) for part in np.split(self.table[lines], [self.k + 1], axis=1))
        log_probs, ids = log_probs.view(torch.float16).float().log_softmax(-1), ids.long()
        return lambda rows: TopK(log_probs[rows], ids[rows])

def digest(*pieces):
    """The first 16 digits of the sha256 of some bytes, or lists of ids."""
    return hashlib.sha256(b"".join(p if isinstance(p, bytes) else np.asarray(p, np.int64).tobytes() for p in pieces)).hexdigest()[:16]

HELD = 2**19  # tokens times width that a CPU works on at once: of more, what all layers hold for their gradients would outweigh the weights

class Trainer:
    """A student, its teachers (T5s, or LiveTeacher and CachedTeacher) and an optimiser. `step` is one update."""

    def __init__(self, student, teachers, config, vocab_size=None):
        c = self.config = config
        self.device, self.steps, self.student = c.torch_device, 0, student.to(c.torch_device).train()
        self.asks = c.uses("kd_weight", "hidden_weight")
        if self.asks and not teachers:
            raise DataError(f"kd_weight is {c.kd_weight}, hidden_weight {c.hidden_weight}, but there is no teacher to learn from")
        self.vocab_size = vocab_size or min(m.config.vocab_size for m in (student, *teachers))  # rows of the heads from there on are padding, no words
        self.teachers = [LiveTeacher(t, c, self.vocab_size) if isinstance(t, T5) else t for t in teachers]
        names, weights = zip(*(c.teachers() or [(str(i), 1.0) for i in range(len(teachers))] or [("", 1.0)]), strict=True)
        self.teacher_weights = torch.tensor(weights, device=self.device)
        self.autocast = torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=c.bf16)
        chosen = [*learning_parameters(student, c.train_only, matrices=c.lora_rank > 0).values()]
        self.lora = LoRA(chosen if c.lora_rank else [], c.lora_rank or 1, c.lora_alpha)  # of no matrices it does nothing
        self.learning = [*self.lora.A, *self.lora.B] or chosen
        d, widths = student.config.d_model, [t.model.config.d_model for t in self.teachers if c.uses("hidden_weight")]
        self.projections = nn.ModuleList(nn.Linear(d, width, bias=False) if width != d else nn.Identity() for width in widths).to(self.device)
        self.moving = [*self.learning, *self.projections.parameters()]
        groups = [{"params": [p for p in self.moving if (p.dim() > 1) == matrix], "weight_decay": c.weight_decay * matrix} for matrix in (True, False)]
        self.optimizer = torch.optim.AdamW(groups, lr=c.lr, betas=(0.9, 0.99), fused=True)
        each = [f"kd {name}" for name in names if len(self.teachers) > 1 and self.asks]
        self.tells = ["loss", "label", "rationale", "kd", *["hidden"] * c.uses("hidden_weight"), *each]
        self.graded = [p for p in (*student.parameters(), *self.projections.parameters()) if p.requires_grad]
        # A GPU records a step for each shape and replays it; gradients and sums then stay in one place. Not where a teacher is read from the disk.
        self.records = {} if self.device.startswith("cuda") and all(isinstance(t, LiveTeacher) for t in self.teachers) else None
        self.told = torch.zeros(len(self.tells), device=self.device)
        for p in self.graded if self.records is not None else ():
            p.grad = torch.zeros_like(p)

    def step(self, micro_batches):
        """One update from the micro-batches of a window -> {"loss", its parts, "grad_norm", "lr", "tokens"}.

        Labels and reasons are two means (Hsieh et al. 2023, "Distilling step-by-step", arXiv 2305.02301), or the few tokens of the label
        would drown. Each is taken over the whole window: cut into many micro-batches it teaches what one big batch would."""
        c = self.config
        own = c.on_policy > 0 and torch.rand(()).item() < c.on_policy
        batches = [self.own_words(b.to(self.device)) if own else b.to(self.device) for b in micro_batches]
        if not self.device.startswith("cuda"):
            width = self.student.config.d_model
            batches = [piece for b in batches for piece in b.split(HELD // (width * (b.source.shape[1] + b.labels.shape[1])) or 1)]
        counts = [(b.labels != -100) * (1.0 if b.weights is None else b.weights[:, None]) for b in batches]  # (B, T); 0 for padding
        is_label = [torch.ones_like(b.labels, dtype=torch.bool) if b.label_tokens is None else b.label_tokens for b in batches]
        totals = [sum((n * (x == part)).sum() for n, x in zip(counts, is_label, strict=True)) for part in (False, True)]  # of reasons, of labels
        parts, sources = sum(total > 0 for total in totals).clamp(min=1), sum(b.source_mask.sum() for b in batches)
        shares = [n / torch.where(x, totals[1], totals[0]).clamp(min=1e-9) for n, x in zip(counts, is_label, strict=True)]  # of a token in its part's mean
        weights = [x * (not own or name not in ("label_weight", "rationale_weight")) for name, x in c.weights(self.steps / max(c.max_steps - 1, 1)).items()]
        now = torch.stack([torch.full((), float(x), device=self.device) for x in (*weights, parts, sources)])
        lr = c.lr * min((self.steps + 1) / max(c.warmup_steps, 1), max(c.max_steps - self.steps, 1) / max(c.max_steps - c.warmup_steps, 1), 1.0)
        self.optimizer.param_groups[0]["lr"] = self.optimizer.param_groups[1]["lr"] = lr
        self.told.zero_()
        for batch, x, share in zip(batches, is_label, shares, strict=True):
            self.backward(batch, x, share, now) if self.records is None else self.replay(batch, x, share, now)
        self.lora.pull()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.moving if p.grad is not None])
        self.optimizer.grad_scale = (norm / c.grad_clip).clamp(min=1).float()  # what the fused step divides gradients by: clipping without its own pass
        *told, grad_norm, tokens = torch.stack([*self.told, norm, sources + sum((b.labels != -100).sum() for b in batches)]).tolist()
        if not math.isfinite(grad_norm):
            raise DataError(f"step {self.steps + 1}: the gradient is not finite; try a lower lr than {c.lr}")
        self.optimizer.step()
        torch.autograd.graph.increment_version(self.learning)  # the fused step does not tell: copies packed for generation would stay as they were
        if self.records is None:
            for p in (*self.graded, *self.moving):
                p.grad = None
        else:
            torch._foreach_zero_([p.grad for p in self.graded])
        self.lora.merge()
        self.steps += 1
        told = dict(zip(self.tells, told, strict=True)) | ({"label": 0.0, "rationale": 0.0} if own else {})  # no say in the student's own words
        return told | {"grad_norm": grad_norm, "lr": lr, "tokens": int(tokens)}

    def replay(self, batch, is_label, share, now):
        """`backward` on a GPU, as it was recorded for batches of that shape; those in between are padded."""
        (B, S), T = batch.source.shape, batch.labels.shape[1]
        given = [(batch.source, 0), (batch.source_mask, False), (batch.labels, -100), (is_label, False), (share, 0.0)]
        given = [F.pad(x, (0, -x.shape[1] % 16), value=value) for x, value in given] + [now]
        shape = B, S + -S % 16, T + -T % 16
        if shape not in self.records:
            places = [x.clone() for x in given]
            self.records[shape] = places, Recorded(functools.partial(Trainer.backward, weakref.proxy(self), Batch(*places[:3]), *places[3:]), self.device)
        places, work = self.records[shape]
        for place, x in zip(places, given, strict=True):
            place.copy_(x)
        work()

    def pick(self, x, mask):
        """x (B, T, ...), mask (B, T) -> (N, ...), the N tokens where the mask is True; where steps are recorded all, so that shapes stay the same"""
        return x[mask] if self.records is None else x.flatten(0, 1)

    def backward(self, batch, is_label, share, now):
        """Gradients of one micro-batch; what it tells (self.tells) is added to self.told. is_label, share (B, T): of each token, whether it belongs
        to the label and how much it counts in the mean of its part, padding 0. now: this update's four weights, how many parts there are, tokens
        of its sources."""
        c, valid = self.config, batch.labels != -100
        pick, (label_weight, rationale_weight, kd_weight, hidden_weight, parts, sources) = functools.partial(self.pick, mask=valid), now
        y, is_label, share = pick(batch.labels), pick(is_label), pick(share)  # (N,)
        weight = share * torch.where(is_label, label_weight, rationale_weight)
        with self.autocast:
            hidden, states = states_of(self.student, batch, pick, c.uses("hidden_weight"))
        taught = [teacher(batch, pick) for teacher in self.teachers] if self.asks else []
        trust = self.trust(taught, y, valid) * share / parts  # (teachers, N): added up over all tokens 1
        told = torch.zeros(1 + len(taught), len(y), device=self.device)  # cross-entropy, divergence from each teacher
        how = {"kind": c.kd_loss, "temperature": c.temperature, "beta": c.kd_beta, "skew": c.kd_skew}

        def losses(logits, rows, _):
            words = [words(rows) for words in taught if c.uses("kd_weight")]
            weights = torch.cat([weight[None, rows], kd_weight * trust[: len(words), rows]])
            found, grad = fused(logits, weights, words, y[rows], self.vocab_size, c.label_smoothing, **how)  # (1 + teachers, rows)
            told[: len(found), rows] = found
            return (found * weights).sum()[None], grad

        with self.autocast:
            loss = ChunkedHead.apply(hidden, cut_head(self.student, self.vocab_size), losses, (1.0,)).sum()
        apart = self.hidden_distance(states, batch.source_mask, valid, share / parts, sources) if states["encoder"] else loss.new_zeros(())
        loss = loss + hidden_weight * apart
        loss.backward()
        ce, kd = told[0] * share, told[1:]
        found = [loss.detach(), (ce * is_label).sum(), (ce * ~is_label).sum(), (kd * trust[: len(kd)]).sum()]
        found += [apart.detach()] * ("hidden" in self.tells) + [(one * share).sum() / parts for one in kd if len(kd) > 1]
        self.told += torch.stack(found)

    def hidden_distance(self, states, source_mask, valid, share, sources):
        """How far the student's hidden states are from its teachers', layer by layer -> scalar, the mean over layers and the window's tokens
        (Jiao et al. 2020, TinyBERT, arXiv 1909.10351, equation 8): the squared difference of states, the student's through a learnt matrix
        where widths differ. Its layer m of M learns from layer m N / M of N. T5 norms states only where they are read: here both sides are."""
        total, trust = 0.0, self.teacher_weights / self.teacher_weights.sum()
        for teacher, much, projection in zip(self.teachers, trust, self.projections, strict=True):
            for stack, mask, weight in (("encoder", source_mask, self.pick(source_mask, source_mask) / sources), ("decoder", valid, share)):
                mine, theirs = states[stack], teacher.states[stack]
                for m, state in enumerate(mine, 1):
                    place = max(round(m * len(theirs) / len(mine)), 1) - 1
                    sides = projection(self.pick(state, mask).float()), self.pick(theirs[place], mask).float()
                    a, b = (F.rms_norm(x, x.shape[-1:]) for x in sides)
                    total = total + much * ((a - b).square().mean(-1) * weight).sum() / len(mine) / 2
        return total

    def trust(self, taught, y, valid):
        """How much each teacher's word counts at each token, (teachers, N), 1 in sum: fixed weights, or weights times the likelihood that
        the teacher gives to the example's own words (for two the rule of Zhang et al. 2022, CA-MKD, arXiv 2201.00007, equation 4)."""
        weights = self.teacher_weights.log()[:, None].expand(-1, len(y))
        if self.config.teacher_mix == "confidence" and taught:
            row = self.pick(torch.arange(len(valid), device=self.device)[:, None].expand_as(valid), valid)
            sums = torch.zeros(len(taught), len(valid), device=self.device)
            for rows in torch.arange(len(y), device=self.device).split(512):
                found = [-F.cross_entropy(words(rows).float(), y[rows], reduction="none") for words in taught]
                sums.index_add_(1, row[rows], torch.stack(found))
            weights = weights + (sums / valid.sum(1).clamp(min=1))[:, row]
        return weights.softmax(0)

    def own_words(self, batch):
        """The batch with targets that the student draws itself (Agarwal et al. 2024, GKD, arXiv 2306.13649), every token of one part."""
        written = generate(self.student, batch.source, batch.source_mask, max_new_tokens=max(1, self.config.max_target - 1), do_sample=True)
        rows = [([0], [*(i for i in ids if i < self.vocab_size), EOS], [True]) for ids in written]  # FLAN-T5's head has more rows than there are words
        return replace(batch, labels=collate(rows).labels.to(self.device), label_tokens=None)

    def state_dict(self):
        """All that going on needs, in plain tensors and numbers."""
        cuda = torch.cuda.get_rng_state(self.device) if str(self.device).startswith("cuda") else torch.empty(0)
        return {"student": self.student.state_dict(), "optimizer": self.optimizer.state_dict(), "projections": self.projections.state_dict(),
                "lora": [x.detach() for x in self.lora.state], "steps": self.steps, "random": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state):
        """Go on from what state_dict gave."""
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.projections.load_state_dict(state["projections"])
        self.steps = state["steps"]
        for mine, saved in zip(self.lora.state, state["lora"], strict=True):
            mine.data.copy_(saved)
        torch.set_rng_state(state["random"])
        if len(state["cuda"]) and str(self.device).startswith("cuda"):
            torch.cuda.set_rng_state(state["cuda"], self.device)

# --- one run ----------------------------------------------------------------------------------------------------------

def settings_of(name, config):
    """The settings of the config file `name` where a run of `config` needs its run: in the same place, on the same device."""
    return {"name": Path(name).stem, **read_config(name), "out_dir": config.out_dir, "device": config.device}

def folder_of(name, config):
    """Where a T5's weights are; one that is a config file is trained first, if its run is not there."""
    if not name.endswith(".py"):
        return fetch(name)
    values = settings_of(name, config)
    return train(Config(**values), dict.fromkeys(values, name) | dict.fromkeys(("out_dir", "device"), config.name))

def vocabulary_for(config, tasks, start):
    """The tokenizer of a run, its spiece.model in the run folder. start: the folder whose vocabulary the student takes over, or None."""
    path, (pieces, _, other) = config.folder / "spiece.model", config.vocabulary.partition("@")
    if not path.is_file() and pieces.isdecimal() and not start:
        examples = read_examples(other or config.data, "train", 0 if other else config.labelled_rows)
        texts = [text for e in examples for text in (e.premise, e.hypothesis, *e.explanations)]
        data.train_vocabulary(texts + [FORMATS[task].render(e)[0] for e in examples[:1000] for task in tasks], path, int(pieces))
    elif not path.is_file():
        if not start and not config.vocabulary:
            raise DataError(f"a student of size {config.student} needs a vocabulary: set a teacher, or vocabulary to a number of pieces or a file")
        own = not start and Path(config.vocabulary).is_file()
        source = Path(config.vocabulary) if own else (start or fetch(config.vocabulary, weights=False)) / "spiece.model"
        if not source.is_file():
            raise DataError(f"{source} is missing: put the model's spiece.model there")
        replace_file(path, source.read_bytes())
    return Tokenizer(path)

def lessons(config, teachers):
    """[(examples, or the name of a data set, how much each counts)]: people's rows, a T5 teacher's own words (Kim & Rush 2016, arXiv
    1606.07947), rationale files. What these say of held-out premises is left out, and of rows beyond labelled_rows where a file's labels are
    the data's own (pairs=, or collected with --given); where a label is not gold a row counts other_labels."""
    found, files = [(config.data, 1.0)] if config.teacher_writes != "all" else [], config.teachers(files=True)
    if config.hypothesis_only:
        rows = read_examples(config.data, "train", config.labelled_rows)
        rows = random.Random(config.seed).sample(rows, math.ceil(config.hypothesis_only * len(rows)))
        found.append(([replace(e, premise="", label="neutral", explanations=("nothing is known.",)) for e in rows], 1.0))
    if config.teacher_writes != "none":
        path, examples = config.folder / "teacher.jsonl", read_examples(config.data, "train")
        examples = examples if config.teacher_writes == "all" else examples[config.labelled_rows or len(examples) :]
        whose = weights_digest(teachers[0])
        begun = (config.folder / "checkpoint" / "state.pt").is_file()  # then `train` compares what was learnt
        if not path.is_file() or not begun and whose not in path.open(encoding="utf-8").readline():
            print(f"{teachers[0]} labels and explains {len(examples):,} pairs")
            drawn = {"temperature": config.teacher_temperature or 1.0, "generator": torch.Generator(config.torch_device).manual_seed(config.seed)}
            Apprentice.load(teachers[0], device=config.torch_device).write_rationales(
                path, examples, f"{teachers[0]} {whose}", num_beams=config.teacher_beams, do_sample=config.teacher_temperature > 0, **drawn)
        files.append((str(path), 1.0))
    if files:
        reasoned = any("rationale" in FORMATS[task].needs for task in TASKS[config.format])
        gold = {e.pair: e.label for e in read_examples(config.data, "train", config.labelled_rows) if e.label}
        held_out = [e for split in ("validation", "test") for e in read_examples(config.data, split)]
        secret = {e.premise.lower() for e in held_out + [e for source in config.tests.split() for e in read_examples(source, "test")]}
    for path, weight in files:
        rows, known = [e for e in read_examples(path) if e.label], config.labelled_rows and borrowed(path)
        free = [e for e in rows if e.premise.lower() not in secret and (e.pair in gold or not known) and (e.explanations or not reasoned)]
        same, other = ([e for e in free if (gold.get(e.pair, e.label) == e.label) == agrees] for agrees in (True, False))
        print(f"{path}: {len(rows):,} answers, {len(rows) - len(free):,} of them without a reason or to held-out premises or rows (left out), "
              f"{len(other):,} with another label than gold (each counts {config.other_labels:g})")
        found += [(chosen, share) for chosen, share in ((same, weight), (other, weight * config.other_labels)) if chosen and share]
    if not found:
        raise DataError(f"none of what {config.teacher} says can be learnt: no row names a label, tells what format={config.format} learns, and counts")
    return found

def thinned(source, target, label_tokens, share):
    """A row whose source has lost a share of its tokens, but not </s>."""
    if share:
        kept = torch.rand(len(source)) >= share
        kept[-1] = True
        source = source[kept.numpy()]
    return source, target, label_tokens

def same_words(name, folder, tokenizer):
    """Refuses a teacher of another vocabulary than the student's."""
    if (folder / "spiece.model").read_bytes() != tokenizer.path.read_bytes():
        raise DataError(f"teacher {name} has another vocabulary than the student: set kd_weight and hidden_weight to 0 and teacher_writes to all or rest")
    if (words := T5Config.from_file(folder / "config.json").vocab_size) < tokenizer.vocab_size:
        raise DataError(f"teacher {name}: its config.json has {words:,} words, its spiece.model {tokenizer.vocab_size:,}")

def teacher_of(folder, config, tokenizer, rows):
    """A T5 teacher as `Trainer` asks it: live, or from the disk where there is a teacher_cache."""
    if config.teacher_cache and tokenizer.vocab_size > 2**16:
        raise DataError(f"teacher_cache keeps words as 16-bit numbers, and {tokenizer.path} has {tokenizer.vocab_size:,}: leave it empty")
    if not config.teacher_cache:
        return LiveTeacher(T5.from_pretrained(folder), config, tokenizer.vocab_size)
    about = {"teacher": weights_digest(folder), "vocabulary": digest(tokenizer.path.read_bytes())}
    config = replace(config, top_k=min(config.top_k, tokenizer.vocab_size))
    return CachedTeacher(Path(config.teacher_cache) / folder.name, about, rows, config,
                         live=lambda: teacher_of(folder, replace(config, teacher_cache=""), tokenizer, ()))

def prepare(config):
    """All that a run needs -> (trainer, tokenizer, lengths of the N rows, batches_of(row numbers), validation examples, a digest of what it learns from)"""
    tasks, teachers = TASKS[config.format], [folder_of(name, config) for name, _ in config.teachers()]
    start = None if config.student in (*SIZES, "cut") else folder_of(config.student, config)
    config.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = vocabulary_for(config, tasks, start or (teachers[0] if teachers and (config.student == "cut" or not config.vocabulary) else None))
    torch.manual_seed(config.seed)
    if config.student in SIZES:
        student = sized(config.student, tokenizer.vocab_size, config.student_layers, config.student_width)
    else:
        student = T5.from_pretrained(start) if start else cut_student(T5.from_pretrained(teachers[0]), config.student_layers)
    if student.config.vocab_size < tokenizer.vocab_size:
        raise DataError(f"{start}: its config.json has {student.config.vocab_size:,} words, its spiece.model {tokenizer.vocab_size:,}")
    learning_parameters(student, config.train_only, config.lora_rank > 0)  # a teacher may write for hours before the Trainer asks
    asked = [*zip(config.teachers(), teachers, strict=True)] if config.uses("kd_weight", "hidden_weight") else []
    for (name, _), folder in asked:
        same_words(name, folder, tokenizer)
    limits = dict(max_source=config.max_source, max_target=config.max_target, explanations=config.explanations)
    groups = [(encoded_rows(source, "train", tokenizer, tasks, limit=0 if isinstance(source, list) else config.labelled_rows, **limits), weight)
              for source, weight in lessons(config, teachers)]
    rows = {task: ConcatDataset([group[task] for group, _ in groups]) for task in tasks}
    weights = torch.cat([torch.full((len(group[tasks[0]]),), weight) for group, weight in groups])
    asked = [teacher_of(folder, config, tokenizer, itertools.chain(*rows.values())) for _, folder in asked]
    trainer = Trainer(student, asked, config, tokenizer.vocab_size)
    learn, have = (sum(p.numel() for p in some) for some in (trainer.learning, student.parameters()))
    print(f"{learn:,} parameters learn, {learn / have:.1%} of the {have:,} there are, from {len(weights):,} rows")
    learnt = digest(*(hashlib.sha256(part.ids).digest() for task in tasks for part in rows[task].datasets), *(weights_digest(f).encode() for f in teachers))
    held_out = [e for e in read_examples(config.data, "validation") if e.label][: config.eval_rows]

    def batches_of(chosen):
        found = [[thinned(*rows[task][i], config.word_dropout) for i in chosen] for task in tasks]
        return [replace(collate(part, [digest(*row[:2]) for row in part] if config.teacher_cache else ()), weights=weights[chosen]) for part in found]

    return trainer, tokenizer, np.concatenate([part.lengths for part in rows[tasks[-1]].datasets]), batches_of, held_out, learnt

def standing(config):
    """-> (has this run come to its end?, is what stands in its folder a start with other settings that came to nothing?); refuses another run."""
    if not (config.folder / "run.json").is_file():
        return False, False
    run, settings = read_run(config.folder), asdict(config)
    was = {**asdict(Config()), **run.get("settings", {})}  # a setting younger than the run stood at its default
    done = bool(run.get("finished"))
    free = ("out_dir", "baselines", *["device"] * done)  # folders may move, and what is tabled beside a run is no part of it
    differ = [f"its {k} is {was[k]!r}, not {settings[k]!r}" for k in settings if settings[k] != was[k] and k not in free]
    if differ and (done or (config.folder / "log.jsonl").is_file()):
        raise DataError(f"{config.folder} holds another run: {differ[0]}; choose another --name, or delete the folder")
    return done, bool(differ)

def train(config, origin):
    """Train one run to its end, or go on with it; returns its folder. Does nothing where the run is finished."""
    folder, settings = config.folder, asdict(config)
    done, differ = standing(config)
    if done:
        shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # of a run that was killed right after its end
        print(f"{folder} is finished")
        return folder
    for file in ("spiece.model", "teacher.jsonl") if differ else ():  # of a start that came to nothing, with other settings
        (folder / file).unlink(missing_ok=True)
    print(f"\n== {folder}: " + ", ".join(f"{k} {v!r} ({origin.get(k, 'default')})" for k, v in settings.items() if k not in ("baselines", "name")))
    folder.mkdir(parents=True, exist_ok=True)
    git = subprocess.run("git rev-parse HEAD", shell=True, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()
    run = {"settings": settings, "origin": origin, "command": shlex.join(sys.argv), "git": git, "finished": False,
           "versions": {"python": sys.version.split()[0], "torch": torch.__version__}, "device": config.torch_device}
    if config.format == "simulate" and (whose := Path(config.data).parent / "eval.json").is_file() and (made := read_json(whose).get("weights")):
        run["answers_of"] = made  # evaluate.py asks whether these are still the weights that answer
    replace_file(folder / "run.json", json.dumps(run, indent=1).encode())
    trainer, tokenizer, lengths, batches_of, held_out, learnt = prepare(config)
    sampler = BucketSampler(lengths, config.batch_size, config.seed)
    state_file, best, log = folder / "checkpoint" / "state.pt", -1.0, folder / "log.jsonl"
    if state_file.is_file():
        try:
            state = torch.load(state_file, map_location="cpu", weights_only=True)
            trainer.load_state_dict(state["trainer"])
            sampler.place = state["place"]
            best = state["best"]
        except Exception as e:  # the unpickler raises nearly anything on a broken file
            if data.out_of_memory(e):
                raise
            why = (str(e) or type(e).__name__).splitlines()[0][:80]
            raise DataError(f"{state_file} is damaged ({why}): delete it to begin this run anew") from None
        if state.get("learnt", learnt) != learnt:
            raise DataError(f"{folder} has learnt from other rows or another teacher than there are now: put these back, or delete the folder")
        print(f"going on from step {trainer.steps}")
    lines = log.read_bytes().splitlines(True) if log.is_file() else []  # of a full disk the last may be cut off
    replace_file(log, *(line for line in lines if (step := re.match(rb'\{"step": (\d+).*\}\n', line)) and int(step[1]) <= trainer.steps))
    batches, started, tokens, first = iter(sampler), time.time(), 0, trainer.steps
    bar = tqdm(total=config.max_steps, initial=first, desc=config.name, unit="step")

    def note(text, **values):  # to the screen and to log.jsonl
        bar.write(text)
        with open(log, "a") as f:
            f.write(json.dumps({"step": trainer.steps, **values}) + "\n")

    while trainer.steps < config.max_steps:
        window = [next(batches) for _ in range(config.grad_accumulation)]
        told = trainer.step([batch for chosen in window for batch in batches_of(chosen)])
        step, tokens = trainer.steps, tokens + told["tokens"]
        bar.update()
        if step % config.log_every == 0 or step == config.max_steps:
            seconds = time.time() - started
            eta = seconds / (step - first) * (config.max_steps - step)
            parts = " ".join(f"{k} {v:.3f}" for k, v in told.items() if k not in ("lr", "tokens"))
            note(f"{step:6d} {step / config.max_steps:4.0%} | {parts} lr {told['lr']:.1e} | {tokens / seconds:,.0f} tok/s, {eta:.0f} s left",
                 **told, seconds=seconds)
        if step % config.eval_every == 0 or step == config.max_steps:
            apprentice = Apprentice(trainer.student, tokenizer, config.format, config.max_source, config.max_target)
            answers = apprentice.answer([(e.premise, e.hypothesis) for e in held_out], rationales=[(*e.explanations, "")[0] for e in held_out])
            accuracy = sum(a.label == e.label for a, e in zip(answers, held_out, strict=True)) / len(held_out)
            shown = [f"\n    {e.premise} | {e.hypothesis}\n    {e.label} -> {a.label}: {a.rationale}" for e, a in list(zip(held_out, answers, strict=True))[:3]]
            note(f"validation accuracy {accuracy:.1%} on {len(held_out)} rows{', the best so far' * (accuracy >= best)}" + "".join(shown),
                 validation_accuracy=accuracy)
            if accuracy >= best:
                best = accuracy
                trainer.student.save_pretrained(folder)
        if step % config.save_every == 0:
            state_file.parent.mkdir(exist_ok=True)
            try:
                with open(f"{state_file}.tmp", "wb") as file:
                    torch.save({"trainer": trainer.state_dict(), "place": sampler.place, "best": best, "learnt": learnt}, file)
                    os.fsync(file.fileno())
            except RuntimeError as e:  # what torch makes of any error while it writes
                if isinstance(e.__context__, KeyboardInterrupt):
                    raise e.__context__ from None
                raise OSError(f"{state_file}.tmp cannot be written; is the disk full? ({e})") from None
            os.replace(f"{state_file}.tmp", state_file)
    bar.close()
    replace_file(folder / "run.json", json.dumps({**run, "finished": True}, indent=1).encode())
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)  # it is needed no more
    return folder

def form_of(config, made):
    """The student that a run begins with, its weights aside; None where its config.json is still to come."""
    if config.student in SIZES:
        return sized(config.student, 200, config.student_layers, config.student_width)
    name = config.teachers()[0][0] if config.student == "cut" else config.student
    if Path(name) in made:
        return None
    own = Config(**settings_of(name, config)) if name.endswith(".py") else None
    file = (own.folder if own else fetch(name, weights=False)) / "config.json"
    form = T5(T5Config.from_file(file)) if file.is_file() else form_of(own, made) if own else None
    return cut_student(form, config.student_layers) if form and config.student == "cut" else form

def check(config, made=(), trail=()):
    """Raises DataError for what can be seen to fail before anything is trained, in the configs of its teachers and student too. made: the
    folders that will be there by then."""
    check_device(config.torch_device)
    if standing(config)[0]:
        return  # it needs nothing any more
    if config.uses("kd_weight", "hidden_weight") and not config.teachers():
        raise DataError(f"kd_weight={config.kd_weight}, hidden_weight={config.hidden_weight} of {config.name} need a T5 as the teacher; "
                        f"teacher is {config.teacher!r}")
    if not any(e.label for e in stream_examples(config.data, "validation")):
        raise DataError(f"{config.data} has no labelled validation rows, which choose the weights to keep; mix in some: --data=LABELLED+{config.data}")
    needs = set().union(*(FORMATS[task].needs for task in TASKS[config.format]))
    rows = itertools.islice(stream_examples(config.data, "train"), config.labelled_rows or None)
    if config.teacher_writes != "all" and not any((e.label or "label" not in needs) and (e.explanations or "rationale" not in needs) for e in rows):
        raise DataError(f"no training row of {config.data} has a {' and a '.join(sorted(needs))}, which format={config.format} needs")
    names = [name for name, _ in config.teachers()] + [config.student] * (config.student not in (*SIZES, "cut"))
    names = [name for name in names if Path(name) not in made]
    for name, _ in config.teachers(files=True):
        read_examples(name, limit=1)

    def listen(name, tasks):
        writes = config.teacher_writes != "none" and name == config.teachers()[0][0]
        if writes and "rationale" in needs and not any("rationale" in FORMATS[task].parts for task in tasks):
            raise DataError(f"{name} tells labels alone; format={config.format} learns reasons too: set format=predict")

    for name in (name for name in names if not name.endswith(".py")):
        if (folder := fetch(name, weights=False)).resolve() == config.folder.resolve():
            raise DataError(f"{name} would be overwritten by this run, which stands there itself; choose another --name")
        listen(name, TASKS[read_run(folder).get("settings", {}).get("format", "multitask")] if (folder / "run.json").is_file() else ["instruction"])
    for name in (name for name in names if name.endswith(".py")):
        if name in trail:
            raise DataError(f"{' needs '.join((*trail, name))}: which of them is to be trained first?")
        if Path(name).stem == config.name:
            raise DataError(f"{name} would be trained in {config.folder}, where this run itself stands; choose another --name")
        own = Config(**settings_of(name, config))
        listen(name, TASKS[own.format])
        check(own, made, (*trail, name))
    with torch.device("meta"):
        if form := form_of(config, made):
            learning_parameters(form, config.train_only, config.lora_rank > 0)

def main(argv):
    """Teachers, students, table."""
    if "-h" in argv or "--help" in argv:
        return print(__doc__, inspect.getsource(Config), sep="\n")
    (runs, origin), configs, folders = read_settings(argv), [], []
    for config in (Config(**values) for values in runs):  # all of them first: a mistake shows before hours of training
        for name, other in config.baselines.items():
            other = {k: cast(k, v, asdict(Config())) for k, v in other.items()}
            configs.append((replace(config, **other, name=f"{config.name}-{name}", baselines={}), origin | dict.fromkeys(other, f"baseline {name}")))
        configs.append((config, origin))
    for source in config.tests.split() or [config.data] * (not config.format.startswith("simulate")):  # of the last one, whose table it will be
        if not any(e.label for e in stream_examples(source, "test")):
            raise DataError(f"{source} has no test row with a label, and so no table can be made; name other data with --tests=DATA")
    for i, (config, _) in enumerate(configs):
        check(config, made=[before.folder for before, _ in configs[:i]])
    for config, origin in configs:
        start = [config.student] * (config.student.endswith(".py") or (Path(config.student) / "run.json").is_file())
        names = [*(name for name, _ in config.teachers()), *start]
        if standing(config)[0]:  # to a finished run they may be lost
            names = [name for name in names if Path(name).exists() or (data.cache_folder() / name.replace("/", "--")).is_dir()]
        folders += [f for f in (*(folder_of(name, config) for name in names), train(config, origin)) if f not in folders]
    last = shlex.quote(str(folders[-1]))
    if config.format.startswith("simulate"):
        return print(f"results are in {last}; python evaluate.py RUN --simulator={last} judges by it whether RUN's reasons help")
    for source in config.tests.split() or [config.data]:
        with contextlib.redirect_stdout(open(os.devnull, "w")):  # each run's folder holds its report but for the probes, of the last data
            evaluate.main([*map(str, folders), f"--data={source}", f"--limit={config.test_rows}", f"--device={config.torch_device}", "--probes=0"])
        print(f"\n{source}, test rows; in percent but for parameters and time")
        found = {str(folder): json.loads((folder / "eval.json").read_text()) for folder in folders}
        table = found[str(folders[-1])]["findings"]["The answers"]["table"]
        columns = ("parameters", "accuracy", "accuracy interval", "valid", "ROUGE-L", "ms an answer")
        evaluate.print_table({name: {column: row[column] for column in columns} for name, row in table.items() if name in found or row["accuracy"]})
        points = {name: ([run["parameters"]], [100 * run["accuracy"]]) for name, run in found.items()}
        name = re.sub(r"[^\w.]+", "-", Path(source.partition("?")[0]).stem)
        replace_file(folders[-1] / f"{name}.png", evaluate.picture("parameters", f"accuracy on {source}, test rows, %", lines=points))
    print(f"results are in {last}, a report.html in each run's folder; ask it: python apprentice.py {last}")

if __name__ == "__main__":
    run_main(main, CheckpointError)
