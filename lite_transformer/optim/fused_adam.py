"""Adam in a handful of kernels: ``--optimizer fused_adam``.

fairseq's Adam walks over the parameters in Python and launches about ten kernels for each; for a small model that is
two thirds of all launches of a training step, and such a step waits for launches, not for arithmetic. torch's fused
AdamW is the same update (decoupled weight decay, Loshchilov and Hutter 2019) in one launch for many parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from fairseq.optim import FairseqOptimizer, register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import Tensor


@dataclass
class FusedAdamConfig(FairseqAdamConfig):
    """The options of fairseq's Adam."""


@register_optimizer("fused_adam", dataclass=FusedAdamConfig)
class FusedAdam(FairseqAdam):
    """fairseq's Adam, computed by torch's fused AdamW.

    Differs from it in one place: epsilon is added after the bias correction of the second moment, not before.
    """

    def __init__(self, cfg: FusedAdamConfig, params):
        FairseqOptimizer.__init__(self, cfg)
        self._optimizer = torch.optim.AdamW(params, fused=True, **self.optimizer_config)

    @property
    def supports_flat_params(self) -> bool:
        return True

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the norm of all gradients, before clipping; scales them down to ``max_norm`` if that is > 0."""
        grads = [p.grad.detach() for p in self.params if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads) if grads else torch.tensor(0.0)
        if aggregate_norm_fn is not None:
            norm = aggregate_norm_fn(norm)
        if max_norm > 0 and grads:
            torch._foreach_mul_(grads, (max_norm / (norm + 1e-6)).clamp(max=1))
        return norm
