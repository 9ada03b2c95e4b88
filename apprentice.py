"""An apprentice: a T5 that reads a pair of sentences and writes a label and the reason for it.

    python apprentice.py out/tiny                            reads pairs, a text a line, until an empty one, and answers
    python apprentice.py out/tiny "PREMISE" "HYPOTHESIS"     answers one pair
    python apprentice.py out/tiny … --json                   answers as one JSON object a line, for programs
    python data.py collect --in=FILE --url=URL --model=NAME  has a large language model answer instead, into a rationale file

The first argument is a run folder, or any T5 checkpoint folder or hub name, which is asked in plain instructions for the label alone;
`--device=cuda`, `--dtype=bfloat16` and `--num_beams=4` change how it runs. An answer takes milliseconds for the tiny model, under a
second for FLAN-T5-small on a CPU.
Here are the cached decoder, greedy search, beam search and sampling (`generate`: the same tokens as transformers'), what makes them
quick on a GPU (to be skipped at a first reading), and `Apprentice`, which holds network, vocabulary and format together.
Read next: distill.py (how it learns).
"""

import contextlib
import ctypes
import difflib
import functools
import json
import math
import os
import random
import re
import ssl
import sys
import timeit
import urllib.request
import warnings
import weakref
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from threading import RLock, get_ident

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

from data import EOS, FORMATS, LABELS, DataError, Example, Tokenizer, collate, encode_examples, read_examples, retry, run_main
from model import SIZES, T5, CheckpointError, activated, fetch, product_in_8_bits, read_json, replace_file, weights_digest

BUDGET = 16384  # tokens of sources and targets, times beams, that are worked on together: what the caches hold
MANY_HEADS = 128  # of all sources together: from here on a CPU attends quicker by bmm (three starts of all threads) than by scaled_dot_product_attention (one)
FEW = 16  # rows up to which finding the likeliest word is quicker than all words' logits, and one thread may be quicker than all
AHEAD = 6  # tokens at most that are guessed before the network itself reads them
PAYS = 0.65  # how likely a guess and all before it must be right: it takes half the time of a step, more where many threads compete
NEVER = -1.0e9  # stands for minus infinity, and still adds up
RECORDED = 2**32  # bytes of caches, of what was recorded with a model, that a GPU keeps beside those in use
SPARSE = 0.75  # a copy of the caches pays once a quarter of their rows is done with
# What a run may learn, by its setting `format`: formats, in which it is asked one after the other.
TASKS = {"multitask": ("predict", "explain"), "simulate": ("simulate_input", "simulate_reason", "simulate_both"), **{name: (name,) for name in FORMATS}}

# --- writing, a token at a time ---------------------------------------------------------------------------------------

class Decoder:
    """The decoder with a key-value cache. The K beams of a source stand side by side as K queries of one attention: they share the source's keys and values,
    and where beams change parents nothing is copied but `seen`, which tells the cached slots (one a step and beam) that lie on a beam's own path."""

    def __init__(self, model, source, source_mask, num_beams, steps):
        self.model, self.source, self.source_mask, self.K, self.steps = model, source, source_mask, num_beams, steps
        self.heads, self.slots, self.linear = (model.config.num_heads, model.config.d_kv), 0, plain_linear
        self.layers = [((b.attention_norm, b.attention.qkv, b.attention.out), (b.cross_norm, b.cross.q, b.cross.out), (b.ff_norm, b.ff.wi, b.ff.wo))
                       for b in model.decoder.blocks]

    def begin(self):
        """Read the sources."""
        model, K, steps, mask = self.model, self.K, self.steps, self.source_mask
        model.pack()
        # Freed at once, and from then on glibc keeps blocks up to that size for their next use. It would give the logits of a small model back at
        # each step, and getting them again page by page takes twice as long as all the rest.
        torch.empty(31 * 2**20, dtype=torch.uint8)
        memory, self.memory_bias = model.encode(self.source, mask), None  # (B, S, d), (B, 1, 1, S)
        if mask is not None and not mask.all():
            some = mask.any(1, keepdim=True)  # a source all hidden tells 0, as in `T5.decode`; its keys all at -inf would make it NaN
            memory = memory.masked_fill(~some[..., None], 0.0)
            self.memory_bias = memory.new_zeros(mask.shape).masked_fill_(some & ~mask, -math.inf)[:, None, None]
        self.cross = [block.cross.split(block.cross.kv(memory)).contiguous() for block in model.decoder.blocks]  # (2, B, H, S, k) each
        self.cache = [memory.new_empty(2, len(memory), self.heads[0], steps * K, self.heads[1]) for _ in self.cross]
        self.bias = model.decoder.position_bias(steps)[:, :, -1:].repeat_interleave(K, dim=-1)  # (1, H, 1, slots): the last step's view of all
        self.seen = torch.zeros(len(memory), K, steps * K, dtype=torch.bool, device=memory.device)

    def step(self, tokens, linear=None):
        """tokens (B, K), the newest of every beam, or (B, n) in a row of a lone one; linear: what multiplies, as `plain_linear` does
        -> the states that the head takes to tell the next, (B, K or n, d)"""
        self.open_slots(tokens.shape[1])
        linear, act = linear or self.linear, self.model.config.feed_forward_proj
        x = self.model.shared(tokens).flatten(0, 1).clone()  # (B*K, d), written to below
        for ((norm, qkv, out), (cross_norm, cross_q, cross_out), (ff_norm, wi, wo)), cache, memory in zip(self.layers, self.cache, self.cross, strict=True):
            linear(self.attend(linear(x, qkv, norm), cache), out, onto=x)
            linear(self.look(linear(x, cross_q, cross_norm), memory), cross_out, onto=x)
            linear(linear(x, wi, ff_norm, act), wo, onto=x)
        return self.model.scaled(self.model.decoder.norm(x)).view(*tokens.shape, -1)

    def open_slots(self, n):
        """Make room for a token of each of n beams, or for n in a row of a lone one."""
        start, self.new, self.slots = self.slots, n, self.slots + n
        if self.K > 1:
            self.seen[..., start : self.slots] = torch.eye(n, dtype=torch.bool, device=self.seen.device)
            self.mask = self.bias[..., -self.slots :].masked_fill(~self.seen[:, None, :, : self.slots], -math.inf)  # (B, H, K, slots so far)
        else:  # (1, H, n, slots so far): the i-th sees all up to its own
            self.mask = F.pad(self.bias[:, :, 0, -self.slots :], (0, n - 1), value=-math.inf).unfold(-1, self.slots, 1).flip(2)

    def attend(self, qkv, cache):
        """Self-attention: qkv (B*K, 3*H*k), of which keys and values go into the cache (2, B, H, slots, k) -> (B*K, H*k)"""
        qkv = qkv.view(-1, self.new, 3, *self.heads).permute(2, 0, 3, 1, 4)  # (3, B, H, K, k)
        cache.narrow(3, self.slots - self.new, self.new).copy_(qkv[1:])
        return attention(qkv[0], cache.narrow(3, 0, self.slots), self.mask)

    def look(self, q, memory):
        """Cross-attention: q (B*K, H*k), memory (2, B, H, S, k) -> (B*K, H*k)"""
        return attention(q.view(-1, self.new, *self.heads).transpose(1, 2), memory, self.memory_bias)

    def follow(self, parents):
        """parents (B, K): the beam that each beam goes on from."""
        self.seen.copy_(self.seen.take_along_dim(parents[..., None], dim=1))

    def keep(self, rows):
        """Drop all sources but `rows` (a vector of indices)."""
        self.cross, self.cache = [kv[:, rows] for kv in self.cross], [kv[:, rows] for kv in self.cache]
        self.seen, self.memory_bias = self.seen[rows], None if self.memory_bias is None else self.memory_bias[rows]

def plain_linear(x, matrix, norm=None, act="", onto=None, rough=False):
    """x (R, n), normed if a norm is given, times a Matrix, roughly if asked, then act: relu | gated-gelu, of which half as many numbers are left
    -> (R, m), or added to `onto` (R, m) in place"""
    x = x if norm is None else norm.forward(x)
    y = product_in_8_bits(x, matrix.rough()) if rough else matrix.product(x)
    if onto is not None:
        return onto.add_(y)
    if not act:
        return y
    little = y.dtype == torch.float32 and 2**16 < y.numel() <= 2**17  # done before another thread is awake; of fewer PyTorch wakes none
    return (alone(activated) if little else activated)(y, act)

try:  # torch.set_num_threads tells MKL too, whose products within PyTorch's attention then take twice as long for ever
    set_threads = ctypes.CDLL(None).omp_set_num_threads
except (TypeError, AttributeError):  # an operating system where it can't be found: all threads work
    def set_threads(n):
        pass

def alone(function):
    """The function, done by one thread."""

    def run(*args, **kwargs):
        threads = torch.get_num_threads()
        try:
            set_threads(1)
            return function(*args, **kwargs)
        finally:
            set_threads(threads)

    return run

def quicker(*ways):
    """Of two functions that do the same: each does it twice, the one that took less from then on."""
    times = []

    def run(*args):
        turn = len(times)
        second = turn % 2 if turn < 4 else min(times[1::2]) < min(times[::2])
        start = timeit.default_timer()
        try:
            return ways[second](*args)
        finally:
            if turn < 4:
                times.append(timeit.default_timer() - start)

    return run

def attention(q, kv, mask):
    """q (B, H, K, k), kv (2, B, H, keys, k), mask None or added to the scores, broadcastable to (B, H, K, keys) -> (B*K, H*k)"""
    if q.is_cuda or len(q) * q.shape[1] < MANY_HEADS:
        y = F.scaled_dot_product_attention(q, *kv.unbind(), attn_mask=mask, scale=1.0)
    else:
        keys, values = kv.flatten(1, 2)
        scores = torch.bmm(q.flatten(0, 1), keys.mT).view(*q.shape[:3], -1)
        scores = (scores if mask is None else scores.add_(mask)).softmax(-1)
        y = torch.bmm(scores.flatten(0, 1), values).view(q.shape)
    return y.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])

@torch.inference_mode()
def generate(model, source, source_mask=None, *, max_new_tokens=64, min_new_tokens=0, num_beams=1, length_penalty=1.0,
             early_stopping=False, do_sample=False, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=1, generator=None):
    """Write target sequences for source (B, S) ids, source_mask (B, S), 1 or True = token.

    Returns B * num_return_sequences lists of ids, the best of a source first, without the start token and cut before </s>: the same
    tokens as transformers' `generate` under the same names. num_beams=1: the likeliest token each time, or with do_sample a drawn
    one (from softmax(logits / temperature), cut to the top_k likeliest and to the fewest that hold top_p of the mass; 0 and 1.0 cut
    nothing). num_beams>1: beam search, scores divided by length^length_penalty; early_stopping True stops a source once num_beams
    sequences are finished, False once no open beam of the present length could beat them, "never" once none of any length could.
    A GPU records a step for each shape, way of searching and generator: hand over the same generator again, not a new one each time."""
    if num_beams < 1 or max_new_tokens < 1 or num_return_sequences < 1 or temperature <= 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(f"generate: num_beams {num_beams}, max_new_tokens {max_new_tokens} and num_return_sequences {num_return_sequences} "
                         f"are at least 1, temperature {temperature} above 0, top_p {top_p} in (0, 1], top_k {top_k} at least 0")
    if do_sample and num_beams > 1:
        raise ValueError("generate: do_sample draws one token at a time; use it with num_beams=1")
    if num_return_sequences > num_beams and not do_sample:
        raise ValueError(f"generate: {num_return_sequences} sequences of a source need as many beams, or do_sample=True")
    if not len(source):
        return []
    source_mask = None if source_mask is None else source_mask.bool()
    if num_beams == 1:
        source, source_mask = (None if x is None else x.repeat_interleave(num_return_sequences, 0) for x in (source, source_mask))
    drawn = (temperature, top_k, top_p, generator) if do_sample else None
    how = (BeamSearch, num_beams, max_new_tokens, length_penalty, early_stopping) if num_beams > 1 else (Greedy, 1, max_new_tokens, drawn)
    training = model.training
    try:
        if training:
            model.eval()
        with torch.autocast(source.device.type, enabled=False):
            hooked = any(m._forward_hooks or m._forward_pre_hooks for m in
                         (model.shared, model.decoder.norm, model.decoder.position_bias, *model.encoder.modules()))  # a replay would not run them
            if source.is_cuda and model.shared.weight.is_cuda and not hooked:
                with AT_ONCE:
                    search = static_search(model, *source.shape, *how)
                    search.decoder.load(source, source_mask)
                    written = search.write(min_new_tokens, num_return_sequences)
            else:
                decoder = Decoder(model, source, source_mask, *how[1:3])
                if num_beams == len(source) == 1 and not drawn and model.unembed.rough_pays:
                    return [speculate(decoder, min_new_tokens)]
                search = how[0](decoder, len(source), *how[1:])
                written = search.write(min_new_tokens, num_return_sequences)
    finally:
        if training:
            model.train()
    return [ids for row in range(len(source)) for ids in written[row]]

def likeliest(logits, n, plus=None):
    """The n largest of each (K, V) of logits (B, K, V), with plus (B, K, 1) added if given -> (values, places in K*V) (B, n), the largest first; the
    same as topk, in a third of its time for a large vocabulary: the n largest lie in the n blocks with the largest maxima. Of equals the first one
    leads where n is 1."""
    words, size = logits.shape[-1], 128
    if words % size or words < 8 * n * size or n == 1 and logits.is_cuda:
        logits = (logits if plus is None else logits + plus).flatten(1)
        return logits.topk(n) if n > 1 else logits.max(-1, keepdim=True)
    maxima = logits.unflatten(-1, (-1, size)).amax(-1)  # (B, K, blocks)
    maxima = (maxima if plus is None else maxima + plus).flatten(1)
    block = maxima.topk(n).indices if n > 1 else maxima.argmax(-1, keepdim=True)  # (B, n)
    ids = block[..., None] * size + torch.arange(size, device=logits.device)
    values = logits.flatten(1).gather(1, ids.flatten(1))
    if plus is not None:
        values = (values.unflatten(1, (n, size)) + plus[..., 0].gather(1, block // (words // size))[..., None]).flatten(1)
    values, place = values.topk(n) if n > 1 else values.max(-1, keepdim=True)
    return values, ids.flatten(1).gather(1, place)

def cut(ids):
    """A row of ids up to the first </s>; without one, up to the padding (0, or the -1 that fills a row) at its end."""
    if EOS in ids:
        return ids[: ids.index(EOS)]
    return next((ids[:n] for n in range(len(ids), 0, -1) if ids[n - 1] > 0), [])

class Search:
    """B sources being written, T tokens at most, K beams of each side by side. `advance` is a step: it works in place and asks the host nothing.
    told (T, B, n): what each step notes, from which the sequences are read in the end."""

    patience, shrinks = 1, True  # steps between two looks at what has come to its end; whether that then leaves the batch

    def __init__(self, decoder, B, K, T, notes):
        whole = {"dtype": torch.long, "device": decoder.model.shared.weight.device}
        # To wake the other threads takes longer than they save on a few rows in 8 bits, if they sleep: as a second library's threads make them, or other work.
        race = decoder.model.unembed.quantized is not None and B * K <= FEW
        self.step = quicker(decoder.step, functools.partial(decoder.step, linear=alone(plain_linear))) if race else decoder.step
        self.decoder, self.rows = decoder, torch.arange(B, **whole)  # the sources still being written: the tensors have one row for each
        self.tokens, self.told, self.t = torch.zeros(B, K, **whole), torch.full((T, B, notes), -1, **whole), torch.zeros(1, **whole)
        self.going = torch.ones(B, **whole | {"dtype": torch.bool})

    def begin(self):
        """Forget what was written, if anything was."""
        self.decoder.begin()
        for x, value in ((self.tokens, 0), (self.told, -1), (self.t, 0), (self.going, True)):
            x.fill_(value)

    def write(self, min_new_tokens, n):
        """-> {source: n lists of ids, the best first}. A source that has come to its end may leave the batch."""
        written, T = {}, len(self.told)
        self.begin()
        for t in range(T):
            self.advance(t < min_new_tokens)
            if min_new_tokens <= t < T - 1 and (t + 1) % self.patience == 0:  # before that many tokens nothing ends
                going = self.going.nonzero()[:, 0]
                if not len(going):
                    break
                if self.shrinks and len(going) <= SPARSE * len(self.rows):
                    written |= self.read(n)
                    self.keep(going)
        return written | self.read(n)

    def keep(self, rows):
        """Drop all sources but `rows`."""
        self.decoder.keep(rows)
        self.rows, self.tokens, self.going, self.told = self.rows[rows], self.tokens[rows], self.going[rows], self.told[:, rows]

class Greedy(Search):
    """The likeliest token each time, or one that is drawn."""

    def __init__(self, decoder, B, K, T, drawn):
        super().__init__(decoder, B, K, T, 1)
        self.drawn, self.shrinks = drawn, not drawn  # how, as `draw` takes it, or None; random numbers are drawn for all

    def advance(self, banned):
        """A token for each source, but not </s> where it is banned."""
        x, head = self.step(self.tokens)[:, 0], self.decoder.model.unembed
        if not self.drawn and len(x) <= FEW and head.rough_pays:
            tokens = head.largest(x, [EOS] if banned else [])
        else:
            logits = head.product(x)  # (rows, V)
            if banned:
                logits[:, EOS] = -math.inf
            tokens = draw(logits.float(), *self.drawn) if self.drawn else likeliest(logits[:, None], 1)[1][:, 0]
        self.told.index_copy_(0, self.t, tokens[None, :, None])
        self.tokens.copy_(tokens[:, None])
        self.going &= tokens != EOS
        self.t += 1

    def read(self, n):
        return {row: [cut(ids)] for row, ids in zip(self.rows.tolist(), self.told[..., 0].T.tolist(), strict=True)}

def speculate(decoder, min_new_tokens):
    """The words of Greedy -> ids, for one source and sooner where to read the weights is what takes the time (Leviathan et al. 2023, arXiv
    2211.17192): a copy of decoder and head in 8 bits, a quarter of the bytes, guesses some tokens; then one step of the network itself
    reads them all and tells what belongs after each. The guesses up to the first wrong one stay, and what belongs there."""
    head, T, ids = decoder.model.unembed, decoder.steps, [0]
    right, tried = 4.5, 5.0  # of the guesses: nine in ten until more is known

    def states(words, start, linear=plain_linear):  # (words, d), of words that stand from that slot on
        decoder.slots = start
        return decoder.step(torch.tensor([words]), linear)[0]

    rough_states = functools.partial(states, linear=functools.partial(plain_linear, rough=True))
    rough_states = quicker(rough_states, alone(rough_states))
    decoder.begin()
    while len(ids) <= T and ids[-1] != EOS:
        t, guesses = len(ids) - 1, []
        banned, end = ([EOS], min(T, min_new_tokens)) if t < min_new_tokens else ([], T)
        ahead = min(AHEAD, int(math.log(PAYS) / math.log(right / tried)), end - t - 1)
        with contextlib.suppress(RuntimeError):  # what is no number can't be rounded
            while len(guesses) < ahead and EOS not in guesses:
                x = rough_states((ids + guesses)[-1:], t + len(guesses))
                scores = product_in_8_bits(x, head.rough())[0]
                scores[banned] = -math.inf
                guesses.append(scores.argmax().item())
        x = states(ids[-1:] + [guess for guess in guesses if guess != EOS], t)
        if len(x) > 1 and not x.isfinite().all():  # a guess that is no number reaches the words before it
            x = states(ids[-1:], t)
        words = head.largest(x, banned).tolist()
        agreed = len(os.path.commonprefix([guesses, words]))
        right, tried = right + agreed, tried + min(agreed + 1, len(guesses))  # those after a wrong one were no trial
        ids += words[: agreed + 1]
    return cut(ids[1:])

def draw(logits, temperature, top_k, top_p, generator):
    """logits (B, V) -> (B,), drawn from them, sharpened or cut (nucleus sampling: Holtzman et al. 2020, arXiv 1904.09751)."""
    logits = logits / temperature
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(min(top_k, logits.shape[-1])).values[:, -1:], -math.inf)
    if top_p < 1:
        ranked, order = logits.sort(descending=False)
        cut_off = ranked.softmax(-1).cumsum(-1) <= 1 - top_p
        cut_off[:, -1] = False  # the likeliest always stays
        logits = logits.masked_fill(cut_off.scatter(1, order, cut_off), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]

class BeamSearch(Search):
    """Keep the K likeliest unfinished sequences of each source and the K best finished ones, until the finished can't be beaten.

    Every step looks at the 2K likeliest continuations, so that K unfinished are left should all K best end here; of those that end
    only ones among the K best become candidates, by log probability / length^length_penalty. A step notes the ids of the 2K, the beams
    that they go on from, and which K of them are the new beams: sequences are read from there backwards, none is ever copied."""

    def __init__(self, decoder, B, K, T, length_penalty, early_stopping):
        super().__init__(decoder, B, K, T, 5 * K)
        device = self.t.device
        self.early_stopping = early_stopping
        self.scores = torch.empty(B, K, device=device)  # of the open beams: sums of log probabilities
        self.finished = torch.empty(B, K, device=device)  # scores of the finished, with the length penalty
        self.ends = torch.empty(B, K, dtype=torch.long, device=device)  # where these end: step * 2K + place among the 2K; -1: none there
        self.norms = torch.tensor([n**length_penalty for n in range(1, T + 1)], device=device)
        self.horizon = self.norms[-1:] if early_stopping == "never" and length_penalty > 0 else None
        self.places = torch.arange(2 * K, device=device)

    def begin(self):
        super().begin()
        self.scores.fill_(NEVER)[:, 0] = 0.0  # all beams begin alike, one of them counts
        self.finished.fill_(NEVER)
        self.ends.fill_(-1)

    def advance(self, banned):
        """A token for each beam, but not </s> where it is banned."""
        K, norm = self.tokens.shape[1], self.norms[self.t]
        logits = self.decoder.model.unembed.product(self.step(self.tokens))  # (B, K, V)
        logp = torch.log_softmax(logits, -1, torch.float32, out=logits if logits.dtype == torch.float32 else None)
        if banned:
            logp[..., EOS] = -math.inf
        best, place = likeliest(logp, 2 * K, self.scores[..., None])  # (B, 2K)
        parents, ids = place // logp.shape[-1], place % logp.shape[-1]
        ends = (ids == EOS) | (self.t == len(self.told) - 1)

        never = ~(ends & (self.places < K) & self.going[:, None])
        finished = torch.cat([self.finished, (best / norm).masked_fill(never, NEVER)], 1)
        where = torch.cat([self.ends, (self.places + 2 * K * self.t).masked_fill(never, -1)], 1)
        finished, order = (x[:, :K] for x in finished.sort(descending=True, stable=True))  # of so few a GPU sorts all in the time of finding some
        self.finished.copy_(finished)
        self.ends.copy_(where.gather(1, order))

        scores, order = (x[:, :K] for x in best.masked_fill(ends, NEVER).sort(descending=True, stable=True))
        self.scores.copy_(scores)
        self.tokens.copy_(ids.gather(1, order))
        self.decoder.follow(parents.gather(1, order))
        self.told.index_copy_(0, self.t, torch.cat([ids, parents, order], 1)[None])

        settled = (self.ends >= 0).all(1)
        if self.early_stopping is not True:
            settled &= self.scores[:, 0] / (norm if self.horizon is None else self.horizon) <= self.finished[:, -1]
        self.going &= ~settled
        self.t += 1

    def keep(self, rows):
        super().keep(rows)
        self.scores, self.finished, self.ends = self.scores[rows], self.finished[rows], self.ends[rows]

    def read(self, n):
        K, told = self.tokens.shape[1], self.told.tolist()

        def path(i, end):
            ids, (t, place) = [], divmod(end, 2 * K)
            while t >= 0:
                ids.append(told[t][i][place])
                t, place = t - 1, told[t - 1][i][4 * K + told[t][i][2 * K + place]]
            return cut(ids[::-1])

        return {row: [path(i, end) for end in ends[:n]] for i, (row, ends) in enumerate(zip(self.rows.tolist(), self.ends.tolist(), strict=True))}

# --- the same on a GPU -----------------------------------------------------------------------------------------------

class StaticDecoder(Decoder):
    """As Decoder, for a GPU, which takes longer to be told of a small operator than to do it: every tensor stays where it is, every step has the
    same shapes and asks the host nothing, so that a step can be recorded and replayed (see `Recorded`). Where Triton is, a layer is eight
    kernels. It has room for B sources of S tokens; `load` brings them."""

    def __init__(self, model, B, S, num_beams, steps):
        weight, K, inner = model.shared.weight, num_beams, model.config.num_heads * model.config.d_kv
        numbers, ids, bools = ({"dtype": dtype, "device": weight.device} for dtype in (weight.dtype, torch.long, torch.bool))
        super().__init__(model, torch.zeros(B, S, **ids), torch.zeros(B, S, **bools), K, steps)
        self.cross, self.cache = (torch.zeros(len(self.layers), B, slots, 2 * inner, **numbers) for slots in (S, steps * K))
        self.seen, self.filled = torch.zeros(B, K, steps * K, **bools), torch.zeros(1, **ids)  # as in Decoder; how many slots hold something
        self.bias = torch.zeros(model.config.num_heads, steps, **numbers)  # the last step's view of all
        self.own, self.beams = torch.eye(K, **bools).expand(B, K, K), torch.arange(K, **ids)
        self.attention = plain_attention
        if triton and weight.is_cuda and model.config.d_kv in (16, 32, 64, 128):
            self.linear, self.attention = fused_linear, fused_attention
            try:
                self.step(torch.zeros(B, K, **ids))
            except torch.OutOfMemoryError:
                raise
            except Exception as e:  # no compiler, or a smaller GPU
                warnings.warn(f"Triton can't be used, which makes this slower: {(str(e) or type(e).__name__).splitlines()[0]}", stacklevel=2)
                self.linear, self.attention = plain_linear, plain_attention

    def load(self, source, source_mask):
        """Bring in sources (b, s), b <= B, s <= S: columns are filled with padding, rows with the last one."""
        (b, s), (B, S) = source.shape, self.source.shape
        rows = torch.arange(B, device=source.device).clamp(max=b - 1)
        for place, x in ((self.source, source), (self.source_mask, torch.ones_like(source, dtype=torch.bool) if source_mask is None else source_mask)):
            place.copy_(F.pad(x, (0, S - s))[rows])

    def begin(self):
        memory = self.model.encode(self.source, self.source_mask)
        for block, cross in zip(self.model.decoder.blocks, self.cross, strict=True):
            torch.matmul(memory, block.cross.kv.weight.t(), out=cross)
        self.bias.copy_(self.model.decoder.position_bias(self.steps)[0, :, -1])
        for x in (self.filled, self.seen, self.cache):
            x.zero_()

    def open_slots(self, n):
        self.seen.index_copy_(2, self.filled + self.beams, self.own)
        self.filled += self.K

    def attend(self, qkv, cache):
        return self.attention(qkv, cache, self.heads, self.K, self.seen, self.bias, self.filled)

    def look(self, q, memory):
        return self.attention(q, memory, self.heads, self.K, self.source_mask)

def plain_attention(q, kv, heads, K, seen, bias=None, filled=None):
    """Cross-attention of q (B*K, H*k) to kv (B, keys, 2*H*k) where seen (B, keys). With `filled` self-attention of q followed by its own keys and
    values (B*K, 3*H*k): they go to the last K of the `filled` slots of the cache kv, which is attended to where seen (B, K, slots), under
    bias (H, steps) of the last step; of those K each beam has seen its own alone. -> (B*K, H*k)"""
    q, kv, places = q.view(len(kv), K, -1, *heads), kv.view(*kv.shape[:2], 2, *heads), torch.arange(kv.shape[1], device=q.device)
    if filled is None:
        mask = torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, -math.inf)[:, None, None]
    else:
        kv.index_copy_(1, filled - K + places[:K], q[:, :, 1:])
        back = (filled - 1 - places).clamp(min=0) // K  # steps back from this one
        mask = bias[:, bias.shape[1] - 1 - back][:, None].masked_fill(~seen[:, None], -math.inf)  # (B, H, K, slots)
    return attention(q[:, :, 0].transpose(1, 2), kv.permute(2, 0, 3, 1, 4), mask)

try:
    import triton
    import triton.language as tl
except ImportError:  # PyTorch for a CPU
    triton = None
else:

    @triton.jit(do_not_specialize=["R"])
    def linear_kernel(x_at, weight_at, norm_at, y_at, R, N, M, eps, GATED: tl.constexpr, RELU: tl.constexpr, NORM: tl.constexpr, ONTO: tl.constexpr,
                      ROWS: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr):
        """`plain_linear`, ROWS rows and OUT columns of it a program: so little is computed that norming the rows anew in each one costs nothing."""
        row, out, col = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.program_id(0) * OUT + tl.arange(0, OUT), tl.arange(0, IN)
        x_at += row[:, None] * N
        scale = tl.zeros((ROWS,), tl.float32) + 1
        if NORM:
            squares = tl.zeros((ROWS,), tl.float32)
            for start in range(0, N, IN):
                x = tl.load(x_at + start + col, (row[:, None] < R) & (start + col < N), 0.0).to(tl.float32)
                squares += tl.sum(x * x, 1)
            scale = tl.rsqrt(squares / N + eps)
        y, up = tl.zeros((ROWS, OUT), tl.float32), tl.zeros((ROWS, OUT), tl.float32)
        for start in range(0, N, IN):
            n = start + col
            x = tl.load(x_at + n, (row[:, None] < R) & (n < N), 0.0)
            if NORM:
                x = (x.to(tl.float32) * scale[:, None] * tl.load(norm_at + n, n < N, 0.0).to(tl.float32)).to(x.dtype)
            inside = (n[:, None] < N) & (out < M)
            y = tl.dot(x, tl.load(weight_at + out * N + n[:, None], inside, 0.0), y, input_precision="ieee")
            if GATED:
                up = tl.dot(x, tl.load(weight_at + (M + out) * N + n[:, None], inside, 0.0), up, input_precision="ieee")
        if GATED:  # (1 + tanh(z)) / 2 is sigmoid(2z)
            y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y)) * up
        if RELU:
            y = tl.maximum(y, 0.0)
        y_at, inside = y_at + row[:, None] * M + out, (row[:, None] < R) & (out < M)
        if ONTO:
            y += tl.load(y_at, inside, 0.0).to(tl.float32)
        tl.store(y_at, y.to(y_at.dtype.element_ty), inside)

    @triton.jit(do_not_specialize=["slots", "steps"])
    def attention_kernel(q_at, kv_at, y_at, bias_at, seen_at, filled_at, slots, steps, H: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
                         SELF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
        """`plain_attention`, a head of a source a program; softmax as it goes (Milakov & Gimelshein 2018, arXiv 1805.02867)."""
        b, h, row, dim = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, ROWS)[:, None], tl.arange(0, D)
        q_at += (b * K + row) * (3 * H * D if SELF else H * D) + h * D + dim
        kv_at += b * slots * 2 * H * D + h * D
        q = tl.load(q_at, row < K, 0.0)
        filled = tl.load(filled_at) - K if SELF else slots
        if SELF:  # each beam's own new slot comes first
            key, value = tl.load(q_at + H * D, row < K, 0.0), tl.load(q_at + 2 * H * D, row < K, 0.0)
            new_at = kv_at + (filled + row) * 2 * H * D + dim
            tl.store(new_at, key, row < K)
            tl.store(new_at + H * D, value, row < K)
            best = tl.sum(q.to(tl.float32) * key.to(tl.float32), 1) + tl.load(bias_at + h * steps + steps - 1).to(tl.float32)
            total, y = tl.zeros((ROWS,), tl.float32) + 1, value.to(tl.float32)
        else:
            best, total, y = tl.zeros((ROWS,), tl.float32) - 1e30, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, D), tl.float32)
        for start in range(0, filled, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            place = slot[:, None] * 2 * H * D + dim  # (BLOCK, D)
            keys, values = tl.load(kv_at + place, slot[:, None] < filled, 0.0), tl.load(kv_at + place + H * D, slot[:, None] < filled, 0.0)
            scores = tl.dot(q, tl.trans(keys), input_precision="ieee")  # (ROWS, BLOCK)
            if SELF:
                seen = tl.load(seen_at + (b * K + row) * slots + slot, (row < K) & (slot < filled), 0)
                scores += tl.load(bias_at + h * steps + steps - 1 - (filled - slot + K - 1) // K, slot < filled, 0.0).to(tl.float32)
            else:
                seen = tl.load(seen_at + b * slots + slot, slot < filled, 0)
            scores = tl.where(seen != 0, scores, -float("inf"))
            most = tl.maximum(best, tl.max(scores, 1))
            p, fade = tl.exp(scores - most[:, None]), tl.exp(best - most)
            total, best = total * fade + tl.sum(p, 1), most
            y = y * fade[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
        tl.store(y_at + (b * K + row) * H * D + h * D + dim, (y / tl.maximum(total, 1.0)[:, None]).to(q.dtype), row < K)  # the largest score alone adds 1

def fused_linear(x, matrix, norm=None, act="", onto=None):
    """As `plain_linear`, in one kernel."""
    (R, N), M, gated, fp32 = x.shape, len(matrix.weight), act == "gated-gelu", x.dtype == torch.float32
    if R > 128 or not matrix.weight.is_contiguous():  # cuBLAS is quicker; the kernel reads row after row
        return plain_linear(x, matrix, norm, act, onto)
    M = M // 2 if gated else M
    y, (rows, out, depth) = x.new_empty(R, M) if onto is None else onto, (16, 16, 512) if R <= 16 else (32, 32, 256)
    linear_kernel[triton.cdiv(M, out), triton.cdiv(R, rows)](
        x, matrix.weight, norm and norm.weight, y, R, N, M, norm.eps if norm else 0.0, gated, act == "relu", norm is not None, onto is not None,
        rows, out, depth // (1 + fp32), num_stages=2)
    return y

def fused_attention(q, kv, heads, K, seen, bias=None, filled=None):
    """As `plain_attention`, in one kernel."""
    (H, k), (B, slots) = heads, kv.shape[:2]
    y, (block, warps) = q.new_empty(B * K, H * k), (64, 4) if B * H < 256 else (16, 1)
    attention_kernel[B, H](q, kv, y, bias, seen.view(torch.uint8), filled, slots, 0 if bias is None else bias.shape[1], H, k, K, filled is not None,
                           max(16, triton.next_power_of_2(K)), block, num_warps=warps)
    return y

class Recorded:
    """A function that works in place on tensors of a GPU, done from its second call on as one CUDA graph: the first call sets the libraries up,
    the second records the operators, which nobody has to launch one by one again. Where they can't be recorded it stays as it is."""

    places = {}  # of each device: memory for what only lives within a replay, the same for all graphs, and a stream to record on

    def __init__(self, function, device, generator=None):
        index = torch.device(device).index
        self.device = torch.cuda.current_device() if index is None else index
        self.function, self.generator, self.graphs = function, generator, {}

    def __call__(self, *args):
        with torch.cuda.device(self.device):
            if args not in self.graphs:
                self.function(*args)
                self.graphs[args] = None
            else:
                if self.graphs[args] is None:
                    self.record(args)
                self.graphs[args]()

    def record(self, args):
        graph = torch.cuda.CUDAGraph()
        if self.device not in self.places:
            self.places[self.device] = torch.cuda.MemPool(), torch.cuda.Stream()
        pool, stream = self.places[self.device]
        if self.generator:
            graph.register_generator_state(self.generator)
        try:
            with torch.cuda.stream(torch.cuda.current_stream()):  # which a recording that fails would not bring back
                with torch.cuda.graph(graph, pool=pool.id, stream=stream, capture_error_mode="thread_local"):
                    self.function(*args)
            self.graphs[args] = graph.replay
        except RuntimeError as e:
            warnings.warn(f"CUDA can't record this, which makes it slow: {str(e).splitlines()[0]}", stacklevel=3)
            self.graphs[args] = functools.partial(self.function, *args)
            del self.places[self.device]
            for random in (*torch.cuda.default_generators, *[self.generator] * bool(self.generator)):  # they still think that they are being recorded
                random.graphsafe_set_state(random.clone_state())

AT_ONCE = RLock()  # of several threads one at a time: what was recorded works in its own place
RECORDINGS = weakref.WeakKeyDictionary()  # of each model: what was recorded with it, which goes with it

def static_search(model, B, S, kind, K, T, *how):
    """A search on a GPU with room for sources (B, S), both rounded up, B to a power of two, S to 32; what was recorded for such shapes is used again."""
    B, S = 2 ** (B - 1).bit_length(), -(-S // 32) * 32
    generator = how[0][-1] if kind is Greedy and how[0] else None
    key = (kind, B, S, K, T, *how, model.shared.weight.dtype, *(p.data_ptr() for p in model.parameters()))
    known = RECORDINGS.setdefault(model, {})
    search = known.pop(key, None)
    while sum(s.decoder.cross.nbytes + s.decoder.cache.nbytes for s in known.values()) > RECORDED:
        del known[next(iter(known))]  # the oldest
    if search is None:
        device = model.shared.weight.device
        with torch.cuda.device_of(model.shared.weight):
            search = kind(StaticDecoder(weakref.proxy(model), B, S, K, T), B, K, T, *how)
        begin, advance = (functools.partial(function, weakref.proxy(search)) for function in (kind.begin, kind.advance))  # proxies: no circles
        search.begin, search.advance = Recorded(begin, device), Recorded(advance, device, generator)
        search.patience, search.shrinks = 8, False
    known[key] = search  # now the youngest
    return search

# --- a trained model: network, vocabulary and format together ---------------------------------------------------------

@dataclass
class Answer:
    """What a model says of a pair. label is None where its text names none; text is what it wrote, a task a line."""

    label: str | None
    rationale: str
    text: str

class Apprentice:
    """A model that answers: `Apprentice.load("out/tiny").answer([(premise, hypothesis), …])`."""

    def __init__(self, model, tokenizer, format="multitask", max_source=256, max_target=64, run=None):
        self.model, self.tokenizer, self.format, self.run = model, tokenizer, format, run or {}
        self.max_source, self.max_target, self.tasks = max_source, max_target, [FORMATS[name] for name in TASKS[format]]

    @classmethod
    def load(cls, run_dir, dtype="float32", device="cpu"):
        """From a run folder; from any other T5 checkpoint or hub name too, which is then asked in plain instructions for the label alone."""
        folder = fetch(run_dir)
        run = read_run(folder) if (folder / "run.json").is_file() else {}
        settings = run.get("settings", {"format": "instruction"})
        tokenizer = Tokenizer(folder / "spiece.model")
        check_device(device)
        model = T5.from_pretrained(folder, dtype=dtype, device=device)
        if tokenizer.vocab_size > model.config.vocab_size or settings.get("format", "multitask") not in TASKS:
            raise CheckpointError(f"{folder}: its spiece.model has more pieces than its config.json, or its run.json an unknown format")
        known = {k: settings[k] for k in ("format", "max_source", "max_target") if k in settings}
        return cls(model, tokenizer, **known, run=run)

    def answer(self, pairs, num_beams=1, progress=False, rationales=None, **how):
        """[(premise, hypothesis), …] -> [Answer, …] in the same order; of several tasks that name a label the last counts. Pairs of like
        length are answered together. rationales: the reasons (N texts) that a simulator is shown; how: more options of `generate`, but
        not num_return_sequences."""
        pairs = list(pairs)
        if wrong := [pair for pair in pairs if isinstance(pair, (str, dict)) or [isinstance(text, str) for text in pair] != [True, True]]:
            raise DataError(f"answer takes a list of (premise, hypothesis), two texts each, not {wrong[0]!r:.80}")
        examples = [Example(str(i), *pair, None, (reason,)) for i, (pair, reason) in enumerate(zip(pairs, rationales or [""] * len(pairs), strict=True))]
        answers = [Answer(None, "", "") for _ in pairs]
        with tqdm(total=len(pairs) * len(self.tasks), desc="answering", unit="text", disable=not progress) as bar:
            for k, task in enumerate(self.tasks):
                for i, text in self.write(task, examples, bar, num_beams, **how):
                    answer, (label, rationale) = answers[i], task.parse(text)
                    answer.text = f"{answer.text}\n{text}" if k else text
                    if "label" in task.parts:
                        answer.label = label
                    if "rationale" in task.parts:
                        answer.rationale = rationale
        return answers

    def cost(self, pairs, num_beams=1):
        """What an answer costs -> {"parameters": how many, "ms_an_answer": text, the median of a few pairs answered one by one}"""
        seconds = [timeit.timeit(functools.partial(self.answer, [pair], num_beams), number=1) for pair in pairs]
        parameters = sum(p.numel() for p in self.model.parameters())
        return {"parameters": parameters, "ms_an_answer": f"{1e3 * torch.tensor(seconds).quantile(0.5):.1f}"}

    def answer_once(self, pairs, folder, num_beams=1):
        """As `answer`, with a memory: what it writes stands in folder/answers.jsonl as soon as it comes and is not written again, after an
        interruption too, for as long as the weights, vocabulary and settings in the run folder, and num_beams, are the same."""
        made = f"{weights_digest(folder, 'spiece.model', 'config.json', 'run.json')}-{num_beams}"
        store, kept = folder / "answers.jsonl", {}
        for line in store.read_text(encoding="utf-8", errors="replace").split("\n") if store.is_file() else ():
            with contextlib.suppress(ValueError, TypeError):  # a line that was cut short, or is another's
                key, premise, hypothesis, *answer = json.loads(line)
                kept |= {(premise, hypothesis): Answer(*answer)} if key == made else {}
        new = [pair for pair in dict.fromkeys(pairs) if pair not in kept]
        for start in tqdm(range(0, len(new), 500), desc="answering", unit="500 pairs", disable=not new):
            answers = dict(zip(new[start : start + 500], self.answer(new[start : start + 500], num_beams), strict=True))
            kept.update(answers)
            with store.open("a", encoding="utf-8") as file:
                file.writelines("\n" + json.dumps([made, *pair, *asdict(a).values()]) for pair, a in answers.items())
        return [kept[pair] for pair in pairs]

    @torch.inference_mode()
    def score_labels(self, pairs, rationales=None, batch_size=32):
        """Log-probabilities (N, 3) of LABELS for N pairs, normalised over the three: how sure the model is, and of what else.

        A label's score is the sum over its own tokens, without </s>, in the format of the run. A model that reasons first scores
        them after `rationales` (N texts, "" for none), or after those that it writes itself; the other formats do not use them."""
        task = next(task for task in self.tasks if "label" in task.parts)
        if task.parts[0] == "label":
            rationales = [""] * len(pairs)
        elif rationales is None:
            rationales = [answer.rationale for answer in self.answer(pairs)]
        examples = [Example(str(i), *pair, label, (reason,)) for i, (pair, reason) in enumerate(zip(pairs, rationales, strict=True))
                    for label in LABELS]
        rows = encode_examples(self.tokenizer, task, [(e, 0) for e in examples], self.max_source, 1024)  # a given reason is never cut
        order, scores = sorted(range(len(pairs)), key=lambda i: -len(rows[3 * i][0])), torch.empty(len(pairs), 3)
        for start in range(0, len(order), batch_size):
            here = order[start : start + batch_size]
            batch = collate([row for i in here for row in rows[3 * i : 3 * i + 3]]).to(self.model.shared.weight.device)
            memory = self.model.encode(batch.source[::3], batch.source_mask[::3]).repeat_interleave(3, dim=0)
            states = self.model.decode(T5.shift_right(batch.labels), memory, batch.source_mask)  # (3B, T, d)
            wanted = batch.label_tokens & (batch.labels != EOS)
            logits = self.model.unembed.product(states[wanted]).float()  # (tokens of labels, V)
            found = -F.cross_entropy(logits, batch.labels[wanted], reduction="none")
            sums = found.new_zeros(len(states)).index_add(0, wanted.nonzero()[:, 0], found)
            scores[here] = sums.view(-1, 3).log_softmax(-1).cpu()
        return scores

    def write_rationales(self, path, examples, source, **how):
        """Answer the examples into a rationale file: a line a row, with `source` for who says so; how: as `answer` takes it."""
        answers = self.answer([(e.premise, e.hypothesis) for e in examples], progress=True, **how)
        lines = [{"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": a.label, "rationale": a.rationale, "source": source}
                 for e, a in zip(examples, answers, strict=True)]
        replace_file(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())

    def write(self, format, examples, bar, num_beams=1, **how):
        """Yields (row, text written for it), the longest sources first, so that memory that suffices once suffices to the end."""
        rows = encode_examples(self.tokenizer, format, [(e, 0) for e in examples], self.max_source, self.max_target)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        how = {"max_new_tokens": self.max_target, **how}
        while order:
            size = max(1, BUDGET // (max(1, num_beams) * (len(rows[order[0]][0]) + self.max_target)))
            if self.model.shared.weight.is_cuda:
                size = 2 ** (size.bit_length() - 1)  # it records each shape: there should be few
            here, order = order[:size], order[size:]
            batch = collate([rows[i] for i in here]).to(self.model.shared.weight.device)
            written = generate(self.model, batch.source, batch.source_mask, num_beams=num_beams, **how)
            for i, ids in zip(here, written, strict=True):
                yield i, self.tokenizer.decode(ids)
            bar.update(len(here))

def check_device(device):
    """DataError where torch can't compute there: no such device, or torch was built without it."""
    try:
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError) as e:
        raise DataError(f"device is {device!r}, where torch can't compute ({str(e).splitlines()[0]}); cpu is always there") from None

def read_run(folder):
    """The run.json of a run folder: its settings, where they came from, and what it was made with."""
    run = read_json(path := Path(folder) / "run.json")
    settings = run.get("settings", {})
    for name, least in (("format", ""), ("data", ""), ("max_source", 1), ("max_target", 1), ("labelled_rows", 0)):
        value = settings.get(name, least) if isinstance(settings, dict) else None
        if type(value) is not type(least) or value < least:
            raise CheckpointError(f"{path}: its settings tell no run's {name} ({value!r:.40}); put back what was there")
    return run

# --- an apprentice before it has learnt ---------------------------------------------------------------------------------

def sized(size, vocab_size, layers=0, width=0):
    """A T5 of random weights: a size of SIZES, perhaps with other layers in each stack or another d_model, along which heads and d_ff grow."""
    config, wide = SIZES[size], (width or SIZES[size].d_model) / SIZES[size].d_model
    return T5(replace(config, vocab_size=vocab_size, d_model=int(config.d_model * wide), num_heads=max(1, int(config.num_heads * wide)),
                      d_ff=int(config.d_ff * wide), num_layers=layers or config.num_layers, num_decoder_layers=0))

def cut_student(teacher, layers):
    """A T5 with `layers` of the teacher's in each stack, evenly spaced from the first to the last (3 of 12: 0, 6, 11), and all else as
    there: "shrink and fine-tune" (Shleifer & Rush 2020, arXiv 2010.13002)."""
    own, depth = teacher.state_dict(), {"encoder": teacher.config.num_layers, "decoder": teacher.config.num_decoder_layers}
    if layers > min(depth.values()):
        raise DataError(f"student_layers is {layers}, but the teacher has {min(depth.values())} to cut from")
    student = T5(replace(teacher.config, num_layers=layers, num_decoder_layers=layers))
    for name, p in student.state_dict().items():
        p.copy_(own[re.sub(r"^(\w+)\.blocks\.(\d+)", lambda m: f"{m[1]}.blocks.{round(int(m[2]) * (depth[m[1]] - 1) / max(layers - 1, 1))}", name)])
    return student

def learning_parameters(model, pattern, matrices=False):
    """Let only those parameters learn that a pattern names, or the blocks' matrices among them; "last2": each stack's last two -> {name: p}"""
    blocks = [(stack, i, n) for stack, n in (("encoder", model.config.num_layers), ("decoder", model.config.num_decoder_layers)) for i in range(n)]
    pattern = re.sub(r"last([1-9]\d*)", lambda m: "(" + "|".join(rf"{stack}\.blocks\.{i}\." for stack, i, n in blocks if i >= n - int(m[1])) + ")", pattern)
    try:
        chosen = {k: p for k, p in model.named_parameters() if re.search(pattern, k) and (not matrices or p.dim() == 2 and ".blocks." in k)}
    except re.error as e:
        raise DataError(f"train_only={pattern!r} is no regular expression ({e})") from None
    if not chosen:
        raise DataError(f"train_only={pattern!r} names no parameter; python model.py SIZE lists them")
    for name, p in model.named_parameters():
        p.requires_grad_(name in chosen)
    return chosen

class LoRA:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): each matrix W (out, in) learns as W + alpha / rank * B A with B (out, rank)
    starting at 0 and A (rank, in). The network always holds the sum: a pass costs nothing more, and what is saved is a plain checkpoint.
    The sum's gradient gives those of A and B by the chain rule; what is spared is the optimiser's memory. q, k and v share an A."""

    def __init__(self, weights, rank, alpha):
        self.weights, self.scale, self.base = weights, alpha / rank, [w.detach().clone() for w in weights]
        self.A = [nn.Parameter(torch.randn(rank, w.shape[1], device=w.device) * w.shape[1] ** -0.5) for w in weights]
        self.B = [nn.Parameter(torch.zeros(w.shape[0], rank, device=w.device)) for w in weights]
        self.state = [*self.base, *self.A, *self.B]  # all that going on needs

    @torch.no_grad()
    def pull(self):
        """The gradients of A and B from those of the sums."""
        for w, A, B in zip(self.weights, self.A, self.B, strict=True):
            A.grad, B.grad = self.scale * B.T @ w.grad, self.scale * w.grad @ A.T

    @torch.no_grad()
    def merge(self):
        """The sums anew, after A and B have moved."""
        for w, base, A, B in zip(self.weights, self.base, self.A, self.B, strict=True):
            w.copy_(torch.addmm(base, B, A, alpha=self.scale))

# --- a large language model's labels and reasons ----------------------------------------------------------------------

PROMPT = """Premise: {premise}
Hypothesis: {hypothesis}
If the premise is true, is the hypothesis true (entailment), false (contradiction) or open (neutral)? {label}
Answer in two lines: "Reason:" with one short sentence, then "Label:" with one of the three words."""

def collect(source, *, out="rationales.jsonl", url="", model="", split="train", limit=0, prompt="", given=False, shots=3, samples=1, seed=0,
            temperature=0.7, max_new_tokens=200, concurrency=8, timeout=60.0, max_requests=0, max_tokens=0):
    """Have a model label and explain the examples of a source -> the rows of a rationale file, [{"id", "label", "rationale", …}, …].
    `model` answers at url/chat/completions (OpenAI's protocol; its key: $OPENAI_API_KEY); without a url it is a run folder. split: of a file
    without a column for it, train is 80% of the premises; prompt: a file to use for PROMPT; given: tell the label and ask for the reason;
    shots: examples shown first; samples: replies a row, of which the majority counts; max_requests, max_tokens: a budget (what is under
    way, up to 2 * concurrency rows, may come on top of the second; a request tried again counts once). A row is on the disk once it is
    finished, and is not asked again; one whose request failed is, by the next call. Raises DataError."""
    out, failures, everything = Path(out), Counter(), read_examples(source, split, limit)
    usable = [e for e in everything if e.label or not given]
    examples = {e.id: e for e in usable}
    out.parent.mkdir(parents=True, exist_ok=True)
    apprentice, samples = (None, samples) if url else (Apprentice.load(model), 1)
    if 0 < max_requests < samples:
        raise DataError(f"max_requests is {max_requests}, and one row takes {samples}, its samples")
    try:
        template = Path(prompt).read_text(encoding="utf-8") if prompt else PROMPT
        done, rows = rows_so_far(out, source, examples, model, given)
    except (OSError, ValueError, LookupError, TypeError) as e:
        raise DataError(f"{prompt or out}: cannot be gone on with ({e}); --out names a rationale file or none yet, --prompt a text") from None
    if missing := [word for word in ("{premise}", "{hypothesis}", *["{label}"] * given) if word not in template]:
        raise DataError(f"{prompt}: holds no {missing[0]}; a prompt says with {{premise}}, {{hypothesis}} and {{label}} where these go")
    if given and apprentice:
        raise DataError(f"{model} is a run, which can't be told the label: leave --given, or name a --url")
    good = [e for e in examples.values() if e.label and e.explanations]
    shown = random.Random(seed).sample(good, min(shots, len(good)))
    def question(e):
        words = {"premise": e.premise, "hypothesis": e.hypothesis, "label": f"It is: {e.label}." if given else ""}
        return {"role": "user", "content": re.sub("{(premise|hypothesis|label)}", lambda found: words[found[1]], template)}
    def ask(e):  # -> the row of an example, or a text that says why there is none
        turns = [turn for s in shown if s.premise.lower() != e.premise.lower()
                 for turn in (question(s), {"role": "assistant", "content": f"Reason: {s.explanations[0]}\nLabel: {s.label}"})]
        body = {"model": model, "messages": [*turns, question(e)], "temperature": temperature, "max_tokens": max_new_tokens}
        try:
            replies = ([(f"Reason: {a.rationale}\nLabel: {a.label}", "stop", 0) for a in apprentice.answer([(e.premise, e.hypothesis)])] if apprentice else
                       [retry(chat, url, body | {"seed": seed + k}, timeout, connections) for k in range(samples)])
        except (OSError, HTTPException) as error:
            if getattr(error, "code", 0) in (401, 404):  # 403 may be what a filter says of one row
                raise DataError(f"{url}: the server answers {error.code}; check --url, --model and OPENAI_API_KEY") from None
            return str(error) or type(error).__name__
        found = [read_reply(text, finish_reason, e.label if given else None) for text, finish_reason, _ in replies]
        label, count = (Counter(label for label, _, fault in found if not fault).most_common(1) or [(None, 0)])[0]
        reason = next((reason for other, reason, fault in found if other == label and not fault), "")
        return {"id": e.id, "premise": e.premise, "hypothesis": e.hypothesis, "label": label, "rationale": reason, "source": model, "gold": e.label,
                "given": given, "agreement": count / len(replies), "tokens": sum(reply[2] for reply in replies),
                "faults": [fault for *_, fault in found if fault]}
    todo, workers, connections = [e for e in examples.values() if e.id not in rows][::-1], concurrency if url else 1, {}
    pool, waiting, requests, tokens, lost = ThreadPoolExecutor(workers), set(), 0, 0, 0
    with open(out, "ab", buffering=0) as file, tqdm(total=len(examples), initial=len(rows.keys() & examples.keys()), desc=model, unit="row") as bar:
        file.truncate(sum(map(len, done)))
        if done and not done[-1].endswith(b"\n"):
            file.write(b"\n")
        try:
            while True:
                while todo and len(waiting) < 2 * workers and not 0 < max_tokens <= tokens and not 0 < max_requests < requests + samples:
                    waiting.add(pool.submit(ask, todo.pop()))
                    requests += samples
                if not waiting:
                    break
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for row in (future.result() for future in finished):
                    lost = lost + 1 if isinstance(row, str) else 0
                    if lost:
                        failures[row] += 1
                    else:
                        rows[row["id"]], tokens = row, tokens + row["tokens"]
                        file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                os.fsync(file.fileno())
                bar.set_postfix(failed=failures.total(), refresh=False)
                bar.update(len(finished))
                if lost >= (2 * workers if rows else min(2 * workers, len(examples))):
                    raise DataError(f"{url or model}: {lost} rows in turn failed ({failures.most_common(1)[0][0]}); check --url, --model and OPENAI_API_KEY")
        finally:  # an error or Ctrl-C: what waits is not asked, what is under way not waited for
            pool.shutdown(wait=False, cancel_futures=True)
    rows = [row for row in rows.values() if row["id"] in examples]
    valid, failures = [row for row in rows if row["label"]], failures + Counter(fault for row in rows for fault in row["faults"])
    failures["not asked: another row has the same id"] += len(usable) - len(examples)
    failures["not asked: there is no label to tell"] += len(everything) - len(usable)
    right, words = [row["label"] == row["gold"] for row in valid if row["gold"]], [len(row["rationale"].split()) for row in valid]
    print(f"{out}: {len(rows):,} of {len(examples):,} rows, {len(valid) / max(1, len(rows)):.1%} of them valid; the label is gold's in "
          f"{sum(right) / max(1, len(right)):.1%} of {len(right):,}; {sum(words) / max(1, len(words)):.1f} words a reason, "
          f"{sum(row['tokens'] for row in rows):,} tokens; failures: {', '.join(f'{why} {count:,}' for why, count in (+failures).most_common()) or 'none'}")
    return rows

def rows_so_far(out, source, examples, model, given):
    """What an earlier call of `collect` wrote -> (its whole lines, {id: row}); raises what says why these can't be gone on with."""
    done = out.read_bytes().splitlines(True) if out.exists() else []
    if done and b'{"id"'.startswith(done[-1][:5]) and not done[-1].endswith(b"\n"):
        try:
            json.loads(done[-1])
        except ValueError:  # it was cut off
            done.pop()
    rows = {str(row["id"]): {"label": None, "rationale": "", "gold": None, "faults": (), "tokens": 0, **row, "id": str(row["id"])}
            for row in map(json.loads, done)}
    if done and Path(source).exists() and out.samefile(source):
        raise ValueError("it is what --in names")
    for name, row in rows.items():
        if (type(row["rationale"]), type(row["tokens"])) != (str, int) or not isinstance(row["faults"], (list, tuple)):
            raise TypeError("a row's rationale, tokens or faults")
        e = examples.get(name)
        if e and (row.get("premise", e.premise), row.get("hypothesis", e.hypothesis)) != (e.premise, e.hypothesis):
            raise ValueError(f"its row {name} is of another pair")
        if (row.get("source", model), row.get("given", given)) != (model, given):
            raise ValueError(f"its row {name} is by {row.get('source')}, {'' if row.get('given') else 'not '}given the label")
    return done, rows

def chat(url, body, timeout, connections):
    """POST a chat request -> (text, finish_reason, tokens); OSError or HTTPException where it fails. connections: {thread: the one that it keeps}."""
    place, key = urllib.request.urlsplit(url), os.environ.get("OPENAI_API_KEY", "none").strip()
    path = f"{place.path.rstrip('/')}/chat/completions" + f"?{place.query}" * bool(place.query)
    if not (line := connections.get(get_ident())):
        proxy = None if urllib.request.proxy_bypass(place.hostname) else urllib.request.getproxies().get(place.scheme)
        line = (HTTPSConnection if place.scheme == "https" else HTTPConnection)(
            proxy.split("//")[-1].split("/")[0] if proxy else place.netloc, timeout=timeout)
        if proxy:
            line.set_tunnel(place.netloc)
        connections[get_ident()] = line
    try:
        line.request("POST", path, json.dumps(body), {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
        reply = line.getresponse()
        content = reply.read()
    except ssl.SSLCertVerificationError as e:
        raise DataError(f"{url}: its certificate is not trusted ({e}); $SSL_CERT_FILE can name one that is") from None
    except (OSError, HTTPException):
        line.close()  # the next request opens it anew
        raise
    except ValueError as e:
        raise DataError(f"{url} or $OPENAI_API_KEY can't be sent ({e})") from None
    if reply.status != 200:
        if reply.status < 200:
            line.close()  # what comes after it answers no other request
        raise urllib.request.HTTPError(url, reply.status, reply.reason, reply.headers, None)
    try:
        (choice, *_), usage = (told := json.loads(content))["choices"], told.get("usage") or {}
        return (choice["message"]["content"] or "").strip(), choice.get("finish_reason"), int(usage.get("total_tokens") or 0)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise ConnectionError("the answer is no chat completion") from None

WHY, WHAT = ("reason", "reasoning", "explanation", "rationale"), ("label", "answer")  # how replies call the two, at the start of a line or after a stop
NAME = rf"(?:(?:the|my|final) )*({'|'.join(WHY + WHAT)})"
FIELD = re.compile(rf"(?:^(?:\d+[.)])?|(?<=[.!?,;*\"'])\s(?!(?:\w+ ){{0,2}}\w+–\w)|(?<=[。！？，；]))"  # not ", answer–response"
                   rf"[^\w\n]*{NAME}\b[^\w\n:=-]*(?:[:=：–—]|-(?=\s))", re.I | re.M)
HEADING = re.compile(rf"^[^\w\n]*[#*][^\w\n]*(?:\d+[.)] *)?{NAME}[^\w\n]*$|<{NAME}>", re.I | re.M)  # "### 1. Reason", "**Label**", "<label>"
NAMED = re.compile(rf"(?<![a-z])(?:{'|'.join(LABELS)})", re.I)
# "not a clear entailment or contradiction", "isn't `neutral`", "non-entailment" name none; "no (neutral)", "no - neutral" and "no" on another line do
DENIED = re.compile(r"(?:(?<![a-z])(?:not?|non|neither|nor|cannot|without)|n['’]t)(?:GAP|_)+"
                    r"(?:(?:an?|the|any|be|clear|direct|logical|real|strict|(?!only)\w+ly)GAP+)*"
                    rf"(?:{NAMED.pattern})\w*(?:GAP*,?GAP+n?orGAP+(?:an?GAP+)?(?:{NAMED.pattern})\w*)*"
                    .replace("GAP", r"(?: (?!-+ )|[\t\xa0*\"'“”‘’`/-])"), re.I)

def read_reply(text, finish_reason="stop", given=None):
    """"Reason: a spaniel is a dog. **Label:** Entailment" (or JSON, or plain words) -> (label or None, reason, what is wrong or "")."""
    text = re.split("</think(?:ing)?>", text)[-1]  # what a model thinks aloud is no answer
    text = HEADING.sub(lambda found: f"\n{found[1] or found[2]}:", re.sub(rf"(?i)</{NAME}>", "\n", text))
    try:
        i, j = text.index("{"), text.rindex("}") + 1
        start, fields = "", [(re.sub(f"(?i)^{NAME}", r"\1", name.strip(" :")), value if isinstance(value, str) else "")
                            for name, value in json.loads(text[i:j]).items()]
        if (FIELD.search(text[:i] + text[j:]) or re.search(r"\w", text[j:])) and not any(name.lower() in WHY + WHAT for name, _ in fields):
            raise ValueError("these braces are part of what is said")
    except (ValueError, AttributeError, RecursionError):
        start, *pieces = FIELD.split(text)
        fields = list(zip(pieces[::2], pieces[1::2], strict=True))
    labels, reasons = ([value for name, value in fields if name.lower() in names] for names in (WHAT, WHY))
    named = {label.lower() for value in labels or [start] * (not given) for label in NAMED.findall(DENIED.sub(" ", value))}
    reason = " ".join((reasons or [start])[0].split()).strip(" *{},;`")
    reason = re.sub(r'^"|(?<!\d)"$', "", reason) if reason.count('"') == 1 else reason  # after a digit it says inches
    reason = re.sub(r"^([\"'])((?:(?!\1).|(?<=\w)'(?=\w))*)\1$", r"\2", reason).strip(" *,")  # a pair around all of it
    stems = "|".join(label if label == given else r"(?<!not |n't |nor )(?<![a-z])" + re.sub("ment$|ion$", "", label)  # "contradictory" is another than neutral
                     for label in LABELS)
    other = given and named != {given} and any(re.search(stems, value, re.I) for value in labels)
    faults = {"cut off": finish_reason in ("length", "content_filter"), "another label": bool(other), "no label": not given and not named,
              "two labels": len(named) > 1, "empty reason": not re.search(r"\w", reason) or reason.lower().strip(".") in LABELS,
              "broken characters": bool(re.search("[\ufffd\ud800-\udfff]", reason))}  # a rationale file's readers refuse them
    label = given or (named.pop() if len(named) == 1 else None)
    return label, reason, next((fault for fault, there in faults.items() if there), "")

# --- python apprentice.py ---------------------------------------------------------------------------------------------

def cast(name, value, known):
    """What was given for an option or setting, as the type that known[name] has: {name: default}. DataError says what is legal."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise DataError(f"unknown setting {name}{f'; did you mean {near[0]}?' if near else ''}; known: {', '.join(known)}")
    kind = type(known[name])
    try:
        digits = re.fullmatch(r"[+-]?\d+", str(value))  # perhaps more of them than a float can hold; else 1e3
        number = value if kind is not int else int(value) if digits else float(value)
        whole = kind is not int or number == int(number) and abs(number) < 2**63
        if (kind is dict) != isinstance(value, dict) or isinstance(value, (bool, list, tuple)) or value is None or not whole:
            raise ValueError
        return kind(number)
    except (ValueError, TypeError, OverflowError):
        legal = {int: "a whole number", float: "a number", dict: "a dictionary, in a config file"}.get(kind, "one text")
        raise DataError(f"{name} is {value!r}, not {legal}") from None

def options(argv, **defaults):
    """Split a command line into its plain words and its `--name=value` (or bare `--name`) options, cast to the defaults' types."""
    words, values = [], dict(defaults)
    for arg in argv:
        name, _, value = arg.removeprefix("--").partition("=")
        if not arg.startswith("--"):
            words.append(arg)
        elif not isinstance(defaults.get(name), bool):
            values[name] = cast(name, value, defaults)
        elif value:
            raise DataError(f"--{name} takes no value, not {value!r}")
        else:
            values[name] = True
    return words, values

def cells(table):
    """A table {row: {column: value}} as lines of text, the header first: a float is a share and shown in percent, a pair of floats an
    interval, None and NaN are a dash, text stays as it is."""

    def text(value):
        if isinstance(value, (list, tuple)):
            return " to ".join(map(text, value))
        empty = value is None or value != value
        return "–" if empty else f"{100 * value:.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)

    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    return [("", *columns)] + [(name, *(text(row.get(column)) for column in columns)) for name, row in table.items()]

def print_table(table):
    """Print a table, as `cells` takes it, with aligned columns."""
    lines = cells(table)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        print("  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]))

def main(argv):
    """`python apprentice.py RUN [PREMISE HYPOTHESIS] [--json]`"""
    if not argv or "-h" in argv or "--help" in argv:
        settings = [f"    --{k}" + f"={v}" * (v is not False) for k, v in {"in": "toy", **collect.__kwdefaults__}.items()]
        return print(*(collect.__doc__, "", *settings) if "collect" in argv else [__doc__], sep="\n")
    if argv[0] == "collect":
        words, opt = options(argv[1:], **{"in": "toy"}, **collect.__kwdefaults__)
        words += [f"--{k}={v}" for k, v in opt.items() if not isinstance(v, str) and v < (k in ("concurrency", "samples"))]
        if words or not opt["model"] or not re.match("https?://|$", opt["url"]):
            raise DataError(f"collect needs --model=NAME, a run folder or what the server at --url=http://… calls it, --in=FILE{'; not '.join(['', *words])}")
        if not 0 < opt["timeout"] < 1e6:
            raise DataError(f"--timeout={opt['timeout']} is no number of seconds")
        try:
            urllib.request.urlsplit(opt["url"]).port  # noqa: B018
        except ValueError as e:
            raise DataError(f"--url={opt['url']}: {e}") from None
        return collect(opt.pop("in"), **opt)
    words, opt = options(argv, json=False, device="cpu", dtype="float32", num_beams=1)
    if len(words) not in (1, 3) or opt["num_beams"] < 1:
        raise DataError(f"{len(words)} words given: name a run, or a run, a premise and a hypothesis (in quotes); --num_beams is 1 or more")
    apprentice = Apprentice.load(words[0], dtype=opt["dtype"], device=opt["device"])

    def ask(premise, hypothesis):
        premise, hypothesis = (text.encode(errors="replace").decode() for text in (premise, hypothesis))  # bytes that are no UTF-8
        answer = apprentice.answer([(premise, hypothesis)], num_beams=opt["num_beams"])[0]
        if opt["json"]:
            print(json.dumps({"premise": premise, "hypothesis": hypothesis, **asdict(answer)}, ensure_ascii=False), flush=True)
        else:
            print(f"{answer.label or 'no label'}: {answer.rationale or '(no reason given)'}", flush=True)

    if len(words) == 3:
        return ask(*words[1:])
    if not sys.stdin:  # closed
        return
    tty = sys.stdin.isatty()
    if tty:
        print(f"{words[0]} answers. A premise, then a hypothesis; an empty line or Ctrl-D ends.", file=sys.stderr)
    with contextlib.suppress(EOFError):
        while (premise := input("premise:    " if tty else "").strip()) and (hypothesis := input("hypothesis: " if tty else "").strip()):
            ask(premise, hypothesis)

if __name__ == "__main__":
    run_main(main, CheckpointError)
