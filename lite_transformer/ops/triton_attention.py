"""Attention among few positions as Triton kernels; imported only when they are used.

One program computes one head of one sentence: all of its queries, keys and values are on the chip at once, so nothing
is stored but the output, and the gradients start from the inputs again. General attention kernels tile long sequences;
on sentences of 30 words most of a tile is empty.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_transformer.ops.backends import tile_side
from lite_transformer.ops.triton_kernels import _keeps

# --- kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def _load(x, n, N, stride, r, R: tl.constexpr):
    """(BN, BR) values of positions n, zero where there are none."""
    return tl.load(x + (n[:, None] * stride + r[None, :]), mask=(n < N)[:, None] & (r < R)[None, :], other=0.0)


@triton.jit
def _store(x, value, n, N, stride, r, R: tl.constexpr):
    inside = (n < N)[:, None] & (r < R)[None, :]
    tl.store(x + (n[:, None] * stride + r[None, :]), value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _probabilities(
    q, k, mask, b, t, s, S, m_b, m_s, scale,
    HAS_MASK: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """softmax(q @ k^T * scale) in fp32, (BN, BN); zero for hidden keys and for queries that see none."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    visible = (s < S)[None, :]
    if HAS_MASK:
        visible = visible & (tl.load(mask + b * m_b + s * m_s, mask=s < S, other=1) == 0)[None, :]
    if CAUSAL:
        visible = visible & (s[None, :] <= t[:, None])
    scores = tl.where(visible, scores, float("-inf"))
    highest = tl.max(scores, 1)
    highest = tl.where(highest == float("-inf"), 0.0, highest)
    weights = tl.exp(scores - highest[:, None])
    total = tl.sum(weights, 1)
    return weights / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["T", "S", "q_t", "q_b", "k_t", "k_b", "m_b", "m_s"])
def _attention_kernel(
    queries, keys_values, mask, seed, out, T, S, B, q_t, q_b, k_t, k_b, m_b, m_s, scale,
    C: tl.constexpr, H: tl.constexpr, R: tl.constexpr, KEYS_AT: tl.constexpr,
    HAS_MASK: tl.constexpr, CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    BN: tl.constexpr, BR: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (T, B, C) = dropout(softmax(q @ k^T * scale)) @ v of one head of one sentence."""
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    t, s, r = tl.arange(0, BN), tl.arange(0, BN), tl.arange(0, BR)
    queries += b.to(tl.int64) * q_b * ALIGN + h * R
    keys_values += b.to(tl.int64) * k_b * ALIGN + h * R + KEYS_AT
    q = _load(queries, t, T, q_t * ALIGN, r, R)
    k = _load(keys_values, s, S, k_t * ALIGN, r, R)
    v = _load(keys_values + C, s, S, k_t * ALIGN, r, R)
    weights = _probabilities(q, k, mask, b, t, s, S, m_b, m_s, scale, HAS_MASK, CAUSAL, PRECISION)
    if DROPOUT:
        index = ((tl.program_id(0) * T + t) * S)[:, None] + s[None, :]
        weights = tl.where(_keeps(tl.load(seed), index, THRESHOLD), weights * SCALE, 0.0)
    value = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
    _store(out + b.to(tl.int64) * C + h * R, value, t, T, B * C, r, R)


@triton.jit(do_not_specialize=["T", "S", "q_t", "q_b", "k_t", "k_b", "g_t", "g_b", "m_b", "m_s"])
def _attention_gradient_kernel(
    queries, keys_values, grad, mask, seed, grad_queries, grad_keys_values,
    T, S, B, q_t, q_b, k_t, k_b, g_t, g_b, m_b, m_s, scale,
    C: tl.constexpr, H: tl.constexpr, R: tl.constexpr, KEYS_AT: tl.constexpr,
    QUERY_COLUMNS: tl.constexpr, KEY_COLUMNS: tl.constexpr,
    HAS_MASK: tl.constexpr, CAUSAL: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    BN: tl.constexpr, BR: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients of queries, keys and values of one head of one sentence, where those lie in the inputs."""
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    t, s, r = tl.arange(0, BN), tl.arange(0, BN), tl.arange(0, BR)
    queries += b.to(tl.int64) * q_b * ALIGN + h * R
    keys_values += b.to(tl.int64) * k_b * ALIGN + h * R + KEYS_AT
    grad += b.to(tl.int64) * g_b * ALIGN + h * R
    q = _load(queries, t, T, q_t * ALIGN, r, R)
    k = _load(keys_values, s, S, k_t * ALIGN, r, R)
    v = _load(keys_values + C, s, S, k_t * ALIGN, r, R)
    g = _load(grad, t, T, g_t * ALIGN, r, R)
    weights = _probabilities(q, k, mask, b, t, s, S, m_b, m_s, scale, HAS_MASK, CAUSAL, PRECISION)
    upstream = tl.dot(g, tl.trans(v), input_precision=PRECISION)
    thinned = weights
    if DROPOUT:
        index = ((tl.program_id(0) * T + t) * S)[:, None] + s[None, :]
        keeps = _keeps(tl.load(seed), index, THRESHOLD)
        thinned = tl.where(keeps, weights * SCALE, 0.0)
        upstream = tl.where(keeps, upstream * SCALE, 0.0)
    grad_keys_values += b.to(tl.int64) * KEY_COLUMNS + h * R + KEYS_AT
    grad_v = tl.dot(tl.trans(thinned.to(g.dtype)), g, input_precision=PRECISION)
    _store(grad_keys_values + C, grad_v, s, S, B * KEY_COLUMNS, r, R)
    upstream = (weights * (upstream - tl.sum(weights * upstream, 1)[:, None])).to(q.dtype)
    grad_q = tl.dot(upstream, k, input_precision=PRECISION) * scale
    _store(grad_queries + b.to(tl.int64) * QUERY_COLUMNS + h * R, grad_q, t, T, B * QUERY_COLUMNS, r, R)
    grad_k = tl.dot(tl.trans(upstream), q, input_precision=PRECISION) * scale
    _store(grad_keys_values, grad_k, s, S, B * KEY_COLUMNS, r, R)


# --- launching -----------------------------------------------------------------------------------------------------


def _constants(
    queries: Tensor, keys_values: Tensor, heads: int, mask: Tensor | None, causal: bool, dropout: float
) -> dict[str, Any]:
    """What both kernels are compiled for. Queries and keys share a block size: fewer kernels to compile."""
    together = keys_values is queries
    channels = queries.size(2) // (3 if together else 1)
    positions = tile_side(max(queries.size(0), keys_values.size(0)))
    width = tile_side(channels // heads)
    return {
        "C": channels,
        "H": heads,
        "R": channels // heads,
        "KEYS_AT": channels if together else 0,
        "HAS_MASK": mask is not None,
        "CAUSAL": causal,
        "DROPOUT": dropout > 0,
        "THRESHOLD": min(round(dropout * 2**32), 2**32 - 1),
        "SCALE": 1.0 / (1.0 - dropout) if dropout < 1 else 0.0,
        "BN": positions,
        "BR": width,
        # products of fp32 numbers are made of three each: without matrix units such a kernel takes a minute to compile
        "PRECISION": "tf32x3" if queries.dtype == torch.float32 else "ieee",
        "num_warps": _warps(positions * max(positions, width)),
    }


def _warps(tile: int) -> int:
    """For the elements of the largest tile: near the fastest of 1 to 8 on an H100, at R = 20, 62 and 124.

    One warp is faster still on small tiles, by 2 us, and takes the compiler twice as long.
    """
    return 2 if tile <= 1024 else 4 if tile <= 8192 else 8


def _strides(align: int, *tensors: Tensor) -> list[int]:
    """Over positions and sentences, in units of ``align``: the compiler makes loads as wide as it knows they may be."""
    return [stride // align for tensor in tensors for stride in tensor.stride()[:2]]


def forward(
    queries: Tensor,
    keys_values: Tensor | None,
    heads: int,
    mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    dropout: float,
    out: Tensor,
) -> None:
    """Fills out (T, B, C), which is contiguous.

    Of queries (T, B, C) or, without keys_values, (T, B, 3C), and keys_values (S, B, 2C) the last dimension is
    contiguous; mask (B, S) is uint8, 1 = hidden.
    """
    source = queries if keys_values is None else keys_values
    constants = _constants(queries, source, heads, mask, causal, dropout)
    align = math.gcd(16, *queries.stride()[:2], *source.stride()[:2])
    _attention_kernel[(queries.size(1) * heads,)](
        queries, source, mask, seed, out, queries.size(0), source.size(0), queries.size(1),
        *_strides(align, queries, source), *((0, 0) if mask is None else mask.stride()),
        1 / math.sqrt(constants["R"]), ALIGN=align, **constants,
    )  # fmt: skip


def backward(
    grad: Tensor,
    queries: Tensor,
    keys_values: Tensor | None,
    heads: int,
    mask: Tensor | None,
    seed: Tensor | None,
    causal: bool,
    dropout: float,
    grad_queries: Tensor,
    grad_keys_values: Tensor | None,
) -> None:
    """Fills the gradients, contiguous and laid out as the inputs; the last dimension of ``grad`` is contiguous."""
    source = queries if keys_values is None else keys_values
    grad_source = grad_queries if grad_keys_values is None else grad_keys_values
    constants = _constants(queries, source, heads, mask, causal, dropout)
    align = math.gcd(16, *(stride for tensor in (queries, source, grad) for stride in tensor.stride()[:2]))
    _attention_gradient_kernel[(queries.size(1) * heads,)](
        queries, source, grad, mask, seed, grad_queries, grad_source,
        queries.size(0), source.size(0), queries.size(1),
        *_strides(align, queries, source, grad), *((0, 0) if mask is None else mask.stride()),
        1 / math.sqrt(constants["R"]),
        QUERY_COLUMNS=queries.size(2), KEY_COLUMNS=source.size(2), ALIGN=align, **constants,
    )  # fmt: skip
