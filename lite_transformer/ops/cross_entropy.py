"""Label-smoothed cross entropy with a choice of implementation: plain torch, or fused kernels on a GPU.

Plain torch turns half-precision logits into fp32, keeps their log-probabilities for the backward pass and makes their
gradients in fp32: of 5,000 tokens and 32,000 types about 0.7 GB each. The fused kernels read the logits as they are,
and what they write of that size is the gradient, in the logits' dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_transformer.errors import UnsupportedInputError, UnsupportedShapeError
from lite_transformer.ops.backends import choose, dtype_obstacle, on_device_of


def label_smoothed_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    epsilon: float = 0.0,
    ignore_index: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Sums over all rows of the label-smoothed loss and of the negative log-likelihood, as fairseq defines them.

    With p = softmax(logits) and s = epsilon / (V - 1), a row's nll is -log p[target], and its loss
    (1 - epsilon - s) * nll - s * sum_j log p[j]. Rows whose target is ``ignore_index`` count as zero and get no
    gradient, whatever their logits hold.

    Args:
        logits: (..., V), any strides; rows that are not evenly spaced, or not contiguous, are copied.
        target: (...) int64. Out of [0, V): an error on a CPU; with the fused kernels NaN, in both sums and in the
            gradients of that row, so that a training stops; with plain torch on a GPU the device's assertion.
        epsilon: the smoothing, in [0, 1].
        backend: 'reference' (plain torch, any device), 'triton' (fused kernels: a GPU, or Triton's interpreter; fp32,
            fp16 and bf16) or 'auto': triton where it can be used, which is logged once.
    Returns: loss and nll, scalars, fp32 (fp64 for fp64 logits); both have gradients. Sums are fp32 in fused kernels.
    Raises: UnsupportedShapeError, UnsupportedInputError naming a value that is not taken, and what is.
    Source: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7; fairseq 0.12 spreads epsilon over
        the V - 1 other types.
    """
    _check(logits, target, epsilon)
    if chosen_backend(logits, backend) == "triton":
        rows = logits.reshape(-1, logits.size(-1))
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        loss, nll, _ = cross_entropy(rows, target.reshape(-1).contiguous(), float(epsilon), ignore_index)
        return loss, nll
    return _reference(logits, target, epsilon, ignore_index)


def chosen_backend(logits: Tensor, backend: str) -> str:
    """'triton' or 'reference': what computes the loss of these logits. Raises: UnsupportedInputError."""
    return choose(logits, backend, lambda: dtype_obstacle(logits=logits), "loss", "loss_backend=reference")


def _reference(logits: Tensor, target: Tensor, epsilon: float, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    vocabulary = logits.size(-1)
    ignored = torch.zeros_like(target, dtype=torch.bool) if ignore_index is None else target.eq(ignore_index)
    target = target.masked_fill(ignored, 0)
    if target.device.type == "cpu" and target.numel() and not 0 <= target.min() <= target.max() < vocabulary:
        wrong = target[(target < 0) | (target >= vocabulary)][0].item()
        raise UnsupportedInputError(f"target {wrong} is no type: there are {vocabulary}, from 0 on")
    scores = F.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    nll = -scores.gather(-1, target.unsqueeze(-1)).squeeze(-1).masked_fill(ignored, 0.0).sum()
    if epsilon == 0:
        return nll, nll
    spread = epsilon / (vocabulary - 1)
    smooth = -scores.sum(dim=-1).masked_fill(ignored, 0.0).sum()
    return (1.0 - epsilon - spread) * nll + spread * smooth, nll


def _check(logits: Tensor, target: Tensor, epsilon: float) -> None:
    if logits.dim() < 1 or logits.size(-1) < 1 or target.shape != logits.shape[:-1]:
        raise UnsupportedShapeError(
            f"logits must be (..., V) and target (...), got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if not logits.is_floating_point() or target.dtype != torch.int64:
        raise UnsupportedInputError(
            f"logits are {logits.dtype} and target is {target.dtype}; allowed: a floating type and torch.int64"
        )
    if logits.device != target.device:
        raise UnsupportedInputError(
            f"logits are on {logits.device} and target on {target.device}: both must be on one device"
        )
    if not 0.0 <= epsilon <= 1.0:
        raise UnsupportedInputError(f"epsilon = {epsilon} is no part of one: give a value in [0, 1]")
    if epsilon and logits.size(-1) < 2:
        raise UnsupportedShapeError("label smoothing spreads over the other types, and there is one type only")


# --- the operators -------------------------------------------------------------------------------------------------
#
# Registered as those of `convolution` are, for the same reasons.

torch.library.define(
    "lite_transformer::cross_entropy",
    "(Tensor logits, Tensor target, float epsilon, int? ignore_index) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "lite_transformer::cross_entropy_backward",
    "(Tensor? grad_loss, Tensor? grad_nll, Tensor logits, Tensor target, Tensor statistics, float epsilon,"
    " int? ignore_index) -> Tensor",
)
cross_entropy = torch.ops.lite_transformer.cross_entropy.default
cross_entropy_backward = torch.ops.lite_transformer.cross_entropy_backward.default


@torch.library.impl("lite_transformer::cross_entropy", ("CUDA", "CPU"))
def _forward(logits: Tensor, target: Tensor, epsilon: float, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The fused forward pass: both sums and what the backward pass needs of the softmax."""
    if logits.size(0) == 0:
        return (
            logits.new_zeros((), dtype=torch.float32),
            logits.new_zeros((), dtype=torch.float32),
            logits.new_empty((0, 2), dtype=torch.float32),
        )
    from lite_transformer.ops import triton_cross_entropy

    with on_device_of(logits):
        return triton_cross_entropy.forward(logits, target, epsilon, ignore_index)


@torch.library.register_fake("lite_transformer::cross_entropy")
def _fake_forward(logits, target, epsilon, ignore_index):
    return (
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty((logits.size(0), 2), dtype=torch.float32),
    )


@torch.library.impl("lite_transformer::cross_entropy_backward", ("CUDA", "CPU"))
def _backward(
    grad_loss: Tensor | None,
    grad_nll: Tensor | None,
    logits: Tensor,
    target: Tensor,
    statistics: Tensor,
    epsilon: float,
    ignore_index: int | None,
) -> Tensor:
    """The fused backward pass: the gradient of the logits."""
    if logits.size(0) == 0:
        return logits.new_zeros(logits.shape)
    from lite_transformer.ops import triton_cross_entropy

    with on_device_of(logits):
        return triton_cross_entropy.backward(grad_loss, grad_nll, logits, target, statistics, epsilon, ignore_index)


@torch.library.register_fake("lite_transformer::cross_entropy_backward")
def _fake_backward(grad_loss, grad_nll, logits, target, statistics, epsilon, ignore_index):
    return logits.new_empty(logits.shape)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, target, epsilon, ignore_index):
        with torch._C._AutoDispatchBelowAutograd():
            loss, nll, statistics = cross_entropy(logits, target, epsilon, ignore_index)
        ctx.mark_non_differentiable(statistics)
        # a sum that nothing was computed from has no gradient, not one of zero
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, target, statistics)
        ctx.options = (epsilon, ignore_index)
        return loss, nll, statistics

    @staticmethod
    def backward(ctx, grad_loss, grad_nll, _):
        if grad_loss is None and grad_nll is None:
            return None, None, None, None
        return cross_entropy_backward(grad_loss, grad_nll, *ctx.saved_tensors, *ctx.options), None, None, None


@torch.library.impl("lite_transformer::cross_entropy", "Autograd")
def _with_autograd(*args):
    return _CrossEntropy.apply(*args)
