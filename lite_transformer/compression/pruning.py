"""Leaving out the smallest weights, one by one: how many, which, and when during training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from lite_transformer.errors import ConfigError

PRUNING_METHODS = ("sensitivity", "global")


def units(weights: Mapping[str, Tensor], factors: Mapping[str, float] | None = None) -> dict[str, float]:
    """What magnitudes of each tensor are measured in, by sensitivity: the standard deviation of its weights.

    Args:
        weights: before anything of them is pruned.
        factors: of tensors whose name fits a pattern (such as ``*.fc1.weight``), the first one that does: less than 1
            for tensors that bear pruning badly.
    """
    found = {}
    for name, weight in weights.items():
        factor = next((number for pattern, number in (factors or {}).items() if fnmatchcase(name, pattern)), 1.0)
        found[name] = factor * float(weight.detach().float().std(unbiased=False))
    return found


def masks(
    weights: Mapping[str, Tensor],
    sparsity: float,
    method: str = "sensitivity",
    measured_in: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """What to keep of each tensor (bool, True = kept) so that ``sparsity`` of all weights together is left out.

    global: the smallest magnitudes of all tensors. sensitivity: magnitudes are measured in the standard deviation of
    their tensor, so a tensor's threshold is s times its deviation with one s for all (Han et al. 2015; Distiller's
    sensitivity pruner), and s is what gives the sparsity. Of equal magnitudes the first ones go.

    Args:
        measured_in: see `units`, by default those of ``weights``; of sensitivity alone.
    Raises: ConfigError for an unknown method or a sparsity outside [0, 1].
    """
    if method not in PRUNING_METHODS:
        raise ConfigError(f"unknown pruning method '{method}'. Known: {', '.join(PRUNING_METHODS)}")
    if not 0 <= sparsity <= 1:
        raise ConfigError(f"sparsity {sparsity}: a number from 0 to 1 is needed")
    unit: Mapping[str, float] = dict.fromkeys(weights, 1.0)
    if method == "sensitivity":
        unit = measured_in or units(weights)
    sizes = {name: weight.detach().float().abs() / (unit[name] or 1.0) for name, weight in weights.items()}
    together = torch.cat([size.flatten() for size in sizes.values()]) if sizes else torch.empty(0)
    left_out = round(sparsity * together.numel())
    kept = torch.ones_like(together, dtype=torch.bool)
    kept[together.argsort(stable=True)[:left_out]] = False
    parts = kept.split([size.numel() for size in sizes.values()])
    return {name: part.view(sizes[name].shape) for name, part in zip(sizes, parts, strict=True)}


def cubic_sparsity(update: int, start: int, end: int, final: float) -> float:
    """The sparsity that is due at an update: 0 before ``start``, ``final`` from ``end`` on, fast at first between.

    Source: Zhu and Gupta 2017, "To prune, or not to prune", equation 1.
    """
    if update < start:
        return 0.0
    if update >= end:
        return final
    return final * (1 - (1 - (update - start) / (end - start)) ** 3)


def sparsity(weights: Iterable[Tensor]) -> float:
    """The part of the weights that is 0."""
    weights = list(weights)
    total = sum(weight.numel() for weight in weights)
    return sum(int((weight == 0).sum()) for weight in weights) / total if total else 0.0


def scan(
    weights: Mapping[str, Tensor],
    score: Callable[[], float],
    sparsities: Sequence[float],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, list[float]]:
    """How much each tensor matters: the score with that tensor alone pruned to each sparsity, by name.

    The tensors are changed in place, and are as before in the end. ``score`` computes something of the model that holds
    them; ``progress`` may show how far the work is.
    """
    found: dict[str, list[float]] = {name: [] for name in weights}
    for name, wanted in progress([(name, wanted) for name in weights for wanted in sparsities]):
        weight = weights[name]
        dense = weight.detach().clone()
        with torch.no_grad():
            weight.mul_(masks({name: dense}, wanted)[name])
            try:
                found[name].append(score())
            finally:
                weight.copy_(dense)
    return found
