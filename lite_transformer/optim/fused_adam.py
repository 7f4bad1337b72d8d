"""Adam in a handful of kernels: ``--optimizer fused_adam``.

fairseq's Adam walks over the parameters in Python and launches about ten kernels for each; for a small model that is
two thirds of all launches of a training step, and such a step waits for launches, not for arithmetic. torch's fused
AdamW is the same update (decoupled weight decay, Loshchilov and Hutter 2019) in one launch for many parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import Tensor

from lite_transformer.errors import ConfigError


@dataclass
class FusedAdamConfig(FairseqAdamConfig):
    """The options of fairseq's Adam, and one more."""

    wait_for_gpu: bool = field(
        default=False, metadata={"help": "wait for the GPU at every update, as with fairseq's optimizers"}
    )


@register_optimizer("fused_adam", dataclass=FusedAdamConfig)
class FusedAdam(FairseqAdam):
    """fairseq's Adam, computed by torch's fused AdamW.

    Differs from it in one place: epsilon is added after the bias correction of the second moment, not before.

    Works with ``--fp16``, ``--bf16`` and ``--amp``; under ``--amp`` gradients that overflowed are skipped on the GPU,
    without waiting for it. Not with ``--memory-efficient-fp16``: state and parameters have one type here, and half
    precision is too short for the state.

    Raises: ConfigError for ``--fp16-adam-stats``, which it has not.
    """

    # torch's GradScaler leaves gradients that were unscaled before (for clipping) as they are, and hands over whether
    # any is infinite. Without it, it would unscale them again: fairseq shows it two objects for one optimizer.
    _step_supports_amp_scaling = True
    found_inf: Tensor | None = None

    def __init__(self, cfg: FusedAdamConfig, params):
        FairseqOptimizer.__init__(self, cfg)
        if cfg.fp16_adam_stats:
            raise ConfigError("--optimizer fused_adam keeps no fp16 statistics: leave --fp16-adam-stats out")
        self._optimizer = torch.optim.AdamW(params, fused=True, **self.optimizer_config)

    @property
    def supports_flat_params(self) -> bool:
        return True

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        return False

    def step(self, closure: Callable[[], float] | None = None, scale: float = 1.0, groups: Any = None) -> None:
        """One update; none where GradScaler found an infinite gradient."""
        self._optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
        super().step(closure, scale, groups)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for parameter in self.params:
            parameter.grad = None

    def multiply_grads(self, c: float | Tensor) -> None:
        """Multiplies all gradients by c."""
        grads = [parameter.grad for parameter in self.params if parameter.grad is not None]
        if grads:
            torch._foreach_mul_(grads, c.to(grads[0].device) if isinstance(c, Tensor) else c)

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the norm of all gradients, before clipping; scales them down to ``max_norm`` if that is > 0."""
        grads = [p.grad.detach() for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.tensor(0.0)
        if aggregate_norm_fn is not None:
            norm = aggregate_norm_fn(norm)
        if max_norm > 0 and grads:
            torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1))
        return norm
