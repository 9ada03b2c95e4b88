"""T5 in plain PyTorch: the network, and its weights read from and written to the Hugging Face layout.

    python model.py google/flan-t5-small     the parts of a hub model (downloads it once)
    python model.py out/tiny                 the parts of a run folder, or of any checkpoint folder
    python model.py small                    the parts of a built-in size, with nothing downloaded

Each takes seconds once the files are here. T5 (Raffel et al. 2020, arXiv 1910.10683) is an encoder that reads the source and a decoder that writes the target.
Two versions are in use and both are here: v1.0 (ReLU, one matrix for embedding and output head, decoder states scaled before the head) and v1.1 (gated GELU, a
head of its own, no scale); FLAN-T5 is v1.1. What sets T5 apart from other transformers: attention is not scaled by 1/sqrt(d_kv), positions enter only as a
learnt bias on the attention scores, norms neither centre nor shift, and no matrix has a bias vector.

Shapes in the comments: B batch, S source tokens, T target tokens, d model width, H heads, k width of a head, V vocabulary.
Read next: data.py (text to batches), then apprentice.py (writing with this network).
"""

import contextlib
import hashlib
import http.client
import json
import math
import os
import platform
import re
import shutil
import sys
import time
import urllib.request
import warnings
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

class CheckpointError(ValueError):
    """A checkpoint, its configuration or its download is not usable; the text is one line that says what, where and what to do."""

# --- the network ------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class T5Config:
    """The shape of a T5, under the names of the hub's config.json; the defaults are those that old files leave out."""

    vocab_size: int = 32128  # rows of the embedding; the tokenizer has fewer, the rest is padding
    d_model: int = 512
    d_kv: int = 64  # width of a head; num_heads * d_kv need not be d_model
    d_ff: int = 2048
    num_layers: int = 6
    num_decoder_layers: int = 0  # 0: as many as num_layers
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dropout_rate: float = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"  # relu (v1.0) | gated-gelu (v1.1, FLAN)
    tie_word_embeddings: bool = True  # v1.0: the head is the embedding, and states are scaled by d_model^-0.5 before it

    def __post_init__(self):
        if not self.num_decoder_layers:
            object.__setattr__(self, "num_decoder_layers", self.num_layers)
        legal = {int: ("a whole number above 0 (and below 2**20)", lambda x: type(x) is int and 0 < x < 2**20),
                 str: ("relu or gated-gelu", ("relu", "gated-gelu").__contains__),
                 float: ("a number from 0 to below 1", lambda x: type(x) in (int, float) and 0 <= x < 1), bool: ("true or false", lambda x: type(x) is bool)}
        for f in fields(self):
            if not legal[f.type][1](getattr(self, f.name)):
                raise CheckpointError(f"config: {f.name} is {getattr(self, f.name)!r:.40}, not {legal[f.type][0]}")
        for wrong, why in ((max(self.num_layers, self.num_decoder_layers) > 1000, "more than 1,000 layers"),
                           (self.relative_attention_num_buckets < 4, "relative_attention_num_buckets is below 4"),
                           (self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2,
                            "relative_attention_max_distance is no more than half of relative_attention_num_buckets")):
            if wrong:
                raise CheckpointError(f"config: {why}")

    @classmethod
    def from_file(cls, path):
        """Read a Hugging Face `config.json`. Keys that a T5 does not need are ignored, missing ones take T5's defaults."""
        values = {"model_type": "t5", **read_json(path, ": a checkpoint folder holds config.json, one JSON object, and its weights")}
        if values["model_type"] != "t5":
            raise CheckpointError(f"{path}: model_type is {values['model_type']!r}, not t5")
        if "scale_decoder_outputs" in values:  # transformers 5 always writes tie_word_embeddings = true and keeps the truth here
            values["tie_word_embeddings"] = values["scale_decoder_outputs"]
        try:
            config = cls(**{f.name: values[f.name] for f in fields(cls) if values.get(f.name) is not None})
        except CheckpointError as e:
            raise CheckpointError(f"{path}: {e}") from None
        gated = config.feed_forward_proj == "gated-gelu"
        for key, known in {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "is_gated_act": gated,
                           "dense_act_fn": "gelu_new" if gated else "relu"}.items():
            if values.get(key, known) not in (known, [known], None):
                raise CheckpointError(f"{path}: {key} is {values[key]!r:.40}; of such a T5 only {known!r} is known here")
        return config

def _flan(d_model, d_ff, num_layers, num_heads, **other):
    return T5Config(d_model=d_model, d_ff=d_ff, num_layers=num_layers, num_heads=num_heads, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **other)

# The two for the toy world have no dropout: with 0.1 the teacher was right on 80% of unseen rows after 1,000 steps, without on all but a few.
SIZES = {
    "nano": _flan(64, 96, 2, 4, d_kv=16, dropout_rate=0.0),  # the student of configs/tiny.py
    "micro": _flan(128, 256, 2, 4, d_kv=32, dropout_rate=0.0),  # its teacher
    "small": _flan(512, 1024, 8, 6),  # from here on the shapes of FLAN-T5
    "base": _flan(768, 2048, 12, 12),
    "large": _flan(1024, 2816, 24, 16),
    "xl": _flan(2048, 5120, 24, 32),
    "xxl": _flan(4096, 10240, 24, 64),
}

class Product(torch.autograd.Function):
    """x @ weight.T in float32, and x's gradient, by oneDNN; the weight's gradient by a plain product, which is quicker there."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return onednn(x, weight)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dx = onednn(dy, weight.t()) if ctx.needs_input_grad[0] else None
        return dx, dy.flatten(0, -2).t() @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None

def onednn(x, weight):
    """x (..., n) @ weight (m, n).T -> (..., m), the weight perhaps packed."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else platform.processor()
ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
SLOW_LINEAR = ONEDNN and "Intel" not in CPU  # on Intel's processors F.linear is the faster of the two, elsewhere oneDNN forward may take half its time
FEW_ROWS = 4  # of x: with fewer F.linear is faster on Intel's than a product with a packed weight

def product(x, weight):
    """x (..., n) @ weight (m, n).T -> (..., m), with gradients: F.linear, in the fastest way that this machine has."""
    if SLOW_LINEAR and x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu"):
        return Product.apply(x, weight) if torch.is_grad_enabled() else onednn(x, weight)
    return F.linear(x, weight)

def version(weight):
    """Changes with the weight's numbers, but for what nobody can see: edits of weight.data, or of a tensor made in inference mode, and the
    steps of a fused optimiser (whose gradients `Matrix.product` sees)."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version

class Matrix:
    """What a layer with a `weight` (m, n) needs to multiply by it. For inference on a CPU copies can stand beside the weight: `packed`, in the
    order in which the product's kernel reads it, with which products of few rows take down to a third of the time, and `draft`, in 8 bits.
    They go as soon as a gradient is asked for, and are made anew where the weight is seen to have changed. Or the weight is 8 bits alone."""

    quantized = None  # the weight in 8 bits alone
    packed = None  # (version of the weight, copy, rows of x from which on it is used)
    draft = bounds = None  # (version of the weight, copy in 8 bits); (that copy, what `largest` knows of it)

    def forget(self):
        """Drop the copies."""
        self.packed = self.draft = self.bounds = None

    def _apply(self, *args, **kwargs):  # .to(), .half(), …, which edit weight.data: after a way there and back `version` may be the same
        self.forget()
        return super()._apply(*args, **kwargs)

    def __getstate__(self):  # who copies or pickles the layer makes copies of the weight anew
        return {**self.__dict__, "packed": None, "draft": None, "bounds": None}

    def product(self, x):
        """x (..., n) -> x @ weight.T (..., m)"""
        if self.quantized is not None:
            return product_in_8_bits(x, self.quantized)
        weight, packed = self.weight, self.packed  # to look it up takes a module a while
        if torch.is_grad_enabled():
            if packed or self.draft:
                self.forget()
        elif packed and packed[0] == version(weight) and x.shape[:-1].numel() >= packed[2]:
            return onednn(x, packed[1])
        return product(x, weight)

    @property
    def own_weight(self):
        """The weight, if it can be copied: not where it is in 8 bits alone, elsewhere than on a CPU, or worked out anew each time."""
        weight = self._parameters.get("weight") if ONEDNN and self.quantized is None else None
        return weight if weight is not None and weight.is_cpu else None

    @torch.no_grad()
    def pack(self):
        """Make `packed` where it helps and is not there, or of a weight as it was."""
        weight = self.own_weight
        if weight is None or self.packed and self.packed[0] == version(weight):
            return
        if weight.dtype == torch.float32 or weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            least = 0 if SLOW_LINEAR or weight.dtype == torch.bfloat16 else FEW_ROWS
            self.packed = version(weight), torch.ops.mkldnn._reorder_linear_weight(weight.detach()), least

    @torch.no_grad()
    def quantize(self, many=False):
        """Hold the weight in 8 bits alone, as `in_8_bits` does."""
        if self.quantized is None:
            self.forget()
            self.quantized = in_8_bits(self.weight, many)
            if isinstance(self, Linear):  # an embedding is still looked up
                self.weight = None

    @property
    def rough_pays(self):
        """Whether `rough` is much quicker to read than the weight is: on a CPU, for many numbers of 32 bits."""
        weight = self.own_weight
        return weight is not None and weight.dtype == torch.float32 and weight.numel() > 2**20

    def rough(self):
        """The weight in 8 bits, a quarter of the bytes to read, made anew where the weight has changed."""
        draft = self.draft
        if not draft or draft[0] != version(self.weight):
            draft = self.draft = version(self.weight), in_8_bits(self.weight)
        return draft[1]

    @torch.no_grad()
    def largest(self, x, banned):
        """x (R, n) -> (R,), which row w of the weight, but for the banned, has the largest product x.w, the first of equals; in float32 on
        a CPU. The copy in 8 bits tells x'.w' of x and w as rounded. By Cauchy and Schwarz |x.w - x'.w'| <= |x - x'| |w'| + |x| |w - w'|:
        rows that can't be the largest are left out, the few others multiplied out."""
        draft, lengths, known = self.rough(), x.norm(dim=1), self.bounds
        if not known or known[0] is not draft:
            rounded = torch.ops.quantized.linear_unpack(draft)[0].dequantize()
            length = rounded.norm(dim=1)
            bounds = torch.stack([length, (self.weight - rounded).norm(dim=1) + 1e-4 * length])  # with room for float32's own rounding
            known = self.bounds = draft, bounds, bounds.max()
        _, bounds, farthest = known
        if lengths.max() * farthest < 1e36:
            rounded = torch.quantize_per_tensor_dynamic(x, torch.quint8, NARROW).dequantize()  # as `product_in_8_bits` does
            scores, slack = product_in_8_bits(x, draft), torch.stack([(x - rounded).norm(dim=1), lengths], 1) @ bounds  # (R, m) both
            scores[:, banned] = -math.inf
            least = (scores - slack).amax(1, keepdim=True)
            rows = (scores.add_(slack).sub_(least).amax(0) >= 0).nonzero()[:, 0]
            return rows[product(x, self.weight[rows]).argmax(1)]
        logits = product(x, self.weight)  # NaN, or too large for a bound
        logits[:, banned] = -math.inf
        return logits.argmax(1)

NARROW = not getattr(torch.cpu, "_is_vnni_supported", bool)()  # 7 bits for x where a CPU without VNNI would overflow with 8
TILES = getattr(torch.cpu, "_is_amx_tile_supported", bool)()  # a CPU that multiplies blocks at once, in 8 bits too

@torch.no_grad()
def in_8_bits(weight, many=False):
    """weight (m, n) as whole numbers from -127 to 127 with a scale for each row, packed for `product_in_8_bits`. many: x will have many rows"""
    scale = weight.abs().amax(1).clamp(min=1e-20) / 127
    engine = torch.backends.quantized.engine
    with warnings.catch_warnings():  # such tensors go in PyTorch 2.14
        warnings.simplefilter("ignore")
        rounded = torch._make_per_channel_quantized_tensor((weight / scale[:, None]).round_().char(), scale, torch.zeros_like(scale, dtype=torch.long), 0)
    try:
        torch.backends.quantized.engine = "onednn" if many and TILES and ONEDNN else engine  # takes half the time of many rows then, and more of few
        return torch.ops.quantized.linear_prepack(rounded, None)
    finally:
        torch.backends.quantized.engine = engine

def product_in_8_bits(x, packed):
    """x (..., n), rounded too, to 8 bits and a scale for all of it -> (..., m)"""
    return torch.ops.quantized.linear_dynamic(x, packed, reduce_range=NARROW)

class Linear(Matrix, nn.Linear):
    """x (..., n) -> x @ weight.T (..., m)"""

    def __init__(self, n, m):
        super().__init__(n, m, bias=False)

    forward = Matrix.product

class Embedding(Matrix, nn.Embedding):
    """ids -> rows of the weight; T5 v1.0 multiplies by it too, as its head."""

    def reset_parameters(self):
        """Left to the T5 that it stands in."""

class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, arXiv 1910.07467), the mean in float32."""

    def __init__(self, n, eps):
        super().__init__(n, eps)
        self.floor = torch.full((1,), eps, dtype=torch.float32, device="cpu")  # eps; made anew it takes a fifth of a norm's time

    def forward(self, x):
        if torch.is_grad_enabled() or not x.is_cpu or not x.dtype == self.weight.dtype == torch.float32:
            return super().forward(x)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # in fewer passes: where threads compete a tenth of an answer's time
        return x.mul(torch.addcmul(self.floor, norm, norm, value=1 / x.shape[-1]).rsqrt_()).mul_(self.weight)

class Dropout(nn.Dropout):
    """In training each number is 0 with probability p, else divided by 1 - p. On a CPU 64 random bits serve four numbers, p to the nearest
    1/65,536: PyTorch's own draws take three times as long, a tenth of a training step."""

    def forward(self, x):
        if not self.training or not self.p or not x.is_cpu:
            return super().forward(x)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits <= max(round((1 - self.p) * 2**16), 1) - 1 - 2**15).to(x.dtype).div_(1 - self.p)

class PositionBias(nn.Module):
    """The learnt bias on attention scores, one number a head and a bucket of distances (arXiv 1910.10683, section 2.1)."""

    def __init__(self, config, bidirectional):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.relative_attention_num_buckets, config.num_heads))
        self.max_distance = config.relative_attention_max_distance
        self.bidirectional = bidirectional  # the encoder looks both ways, the decoder only back
        self.tables = {}  # on each device the buckets of the distances -max_distance to max_distance

    def bucket(self, distance):
        """Distances (key position minus query position, any shape) to buckets of the same shape: near ones have a bucket each,
        far ones share buckets that widen with the logarithm, up to max_distance, beyond which all share the last.
        >>> PositionBias(T5Config(), bidirectional=False).bucket(torch.tensor([0, -1, -15, -16, -17, -40, -200])).tolist()
        [0, 1, 15, 16, 16, 23, 31]
        """
        buckets = self.weight.shape[0] // (2 if self.bidirectional else 1)
        offset = (distance > 0) * buckets if self.bidirectional else 0
        distance = distance.abs() if self.bidirectional else (-distance).clamp(min=0)
        exact = buckets // 2
        widening = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact) * (buckets - exact)
        far = (exact + widening.long()).clamp(max=buckets - 1)
        return offset + torch.where(distance < exact, distance, far)

    def forward(self, length):
        """-> (1, H, length, length), of queries and keys at the positions 0, 1, 2, …"""
        place, far = torch.arange(length, device=self.weight.device), self.max_distance
        if place.device not in self.tables:  # worked out on the CPU, so that every device rounds alike
            self.tables[place.device] = self.bucket(torch.arange(-far, far + 1)).to(place.device)
        distance = (place - place[:, None]).clamp(-far, far)
        return F.embedding(self.tables[place.device][distance + far], self.weight).permute(2, 0, 1)[None]

class Attention(nn.Module):
    """Multi-head attention without a scale. Self-attention holds one matrix for queries, keys and values, cross-attention
    one for queries and one for keys and values: fewer, larger products are faster and the numbers are the same."""

    def __init__(self, config, cross=False):
        super().__init__()
        self.heads, self.cross, self.dropout = config.num_heads, cross, Dropout(config.dropout_rate)
        inner = config.num_heads * config.d_kv
        if cross:
            self.q, self.kv = Linear(config.d_model, inner), Linear(config.d_model, 2 * inner)
        else:
            self.qkv = Linear(config.d_model, 3 * inner)
        self.out = Linear(inner, config.d_model)

    def split(self, x):
        """(B, T, n*H*k) -> (n, B, H, T, k)"""
        return x.view(*x.shape[:2], -1, self.heads, self.out.in_features // self.heads).permute(2, 0, 3, 1, 4)

    def forward(self, x, memory=None, bias=None):
        """x (B, T, d), memory (B, S, d) in cross-attention, bias broadcastable to (B, H, T, keys), added to the scores -> (B, T, d)"""
        if self.cross:
            (q,), (k, v) = self.split(self.q(x)), self.split(self.kv(memory))
        else:
            q, k, v = self.split(self.qkv(x))
        p = self.dropout.p if self.training else 0.0
        if p and x.is_cpu:  # the same written out, with a quicker dropout
            scores = q @ k.mT  # (B, H, T, keys)
            y = self.dropout(torch._safe_softmax(scores if bias is None else scores + bias, -1)) @ v  # 0 where all is hidden
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=p, scale=1.0)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, H, T, k) -> (B, T, H*k) -> (B, T, d)

ROOT = torch.tensor([math.sqrt(8 / math.pi)], dtype=torch.float32, device="cpu")

def activated(h, act):
    """act: relu, (..., n) -> (..., n), or gated-gelu, (..., 2n) -> (..., n)"""
    if act == "relu":
        return h.relu()
    gate, up = h.chunk(2, dim=-1)
    if torch.is_grad_enabled() or not h.is_cpu or h.dtype != torch.float32 or h.numel() < 2**14:
        return F.gelu(gate, approximate="tanh") * up
    # the same, as 1 + tanh(y) = 2 sigmoid(2y): PyTorch's sigmoid takes a fifth of its tanh's time
    return torch.addcmul(ROOT, gate, gate, value=0.044715 * ROOT.item()).mul_(gate).sigmoid_().mul_(gate).mul_(up)

class FeedForward(nn.Module):
    """relu(x Wi) Wo, or (gelu(x Wg) * (x Wu)) Wo with both inner matrices held as one (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.act = config.feed_forward_proj
        self.wi = Linear(config.d_model, config.d_ff * (2 if self.act == "gated-gelu" else 1))
        self.wo = Linear(config.d_ff, config.d_model)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x):  # (B, T, d) -> (B, T, d_ff) -> (B, T, d)
        h = activated(self.wi.product(x), self.act)
        return self.wo.product(self.dropout(h) if self.training else h)

class Block(nn.Module):
    """One layer of the encoder, or with cross-attention of the decoder; every sublayer is x + dropout(f(norm(x)))."""

    def __init__(self, config, decoder):
        super().__init__()
        self.attention = Attention(config)
        self.attention_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        if decoder:
            self.cross = Attention(config, cross=True)
            self.cross_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.ff = FeedForward(config)
        self.ff_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x, bias, memory=None, memory_bias=None):  # (B, T, d) -> (B, T, d)
        x = x + self.dropout(self.attention(self.attention_norm(x), bias=bias))
        if memory is not None:
            x = x + self.dropout(self.cross(self.cross_norm(x), memory, memory_bias))
        return x + self.dropout(self.ff(self.ff_norm(x)))

class Stack(nn.Module):
    """The encoder or the decoder: blocks that share one position bias, and a norm at the end."""

    def __init__(self, config, layers, decoder):
        super().__init__()
        self.position_bias = PositionBias(config, bidirectional=not decoder)
        self.blocks = nn.ModuleList(Block(config, decoder) for _ in range(layers))
        self.norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout_rate)

    def forward(self, x, mask=None, memory=None, memory_mask=None):
        """x (B, T, d); mask, memory_mask: bools broadcastable to (B, H, T, keys), True where a key may be seen -> (B, T, d)"""
        bias, memory_bias = self.position_bias(x.shape[1]), None
        if mask is not None:
            bias = bias.masked_fill(~mask, -math.inf)
        if memory_mask is not None:
            memory_bias = bias.new_zeros(memory_mask.shape).masked_fill(~memory_mask, -math.inf)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, bias, memory, memory_bias)
        return self.dropout(self.norm(x))

class T5(nn.Module):
    """The whole network. `model(source, target, source_mask)` gives logits; `encode` and `decode` are its two halves."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.shared = Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config, config.num_layers, decoder=False)
        self.decoder = Stack(config, config.num_decoder_layers, decoder=True)
        self.lm_head = None if config.tie_word_embeddings else Linear(config.d_model, config.vocab_size)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self):
        """T5's own random weights: every matrix keeps the variance of what goes through it. Queries are smaller by sqrt(d_kv),
        which stands for the scale that the attention leaves out."""
        if self.shared.weight.is_meta:  # nothing to fill; on meta PyTorch's normal_ imports 800 modules first: a second, and 67 MB
            return
        for name, p in self.named_parameters():
            if name.endswith("norm.weight"):
                p.fill_(1.0)
            else:
                p.normal_(0.0, 1.0 if name == "shared.weight" else (self.config.d_model if "position_bias" in name else p.shape[1]) ** -0.5)
            if name.endswith(("attention.qkv.weight", "cross.q.weight")):
                p[: self.config.num_heads * self.config.d_kv] *= self.config.d_kv**-0.5

    @property
    def head(self):
        """The output matrix (V, d): logits = states @ head.T for states as `decode` gives them."""
        return self.unembed.weight

    @property
    def unembed(self):
        """The layer that holds the output matrix."""
        return self.shared if self.lm_head is None else self.lm_head

    def pack(self, quantize=False):
        """Lay the matrices out for fast inference on a CPU (see `Matrix`): a second copy of them, or with `quantize` the only one."""
        for matrix, name in ({m: name for name, m in self.named_modules() if isinstance(m, Linear)} | {self.unembed: "head"}).items():
            matrix.quantize(many=name.startswith("encoder") or name.endswith("cross.kv")) if quantize else matrix.pack()

    def encode(self, source, source_mask=None):
        """source (B, S) ids, source_mask (B, S) bool, True = token -> memory (B, S, d)"""
        return self.encoder(self.embedded(source), None if source_mask is None else source_mask[:, None, None, :])

    def decode(self, target, memory, source_mask=None):
        """target (B, T) decoder input ids, memory (B, S, d) -> states (B, T, d), ready for the head"""
        causal = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool, device=target.device).tril()
        x = self.decoder(self.embedded(target), causal, memory, None if source_mask is None else source_mask[:, None, None, :])
        return self.scaled(x)

    def states(self, source, target, source_mask=None):
        """As `decode` of what `encode` gives, the words of both looked up at once: a lookup's gradient is as large as the whole embedding."""
        words = self.shared(torch.cat([source.flatten(), target.flatten()]))
        source, target = (x.view(*ids.shape, -1) for x, ids in zip(words.split([source.numel(), target.numel()]), (source, target), strict=True))
        return self.decode(target, self.encode(source, source_mask), source_mask)

    def embedded(self, x):
        """ids (B, T), or what they were looked up as -> (B, T, d)"""
        return x if x.is_floating_point() else self.shared(x)

    def scaled(self, x):
        """The decoder's output as the head takes it."""
        return x * self.config.d_model**-0.5 if self.lm_head is None else x

    def forward(self, source, target, source_mask=None):
        """source (B, S) ids, target (B, T) decoder input ids, source_mask (B, S) bool, True = token -> logits (B, T, V)"""
        return self.unembed.product(self.states(source, target, source_mask))

    @staticmethod
    def shift_right(labels):
        """labels (B, T), -100 = ignore -> decoder input ids (B, T): each position sees those before it, and the first one the pad token 0.
        >>> T5.shift_right(torch.tensor([[7, 8, 1], [9, 1, -100]])).tolist()
        [[0, 7, 8], [0, 9, 1]]
        """
        return F.pad(labels, (1, -1)).masked_fill(F.pad(labels, (1, -1)) == -100, 0)

    @classmethod
    def from_pretrained(cls, path, dtype="float32", device="cpu"):
        """A T5 in eval mode from a checkpoint folder or a hub name. dtype: float32 | bfloat16 | int8 (on a CPU, to infer only).
        Raises CheckpointError where a file is missing, broken or does not fit."""
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
        dtype = str(dtype).removeprefix("torch.")
        if dtype not in dtypes or dtype == "int8" and torch.device(device).type != "cpu":
            raise CheckpointError(f"dtype is {dtype!r}, on {device}; it can be {', '.join(dtypes)}, the last on a CPU only")
        folder = fetch(path)
        with torch.device("meta"):  # no time for random weights that the file's replace
            model = cls(T5Config.from_file(folder / "config.json"))
        load_weights(model, read_tensors(folder), folder)
        model = model.to(device=device, dtype=dtypes[dtype]).eval()
        if dtype == "int8":
            model.pack(quantize=True)
        return model

    def save_pretrained(self, folder):
        """Write config.json and model.safetensors in float32, as transformers and `from_pretrained` read them."""
        if self.encoder.blocks[0].ff.wo.weight is None:
            raise CheckpointError("this model is in int8, for inference only: load it in float32 to save it")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tied = self.config.tie_word_embeddings
        config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True, "pad_token_id": 0,
                  "eos_token_id": 1, "decoder_start_token_id": 0, **asdict(self.config), "scale_decoder_outputs": tied}
        replace_file(folder / "config.json", (json.dumps(config, indent=2) + "\n").encode())
        tensors = {name: part.float().cpu() for name, part in hugging_face_views(self).items()}
        if tied:  # transformers 5 looks for the head by name
            tensors["lm_head.weight"] = tensors["shared.weight"]
        write_safetensors(folder / "model.safetensors", tensors)

# --- weights: the Hugging Face layout ---------------------------------------------------------------------------------

def read_json(path, hint=""):
    """The object that a JSON file holds; CheckpointError where it holds none."""
    try:
        return {**json.loads(Path(path).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{path} cannot be read ({e}){hint}") from None

def hugging_face_names(config):
    """{our parameter: [the hub's tensors that it is made of, stacked along the first axis]}"""
    names = {"shared.weight": ["shared.weight"]} | ({} if config.tie_word_embeddings else {"lm_head.weight": ["lm_head.weight"]})
    inner = ("wi_0", "wi_1") if config.feed_forward_proj == "gated-gelu" else ("wi",)
    for stack, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        names[f"{stack}.position_bias.weight"] = [f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        names[f"{stack}.norm.weight"] = [f"{stack}.final_layer_norm.weight"]
        sublayers = [("attention", "SelfAttention", {"qkv": "qkv", "out": "o"}), ("cross", "EncDecAttention", {"q": "q", "kv": "kv", "out": "o"}),
                     ("ff", "DenseReluDense", {"wi": inner, "wo": ("wo",)})]
        for i in range(layers):
            for j, (ours, theirs, parts) in enumerate(sublayers if stack == "decoder" else sublayers[::2]):
                for part, pieces in parts.items():
                    names[f"{stack}.blocks.{i}.{ours}.{part}.weight"] = [f"{stack}.block.{i}.layer.{j}.{theirs}.{x}.weight" for x in pieces]
                names[f"{stack}.blocks.{i}.{ours}_norm.weight"] = [f"{stack}.block.{i}.layer.{j}.layer_norm.weight"]
    return names

def hugging_face_views(model):
    """{the hub's name: the part of one of our parameters that it is}, views: what is written into them is written into the model."""
    return {name: part for ours, theirs in hugging_face_names(model.config).items()
            for name, part in zip(theirs, model.get_parameter(ours).detach().chunk(len(theirs)), strict=True)}

# Old files hold copies of the embedding under the names of both stacks and of a tied head, and a bias in cross-attention that no T5 reads.
STRAY = re.compile(r"((encoder|decoder)\.embed_tokens|lm_head|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias)\.weight")

@torch.no_grad()
def load_weights(model, tensors, where):
    """Fill every parameter of `model` from {hub name: tensor}; CheckpointError names what is missing, left over or misshapen."""
    wanted = hugging_face_views(model)
    if "lm_head.weight" in wanted and "lm_head.weight" not in tensors and "shared.weight" in tensors:  # transformers 5 ties new ones
        tensors = {**tensors, "lm_head.weight": tensors["shared.weight"]}
    for name in tensors.keys() - wanted.keys():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")) and "shared.weight" in tensors and not torch.equal(tensors[name], tensors["shared.weight"]):
            raise CheckpointError(f"{where}: {name} is no copy of shared.weight, as config.json has it (tie_word_embeddings); correct what is wrong")
    unknown = [name for name in tensors.keys() - wanted.keys() if not STRAY.fullmatch(name)]
    wrong = {"missing": sorted(wanted.keys() - tensors.keys()), "unknown": sorted(unknown)}
    if any(wrong.values()):
        text = [f"{len(x)} {what} ({', '.join(x[:3])}{', …' if len(x) > 3 else ''})" for what, x in wrong.items() if x]
        raise CheckpointError(f"{where}: the weights do not fit config.json: tensors {' and '.join(text)}")
    for name, part in wanted.items():  # before any memory is asked for
        if part.shape != tensors[name].shape:
            raise CheckpointError(f"{where}: {name} has shape {tuple(tensors[name].shape)}, config.json asks for {tuple(part.shape)}")
    if model.shared.weight.is_meta:  # not to_empty, which imports 500 modules
        model.load_state_dict({name: torch.empty(p.shape) for name, p in model.named_parameters()}, assign=True)
    for name, part in hugging_face_views(model).items():  # anew, as parameters on meta were replaced
        part.copy_(tensors[name])

def weights_digest(folder, *beside):
    """16 digits that tell the weights in a checkpoint folder, and the files beside them that are named, from all others."""
    digest = hashlib.sha256()
    for file in (f for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".bin") or f.name in beside):
        digest.update(mapped(file))
    return digest.hexdigest()[:16]

def mapped(path):
    """The bytes of a file, none of which is read before it is used."""
    return np.memmap(path, np.uint8, "r") if Path(path).stat().st_size else b""

def read_tensors(folder):
    """All tensors of a checkpoint folder as {name: tensor}: model.safetensors or pytorch_model.bin, whole or in shards."""
    folder = Path(folder)
    for name, read in (("model.safetensors", read_safetensors), ("pytorch_model.bin", read_bin)):
        if (folder / name).is_file():
            return read(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return {k: v for shard in read_index(folder / f"{name}.index.json") for k, v in read(folder / shard).items()}
    raise CheckpointError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin (or their .index.json) is there")

def read_index(path):
    """The index of a sharded checkpoint -> the shards' file names"""
    shards = read_json(path).get("weight_map")
    wrong = [shard for shard in shards.values() if Path(str(shard)).name != shard] if isinstance(shards, dict) else [shards]
    if wrong:
        raise CheckpointError(f"{path} is not an index: it needs a weight_map of tensor to plain file name, not {wrong[0]!r:.40}")
    return sorted({*shards.values()})

def read_bin(path):
    """A PyTorch file, read without running any code that it may hold."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # the unpickler raises nearly anything on a broken file
        why = (str(e) or type(e).__name__).splitlines()[0][:80]
        raise CheckpointError(f"{path} is not a file of plain tensors, is cut short or is missing ({why})") from None
    plain = isinstance(tensors, dict) and all(isinstance(k, str) and isinstance(t, torch.Tensor) for k, t in tensors.items())
    if not plain or any(t.is_meta or t.is_quantized or t.layout != torch.strided for t in tensors.values()):
        raise CheckpointError(f"{path} is not a dictionary of tensors")
    return tensors

SAFE_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
              "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}

def read_safetensors(path):
    """{name: tensor} of a safetensors file: 8 bytes that tell the length of a JSON header, the header, then the raw numbers.
    The tensors are views of the mapped file: nothing is read before it is used."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is missing")
    data = torch.from_numpy(np.memmap(path, np.uint8, "c")) if (size := Path(path).stat().st_size) else torch.empty(0, dtype=torch.uint8)
    length = int.from_bytes(data[:8].numpy(), "little")
    if size < 8 or length > size - 8:
        raise CheckpointError(f"{path} is no safetensors file or is cut short: its header claims {length} bytes, the file has {size}")
    try:
        header, data = json.loads(data[8 : 8 + length].numpy().tobytes()), data[8 + length :]
        header.pop("__metadata__", None)
        entries = [(name, SAFE_TYPES[e["dtype"]], [*e["shape"]], start, end) for name, e in header.items() for start, end in [e["data_offsets"]]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{path}: the safetensors header cannot be read ({type(e).__name__}: {e})") from None
    tensors = {}
    for name, dtype, shape, start, end in entries:
        if not all(type(n) is int and n >= 0 for n in (*shape, start, end)) or not start <= end <= len(data):
            raise CheckpointError(f"{path}: {name} lies at bytes {start} to {end} of {len(data)}: the file is cut short or its header is wrong")
        if end - start != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"{path}: {name} has {end - start} bytes, its shape {shape} asks for {math.prod(shape) * dtype.itemsize}")
        raw = data[start:end].clone() if (8 + length + start) % dtype.itemsize else data[start:end]  # a view needs multiples of its size
        tensors[name] = raw.view(dtype).reshape(shape)
    return tensors

def write_safetensors(path, tensors):
    """Write {name: tensor} as a safetensors file, whole or not at all."""
    dtypes = {v: k for k, v in SAFE_TYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    arrays = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    for name, t in arrays.items():
        header[name] = {"dtype": dtypes[t.dtype], "shape": list(t.shape), "data_offsets": [end, end := end + t.numel() * t.element_size()]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # numbers start at a multiple of 8
    replace_file(path, len(text).to_bytes(8, "little"), text, *(t.reshape(-1).view(torch.uint8).numpy().data for t in arrays.values()))

def replace_file(path, *pieces):
    """Write bytes to a file so that a reader, or a crash, finds either the old file or the whole new one."""
    part = Path(f"{path}.tmp{os.getpid()}")
    try:
        with open(part, "wb") as f:
            f.writelines(pieces)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        with contextlib.suppress(OSError):  # there may be none, on a disk that is read only
            part.unlink()
        raise OSError(f"{path} cannot be written ({e})") from None

# --- the hub ----------------------------------------------------------------------------------------------------------

def fetch(name, weights=True):
    """The folder of a checkpoint: `name` itself if it is a folder, else that of a hub model, downloaded once to $APPRENTICE_CACHE.
    weights=False brings its vocabulary alone. Raises CheckpointError with what to do by hand where the hub can't be reached."""
    if Path(name).is_dir():
        return Path(name)
    cache = Path(os.environ.get("APPRENTICE_CACHE") or Path.home() / ".cache" / "apprentice")
    folder = cache / str(name).replace("/", "--")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)) or Path(name).parent.is_dir() and not folder.is_dir():
        raise CheckpointError(f"{str(name)!r} is no folder here and no hub name such as google/flan-t5-small (a name that begins with a folder here is a path)")
    base = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}".rstrip("/") + f"/{name}/resolve/main/"

    def get(file, optional=False):
        try:
            if not (folder / file).is_file():
                download(base + file, folder / file)
        except FileNotFoundError:
            if not optional:
                raise CheckpointError(f"{name!r} is no folder here, and the hub has no {base}{file}: check the name") from None
        except OSError as e:
            raise CheckpointError(f"can't download {base}{file} ({e}): put config.json, spiece.model and model.safetensors "
                                  f"of {name} into {folder} by hand") from None
        return (folder / file).is_file()

    if not weights or not (folder / "config.json").is_file():  # of what was fetched before the hub is not asked again
        get("spiece.model", optional=weights)
    if weights:
        get("config.json")
        kinds = [f"{whole}{end}" for whole in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")]
        if not any((folder / kind).is_file() for kind in kinds) and not any(get(kind, True) for kind in kinds):
            raise CheckpointError(f"the hub holds no weights for {name}: neither model.safetensors nor pytorch_model.bin at {base}")
        for index in folder.glob("*.index.json"):
            for shard in read_index(index):
                get(shard)
    return folder

def download(url, path, tries=5):
    """Download a file with a progress bar. It grows as PATH.part, which a cut connection or a later call goes on with, and takes its
    name when it is whole: its length, and its sha256 where the hub tells it, are right. FileNotFoundError: there is none; OSError."""
    path, part, said = Path(path), Path(f"{path}.part"), {}
    path.parent.mkdir(parents=True, exist_ok=True)

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request, fp, code, msg, headers, url):
            said.update({k.lower(): v for k, v in headers.items()})  # the hub tells a file's sha256 before it sends us to its store
            return super().redirect_request(request, fp, code, msg, headers, url)

    opener, failures, furthest = urllib.request.build_opener(Redirects), 0, 0
    while failures < tries:  # in a row: a try that came further than all before it begins the count anew
        time.sleep(failures)
        done = part.stat().st_size if part.exists() else 0
        failures, furthest = (0 if done > furthest else failures) + 1, max(done, furthest)
        try:
            with opener.open(urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {}), timeout=30) as reply:
                done = done if reply.status == 206 else 0  # the whole file may come, whatever was asked
                total = done + int(reply.headers.get("Content-Length") or 0)
                if ranged := re.match(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range") or ""):  # perhaps less than all that is left
                    if int(ranged[1]) != done:
                        raise ConnectionError(f"asked for bytes from {done} on, the server sends those from {ranged[1]} on")
                    total = int(ranged[2])
                with open(part, "ab" if done else "wb") as f, tqdm.wrapattr(f, "write", total or None, initial=done, desc=path.name) as out:
                    shutil.copyfileobj(reply, out, 1 << 20)
                if total and part.stat().st_size != total:
                    raise ConnectionError(f"cut after {part.stat().st_size} of {total} bytes")
                said.update({k.lower(): v for k, v in reply.headers.items()})
        except urllib.request.HTTPError as e:
            if e.code == 403:  # a gated model, or a proxy that bars the hub's store: the file may well be there
                raise PermissionError(f"the server answers 403 for {e.url}") from None
            if e.code in (401, 404):  # the hub answers 401 for names that it does not know
                raise FileNotFoundError(f"{url}: the server answers {e.code}") from None
            if e.code == 416:  # what lies here is not the beginning of what lies there
                part.unlink(missing_ok=True)
            error = f"the server answers {e.code}"
        except ValueError as e:  # $HF_ENDPOINT is no address
            raise OSError(str(e)) from None
        except (OSError, http.client.HTTPException) as e:
            error = str(getattr(e, "reason", e)) or type(e).__name__
        else:
            wanted = re.fullmatch('"?([0-9a-f]{64})"?', said.get("x-linked-etag", ""))
            if wanted and (found := hashlib.sha256(mapped(part)).hexdigest()) != wanted[1]:
                part.unlink()
                raise OSError(f"the sha256 of what came is {found[:12]}…, the hub says {wanted[1][:12]}…; run again to fetch it anew")
            os.replace(part, path)
            return
    raise OSError(error)

# --- python model.py --------------------------------------------------------------------------------------------------

def main(args):
    """`python model.py [SIZE or DIR or HUB NAME]`"""
    if len(args) != 1 or args[0] in ("-h", "--help"):
        return print(__doc__)
    if args[0] in SIZES:
        with torch.device("meta"):  # shapes without memory, so that the largest size prints at once
            model = T5(SIZES[args[0]])
    else:
        model = T5.from_pretrained(args[0])
    c, rows, total = model.config, {}, sum(p.numel() for p in model.parameters())
    for name, p in model.named_parameters():
        rows.setdefault((re.sub(r"blocks\.\d+", "blocks.*", name), " x ".join(map(str, p.shape))), []).append(p.numel())
    lines = [f"{name:38}{shape:>16}{len(n):>7}{sum(n):>16,}{sum(n) / total:>8.1%}" for (name, shape), n in [*rows.items(), (("all", ""), [total])]]
    print(f"{args[0]}: T5 {'v1.0' if c.tie_word_embeddings else 'v1.1'}, {c.num_layers} + {c.num_decoder_layers} layers, width {c.d_model}, "
          f"{c.num_heads} heads of {c.d_kv}, vocabulary {c.vocab_size:,}\n",
          f"{'part':38}{'shape':>16}{'times':>7}{'parameters':>16}{'share':>8}", *lines, sep="\n", flush=True)

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # the reader, say head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (CheckpointError, OSError, KeyboardInterrupt) as e:
        print(f"error: {e}" if str(e) else "interrupted", file=sys.stderr)
        sys.exit(2 if str(e) else 130)
