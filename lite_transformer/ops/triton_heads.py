"""Kernels that copy the weights of attention between their own layout and one with heads of another width."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_transformer.ops.triton_kernels import _power_of_two


@triton.jit
def _pick(w0, w1, w2, p, offset, inside, P: tl.constexpr):
    """Values at an offset of the tensor of projection p."""
    values = tl.load(w0 + offset, mask=inside & (p == 0), other=0.0)
    if P > 1:
        values = tl.where(p == 1, tl.load(w1 + offset, mask=inside & (p == 1), other=0.0), values)
    if P > 2:
        values = tl.where(p == 2, tl.load(w2 + offset, mask=inside & (p == 2), other=0.0), values)
    return values


@triton.jit
def _join_kernel(
    w0, w1, w2, b0, b1, b2, own_out, weight, bias, out,
    P: tl.constexpr, H: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr, OUT: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Rows of the joined weight with their biases, or of the output projection; heads R wide become WIDE."""
    ROWS: tl.constexpr = P * H * WIDE
    program = tl.program_id(0)
    if program < tl.cdiv(ROWS, BR):
        row = program * BR + tl.arange(0, BR)
        c = tl.arange(0, BC)[None, :]
        p, head, r = row // (H * WIDE), row % (H * WIDE) // WIDE, row % WIDE
        real = (row < ROWS) & (r < R)
        source = head * R + r
        values = _pick(w0, w1, w2, p[:, None], source[:, None] * C + c, real[:, None] & (c < C), P)
        tl.store(weight + row[:, None] * C + c, values, mask=(row < ROWS)[:, None] & (c < C))
        tl.store(bias + row, _pick(b0, b1, b2, p, source, real, P), mask=row < ROWS)
    else:
        d = (program - tl.cdiv(ROWS, BR)) * BR + tl.arange(0, BR)[:, None]
        o = tl.arange(0, BO)[None, :]
        exists = (d < OUT) & (o < H * WIDE)
        columns = tl.load(own_out + d * (H * R) + o // WIDE * R + o % WIDE, mask=exists & (o % WIDE < R), other=0.0)
        tl.store(out + d * (H * WIDE) + o, columns, mask=exists)


@triton.jit
def _part_kernel(
    weight, bias, out, own_weight, own_bias, own_out,
    P: tl.constexpr, H: tl.constexpr, R: tl.constexpr, WIDE: tl.constexpr, C: tl.constexpr, OUT: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """The reverse, for gradients: own_weight is (P * H * R, C)."""
    ROWS: tl.constexpr = P * H * R
    program = tl.program_id(0)
    if program < tl.cdiv(ROWS, BR):
        row = program * BR + tl.arange(0, BR)
        c = tl.arange(0, BC)[None, :]
        source = row // R * WIDE + row % R
        inside = (row < ROWS)[:, None] & (c < C)
        values = tl.load(weight + source[:, None] * C + c, mask=inside)
        tl.store(own_weight + row[:, None] * C + c, values, mask=inside)
        tl.store(own_bias + row, tl.load(bias + source, mask=row < ROWS), mask=row < ROWS)
    else:
        d = (program - tl.cdiv(ROWS, BR)) * BR + tl.arange(0, BR)[:, None]
        o = tl.arange(0, BO)[None, :]
        exists = (d < OUT) & (o < H * R)
        columns = tl.load(out + d * (H * WIDE) + o // R * WIDE + o % R, mask=exists)
        tl.store(own_out + d * (H * R) + o, columns, mask=exists)


def _sizes(count: int, heads: int, head_dim: int, wide: int, channels: int, out_rows: int) -> dict[str, int]:
    blocks = {"BR": 4, "BC": _power_of_two(channels), "BO": _power_of_two(heads * wide)}
    return {"P": count, "H": heads, "R": head_dim, "WIDE": wide, "C": channels, "OUT": out_rows, **blocks}


def join(
    weights: list[Tensor], biases: list[Tensor], out: Tensor | None, heads: int, wide: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Joined weight (P * H * WIDE, C) and bias, and the output projection (C', H * WIDE), empty for none."""
    count, (rows, channels) = len(weights), weights[0].shape
    joined = count * heads * wide
    weight = torch.empty(joined, channels, dtype=weights[0].dtype, device=weights[0].device)
    bias = torch.empty(joined, dtype=biases[0].dtype, device=weights[0].device)
    out_rows = 0 if out is None else out.size(0)
    wide_out = torch.empty(out_rows, heads * wide, dtype=weight.dtype, device=weight.device)
    three = [*weights, weights[0], weights[0]][:3], [*biases, biases[0], biases[0]][:3]
    sizes = _sizes(count, heads, rows // heads, wide, channels, out_rows)
    programs = triton.cdiv(joined, sizes["BR"]) + triton.cdiv(out_rows, sizes["BR"])
    _join_kernel[(programs,)](*three[0], *three[1], out, weight, bias, wide_out, **sizes)
    return weight, bias, wide_out


def part(
    weight: Tensor, bias: Tensor, out: Tensor, count: int, heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """From gradients of what `join` returned to those of its weights (P * H * R, C), biases and output projection."""
    wide, channels = weight.size(0) // (count * heads), weight.size(1)
    rows = count * heads * head_dim
    own_weight = torch.empty(rows, channels, dtype=weight.dtype, device=weight.device)
    own_bias = torch.empty(rows, dtype=bias.dtype, device=weight.device)
    own_out = torch.empty(out.size(0), heads * head_dim, dtype=out.dtype, device=weight.device)
    sizes = _sizes(count, heads, head_dim, wide, channels, out.size(0))
    programs = triton.cdiv(rows, sizes["BR"]) + triton.cdiv(out.size(0), sizes["BR"])
    _part_kernel[(programs,)](weight, bias, out, own_weight, own_bias, own_out, **sizes)
    return own_weight, own_bias, own_out
