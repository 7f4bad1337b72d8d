"""The two convolutions as Triton kernels; imported only when they are used.

A tile of BT positions of one sentence and one head is a product with a band matrix: ``out = W @ x`` with ``W`` of
shape (BT, BT + K - 1), whose entry (t, s) is the kernel's tap ``s - t + left_padding``. The band is gathered from the
kernels by index and never stored, so a tile reads each input once instead of K times, and the matrix units do the
arithmetic. The gradients are two products of the same kind: ``W^T @ grad`` and the band of ``grad @ x^T``.

Softmax, dropout and the padding mask are applied where the kernels and inputs are loaded. Sums are fp32. No atomics:
results do not change from run to run.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

# --- pieces --------------------------------------------------------------------------------------------------------


@triton.jit
def _keeps(seed, index, THRESHOLD: tl.constexpr):
    """Which kernel entries survive dropout: two rounds of a 32-bit mixing function of seed and index."""
    value = index.to(tl.uint32) * 0x9E3779B1 + seed.to(tl.uint32)
    value = (value ^ (value >> 16)) * 0x85EBCA6B
    value = (value ^ (value >> 13)) * 0xC2B2AE35
    value = value ^ (value >> 16) ^ (seed >> 32).to(tl.uint32)
    value = (value ^ (value >> 16)) * 0x7FEB352D
    value = (value ^ (value >> 15)) * 0x846CA68B
    value = value ^ (value >> 16)
    return value >= THRESHOLD


@triton.jit
def _tile(T, H: tl.constexpr, BT: tl.constexpr):
    """First position, sentence and head of this program's tile."""
    tiles = tl.cdiv(T, BT)
    program = tl.program_id(0)
    return (program % tiles) * BT, (program // tiles) // H, (program // tiles) % H


@triton.jit
def _inside(position, mask, b, T, m_b, m_t, HAS_MASK: tl.constexpr):
    """Which positions exist and are not padding."""
    inside = (position >= 0) & (position < T)
    if HAS_MASK:
        inside = inside & (tl.load(mask + b * m_b + position * m_t, mask=inside, other=1) == 0)
    return inside


@triton.jit
def _rows(pointer, start, stride, count: tl.constexpr, r, inside, R: tl.constexpr):
    """(count, BR) values of consecutive positions, zero where they are not inside."""
    offset = tl.arange(0, count)[:, None] * stride + r[None, :]
    return tl.load(pointer + start.to(tl.int64) * stride + offset, mask=inside[:, None] & (r < R)[None, :], other=0.0)


@triton.jit
def _exp(x):
    """exp to an ulp or so: `tl.exp` alone loses the digits that x * log2(e) rounds away."""
    scaled = x * 1.4426950408889634
    lost = tl.fma(x, 1.4426950408889634, -scaled) + x * 1.925963033500e-8
    value = tl.exp2(scaled)
    # exp(-inf) is 0, whatever inf - inf lost
    return tl.fma(value, tl.where(value > 0, lost, 0.0) * 0.6931471805599453, value)


@triton.jit
def _add_exactly(total, lost, value):
    """total + value, and ``lost`` with what the addition rounded away (Knuth's two-sum)."""
    new = total + value
    share = new - total
    return new, lost + ((total - (new - share)) + (value - share))


@triton.jit
def _add_products(product, lost, rows, columns, EXACT: tl.constexpr, FP64: tl.constexpr, PRECISION: tl.constexpr):
    """product + rows @ columns^T, (BT, BS) + (BT, BD) @ (BD, BS), and what rounding lost where that is kept."""
    if FP64:
        product += tl.sum(rows.to(tl.float64)[:, None, :] * columns.to(tl.float64)[None, :, :], 2)
    elif EXACT:
        addend = tl.dot(rows, tl.trans(columns), input_precision=PRECISION)
        product, lost = _add_exactly(product, lost, addend)
    else:
        product = tl.dot(rows, tl.trans(columns), product, input_precision=PRECISION)
    return product, lost


@triton.jit
def _head_statistics(w, K: tl.constexpr, KP: tl.constexpr):
    """Maximum and inverse sum of exponentials of one kernel: what its softmax needs."""
    taps = tl.arange(0, KP)
    logits = tl.load(w + taps, mask=taps < K, other=-float("inf")).to(tl.float32)
    top = tl.max(logits, 0)
    return top, tl.div_rn(1.0, tl.sum(_exp(logits - top), 0))


# --- kernels -------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["T", "B", "x_t", "x_b", "w_t", "w_b", "m_b", "m_t", "LEFT"])
def _forward_kernel(
    x, w, mask, seed, out, statistics, T, B, x_t, x_b, w_t, w_b, m_b, m_t, LEFT,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    DYNAMIC: tl.constexpr, SOFTMAX: tl.constexpr, HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, KP: tl.constexpr,
    CHUNKS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = W @ x; with softmax of dynamic kernels also what it needs again for the gradients."""
    x_t, x_b = tl.multiple_of(x_t, ALIGN), tl.multiple_of(x_b, ALIGN)
    first, b, h = _tile(T, H, BT)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    t = first + tl.arange(0, BT)
    x += b.to(tl.int64) * x_b + h * R
    w += first.to(tl.int64) * w_t + b.to(tl.int64) * w_b + h * K
    row = (t * B + b) * H + h if DYNAMIC else h + tl.zeros((BT,), tl.int32)
    within = (tl.arange(0, BT) * w_t)[:, None]
    dtype = x.dtype.element_ty
    if SOFTMAX:
        if DYNAMIC:
            taps = tl.arange(0, KP)[None, :]
            logits = tl.load(w + within + taps, mask=(t < T)[:, None] & (taps < K), other=0.0).to(tl.float32)
            logits = tl.where(taps < K, logits, -float("inf"))
            top = tl.max(logits, 1)
            scale = tl.div_rn(1.0, tl.sum(_exp(logits - top[:, None]), 1))
            if tl.program_id(1) == 0:
                place = ((t.to(tl.int64) * B + b) * H + h) * 2
                tl.store(statistics + place, top, mask=t < T)
                tl.store(statistics + place + 1, scale, mask=t < T)
        else:
            top, scale = _head_statistics(w, K, KP)
            top += tl.zeros((BT,), tl.float32)
            scale += tl.zeros((BT,), tl.float32)
    acc = tl.zeros((BT, BR), tl.float32)
    for chunk in range(CHUNKS):
        start = first - LEFT + chunk * BS
        s = start + tl.arange(0, BS)
        values = _rows(x, start, x_t, BS, r, _inside(s, mask, b, T, m_b, m_t, HAS_MASK), R)
        k = s[None, :] - t[:, None] + LEFT
        in_band = (k >= 0) & (k < K) & (t < T)[:, None]
        band = tl.load(w + within + k, mask=in_band, other=0.0).to(tl.float32)
        if SOFTMAX:
            band = tl.where(in_band, _exp(band - top[:, None]) * scale[:, None], 0.0)
        if DROPOUT:
            band = tl.where(_keeps(tl.load(seed), row[:, None] * K + k, THRESHOLD), band * SCALE, 0.0)
        acc = tl.dot(band.to(dtype), values, acc, input_precision=PRECISION)
    position = (tl.arange(0, BT) * (B * H * R))[:, None] + r[None, :]
    out += first.to(tl.int64) * (B * H * R) + (b * H + h).to(tl.int64) * R
    tl.store(out + position, acc.to(dtype), mask=(t < T)[:, None] & (r < R)[None, :])


@triton.jit(do_not_specialize=["T", "B", "g_t", "g_b", "w_t", "w_b", "m_b", "m_t", "LEFT"])
def _input_gradient_kernel(
    g, w, mask, seed, statistics, grad_x, T, B, g_t, g_b, w_t, w_b, m_b, m_t, LEFT,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    DYNAMIC: tl.constexpr, SOFTMAX: tl.constexpr, HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BR: tl.constexpr, KP: tl.constexpr,
    CHUNKS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_x = W^T @ grad: rows are source positions s, the sum runs over the positions t that read them."""
    g_t, g_b = tl.multiple_of(g_t, ALIGN), tl.multiple_of(g_b, ALIGN)
    first, b, h = _tile(T, H, BT)
    r = tl.program_id(1) * BR + tl.arange(0, BR)
    s = first + tl.arange(0, BT)
    g += b.to(tl.int64) * g_b + h * R
    w += b.to(tl.int64) * w_b + h * K
    dtype = grad_x.dtype.element_ty
    if SOFTMAX and not DYNAMIC:
        head_top, head_scale = _head_statistics(w, K, KP)
    acc = tl.zeros((BT, BR), tl.float32)
    for chunk in range(CHUNKS):
        start = first + LEFT - (K - 1) + chunk * BS
        t = start + tl.arange(0, BS)
        exists = (t >= 0) & (t < T)
        values = _rows(g, start, g_t, BS, r, exists, R)
        k = s[:, None] - t[None, :] + LEFT
        in_band = (k >= 0) & (k < K) & exists[None, :]
        w_start = w + start.to(tl.int64) * w_t
        band = tl.load(w_start + (tl.arange(0, BS) * w_t)[None, :] + k, mask=in_band, other=0.0).to(tl.float32)
        if SOFTMAX:
            if DYNAMIC:
                place = ((t.to(tl.int64) * B + b) * H + h) * 2
                top = tl.load(statistics + place, mask=exists, other=0.0)
                scale = tl.load(statistics + place + 1, mask=exists, other=1.0)
            else:
                top = head_top + tl.zeros((BS,), tl.float32)
                scale = head_scale + tl.zeros((BS,), tl.float32)
            band = tl.where(in_band, _exp(band - top[None, :]) * scale[None, :], 0.0)
        if DROPOUT:
            row = (t * B + b) * H + h if DYNAMIC else h + tl.zeros((BS,), tl.int32)
            band = tl.where(_keeps(tl.load(seed), row[None, :] * K + k, THRESHOLD), band * SCALE, 0.0)
        acc = tl.dot(band.to(dtype), values.to(dtype), acc, input_precision=PRECISION)
    if HAS_MASK:
        acc = tl.where(_inside(s, mask, b, T, m_b, m_t, HAS_MASK)[:, None], acc, 0.0)
    position = (tl.arange(0, BT) * (B * H * R))[:, None] + r[None, :]
    grad_x += first.to(tl.int64) * (B * H * R) + (b * H + h).to(tl.int64) * R
    tl.store(grad_x + position, acc.to(dtype), mask=(s < T)[:, None] & (r < R)[None, :])


@triton.jit
def _gradient_band(
    g, x, w, mask, seed, top, scale, first, start, b, h, T, B, x_t, g_t, w_t, m_b, m_t, LEFT,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    SOFTMAX: tl.constexpr, HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr, FP64: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of the tile's BT positions and BS of its sources: the gradients of the normalised kernels, the kernels, the taps.

    What lies outside the band is zero in the second.
    """
    t, s = first + tl.arange(0, BT), start + tl.arange(0, BS)
    inside = _inside(s, mask, b, T, m_b, m_t, HAS_MASK)
    product = tl.zeros((BT, BS), tl.float64 if FP64 else tl.float32)
    lost = tl.zeros((BT, BS), tl.float32)
    for part in range(PARTS):
        r = part * BD + tl.arange(0, BD)
        values = _rows(x, start, x_t, BS, r, inside, R)
        upstream = _rows(g, first, g_t, BT, r, t < T, R).to(values.dtype)
        product, lost = _add_products(product, lost, upstream, values, EXACT, FP64, PRECISION)
    product += lost
    k = s[None, :] - t[:, None] + LEFT
    in_band = (k >= 0) & (k < K) & (t < T)[:, None]
    if DROPOUT:
        index = ((t * B + b) * H + h)[:, None] * K + k
        product = tl.where(_keeps(tl.load(seed), index, THRESHOLD), product * SCALE, 0.0)
    weight = in_band.to(tl.float32)
    if SOFTMAX:
        logits = tl.load(w + (tl.arange(0, BT) * w_t)[:, None] + k, mask=in_band, other=0.0).to(tl.float32)
        weight = tl.where(in_band, _exp(logits - top[:, None]) * scale[:, None], 0.0)
    return product, weight, k, in_band


@triton.jit(do_not_specialize=["T", "B", "x_t", "x_b", "g_t", "g_b", "w_t", "w_b", "m_b", "m_t", "LEFT"])
def _dynamic_gradient_kernel(
    g, x, w, mask, seed, statistics, grad_w, T, B, x_t, x_b, g_t, g_b, w_t, w_b, m_b, m_t, LEFT,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    SOFTMAX: tl.constexpr, HAS_MASK: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr, FP64: tl.constexpr,
    KP: tl.constexpr, CHUNKS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """grad_w[t, k]: the band of grad @ x^T, taken back through dropout and softmax."""
    x_t, x_b = tl.multiple_of(x_t, ALIGN), tl.multiple_of(x_b, ALIGN)
    g_t, g_b = tl.multiple_of(g_t, ALIGN), tl.multiple_of(g_b, ALIGN)
    first, b, h = _tile(T, H, BT)
    t = first + tl.arange(0, BT)
    x += b.to(tl.int64) * x_b + h * R
    g += b.to(tl.int64) * g_b + h * R
    w += first.to(tl.int64) * w_t + b.to(tl.int64) * w_b + h * K
    grad_w += (first.to(tl.int64) * B + b) * (H * K) + h * K
    position = (tl.arange(0, BT) * (B * H * K))[:, None]
    top, scale = tl.zeros((BT,), tl.float32), tl.zeros((BT,), tl.float32)
    inner = tl.zeros((BT,), tl.float64 if FP64 else tl.float32)
    if SOFTMAX:
        place = ((t.to(tl.int64) * B + b) * H + h) * 2
        top = tl.load(statistics + place, mask=t < T, other=0.0)
        scale = tl.load(statistics + place + 1, mask=t < T, other=1.0)
    if SOFTMAX and CHUNKS > 1:
        # the softmax's gradient needs sum_k p[k] * grad_p[k] over all chunks before the first can be stored
        for chunk in range(CHUNKS):
            product, weight, _, _ = _gradient_band(
                g, x, w, mask, seed, top, scale, first, first - LEFT + chunk * BS, b, h, T, B, x_t, g_t, w_t, m_b, m_t,
                LEFT, H, R, K, SOFTMAX, HAS_MASK, DROPOUT, THRESHOLD, SCALE, BT, BS, BD, PARTS, EXACT, FP64, PRECISION,
            )  # fmt: skip
            inner += tl.sum(weight * product, 1)
    for chunk in range(CHUNKS):
        product, weight, k, in_band = _gradient_band(
            g, x, w, mask, seed, top, scale, first, first - LEFT + chunk * BS, b, h, T, B, x_t, g_t, w_t, m_b, m_t,
            LEFT, H, R, K, SOFTMAX, HAS_MASK, DROPOUT, THRESHOLD, SCALE, BT, BS, BD, PARTS, EXACT, FP64, PRECISION,
        )  # fmt: skip
        if SOFTMAX:
            if CHUNKS == 1:
                inner = tl.sum(weight * product, 1)
            product = weight * (product - inner[:, None])
        tl.store(grad_w + position + k, product.to(grad_w.dtype.element_ty), mask=in_band)


@triton.jit(do_not_specialize=["T", "B", "items", "splits", "x_t", "x_b", "g_t", "g_b", "m_b", "m_t", "LEFT"])
def _lightweight_partial_kernel(
    g, x, mask, partial, T, B, items, splits, x_t, x_b, g_t, g_b, m_b, m_t, LEFT,
    H: tl.constexpr, R: tl.constexpr, K: tl.constexpr, HAS_MASK: tl.constexpr,
    BT: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, PARTS: tl.constexpr, EXACT: tl.constexpr, FP64: tl.constexpr,
    KP: tl.constexpr, CHUNKS: tl.constexpr, ALIGN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Sums of grad @ x^T over a share of the tiles of a head, then along its diagonals: (H, splits, CHUNKS, K)."""
    x_t, x_b = tl.multiple_of(x_t, ALIGN), tl.multiple_of(x_b, ALIGN)
    g_t, g_b = tl.multiple_of(g_t, ALIGN), tl.multiple_of(g_b, ALIGN)
    tiles = tl.cdiv(T, BT)
    h, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    chunk = tl.program_id(1)
    product = tl.zeros((BT, BS), tl.float64 if FP64 else tl.float32)
    lost = tl.zeros((BT, BS), tl.float32)
    for item in range(split, items, splits):
        first, b = (item % tiles) * BT, item // tiles
        start = first - LEFT + chunk * BS
        t, s = first + tl.arange(0, BT), start + tl.arange(0, BS)
        inside = _inside(s, mask, b, T, m_b, m_t, HAS_MASK)
        for part in range(PARTS):
            r = part * BD + tl.arange(0, BD)
            values = _rows(x + b.to(tl.int64) * x_b + h * R, start, x_t, BS, r, inside, R)
            upstream = _rows(g + b.to(tl.int64) * g_b + h * R, first, g_t, BT, r, t < T, R).to(values.dtype)
            product, lost = _add_products(product, lost, upstream, values, EXACT, FP64, PRECISION)
    if EXACT:
        product = product.to(tl.float64) + lost
    taps = tl.arange(0, KP)
    column = tl.arange(0, BT)[:, None] + taps[None, :] - chunk * BS
    on_diagonal = (column >= 0) & (column < BS)
    picked = tl.gather(product, tl.where(on_diagonal, column, 0), 1)
    total = tl.sum(tl.where(on_diagonal, picked, 0.0), 0)
    tl.store(partial + (tl.program_id(0) * CHUNKS + chunk) * K + taps, total, mask=taps < K)


@triton.jit(do_not_specialize=["count"])
def _lightweight_total_kernel(
    partial, w, seed, grad_w, count,
    K: tl.constexpr, KP: tl.constexpr, BN: tl.constexpr,
    SOFTMAX: tl.constexpr, DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """The sum of a head's partial gradients, taken back through dropout and softmax."""
    h = tl.program_id(0)
    taps = tl.arange(0, KP)
    total = tl.zeros((BN, KP), partial.dtype.element_ty)
    for start in range(0, count, BN):
        n = start + tl.arange(0, BN)
        offset = (h * count + n)[:, None] * K + taps[None, :]
        total += tl.load(partial + offset, mask=(n < count)[:, None] & (taps < K)[None, :], other=0.0)
    grad = tl.sum(total, 0)
    if DROPOUT:
        grad = tl.where(_keeps(tl.load(seed), h * K + taps, THRESHOLD), grad * SCALE, 0.0)
    if SOFTMAX:
        logits = tl.load(w + h * K + taps, mask=taps < K, other=-float("inf")).to(grad.dtype)
        weight = tl.exp(logits - tl.max(logits, 0))
        grad = weight / tl.sum(weight, 0) * (grad - tl.sum(weight * grad, 0) / tl.sum(weight, 0))
    tl.store(grad_w + h * K + taps, grad.to(grad_w.dtype.element_ty), mask=taps < K)


# --- launching -----------------------------------------------------------------------------------------------------

# Programs that share the summation of a lightweight kernel's gradient: a few for each multiprocessor of a large GPU.
_PARTIAL_PROGRAMS = 528


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Plan:
    """Tile sizes and the arguments that all kernels share."""

    def __init__(
        self,
        x: Tensor,
        weight: Tensor,
        padding_mask: Tensor | None,
        softmax: bool,
        dropout: float,
    ):
        self.length, self.batch, channels = x.shape
        self.heads, self.kernel_size = weight.shape[-2:]
        self.dynamic = weight.dim() == 4
        self.width = channels // self.heads
        self.mask_strides = (0, 0) if padding_mask is None else padding_mask.stride()
        self.weight_strides = weight.stride()[:2] if self.dynamic else (0, 0)
        self.exact = x.dtype == torch.float32
        # Of a few positions, whose errors no others even out, fp32 gradients are summed in fp64.
        positions = self.length if self.dynamic else self.length * self.batch
        self.fp64 = self.exact and positions <= (16 if self.dynamic else 1024)
        # The fastest of ten tried on an H100; larger tiles spill registers.
        block_t = 16 if self.length <= 16 or self.fp64 else 32
        span = block_t + self.kernel_size - 1
        block_s = min(64, _power_of_two(span))
        self.tiles = triton.cdiv(self.length, block_t)
        self.chunks = triton.cdiv(span, block_s)
        self.block_r = max(16, min(64, _power_of_two(self.width)))
        self.column_blocks = triton.cdiv(self.width, self.block_r)
        # The units that multiply fp32 sum one by one, and a long sum rounds more than torch's does: sixteen at a time.
        self.depth = 4 if self.fp64 else 16 if self.exact else self.block_r
        self.constants = {
            "H": self.heads,
            "R": self.width,
            "K": self.kernel_size,
            "HAS_MASK": padding_mask is not None,
            "BT": block_t,
            "BS": block_s,
            "CHUNKS": self.chunks,
            # exact for fp16 and bf16, whose products fit in fp32; fp32 must not be cut to tf32
            "PRECISION": "ieee",
            "num_warps": 4,
        }
        self.kernel_constants = {
            "KP": _power_of_two(self.kernel_size),
            "SOFTMAX": softmax,
            "DROPOUT": dropout > 0,
            "THRESHOLD": min(round(dropout * 2**32), 2**32 - 1),
            "SCALE": 1.0 / (1.0 - dropout) if dropout < 1 else 0.0,
        }

    @property
    def depth_constants(self) -> dict[str, int]:
        """Of the kernels whose sum runs over a head's channels."""
        return {
            "BD": self.depth,
            "PARTS": triton.cdiv(self.width, self.depth),
            "EXACT": self.exact,
            "FP64": self.fp64,
        }


def _alignment(*tensors: Tensor) -> int:
    """A power of two, up to 16, that divides the strides over time and batch."""
    return math.gcd(16, *(stride for tensor in tensors for stride in tensor.stride()[:2]))


def forward(
    x: Tensor,
    weight: Tensor,
    padding_mask: Tensor | None,
    seed: Tensor | None,
    left_padding: int,
    softmax: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Returns the output (T, B, C) and, for the softmax of dynamic kernels, its maximum and inverse sum (T, B, H, 2).

    Args:
        x: (T, B, C), the last dimension contiguous.
        weight: (H, K), or (T, B, H, K) with contiguous last two dimensions.
        padding_mask: (B, T) uint8, not 0 = padding. seed: int64 scalar, needed if dropout > 0.
    """
    plan = _Plan(x, weight, padding_mask, softmax, dropout)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    shape = (plan.length, plan.batch, plan.heads, 2) if softmax and plan.dynamic else (0,)
    statistics = x.new_empty(shape, dtype=torch.float32)
    _forward_kernel[(plan.tiles * plan.batch * plan.heads, plan.column_blocks)](
        x, weight, padding_mask, seed, out, statistics, plan.length, plan.batch,
        *x.stride()[:2], *plan.weight_strides, *plan.mask_strides, left_padding,
        DYNAMIC=plan.dynamic, BR=plan.block_r, ALIGN=_alignment(x), **plan.constants, **plan.kernel_constants,
    )  # fmt: skip
    return out, statistics


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    padding_mask: Tensor | None,
    seed: Tensor | None,
    statistics: Tensor,
    left_padding: int,
    softmax: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Returns the gradients of x and weight, in their dtypes. Arguments as in `forward`, and what it returned."""
    plan = _Plan(x, weight, padding_mask, softmax, dropout)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_w = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    programs = plan.tiles * plan.batch * plan.heads
    _input_gradient_kernel[(programs, plan.column_blocks)](
        grad, weight, padding_mask, seed, statistics, grad_x, plan.length, plan.batch,
        *grad.stride()[:2], *plan.weight_strides, *plan.mask_strides, left_padding,
        DYNAMIC=plan.dynamic, BR=plan.block_r, ALIGN=_alignment(grad), **plan.constants, **plan.kernel_constants,
    )  # fmt: skip
    strides = (*x.stride()[:2], *grad.stride()[:2])
    if plan.dynamic:
        _dynamic_gradient_kernel[(programs,)](
            grad, x, weight, padding_mask, seed, statistics, grad_w, plan.length, plan.batch,
            *strides, *plan.weight_strides, *plan.mask_strides, left_padding,
            ALIGN=_alignment(x, grad), **plan.depth_constants, **plan.constants, **plan.kernel_constants,
        )  # fmt: skip
        return grad_x, grad_w
    items = plan.tiles * plan.batch
    splits = max(1, min(items, _PARTIAL_PROGRAMS // (plan.heads * plan.chunks)))
    shape = (plan.heads, splits, plan.chunks, plan.kernel_size)
    partial = torch.empty(shape, dtype=torch.float64 if plan.exact else torch.float32, device=x.device)
    _lightweight_partial_kernel[(plan.heads * splits, plan.chunks)](
        grad, x, padding_mask, partial, plan.length, plan.batch, items, splits,
        *strides, *plan.mask_strides, left_padding,
        KP=plan.kernel_constants["KP"], ALIGN=_alignment(x, grad), **plan.depth_constants, **plan.constants,
    )  # fmt: skip
    _lightweight_total_kernel[(plan.heads,)](
        partial, weight, seed, grad_w, splits * plan.chunks, K=plan.kernel_size, BN=32, **plan.kernel_constants
    )
    return grad_x, grad_w
