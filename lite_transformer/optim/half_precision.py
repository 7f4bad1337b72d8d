"""fairseq's half-precision optimizer, with all parameters copied at once.

Under ``--fp16`` and ``--bf16`` fairseq keeps fp32 weights beside the model's and copies gradients there and weights
back one parameter at a time, and under ``--bf16`` it also clears and updates them one at a time ('faster on TPUs').
That is about 1,000 launches a step for 300 parameters, more than all the rest of a step through CUDA graphs.

The arithmetic is fairseq's, bit for bit: only the copies are grouped. Importing this module makes fairseq's trainer use
it.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq import optim
from fairseq.optim.fp16_optimizer import FP16Optimizer
from torch import Tensor


class GroupedFP16Optimizer(FP16Optimizer):
    """fairseq's FP16Optimizer; on a GPU ``--bf16`` with ``fused_adam`` keeps the fp32 weights in one tensor too.

    fairseq does that under ``--fp16`` only. ``--fp16-no-flatten-grads`` keeps them apart in both.
    """

    # model parameters, and the places of each in the flat weights and in their gradients; what these were cut from
    _cut: tuple[list[Tensor], list[Tensor], list[Tensor]] | None = None
    _cut_from: list[int] | None = None
    _needs_sync: bool

    @classmethod
    def build_optimizer(cls, cfg: Any, params: Any, **kwargs: Any) -> FP16Optimizer:
        """As fairseq's."""
        params = list(params)
        if not _keeps_apart_needlessly(cfg, params):
            return super().build_optimizer(cfg, params, **kwargs)
        flat = cls.build_fp32_params(cfg.optimizer, params, flatten=True)
        return cls(cfg, params, optim.build_optimizer(cfg.optimizer, [flat]), flat, **kwargs)

    def _places(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        flats = list(self.fp32_params.values())
        addresses = [tensor.data_ptr() for flat in flats for tensor in (flat, flat.grad)]
        if self._cut is None or self._cut_from != addresses:
            parameters: list[Tensor] = []
            weights: list[Tensor] = []
            gradients: list[Tensor] = []
            for device, flat in self.fp32_params.items():
                # the order in which fairseq fills them
                there = [p for p in self.fp16_params if len(flats) == 1 or p.device.index == device]
                sizes = [p.numel() for p in there]
                parameters += there
                for whole, cut in ((flat.data, weights), (flat.grad.data, gradients)):
                    cut += [part.view_as(p) for part, p in zip(whole.split(sizes), there, strict=True)]
            self._cut, self._cut_from = (parameters, weights, gradients), addresses
        return self._cut

    def _sync_fp16_grads_to_fp32(self) -> None:
        if not self.has_flat_params:
            super()._sync_fp16_grads_to_fp32()
        elif self._needs_sync:
            parameters, _, places = self._places()
            found = [(place, p.grad) for place, p in zip(places, parameters, strict=True) if p.grad is not None]
            missing = [place for place, p in zip(places, parameters, strict=True) if p.grad is None]
            with torch.no_grad():
                if missing:
                    torch._foreach_zero_(missing)
                if found:
                    torch._foreach_copy_([place for place, _ in found], [gradient for _, gradient in found])
            self._needs_sync = False

    def _sync_fp32_params_to_fp16(self) -> None:
        if not self.has_flat_params:
            super()._sync_fp32_params_to_fp16()
            return
        parameters, places, _ = self._places()
        with torch.no_grad():
            torch._foreach_copy_(parameters, places)


def _keeps_apart_needlessly(cfg: Any, params: list[Tensor]) -> bool:
    """Whether fairseq would take one fp32 tensor a parameter where one for all would do."""
    return (
        cfg.common.bf16
        and not cfg.common.tpu
        and not cfg.common.fp16_no_flatten_grads
        and cfg.distributed_training.zero_sharding != "os"
        and cfg.distributed_training.ddp_backend != "fully_sharded"
        and cfg.optimizer._name == "fused_adam"
        and all(p.is_cuda and p.requires_grad for p in params)
    )


optim.FP16Optimizer = GroupedFP16Optimizer
