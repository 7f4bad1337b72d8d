"""Label-smoothed cross entropy as Triton kernels; imported only when they are used.

The forward pass reads each logit once and keeps two numbers a row; the backward pass reads it once more and writes its
gradient in the logits' dtype. Nothing of the logits' size is kept in fp32. With x the logits of a row, t its target and
s = epsilon / (V - 1), fairseq's loss (1 - epsilon - s) * nll + s * sum_j(-log p_j) is

    loss = nll - s * sum_j(x_j - x_t),   nll = log(sum_j exp(x_j)) - x_t

whose terms stay small where logits are large. No atomics: results do not change from run to run.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_transformer.ops.triton_kernels import _exp

# Logits that a program holds at once, and so many of them a warp; forward, so many times that are on their way.
_FORWARD_BLOCK, _BACKWARD_BLOCK = 2048, 4096
_BLOCK_OF_A_WARP = 512
_FORWARD_STAGES = 3


@triton.jit
def _exponential(x, EXACT: tl.constexpr):
    return _exp(x) if EXACT else tl.exp(x)


@triton.jit(do_not_specialize=["steps", "ignored"])
def _forward_kernel(
    logits, target, statistics, losses, N, steps, ignored, spread,
    V: tl.constexpr, HAS_IGNORED: tl.constexpr, SMOOTH: tl.constexpr, EXACT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One row: its losses, and the maximum and inverse sum of exponentials that its softmax needs again."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(target + row)
    exists = (place >= 0) & (place < V)
    counts = place == place
    if HAS_IGNORED:
        counts = place != ignored
    logits += row * steps * ALIGN
    chosen = tl.load(logits + place, mask=exists & counts, other=0.0).to(tl.float32)
    top = tl.full((), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    above = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, tl.where(counts, V, 0), BLOCK, num_stages=STAGES):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(logits + column, mask=column < V, other=-float("inf")).to(tl.float32)
        new = tl.maximum(top, tl.max(x, 0))
        # nothing but -inf so far: what is taken off must be a number
        shift = tl.where(new == -float("inf"), 0.0, new)
        total = total * _exponential(top - shift, EXACT) + _exponential(x - shift, EXACT)
        if SMOOTH:
            above += tl.where(column < V, x - chosen, 0.0)
        top = new
    total_of_all = tl.where(counts, tl.sum(total, 0), 1.0)
    nan = tl.where(exists, 0.0, float("nan"))
    nll = top - chosen + tl.log(total_of_all) + nan
    tl.store(statistics + 2 * row, top + nan)
    tl.store(statistics + 2 * row + 1, tl.div_rn(1.0, total_of_all))
    tl.store(losses + row, tl.where(counts, nll, 0.0))
    if SMOOTH:
        tl.store(losses + N + row, tl.where(counts, nll - spread * tl.sum(above, 0), 0.0))


@triton.jit(do_not_specialize=["steps", "ignored"])
def _backward_kernel(
    grad_loss, grad_nll, logits, target, statistics, grad, steps, ignored, spread,
    V: tl.constexpr, HAS_IGNORED: tl.constexpr, HAS_LOSS: tl.constexpr, HAS_NLL: tl.constexpr, EXACT: tl.constexpr,
    ALIGN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of a row: softmax minus the smoothed target, times the gradients of both sums."""
    blocks: tl.constexpr = (V + BLOCK - 1) // BLOCK
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(target + row)
    counts = place == place
    if HAS_IGNORED:
        counts = place != ignored
    grad += row * V + column
    if counts:
        # of the softmax, of the target, of every logit
        of_all = tl.zeros((), tl.float32)
        of_target = tl.zeros((), tl.float32)
        of_each = tl.zeros((), tl.float32)
        if HAS_LOSS:
            upstream = tl.load(grad_loss).to(tl.float32)
            of_all += upstream
            of_target += upstream * (1.0 - V * spread)
            of_each += upstream * spread
        if HAS_NLL:
            upstream = tl.load(grad_nll).to(tl.float32)
            of_all += upstream
            of_target += upstream
        top = tl.load(statistics + 2 * row)
        scale = tl.load(statistics + 2 * row + 1)
        x = tl.load(logits + row * steps * ALIGN + column, mask=column < V, other=-float("inf")).to(tl.float32)
        value = of_all * (_exponential(x - top, EXACT) * scale) - of_each - tl.where(column == place, of_target, 0.0)
        tl.store(grad, value.to(grad.dtype.element_ty), mask=column < V)
    else:
        tl.store(grad, tl.zeros((BLOCK,), grad.dtype.element_ty), mask=column < V)


def _alignment(logits: Tensor) -> int:
    """A power of two, up to 16, that divides the distance of rows: knowing it, the compiler loads several at once."""
    return math.gcd(16, logits.stride(0))


def _constants(logits: Tensor, ignore_index: int | None, largest_block: int) -> dict[str, int | bool]:
    vocabulary = logits.size(1)
    block = min(largest_block, max(32, 1 << (vocabulary - 1).bit_length()))
    return {
        "V": vocabulary,
        "HAS_IGNORED": ignore_index is not None,
        # of fp32 logits, exponentials to an ulp; what halves hold is coarser than the fast ones
        "EXACT": logits.dtype == torch.float32,
        "ALIGN": _alignment(logits),
        "BLOCK": block,
        "num_warps": max(1, block // _BLOCK_OF_A_WARP),
    }


def _numbers(logits: Tensor, epsilon: float, ignore_index: int | None) -> tuple[int, int, float]:
    """How many steps rows are apart, the target that does not count, and what of epsilon each other type gets."""
    steps = logits.stride(0) // _alignment(logits)
    return steps, ignore_index or 0, epsilon / (logits.size(1) - 1) if epsilon else 0.0


def forward(logits: Tensor, target: Tensor, epsilon: float, ignore_index: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the sums of loss and nll, fp32 scalars, and what the backward pass needs of the softmax, (N, 2) in fp32.

    Args:
        logits: (N, V), rows contiguous. target: (N,) int64, contiguous.
    """
    rows = logits.size(0)
    statistics = torch.empty((rows, 2), dtype=torch.float32, device=logits.device)
    losses = torch.empty((2 if epsilon else 1, rows), dtype=torch.float32, device=logits.device)
    _forward_kernel[(rows,)](
        logits, target, statistics, losses, rows, *_numbers(logits, epsilon, ignore_index),
        SMOOTH=epsilon != 0, STAGES=_FORWARD_STAGES, **_constants(logits, ignore_index, _FORWARD_BLOCK),
    )  # fmt: skip
    nll = losses[0].sum()
    return losses[1].sum() if epsilon else nll.clone(), nll, statistics


def backward(
    grad_loss: Tensor | None,
    grad_nll: Tensor | None,
    logits: Tensor,
    target: Tensor,
    statistics: Tensor,
    epsilon: float,
    ignore_index: int | None,
) -> Tensor:
    """Returns the gradient of the logits, (N, V) in their dtype. Arguments as in `forward`, and what it returned.

    Args:
        grad_loss, grad_nll: gradients of the two sums, scalars on the device; None counts as zero.
    """
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    constants = _constants(logits, ignore_index, _BACKWARD_BLOCK)
    _backward_kernel[(logits.size(0) * triton.cdiv(logits.size(1), int(constants["BLOCK"])),)](
        grad_loss, grad_nll, logits, target, statistics, grad, *_numbers(logits, epsilon, ignore_index),
        HAS_LOSS=grad_loss is not None, HAS_NLL=grad_nll is not None, **constants,
    )  # fmt: skip
    return grad
