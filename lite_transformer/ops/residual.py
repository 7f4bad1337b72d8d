"""Dropout, residual and layer norm of a sublayer, each pass over memory made once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops.backends import draw_seeds, last_contiguous, on_device_of
from lite_transformer.ops.bias import uses_row_kernels

# Channels of the widest row that the kernels hold in registers.
_WIDEST = 8192


def residual_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-5,
    dropout: float = 0.0,
    seed: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Returns LayerNorm(residual + dropout(x)) and the sum that was normed, both (T, B, C).

    A sublayer that norms after itself goes on with the first alone; one that norms before itself needs both.

    Args:
        x: (T, B, C), any strides. residual: as x; None for the layer norm of x, without dropout.
        weight, bias: (C).
        dropout: probability; pass 0 when not training.
        seed: int64 scalar on the device, for the kernels' dropout; drawn from torch's generator where it is None.
        backend: 'reference' (plain torch), 'triton' (one kernel a direction; fp32, fp16, bf16, C up to 8192; a GPU or
            Triton's interpreter) or 'auto': triton on a GPU.
    Returns: dtype of the sum, which is that of torch's promotion. Means and deviations are fp32 in both.
    Raises: UnsupportedShapeError, UnsupportedInputError naming the value and what is allowed.
    Source: Ba et al. 2016, "Layer Normalization", equation 4.
    """
    _check(x, residual, dropout)
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise UnsupportedShapeError(
            f"weight and bias must be ({x.size(-1)},), got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    if residual is None and dropout > 0:
        raise UnsupportedInputError("dropout needs a residual: without one, give dropout = 0")
    if not _fuses(backend, x=x, residual=residual, weight=weight, bias=bias):
        summed = x if residual is None else residual + (F.dropout(x, dropout) if dropout > 0 else x)
        return F.layer_norm(summed, weight.shape, weight, bias, eps), summed
    if dropout > 0 and seed is None:
        seed = draw_seeds(1, x.device)[0]
    if residual is None:
        return _ResidualNorm.apply(x, None, weight, bias, None, eps, 0.0), x
    return _ResidualNorm.apply(x, residual, weight, bias, seed if dropout > 0 else None, float(eps), float(dropout))


def dropout_add(
    x: Tensor, residual: Tensor, *, dropout: float = 0.0, seed: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """residual + dropout(x), (T, B, C). Arguments and errors as in `residual_norm`."""
    _check(x, residual, dropout)
    if dropout == 0:
        return residual + x
    if not _fuses(backend, x=x, residual=residual):
        return residual + F.dropout(x, dropout)
    if seed is None:
        seed = draw_seeds(1, x.device)[0]
    return _DropoutAdd.apply(x, residual, seed, float(dropout))


def _check(x: Tensor, residual: Tensor | None, dropout: float) -> None:
    if x.dim() != 3:
        raise UnsupportedShapeError(f"x must be (T, B, C), got {tuple(x.shape)}")
    if residual is not None and residual.shape != x.shape:
        raise UnsupportedShapeError(f"residual must be as x, {tuple(x.shape)}, got {tuple(residual.shape)}")
    if not 0.0 <= dropout <= 1.0:
        raise UnsupportedInputError(f"dropout = {dropout} is no probability: give a value in [0, 1]")


def _fuses(backend: str, **tensors: Tensor | None) -> bool:
    if not uses_row_kernels(backend, **{name: value for name, value in tensors.items() if value is not None}):
        return False
    x, residual = tensors["x"], tensors["residual"]
    assert x is not None
    if x.size(-1) > _WIDEST:
        if backend == "triton":
            raise UnsupportedInputError(f"backend 'triton': C = {x.size(-1)} is over {_WIDEST}")
        return False
    # autocast norms in fp32 whatever it is given
    in_fp32 = x.dtype == torch.float32 or (residual is not None and residual.dtype == torch.float32)
    return in_fp32 or not torch.is_autocast_enabled(x.device.type)


# --- the operators -------------------------------------------------------------------------------------------------
#
# Registered with torch, so that torch.compile and torch.export keep them as one node each. What an operator does not
# compute it returns empty.

torch.library.define(
    "lite_transformer::residual_norm",
    "(Tensor x, Tensor? residual, Tensor weight, Tensor bias, Tensor? seed, float eps, float dropout)"
    " -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "lite_transformer::residual_norm_backward",
    "(Tensor grad, Tensor? grad_summed, Tensor summed, Tensor weight, Tensor? seed, Tensor statistics, float dropout,"
    " ScalarType x_dtype) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "lite_transformer::dropout_add", "(Tensor x, Tensor residual, Tensor seed, float dropout) -> Tensor"
)
torch.library.define(
    "lite_transformer::dropout_backward", "(Tensor grad, Tensor seed, float dropout, ScalarType x_dtype) -> Tensor"
)
_forward_op = torch.ops.lite_transformer.residual_norm.default
_backward_op = torch.ops.lite_transformer.residual_norm_backward.default
_dropout_add_op = torch.ops.lite_transformer.dropout_add.default
_dropout_backward_op = torch.ops.lite_transformer.dropout_backward.default


@torch.library.register_fake("lite_transformer::residual_norm")
def _new_outputs(x, residual, weight, bias, seed, eps, dropout):
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    shape = tuple(x.shape)
    return (
        torch.empty(shape, dtype=dtype, device=x.device),
        torch.empty((0,) if residual is None else shape, dtype=dtype, device=x.device),
        torch.empty((*shape[:2], 2), dtype=torch.float32, device=x.device),
    )


@torch.library.impl("lite_transformer::residual_norm", ("CUDA", "CPU"))
def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    seed: Tensor | None,
    eps: float,
    dropout: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The norm, the sum (empty without a residual), and mean and inverse deviation (T, B, 2)."""
    outputs = _new_outputs(x, residual, weight, bias, seed, eps, dropout)
    if x.numel():
        from lite_transformer.ops import triton_rows

        residual = None if residual is None else last_contiguous(residual, 1)
        with on_device_of(x):
            triton_rows.forward(
                last_contiguous(x, 1), residual, weight.contiguous(), bias.contiguous(), seed, eps, dropout, *outputs
            )
    return outputs


@torch.library.register_fake("lite_transformer::residual_norm_backward")
def _new_gradients(grad, grad_summed, summed, weight, seed, statistics, dropout, x_dtype):
    shape = tuple(summed.shape)
    own_x = dropout > 0 or x_dtype != summed.dtype
    return (
        torch.empty(shape if own_x else (0,), dtype=x_dtype, device=summed.device),
        torch.empty(shape, dtype=summed.dtype, device=summed.device),
        torch.empty((2, shape[-1]), dtype=weight.dtype, device=summed.device),
    )


@torch.library.impl("lite_transformer::residual_norm_backward", ("CUDA", "CPU"))
def _backward(
    grad: Tensor,
    grad_summed: Tensor | None,
    summed: Tensor,
    weight: Tensor,
    seed: Tensor | None,
    statistics: Tensor,
    dropout: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty if it is that of the sum), of the sum, and of weight and bias (2, C)."""
    grad_x, grad_residual, grad_affine = _new_gradients(
        grad, grad_summed, summed, weight, seed, statistics, dropout, x_dtype
    )
    if summed.numel():
        from lite_transformer.ops import triton_rows

        with on_device_of(summed):
            triton_rows.backward(
                last_contiguous(grad, 1),
                None if grad_summed is None else last_contiguous(grad_summed, 1),
                last_contiguous(summed, 1),
                weight.contiguous(),
                seed,
                statistics,
                dropout,
                grad_x if grad_x.numel() else None,
                grad_residual,
                grad_affine,
            )
    else:
        grad_affine.zero_()
    return grad_x, grad_residual, grad_affine


@torch.library.register_fake("lite_transformer::dropout_add")
def _new_sum(x, residual, seed, dropout):
    dtype = torch.promote_types(x.dtype, residual.dtype)
    return torch.empty(tuple(x.shape), dtype=dtype, device=x.device)


@torch.library.impl("lite_transformer::dropout_add", ("CUDA", "CPU"))
def _dropout_add(x: Tensor, residual: Tensor, seed: Tensor, dropout: float) -> Tensor:
    """residual + dropout(x)."""
    summed = _new_sum(x, residual, seed, dropout)
    if x.numel():
        from lite_transformer.ops import triton_rows

        with on_device_of(x):
            triton_rows.forward(
                last_contiguous(x, 1), last_contiguous(residual, 1), None, None, seed, 0.0, dropout, summed, summed,
                summed,
            )  # fmt: skip
    return summed


@torch.library.register_fake("lite_transformer::dropout_backward")
def _new_thinned(grad, seed, dropout, x_dtype):
    return torch.empty(tuple(grad.shape), dtype=x_dtype, device=grad.device)


@torch.library.impl("lite_transformer::dropout_backward", ("CUDA", "CPU"))
def _dropout_backward(grad: Tensor, seed: Tensor, dropout: float, x_dtype: torch.dtype) -> Tensor:
    """The gradient of x in `dropout_add`."""
    grad_x = _new_thinned(grad, seed, dropout, x_dtype)
    if grad.numel():
        from lite_transformer.ops import triton_rows

        with on_device_of(grad):
            triton_rows.thin(last_contiguous(grad, 1), seed, dropout, grad_x)
    return grad_x


class _ResidualNorm(torch.autograd.Function):
    """The norm and the sum; the norm alone where there is no residual."""

    @staticmethod
    def forward(ctx, x, residual, weight, bias, seed, eps, dropout):
        normed, summed, statistics = _forward_op(x, residual, weight, bias, seed, eps, dropout)
        ctx.save_for_backward(x if residual is None else summed, weight, seed, statistics)
        ctx.set_materialize_grads(False)
        ctx.options = (dropout, x.dtype, None if residual is None else residual.dtype, bias.dtype)
        return normed if residual is None else (normed, summed)

    @staticmethod
    def backward(ctx, grad, grad_summed=None):
        summed, weight, seed, statistics = ctx.saved_tensors
        dropout, x_dtype, residual_dtype, bias_dtype = ctx.options
        if grad is None:
            grad = torch.zeros_like(summed)
        grad_x, grad_sum, affine = _backward_op(grad, grad_summed, summed, weight, seed, statistics, dropout, x_dtype)
        if dropout == 0 and x_dtype == summed.dtype:
            grad_x = grad_sum
        grad_residual = None if residual_dtype is None else grad_sum.to(residual_dtype)
        return grad_x, grad_residual, affine[0], affine[1].to(bias_dtype), None, None, None


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, seed, dropout):
        ctx.save_for_backward(seed)
        ctx.options = (dropout, x.dtype, residual.dtype)
        return _dropout_add_op(x, residual, seed, dropout)

    @staticmethod
    def backward(ctx, grad):
        (seed,) = ctx.saved_tensors
        dropout, x_dtype, residual_dtype = ctx.options
        return _dropout_backward_op(grad, seed, dropout, x_dtype), grad.to(residual_dtype), None, None
