"""Attention's projections as one matrix, with heads as wide as its kernels want them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.ops.backends import on_device_of
from lite_transformer.ops.bias import uses_row_kernels


def join_heads(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    out_weight: Tensor | None,
    num_heads: int,
    width: int,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One weight and bias of up to three projections, and the output projection's weight, for heads of ``width``.

    Each head's R rows (columns of the output projection) are followed by zeros, so that queries, keys and values come
    padded out of their product and what is computed of the padding meets zeros on its way out.

    Args:
        weights: (H * R, C) each. biases: (H * R) each. out_weight: (C', H * R). width: R' >= R.
        backend: 'reference', 'triton' (fp32, fp16, bf16; a GPU or Triton's interpreter) or 'auto': triton in training
            on a GPU, where a kernel a direction stands for a dozen.
    Returns: (P * H * R', C), (P * H * R') and (C', H * R') or None.
    Raises: UnsupportedInputError naming a value that the chosen backend does not take, and what it takes.
    """
    given = [*weights, *biases, *([] if out_weight is None else [out_weight])]
    if torch.is_grad_enabled() and uses_row_kernels(backend, **{f"tensor {n}": value for n, value in enumerate(given)}):
        weight, bias, out = _JoinHeads.apply(num_heads, width, len(weights), *given)
        return weight, bias, None if out_weight is None else out
    weight, bias = torch.cat([*weights]), torch.cat([*biases])
    head_dim = weights[0].size(0) // num_heads
    if width == head_dim:
        return weight, bias, out_weight
    rows = len(weights) * num_heads
    weight = F.pad(weight.view(rows, head_dim, -1), (0, 0, 0, width - head_dim)).flatten(0, 1)
    bias = F.pad(bias.view(rows, head_dim), (0, width - head_dim)).flatten()
    if out_weight is not None:
        out_weight = F.pad(out_weight.unflatten(1, (num_heads, head_dim)), (0, width - head_dim)).flatten(1)
    return weight, bias, out_weight


class _JoinHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, num_heads, width, count, *given):
        ctx.sizes = (count, num_heads, given[0].size(0) // num_heads)
        return _join_op([value.contiguous() for value in given], count, num_heads, width)

    @staticmethod
    def backward(ctx, weight, bias, out):
        count = ctx.sizes[0]
        own = _part_op(weight.contiguous(), bias.contiguous(), out.contiguous(), *ctx.sizes)
        outs = [own[2]] if own[2].size(0) else []
        return None, None, None, *own[0].chunk(count), *own[1].chunk(count), *outs


# --- the operators -------------------------------------------------------------------------------------------------

torch.library.define(
    "lite_transformer::join_heads", "(Tensor[] given, int count, int num_heads, int width) -> (Tensor, Tensor, Tensor)"
)
torch.library.define(
    "lite_transformer::part_heads",
    "(Tensor weight, Tensor bias, Tensor out, int count, int num_heads, int head_dim) -> (Tensor, Tensor, Tensor)",
)
_join_op = torch.ops.lite_transformer.join_heads.default
_part_op = torch.ops.lite_transformer.part_heads.default


@torch.library.impl("lite_transformer::join_heads", ("CUDA", "CPU"))
def _join(given: list[Tensor], count: int, num_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``count`` weights, as many biases and perhaps the output projection's weight; empty without one."""
    from lite_transformer.ops import triton_heads

    out = given[2 * count] if len(given) > 2 * count else None
    with on_device_of(given[0]):
        return triton_heads.join(given[:count], given[count : 2 * count], out, num_heads, width)


@torch.library.register_fake("lite_transformer::join_heads")
def _fake_join(given, count, num_heads, width):
    rows = count * num_heads * width
    out_rows = given[2 * count].size(0) if len(given) > 2 * count else 0
    return (
        given[0].new_empty(rows, given[0].size(1)),
        given[count].new_empty(rows),
        given[0].new_empty(out_rows, num_heads * width),
    )


@torch.library.impl("lite_transformer::part_heads", ("CUDA", "CPU"))
def _part(
    weight: Tensor, bias: Tensor, out: Tensor, count: int, num_heads: int, head_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients on their way back."""
    from lite_transformer.ops import triton_heads

    with on_device_of(weight):
        return triton_heads.part(weight, bias, out, count, num_heads, head_dim)


@torch.library.register_fake("lite_transformer::part_heads")
def _fake_part(weight, bias, out, count, num_heads, head_dim):
    rows = count * num_heads * head_dim
    return (
        weight.new_empty(rows, weight.size(1)),
        bias.new_empty(rows),
        out.new_empty(out.size(0), num_heads * head_dim),
    )
