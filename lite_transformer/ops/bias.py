"""A linear layer whose bias gradient is one pass over the rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.ops.backends import choose, dtype_obstacle, last_contiguous, on_device_of


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, backend: str = "auto") -> Tensor:
    """x @ weight^T + bias, as `torch.nn.functional.linear`.

    Its gradients are the same too; that of the bias, a sum over positions, comes from kernels of its own on a GPU:
    torch's takes three times as long for the few channels of these models.

    Args:
        x: (..., C), any strides. weight: (C', C). bias: (C').
        backend: 'reference', 'triton' (fp32, fp16, bf16; a GPU or Triton's interpreter) or 'auto': triton in training
            on a GPU.
    Returns: (..., C').
    Raises: UnsupportedInputError naming a value that the chosen backend does not take, and what it takes.
    """
    if bias is None or x.dim() < 2 or not (bias.requires_grad and torch.is_grad_enabled()):
        return F.linear(x, weight, bias)
    if not uses_row_kernels(backend, x=x, weight=weight, bias=bias):
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    # as rows, whatever their stride: torch's product of three dimensions copies a slice of channels
    out = _Linear.apply(x.flatten(0, -2), weight, bias)
    return out.unflatten(0, x.shape[:-1])


def uses_row_kernels(backend: str, **tensors: Tensor) -> bool:
    """Whether kernels over rows compute these named tensors, the first of them their input. Raises as `linear`."""
    x = next(iter(tensors.values()))

    def obstacle() -> str | None:
        for name, tensor in tensors.items():
            if tensor.device != x.device:
                return f"x is on {x.device} and {name} on {tensor.device}: both must be on one device"
        return dtype_obstacle(**tensors)

    return (
        choose(x, backend, obstacle, "bias gradients, residuals and layer norms", "conv_backend=reference") == "triton"
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return torch.addmm(bias, x, weight.t())

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = torch.mm(grad, weight) if needs_x else None
        grad_weight = torch.mm(grad.t(), x) if needs_weight else None
        return grad_x, grad_weight, column_sum(grad) if needs_bias else None


torch.library.define("lite_transformer::column_sum", "(Tensor x) -> Tensor")
column_sum = torch.ops.lite_transformer.column_sum.default


@torch.library.impl("lite_transformer::column_sum", ("CUDA", "CPU"))
def _column_sum(x: Tensor) -> Tensor:
    """(..., C) -> (C): sums over all positions, in fp32, rounded to the dtype of x."""
    if x.numel() == 0:
        return x.new_zeros(x.size(-1))
    from lite_transformer.ops import triton_rows

    x = last_contiguous(x if x.dim() <= 3 else x.flatten(0, -2), 1)
    with on_device_of(x):
        return triton_rows.column_sum(x.view(1, *x.shape) if x.dim() == 2 else x.view(1, 1, -1) if x.dim() == 1 else x)


@torch.library.register_fake("lite_transformer::column_sum")
def _fake_column_sum(x):
    return x.new_empty(x.shape[-1])
