"""fairseq's training step without waiting for the GPU at every update.

fairseq's trainer reads the norm of the gradients before it updates, and the losses after it, so that the host launches
nothing while the GPU computes, and the GPU does nothing while the host prepares the next update: a third of a small
model's step. With `fused_adam` on one GPU, in fp32 and bf16:

- the trainer gets the norm of the update before, and so logs it; an update whose own norm is not finite is left out on
  the GPU, and the trainer stops, as ever, with its FloatingPointError, one update later;
- losses stay on the GPU until they are logged; what ``Trainer.train_step`` returns has none.

``--wait-for-gpu`` (``optimizer.wait_for_gpu=true``) gives fairseq's way back. Loss scaling (fp16, amp) always waits,
and so do several GPUs, which compare their norms. Importing this module makes fairseq's trainer do so.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairseq.logging.meters import MetersDict
from fairseq.trainer import Trainer
from torch import Tensor

from lite_transformer.optim.fused_adam import FusedAdam


class LateNorms:
    """Takes the norm of each update on a device, gives that of the one before on the host, without a wait for both."""

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, norm: Tensor) -> Tensor:
        """The last norm that was given, on the CPU; the first time ``norm`` itself."""
        copy = torch.empty_like(norm, device="cpu", pin_memory=norm.is_cuda)
        copy.copy_(norm, non_blocking=True)
        event = None
        if norm.is_cuda:
            event = torch.cuda.Event()
            event.record()
        last, self._waiting = self._waiting or (copy, event), (copy, event)
        if last[1] is not None:
            last[1].synchronize()
        return last[0]


_late: weakref.WeakKeyDictionary[Trainer, LateNorms] = weakref.WeakKeyDictionary()
_clip_grad_norm = Trainer.clip_grad_norm
_reduce_and_log_stats = Trainer._reduce_and_log_stats


def on_one_gpu(trainer: Trainer) -> bool:
    """Whether there is a GPU to wait for, and no other process that waits for this one."""
    return trainer.cuda and trainer.data_parallel_world_size == 1 and not trainer.is_fsdp


def running_ahead(trainer: Trainer) -> FusedAdam | None:
    """The optimizer of a trainer that need not wait for the GPU; None of one that has to."""
    optimizer = trainer.optimizer
    inner = getattr(optimizer, "fp32_optimizer", optimizer)
    if not isinstance(inner, FusedAdam) or inner.cfg.wait_for_gpu or getattr(optimizer, "scaler", None) is not None:
        return None
    return inner if on_one_gpu(trainer) else None


def clip_grad_norm(trainer: Trainer, clip_norm: float) -> Tensor:
    """As fairseq's; returns the norm of the update before where the trainer runs ahead."""
    norm = _clip_grad_norm(trainer, clip_norm)
    optimizer = running_ahead(trainer)
    if optimizer is None:
        return norm
    optimizer.found_inf = (~torch.isfinite(norm)).float()
    return _late.setdefault(trainer, LateNorms()).exchange(norm.detach())


def reduce_and_log_stats(trainer: Trainer, logging_outputs: Any, sample_size: Any, grad_norm: Any = None) -> Any:
    """As fairseq's; reads no values of training where the trainer runs ahead."""
    if grad_norm is None or running_ahead(trainer) is None:
        return _reduce_and_log_stats(trainer, logging_outputs, sample_size, grad_norm)
    with _values_unread():
        return _reduce_and_log_stats(trainer, logging_outputs, sample_size, grad_norm)


@contextmanager
def _values_unread() -> Iterator[None]:
    read = MetersDict.get_smoothed_values
    MetersDict.get_smoothed_values = lambda _: OrderedDict()
    try:
        yield
    finally:
        MetersDict.get_smoothed_values = read


Trainer.clip_grad_norm = clip_grad_norm
Trainer._reduce_and_log_stats = reduce_and_log_stats
