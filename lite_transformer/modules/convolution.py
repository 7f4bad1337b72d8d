"""The short-range branch: project, gate, convolve over time, project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lite_transformer import ops
from lite_transformer.errors import ConfigError
from lite_transformer.modules.incremental import IncrementalModule, IncrementalState
from lite_transformer.modules.linear import by_rows, xavier_linear


class ShortRangeConv(IncrementalModule):
    """What lightweight and dynamic convolution share: the projections, the gate, the mask, the step buffer.

    Args:
        embed_dim: C, channels of the branch.
        kernel_size: K.
        num_heads: H; the C / H channels of a head share a kernel.
        causal: see only the past (decoder); otherwise the kernel is centred (encoder) and K must be odd.
        weight_dropout: DropConnect on the normalised kernel.
        weight_softmax: normalise the kernel over its K taps.
        gate: follow the first projection, twice as wide, by a gated linear unit.
        linear: have the two projections at all.
        mask_after_gate: zero padded positions just before the convolution, so that padding cannot reach real
            tokens; False zeroes them before the first projection, as the published checkpoints were trained.
        backend: of the convolution: 'auto', 'triton' or 'reference', as in `ops.lightweight_conv`. It says how fast,
            not what.
    Raises: ConfigError naming the value that does not fit.
    Source: Lite Transformer, section 4; Wu et al. 2019.
    """

    batch_dims: ClassVar[dict[str, int]] = {"window": 1}
    convolution: Callable[..., Tensor]

    def __init__(
        self,
        embed_dim: int,
        kernel_size: int,
        num_heads: int,
        causal: bool,
        weight_dropout: float = 0.0,
        weight_softmax: bool = True,
        gate: bool = False,
        linear: bool = True,
        mask_after_gate: bool = True,
        backend: str = "auto",
    ):
        super().__init__()
        if backend not in ops.BACKENDS:
            raise ConfigError(f"unknown convolution backend '{backend}'; known: {', '.join(ops.BACKENDS)}")
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ConfigError(f"{num_heads} heads do not divide a convolution branch of {embed_dim} channels")
        if kernel_size < 1:
            raise ConfigError(f"kernel size {kernel_size} is not a positive number")
        if not causal and kernel_size % 2 == 0:
            raise ConfigError(f"kernel size {kernel_size} is even: a centred (encoder) convolution needs an odd one")
        if gate and not linear:
            raise ConfigError("a gate needs the branch's linear layers: drop no_conv_linear or set the gate to none")
        self.embed_dim = embed_dim
        self.kernel_size = kernel_size
        self.num_heads = num_heads
        self.causal = causal
        self.left_padding = kernel_size - 1 if causal else kernel_size // 2
        self.weight_dropout = weight_dropout
        self.weight_softmax = weight_softmax
        self.gate = gate
        self.mask_after_gate = mask_after_gate
        self.backend = backend
        self.linear1: nn.Linear | None = None
        self.linear2: nn.Linear | None = None
        if linear:
            self.linear1 = xavier_linear(embed_dim, embed_dim * (2 if gate else 1), backend=backend)
            self.linear2 = xavier_linear(embed_dim, embed_dim, backend=backend)

    def kernels(self, x: Tensor) -> Tensor:
        """The unnormalised kernels for the gated input x: (T, B, C); the last dimension of the result is K."""
        raise NotImplementedError

    def convolve_step(self, window: Tensor, kernels: Tensor) -> Tensor:
        """(N, B, C) -> (1, B, C) at the newest position."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        incremental_state: IncrementalState | None = None,
    ) -> Tensor:
        """Returns (T, B, C).

        Args:
            x: (T, B, C); with an incremental state one step, T = 1.
            padding_mask: (B, T) bool, True = padding.
        """
        if padding_mask is not None and not self.mask_after_gate:
            x = x.masked_fill(padding_mask.transpose(0, 1).unsqueeze(2), 0)
            padding_mask = None
        if incremental_state is not None:
            return self._step(x, padding_mask, incremental_state)
        if self.linear1 is not None:
            x = by_rows(self.linear1, x)
            if self.gate:
                x = F.glu(x, dim=-1)
        x = type(self).convolution(
            x,
            self.kernels(x),
            self.left_padding,
            weight_softmax=self.weight_softmax,
            weight_dropout=self.weight_dropout if self.training else 0.0,
            padding_mask=padding_mask,
            backend=self.backend,
        )
        return x if self.linear2 is None else self.linear2(x)

    def step_kernels(self, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """The normalised kernels (1, B, H, K) or (H, K) of a step, for its gated input x: (1, B, C)."""
        raise NotImplementedError

    def _normalised(self, kernels: Tensor) -> Tensor:
        return torch.softmax(kernels, dim=-1) if self.weight_softmax else kernels

    def _step_constants(self) -> dict[str, Tensor]:
        """The projections as matrices that one product takes, (C, C') and (C')."""
        constants: dict[str, Tensor] = {}
        for name, layer in (("1", self.linear1), ("2", self.linear2)):
            if layer is not None:
                constants |= {f"weight{name}": layer.weight.t(), f"bias{name}": layer.bias}
        return constants

    def _step(self, x: Tensor, padding_mask: Tensor | None, incremental_state: IncrementalState) -> Tensor:
        """The whole branch at the newest position: (1, B, C) -> (1, B, C)."""
        if not self.causal:
            raise ConfigError("a centred convolution cannot be decoded step by step: it sees the future")
        constants = self.constants(incremental_state, self._step_constants)
        weight1, weight2 = constants.get("weight1"), constants.get("weight2")
        if weight1 is not None:
            projected = torch.addmm(constants["bias1"], x.squeeze(0), weight1)
            x = (F.glu(projected, dim=-1) if self.gate else projected).unsqueeze(0)
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.transpose(0, 1).unsqueeze(2), 0)
        kernels = self.step_kernels(x, constants)
        if self.training:
            kernels = F.dropout(kernels, self.weight_dropout)
        previous = self.read_buffer(incremental_state).get("window")
        window = x if previous is None else torch.cat([previous, x])
        # The K - 1 newest inputs are all that the next step can see.
        kept = window if window.size(0) < self.kernel_size else window[window.size(0) - self.kernel_size + 1 :]
        self.write_buffer(incremental_state, {"window": kept})
        out = self.convolve_step(window, kernels)
        return out if weight2 is None else torch.addmm(constants["bias2"], out.squeeze(0), weight2).unsqueeze(0)

    def extra_repr(self) -> str:
        where = "causal" if self.causal else "centred"
        return f"{self.embed_dim}, kernel_size={self.kernel_size}, num_heads={self.num_heads}, {where}"


class LightweightConv(ShortRangeConv):
    """The same H kernels at every position: ``weight`` of shape (H, K). Source: Wu et al. 2019, section 3."""

    convolution = staticmethod(ops.lightweight_conv)

    def __init__(self, embed_dim: int, kernel_size: int, num_heads: int, causal: bool, **options):
        super().__init__(embed_dim, kernel_size, num_heads, causal, **options)
        self.weight = nn.Parameter(torch.empty(num_heads, kernel_size))
        nn.init.xavier_uniform_(self.weight)

    def kernels(self, x: Tensor) -> Tensor:
        return self.weight

    def _step_constants(self) -> dict[str, Tensor]:
        return {**super()._step_constants(), "kernels": self._normalised(self.weight)}

    def step_kernels(self, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """Those of every step."""
        return constants["kernels"]

    def convolve_step(self, window: Tensor, kernels: Tensor) -> Tensor:
        return ops.lightweight_conv_step(window, kernels)


class DynamicConv(ShortRangeConv):
    """Kernels predicted at each position from the gated input itself. Source: Wu et al. 2019, section 4."""

    convolution = staticmethod(ops.dynamic_conv)

    def __init__(self, embed_dim: int, kernel_size: int, num_heads: int, causal: bool, **options):
        super().__init__(embed_dim, kernel_size, num_heads, causal, **options)
        self.weight_linear = xavier_linear(embed_dim, num_heads * kernel_size, bias=False, backend=self.backend)

    def kernels(self, x: Tensor) -> Tensor:
        return self.weight_linear(x).view(x.size(0), x.size(1), self.num_heads, self.kernel_size)

    def _step_constants(self) -> dict[str, Tensor]:
        return {**super()._step_constants(), "generator": self.weight_linear.weight.t()}

    def step_kernels(self, x: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        logits = torch.mm(x.squeeze(0), constants["generator"])
        return self._normalised(logits.view(1, -1, self.num_heads, self.kernel_size))

    def convolve_step(self, window: Tensor, kernels: Tensor) -> Tensor:
        return ops.dynamic_conv_step(window, kernels)
