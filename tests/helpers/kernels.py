"""Running a convolution on one backend, and how far its outputs and gradients are from fp64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lite_transformer import ops

NAMES = ("output", "gradient of x", "gradient of weight")


@dataclass(frozen=True)
class Case:
    """One convolution to compute: its sizes and options."""

    length: int
    batch: int
    channels: int
    heads: int
    kernel_size: int
    dynamic: bool
    causal: bool = True
    softmax: bool = False
    masked: bool = False
    strided: bool = False
    dropout: float = 0.0

    @property
    def left_padding(self) -> int:
        return self.kernel_size - 1 if self.causal else self.kernel_size // 2

    def tensors(self, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """x, weight, gradient of the output, padding mask; x and the gradient are strided views where asked for."""
        generator = torch.Generator(device).manual_seed(hash(self) % 2**31)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        shape = (self.length, self.batch, self.channels)
        if self.strided:
            x = normal(self.length, self.batch * 2, self.channels + 3)[:, ::2, 3:]
            grad = normal(self.batch, self.length, self.channels).transpose(0, 1)
        else:
            x, grad = normal(*shape), normal(*shape)
        weight = normal(*(shape[:2] if self.dynamic else ()), self.heads, self.kernel_size)
        mask = None
        if self.masked:
            mask = torch.zeros(self.batch, self.length, dtype=torch.bool, device=device)
            mask[0, (self.length + 1) // 2 :] = True  # right-padded
            mask[-1, : self.length // 3] = True  # left-padded
        return x, weight, grad, mask

    def run(self, dtype: torch.dtype, device: str, backend: str, compute: torch.dtype | None = None) -> list[Tensor]:
        """Output and both gradients; ``compute`` is the dtype that inputs of ``dtype`` are brought to first."""
        x, weight, grad, mask = self.tensors(dtype, device)
        if compute is not None:
            x, weight, grad = x.to(compute), weight.to(compute), grad.to(compute)
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        convolve = ops.dynamic_conv if self.dynamic else ops.lightweight_conv
        out = convolve(
            x,
            weight,
            self.left_padding,
            weight_softmax=self.softmax,
            weight_dropout=self.dropout,
            padding_mask=mask,
            backend=backend,
        )
        out.backward(grad)
        assert x.grad is not None and weight.grad is not None
        return [out.detach(), x.grad, weight.grad]

    def check(self, dtype: torch.dtype, device: str) -> None:
        """Fails if a fused result is further from fp64 than twice plain torch in the same dtype.

        Sums of a few fp32 numbers are allowed two units in the last place, of halves half a unit: plain torch may hit
        them exactly.
        """
        units = 2 if dtype == torch.float32 else 0.5
        exact = self.run(dtype, device, "reference", torch.float64)
        plain = self.run(dtype, device, "reference")
        fused = self.run(dtype, device, "triton")
        for name, right, torch_result, result in zip(NAMES, exact, plain, fused, strict=True):
            assert result.dtype == dtype and result.shape == right.shape, name
            allowed = max(2 * relative_error(torch_result, right), units * torch.finfo(dtype).eps)
            error = relative_error(result, right)
            assert error <= allowed, f"{name} of {self}, {dtype}: error {error:.2e}, allowed {allowed:.2e}"


def relative_error(result: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm of the right result; NaN if the result holds one."""
    norm = right.norm().item()
    return ((result.double() - right).norm() / (norm or 1.0)).item()


def dropout_keeps(seed: int, index: Tensor, dropout: float) -> Tensor:
    """Which entries the fused kernels keep: their mixing function, written in 64-bit torch."""
    word = 2**32 - 1

    def multiply(value: Tensor, factor: int) -> Tensor:
        # in two halves: the product of two 32-bit numbers overflows a signed 64-bit one
        return (((value >> 16) * factor & 0xFFFF) << 16) + (value & 0xFFFF) * factor & word

    value = multiply(index & word, 0x9E3779B1) + (seed & word) & word
    value = multiply(value ^ value >> 16, 0x85EBCA6B)
    value = multiply(value ^ value >> 13, 0xC2B2AE35)
    value = value ^ value >> 16 ^ (seed >> 32 & word)
    value = multiply(value ^ value >> 16, 0x7FEB352D)
    value = multiply(value ^ value >> 15, 0x846CA68B)
    return value ^ value >> 16 >= round(dropout * 2**32)
