"""Kernels over rows of channels: column sums, dropout with a residual, layer norm; imported only when they are used.

Rows are the T * B positions of a (T, B, C) tensor, of any strides over T and B. All of these wait for memory, so each
reads its inputs once and writes its outputs once. Sums over rows are made in two stages, shares of the rows first and
then the shares, in fp32 and always in the same order: no atomics.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_transformer.ops.backends import tile_side
from lite_transformer.ops.triton_kernels import _keeps

# --- kernels -------------------------------------------------------------------------------------------------------


@triton.jit
def _load_rows(x, n, B, stride_t, stride_b, c, inside, ALIGN: tl.constexpr):
    """Channels c of rows n of a (T, B, C) tensor as fp32, zero where not inside.

    Strides are given in units of ALIGN: the compiler makes loads as wide as it knows addresses to be aligned.
    """
    rows = ((n // B).to(tl.int64) * stride_t + (n % B).to(tl.int64) * stride_b) * ALIGN
    return tl.load(x + rows[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["rows", "B", "x_t", "x_b", "share"])
def _column_share_kernel(
    x, partial, rows, B, x_t, x_b, share,
    C: tl.constexpr, ALIGN: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sums of the columns over one share of the rows: (shares, C)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, rows)
    total = tl.zeros((BR, BC), tl.float32)
    for start in range(first, last, BR):
        n = start + tl.arange(0, BR)
        inside = (n < last)[:, None] & (c < C)[None, :]
        total += _load_rows(x, n, B, x_t, x_b, c, inside, ALIGN)
    out = tl.sum(total, 0).to(partial.dtype.element_ty)
    tl.store(partial + tl.program_id(1) * C + c, out, mask=c < C)


@triton.jit(do_not_specialize=["count"])
def _share_total_kernel(partial, out, count, C: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr):
    """(count, C) -> sums (C)."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    total = tl.zeros((BN, BC), tl.float32)
    for start in range(0, count, BN):
        n = start + tl.arange(0, BN)
        inside = (n < count)[:, None] & (c < C)[None, :]
        total += tl.load(partial + n[:, None] * C + c[None, :], mask=inside, other=0.0)
    tl.store(out + c, tl.sum(total, 0).to(out.dtype.element_ty), mask=c < C)


@triton.jit(do_not_specialize=["rows", "B", "x_t", "x_b", "r_t", "r_b"])
def _forward_kernel(
    x, residual, weight, bias, seed, normed, summed, statistics, rows, B, x_t, x_b, r_t, r_b,
    C: tl.constexpr, EPS: tl.constexpr, ADDS: tl.constexpr, NORMS: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    ALIGN: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """summed = residual + dropout(x), rounded to its dtype; normed = its layer norm, with mean and 1 / deviation."""
    n = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    inside = (n < rows)[:, None] & (c < C)[None, :]
    index = n.to(tl.int64)[:, None] * C + c[None, :]
    value = _load_rows(x, n, B, x_t, x_b, c, inside, ALIGN)
    if DROPOUT:
        value = tl.where(_keeps(tl.load(seed), index, THRESHOLD), value * SCALE, 0.0)
    if ADDS:
        value += _load_rows(residual, n, B, r_t, r_b, c, inside, ALIGN)
        value = value.to(summed.dtype.element_ty)
        tl.store(summed + index, value, mask=inside)
        value = value.to(tl.float32)
    if NORMS:
        mean = tl.sum(value, 1) / C
        centred = tl.where(inside, value - mean[:, None], 0.0)
        scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(centred * centred, 1) / C + EPS))
        tl.store(statistics + n * 2, mean, mask=n < rows)
        tl.store(statistics + n * 2 + 1, scale, mask=n < rows)
        gain = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
        shift = tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)
        out = centred * scale[:, None] * gain[None, :] + shift[None, :]
        tl.store(normed + index, out.to(normed.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "B", "g_t", "g_b", "e_t", "e_b", "s_t", "s_b"])
def _backward_kernel(
    grad, extra, summed, weight, seed, statistics, grad_x, grad_residual, partial,
    rows, B, g_t, g_b, e_t, e_b, s_t, s_b,
    C: tl.constexpr, EXTRA: tl.constexpr, OWN_X: tl.constexpr, RESIDUAL: tl.constexpr,
    DROPOUT: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr,
    ALIGN: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of x and residual, and shares of those of weight and bias: partial (programs, 2, C)."""
    c = tl.arange(0, BC)
    gain = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    weight_share = tl.zeros((BR, BC), tl.float32)
    bias_share = tl.zeros((BR, BC), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(rows, BR), tl.num_programs(0)):
        n = tile * BR + tl.arange(0, BR)
        exists = n < rows
        inside = exists[:, None] & (c < C)[None, :]
        index = n.to(tl.int64)[:, None] * C + c[None, :]
        g = _load_rows(grad, n, B, g_t, g_b, c, inside, ALIGN)
        value = _load_rows(summed, n, B, s_t, s_b, c, inside, ALIGN)
        mean = tl.load(statistics + n * 2, mask=exists, other=0.0)
        scale = tl.load(statistics + n * 2 + 1, mask=exists, other=0.0)
        value = tl.where(inside, (value - mean[:, None]) * scale[:, None], 0.0)
        weight_share += g * value
        bias_share += g
        g *= gain[None, :]
        down = tl.sum(g, 1) / C
        along = tl.sum(g * value, 1) / C
        g = (g - down[:, None] - value * along[:, None]) * scale[:, None]
        if EXTRA:
            g += _load_rows(extra, n, B, e_t, e_b, c, inside, ALIGN)
        if RESIDUAL:
            tl.store(grad_residual + index, g.to(grad_residual.dtype.element_ty), mask=inside)
        if OWN_X:
            if DROPOUT:
                g = tl.where(_keeps(tl.load(seed), index, THRESHOLD), g * SCALE, 0.0)
            tl.store(grad_x + index, g.to(grad_x.dtype.element_ty), mask=inside)
    place = partial + tl.program_id(0) * (2 * C) + c
    tl.store(place, tl.sum(weight_share, 0), mask=c < C)
    tl.store(place + C, tl.sum(bias_share, 0), mask=c < C)


@triton.jit(do_not_specialize=["rows", "B", "g_t", "g_b"])
def _thin_kernel(
    grad, seed, grad_x, rows, B, g_t, g_b,
    C: tl.constexpr, THRESHOLD: tl.constexpr, SCALE: tl.constexpr, ALIGN: tl.constexpr, BR: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """grad_x = the gradient where dropout kept x, scaled."""
    n = tl.program_id(0) * BR + tl.arange(0, BR)
    c = tl.arange(0, BC)
    inside = (n < rows)[:, None] & (c < C)[None, :]
    index = n.to(tl.int64)[:, None] * C + c[None, :]
    g = _load_rows(grad, n, B, g_t, g_b, c, inside, ALIGN)
    g = tl.where(_keeps(tl.load(seed), index, THRESHOLD), g * SCALE, 0.0)
    tl.store(grad_x + index, g.to(grad_x.dtype.element_ty), mask=inside)


# --- launching -----------------------------------------------------------------------------------------------------

# Programs that share a sum over rows: four for each multiprocessor of a large GPU.
_SUM_PROGRAMS = 528
_NORM_PROGRAMS = 528
# Elements of a program's tile, and with whole rows its warps. The fastest over three widths of nine tried on an H100:
# within one warp, sums along a row need no barrier.
_SUM_TILE = 2048
_FORWARD_TILE = (1024, 1)
_BACKWARD_TILE = (1024, 1)


def _rows_of(x: Tensor) -> tuple[int, int, int, int]:
    """Number of rows, B, and the strides over T and B of (T, B, C); one run of rows counts as B."""
    length, batch, _ = x.shape
    stride_t, stride_b, _ = x.stride()
    if length == 1 or stride_t == batch * stride_b:
        return length * batch, max(1, length * batch), 0, stride_b
    if batch == 1:
        return length, max(1, length), 0, stride_t
    return length * batch, batch, stride_t, stride_b


def _alignment(*tensors: Tensor | None) -> int:
    """A power of two, up to 16, that divides the strides over T and B."""
    return math.gcd(16, *(stride for tensor in tensors if tensor is not None for stride in tensor.stride()[:2]))


def _strides(tensor: Tensor | None, align: int) -> tuple[int, int]:
    """Over T and B, in units of ``align``; any for no tensor."""
    return (0, 0) if tensor is None else (tensor.stride(0) // align, tensor.stride(1) // align)


def _dropout_constants(dropout: float) -> dict[str, int | float]:
    return {"THRESHOLD": min(round(dropout * 2**32), 2**32 - 1), "SCALE": 1.0 / (1.0 - dropout) if dropout < 1 else 0.0}


def _tile(channels: int, elements: int, warps: int) -> dict[str, int]:
    """Sizes of tiles of whole rows, and more warps where one row has more elements than that."""
    width = tile_side(channels)
    return {"BR": max(1, elements // width), "BC": width, "num_warps": min(16, warps * max(1, width // elements))}


def _total(partial: Tensor, out: Tensor) -> Tensor:
    """``out`` (columns), overwritten by the sums of the columns of partial (count, columns)."""
    count, columns = partial.shape
    _share_total_kernel[(triton.cdiv(columns, 16),)](partial, out, count, C=columns, BN=128, BC=16, num_warps=4)
    return out


def column_sum(x: Tensor) -> Tensor:
    """The sums (C) of x (T, B, C) over positions, in its dtype; the last dimension is contiguous."""
    rows, batch, stride_t, stride_b = _rows_of(x)
    columns = x.size(2)
    block = min(64, tile_side(columns))
    blocks = triton.cdiv(columns, block)
    height = _SUM_TILE // block
    share = height * triton.cdiv(triton.cdiv(rows, max(1, _SUM_PROGRAMS // blocks)), height)
    shares = triton.cdiv(rows, share)
    out = torch.empty(columns, dtype=x.dtype, device=x.device)
    partial = out if shares == 1 else torch.empty(shares, columns, dtype=torch.float32, device=x.device)
    align = math.gcd(16, stride_t, stride_b)
    _column_share_kernel[(blocks, shares)](
        x, partial, rows, batch, stride_t // align, stride_b // align, share,
        C=columns, ALIGN=align, BR=height, BC=block, num_warps=4,
    )  # fmt: skip
    return out if shares == 1 else _total(partial, out)


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    eps: float,
    dropout: float,
    normed: Tensor,
    summed: Tensor,
    statistics: Tensor,
) -> None:
    """Fills normed (without a weight: not), summed (without a residual: not) and statistics (T, B, 2).

    x and residual are (T, B, C) with a contiguous last dimension; the outputs are contiguous.
    """
    length, batch, channels = x.shape
    tile, align = _tile(channels, *_FORWARD_TILE), _alignment(x, residual)
    _forward_kernel[(triton.cdiv(length * batch, tile["BR"]),)](
        x, residual, weight, bias, seed, normed, summed, statistics, length * batch, batch,
        *_strides(x, align), *_strides(residual, align),
        C=channels, EPS=eps, ADDS=residual is not None, NORMS=weight is not None,
        DROPOUT=dropout > 0, ALIGN=align, **_dropout_constants(dropout), **tile,
    )  # fmt: skip


def backward(
    grad: Tensor,
    extra: Tensor | None,
    summed: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    statistics: Tensor,
    dropout: float,
    grad_x: Tensor | None,
    grad_residual: Tensor | None,
    grad_affine: Tensor,
) -> None:
    """Fills the gradients of x and residual where given, and of weight and bias (2, C).

    grad and extra are the gradients of what was normed and summed; the last dimension of all is contiguous.
    """
    length, batch, channels = summed.shape
    tile, align = _tile(channels, *_BACKWARD_TILE), _alignment(grad, extra, summed)
    programs = max(1, min(_NORM_PROGRAMS, triton.cdiv(length * batch, tile["BR"])))
    partial = torch.empty(programs, 2 * channels, dtype=torch.float32, device=summed.device)
    _backward_kernel[(programs,)](
        grad, extra, summed, weight, seed, statistics, grad_x, grad_residual, partial, length * batch, batch,
        *_strides(grad, align), *_strides(extra, align), *_strides(summed, align),
        C=channels, EXTRA=extra is not None, OWN_X=grad_x is not None, RESIDUAL=grad_residual is not None,
        DROPOUT=dropout > 0, ALIGN=align, **_dropout_constants(dropout), **tile,
    )  # fmt: skip
    _total(partial, grad_affine.view(-1))


def thin(grad: Tensor, seed: Tensor, dropout: float, grad_x: Tensor) -> None:
    """Fills grad_x: ``grad`` (T, B, C) where dropout kept x, scaled."""
    length, batch, channels = grad.shape
    tile, align = _tile(channels, *_FORWARD_TILE), _alignment(grad)
    _thin_kernel[(triton.cdiv(length * batch, tile["BR"]),)](
        grad, seed, grad_x, length * batch, batch, *_strides(grad, align),
        C=channels, ALIGN=align, **_dropout_constants(dropout), **tile,
    )  # fmt: skip
