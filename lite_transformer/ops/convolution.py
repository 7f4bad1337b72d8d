"""The two short-range convolutions with a choice of implementation: plain torch, or fused kernels on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops import reference
from lite_transformer.ops.backends import choose, draw_seeds, dtype_obstacle, last_contiguous, on_device_of

_TRITON_LONGEST_KERNEL = 255


def lightweight_conv(
    x: Tensor,
    weight: Tensor,
    left_padding: int,
    *,
    weight_softmax: bool = False,
    weight_dropout: float = 0.0,
    padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution over time whose kernel is shared by the R channels of a head.

    out[t, b, c] = sum_k w[c // R, k] * x[t + k - left_padding, b, c], zero outside [0, T) and at padding, where w is
    ``weight``, normalised and thinned out as the options say.

    Args:
        x: (T, B, C), any strides.
        weight: (H, K).
        left_padding: K - 1 for causal, K // 2 for centred; any value in [0, K - 1].
        weight_softmax: normalise ``weight`` over its K taps, in fp32.
        weight_dropout: zero entries of the normalised kernel with this probability and scale up the rest (DropConnect);
            pass 0 when not training.
        padding_mask: (B, T) bool, True = padding: those inputs count as zero.
        backend: 'reference' (plain torch, any device), 'triton' (fused kernels: a GPU, or Triton's interpreter; fp32,
            fp16 and bf16; K up to 255) or 'auto': triton where it can be used, which is logged once.
    Returns: (T, B, C), dtype and device of x. Sums are fp32 in fused kernels.
    Raises: UnsupportedShapeError if H does not divide C or left_padding is out of range; UnsupportedInputError naming a
        value that the chosen backend does not take, and what it takes.
    Source: Wu et al. 2019, "Pay Less Attention with Lightweight and Dynamic Convolutions", section 3.
    Cost: T * B * C * K MACs.
    """
    if weight.dim() != 2:
        raise UnsupportedShapeError(f"weight must be (H, K), got {tuple(weight.shape)}")
    return _convolve(x, weight, left_padding, weight_softmax, weight_dropout, padding_mask, backend)


def dynamic_conv(
    x: Tensor,
    weight: Tensor,
    left_padding: int,
    *,
    weight_softmax: bool = False,
    weight_dropout: float = 0.0,
    padding_mask: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution over time with a kernel of its own at every position.

    out[t, b, c] = sum_k w[t, b, c // R, k] * x[t + k - left_padding, b, c], zero outside [0, T) and at padding, where w
    is ``weight``, normalised and thinned out as the options say.

    Args, returns, raises and cost as `lightweight_conv`, but for weight: (T, B, H, K) with the T and B of x.
    Source: Wu et al. 2019, section 4.
    """
    if weight.dim() != 4 or weight.shape[:2] != x.shape[:2]:
        raise UnsupportedShapeError(
            f"weight must be (T, B, H, K) with the T and B of x {tuple(x.shape)}, got {tuple(weight.shape)}"
        )
    return _convolve(x, weight, left_padding, weight_softmax, weight_dropout, padding_mask, backend)


def _convolve(
    x: Tensor,
    weight: Tensor,
    left_padding: int,
    weight_softmax: bool,
    weight_dropout: float,
    padding_mask: Tensor | None,
    backend: str,
) -> Tensor:
    num_heads, kernel_size = weight.shape[-2:]
    reference.check_shapes(x, num_heads, kernel_size, left_padding)
    if not 0.0 <= weight_dropout <= 1.0:
        raise UnsupportedInputError(f"weight_dropout = {weight_dropout} is no probability: give a value in [0, 1]")
    if padding_mask is not None:
        if padding_mask.shape != (x.size(1), x.size(0)):
            raise UnsupportedShapeError(
                f"padding_mask must be (B, T) = {(x.size(1), x.size(0))}, got {tuple(padding_mask.shape)}"
            )
        padding_mask = padding_mask.to(torch.bool)
    if _choose(x, weight, backend) == "triton":
        seed = None
        if weight_dropout > 0:
            # Drawn on the device: no wait for it, and a captured graph draws anew at each replay.
            seed = draw_seeds(1, x.device)[0]
        out, _ = short_range_conv(
            last_contiguous(x, 1), last_contiguous(weight, 2), padding_mask, seed, left_padding, weight_softmax,
            float(weight_dropout),
        )  # fmt: skip
        return out
    if padding_mask is not None:
        x = x.masked_fill(padding_mask.transpose(0, 1).unsqueeze(2), 0)
    if weight_softmax:
        weight = F.softmax(weight, dim=-1, dtype=torch.promote_types(weight.dtype, torch.float32))
    weight = weight.type_as(x)
    if weight_dropout > 0:
        weight = F.dropout(weight, weight_dropout)
    convolve = reference.lightweight_conv if weight.dim() == 2 else reference.dynamic_conv
    return convolve(x, weight, left_padding)


# --- the choice ----------------------------------------------------------------------------------------------------


def _obstacle(x: Tensor, weight: Tensor) -> str | None:
    """Why the fused kernels cannot take this input, with what they take; None if they can."""
    found = dtype_obstacle(x=x, weight=weight)
    if found is not None:
        return found
    if weight.size(-1) > _TRITON_LONGEST_KERNEL:
        return f"kernel size {weight.size(-1)} is over {_TRITON_LONGEST_KERNEL}"
    if x.device != weight.device:
        return f"x is on {x.device} and weight on {weight.device}: both must be on one device"
    return None


def _choose(x: Tensor, weight: Tensor, backend: str) -> str:
    return choose(x, backend, lambda: _obstacle(x, weight), "convolutions", "conv_backend=reference")


# --- the operators -------------------------------------------------------------------------------------------------
#
# Registered with torch, so that torch.compile and torch.export keep them as one node each. The autograd formula is an
# autograd.Function under the operator's Autograd key: torch.library.register_autograd does the same in twice the time,
# and a small model's training waits for the CPU.

torch.library.define(
    "lite_transformer::short_range_conv",
    "(Tensor x, Tensor weight, Tensor? padding_mask, Tensor? seed, int left_padding, bool softmax, float dropout)"
    " -> (Tensor, Tensor)",
)
torch.library.define(
    "lite_transformer::short_range_conv_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? padding_mask, Tensor? seed, Tensor statistics, int left_padding,"
    " bool softmax, float dropout) -> (Tensor, Tensor)",
)
short_range_conv = torch.ops.lite_transformer.short_range_conv.default
short_range_conv_backward = torch.ops.lite_transformer.short_range_conv_backward.default


@torch.library.impl("lite_transformer::short_range_conv", ("CUDA", "CPU"))
def _forward(
    x: Tensor,
    weight: Tensor,
    padding_mask: Tensor | None,
    seed: Tensor | None,
    left_padding: int,
    softmax: bool,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """The fused forward pass: the output and what the backward pass needs of the softmax."""
    if x.numel() == 0:
        return x.new_empty(x.shape), _unfilled_statistics(x, weight, softmax)
    from lite_transformer.ops import triton_kernels

    mask = None if padding_mask is None else padding_mask.view(torch.uint8)
    with on_device_of(x):
        return triton_kernels.forward(x, weight, mask, seed, left_padding, softmax, dropout)


@torch.library.register_fake("lite_transformer::short_range_conv")
def _fake_forward(x, weight, padding_mask, seed, left_padding, softmax, dropout):
    return x.new_empty(x.shape), _unfilled_statistics(x, weight, softmax)


@torch.library.impl("lite_transformer::short_range_conv_backward", ("CUDA", "CPU"))
def _backward(
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
    """The fused backward pass: the gradients of x and weight."""
    if x.numel() == 0:
        return x.new_zeros(x.shape), weight.new_zeros(weight.shape)
    from lite_transformer.ops import triton_kernels

    mask = None if padding_mask is None else padding_mask.view(torch.uint8)
    with on_device_of(x):
        return triton_kernels.backward(
            last_contiguous(grad, 1), x, weight, mask, seed, statistics, left_padding, softmax, dropout
        )


@torch.library.register_fake("lite_transformer::short_range_conv_backward")
def _fake_backward(grad, x, weight, padding_mask, seed, statistics, left_padding, softmax, dropout):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


class _ShortRangeConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, padding_mask, seed, left_padding, softmax, dropout):
        with torch._C._AutoDispatchBelowAutograd():
            out, statistics = short_range_conv(x, weight, padding_mask, seed, left_padding, softmax, dropout)
        ctx.mark_non_differentiable(statistics)
        ctx.save_for_backward(x, weight, padding_mask, seed, statistics)
        ctx.options = (left_padding, softmax, dropout)
        return out, statistics

    @staticmethod
    def backward(ctx, grad, _):
        grad_x, grad_w = short_range_conv_backward(grad, *ctx.saved_tensors, *ctx.options)
        return grad_x, grad_w, None, None, None, None, None


@torch.library.impl("lite_transformer::short_range_conv", "Autograd")
def _with_autograd(*args):
    return _ShortRangeConv.apply(*args)


def _unfilled_statistics(x: Tensor, weight: Tensor, softmax: bool) -> Tensor:
    """(T, B, H, 2) for softmaxed dynamic kernels, else empty."""
    shape = (*weight.shape[:3], 2) if softmax and weight.dim() == 4 else (0,)
    return x.new_empty(shape, dtype=torch.float32)
