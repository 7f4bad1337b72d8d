"""Holding the weights of a model to a recipe while it is trained; knows tensors and updates, not fairseq.

Three ways, each as the recipe asks for it, on the parameters themselves: optimizers and checkpoints stay as they are.

- *Pruning*: what is left out grows by a cubic schedule; it has no gradient and is 0 after every update.
- *Quantization*: forward and backward see the quantized weights, and the gradient is applied to the others, as if
  rounding were the identity (straight-through; Bengio et al. 2013).
- *Codebooks by k-means* are trained in the end: all weights of a level move together. Their gradient is the mean of
  their gradients and after every update each is the mean of them, so what is trained are the levels (Han et al. 2016).
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lite_transformer.compression import apply, pruning
from lite_transformer.compression.quantization import CODEBOOKS, kmeans, linear_values
from lite_transformer.compression.recipes import Recipe
from lite_transformer.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

# A fairseq task that trains by a recipe is called so, followed by the name of the task that it is otherwise; these are
# its options besides that task's.
TASK_PREFIX = "compressed_"
TASK_OPTIONS = (
    "compression_recipe",
    "prune_until",
    "prune_interval",
    "quantize_from",
    "tie_from",
    "compression_updates",
)


@dataclass(frozen=True)
class Plan:
    """When what happens, in updates.

    Attributes:
        prune_until: pruning grows from the first update to this one. prune_interval: updates between two new masks.
        quantize_from: weights are quantized from this update on. tie_from: those of codebooks by k-means keep their
            levels from this update on, and move with them.
    """

    prune_until: int
    prune_interval: int
    quantize_from: int
    tie_from: int

    @classmethod
    def of(cls, updates: int, prune_until: float, prune_interval: int, quantize_from: float, tie_from: float) -> Plan:
        """The plan for so many updates; all but the interval are given as parts of them.

        Raises: ConfigError that names the option that cannot be.
        """
        if updates < 1:
            raise ConfigError("the schedule of a compressed_ task needs optimization.max_update, the number of updates")
        parts = {"prune_until": prune_until, "quantize_from": quantize_from, "tie_from": tie_from}
        for name, part in parts.items():
            if not 0 <= part <= 1:
                raise ConfigError(f"task.{name} is {part}: a part of all updates, from 0 to 1, is needed")
        for (first, begin), (then, end) in itertools.pairwise(parts.items()):
            if end < begin:
                raise ConfigError(
                    f"task.{then} {end} is before task.{first} {begin}: levels are found among the weights that are "
                    "left, and kept when they are found"
                )
        if prune_interval < 1:
            raise ConfigError(f"task.prune_interval is {prune_interval}: at least 1 update is needed")
        return cls(
            round(prune_until * updates), prune_interval, round(quantize_from * updates), round(tie_from * updates)
        )


class Ties:
    """Weights that are to be equal: those of a level, in each of several tensors; zeros are left alone.

    Sums are taken in a fixed order, so that all processes of a group compute the same.
    """

    def __init__(self, codes: Mapping[str, Tensor], zero: Mapping[str, int | None]):
        numbers, count = [], 0
        for name, code in codes.items():
            number = code.flatten().long() + count
            if zero[name] is not None:
                number[code.flatten() == zero[name]] = -1
            numbers.append(number)
            count += int(code.max()) + 1
        together = torch.cat(numbers)
        order = together.argsort(stable=True)
        self._names = list(codes)
        self._order = order[int((together < 0).sum()) :]
        self._lengths = torch.bincount(together[self._order], minlength=count)

    def average(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the weights of each level by their mean, in place."""
        parts = [tensors[name] for name in self._names]
        flat = torch.cat([part.detach().flatten().float() for part in parts])
        means = torch.segment_reduce(flat[self._order], "mean", lengths=self._lengths, unsafe=True)
        flat[self._order] = means.repeat_interleave(self._lengths, output_size=self._order.numel())
        means_of = flat.split([part.numel() for part in parts])
        torch._foreach_copy_(parts, [values.view(part.shape) for values, part in zip(means_of, parts, strict=True)])


class Compressor:
    """Keeps a model on the way to its recipe; the training loop calls it around every update.

    For each batch ``with quantized(model, update):`` around forward and backward, then `project_gradients`; after each
    step of the optimizer `hold`. Validation goes inside ``with as_packed(model):``.
    """

    def __init__(self, recipe: Recipe, plan: Plan):
        self.recipe, self.plan = recipe, plan
        self._masks: dict[str, Tensor] = {}
        self._codes: dict[str, Tensor] = {}
        self._zero: dict[str, int | None] = {}
        self._units: dict[str, float] = {}
        self._sparsity = 0.0
        self._ties: Ties | None = None
        self._packed: dict[str, Tensor] | None = None
        self._levels: dict[str, Tensor] = {}
        self._levels_of = -1

    # --- a step of training ---

    @contextlib.contextmanager
    def quantized(self, model: nn.Module, update: int) -> Iterator[None]:
        """Within it the weights are as the recipe has them at this update; afterwards as the optimizer has them."""
        weights = self._weights(model)
        with torch.no_grad():
            self._advance(weights, update)
            seen = self._straight_through(weights, update) if update >= self.plan.quantize_from else {}
        with _exchanged(weights, seen):
            yield

    def project_gradients(self, model: nn.Module) -> None:
        """Takes out of the gradients what the recipe does not leave free: pruned weights, differences in a level."""
        gradients = {name: weight.grad for name, weight in self._weights(model).items() if weight.grad is not None}
        with torch.no_grad():
            _multiply(gradients, self._masks)
            if self._ties is not None and set(self._codes) <= set(gradients):
                self._ties.average(gradients)

    def hold(self, model: nn.Module) -> None:
        """After a step of the optimizer: what is pruned is 0, and weights of a level are equal."""
        weights = self._weights(model)
        self._packed = None
        with torch.no_grad():
            if self._ties is not None:
                self._ties.average({name: weights[name] for name in self._codes})
            _multiply(weights, self._masks)

    @contextlib.contextmanager
    def as_packed(self, model: nn.Module) -> Iterator[None]:
        """Within it all weights are those that the recipe would make of them now, for validation."""
        weights = self._weights(model)
        if self._packed is None:
            with torch.no_grad():
                self._packed = apply.simulated({name: weight.detach() for name, weight in weights.items()}, self.recipe)
        with _exchanged(weights, self._packed):
            yield

    # --- what happens when ---

    def _advance(self, weights: Mapping[str, Tensor], update: int) -> None:
        """Brings masks and levels to where the plan wants them at this update."""
        chosen = apply.targets(weights, self.recipe)
        due = 0.0
        if self.recipe.prune:
            due = pruning.cubic_sparsity(update, 0, self.plan.prune_until, self.recipe.prune.sparsity)
        regular = update % self.plan.prune_interval == 0 or update >= self.plan.prune_until
        if due > self._sparsity and regular and self.recipe.prune:
            pruned = {name: weights[name] for name in weights if name in chosen.pruned}
            self._units = self._units or pruning.units(pruned, self.recipe.prune.factors)
            self._masks = pruning.masks(pruned, due, self.recipe.prune.method, self._units)
            self._sparsity = due
            _multiply(weights, self._masks)
            logger.info("update %d: %.1f %% of the prunable weights are left out", update, 100 * due)
        if update >= self.plan.tie_from and not self._codes:
            clustered = {name: how.bits for name, how in chosen.quantized.items() if how.method == "kmeans"}
            for name, bits in clustered.items():
                found = kmeans(weights[name], bits)
                weights[name].copy_(found.dense())
                zero = torch.nonzero(found.levels == 0)
                self._codes[name] = found.codes
                self._zero[name] = int(zero[0]) if zero.numel() else None
                if zero.numel() and name not in self._masks:  # zeros of an earlier pruning
                    self._masks[name] = weights[name] != 0
            if clustered:
                self._ties = Ties(self._codes, self._zero)
                logger.info("update %d: the weights of %d tensors are tied to their levels", update, len(clustered))

    def _straight_through(self, weights: Mapping[str, Tensor], update: int) -> dict[str, Tensor]:
        """The quantized values of the weights that are not tied; levels are looked for now and then."""
        if self._levels_of < 0 or update >= self._levels_of + self.plan.prune_interval:
            self._levels, self._levels_of = {}, update
        found: dict[str, Tensor] = {}
        together: dict[int, list[str]] = {}
        for name, how in apply.targets(weights, self.recipe).quantized.items():
            if how.method == "linear":
                together.setdefault(how.bits, []).append(name)
            elif name not in self._codes:
                codes = CODEBOOKS[how.method](weights[name], how.bits, self._levels.get(name))
                self._levels[name] = codes.levels
                found[name] = codes.dense()
        for bits, names in together.items():
            found |= zip(names, linear_values([weights[name] for name in names], bits), strict=True)
        return found

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The parameters by name, shared ones once."""
        return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    # --- checkpoints ---

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on: masks, levels, what magnitudes are measured in; tensors on the CPU."""
        return {
            "recipe": self.recipe.to_json(),
            "masks": {name: mask.cpu() for name, mask in self._masks.items()},
            "codes": {name: codes.cpu() for name, codes in self._codes.items()},
            "zero": dict(self._zero),
            "units": dict(self._units),
            "sparsity": self._sparsity,
            "levels": {name: levels.cpu() for name, levels in self._levels.items()},
            "levels_of": self._levels_of,
        }

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Goes on from a checkpoint. Raises: CheckpointError if it was made with another recipe or model."""
        if state.get("recipe") != self.recipe.to_json():
            raise CheckpointError(
                "the checkpoint was trained with another recipe than task.compression_recipe: go on with that one, or "
                "start from its weights in another folder with checkpoint.finetune_from_model"
            )
        weights = self._weights(model)
        for part in ("masks", "codes"):
            for name, held in state[part].items():
                if name not in weights or weights[name].shape != held.shape:
                    raise CheckpointError(f"the checkpoint's {part} do not fit the model ({name})")
        self._masks = {name: mask.to(weights[name].device) for name, mask in state["masks"].items()}
        self._codes = {name: codes.to(weights[name].device) for name, codes in state["codes"].items()}
        self._zero, self._units = dict(state["zero"]), dict(state["units"])
        self._sparsity = state["sparsity"]
        # a checkpoint from before levels were kept looks for them anew
        held = {name: levels for name, levels in state.get("levels", {}).items() if name in weights}
        self._levels = {name: levels.to(weights[name].device) for name, levels in held.items()}
        self._levels_of = state.get("levels_of", -1)
        self._ties = Ties(self._codes, self._zero) if self._codes else None


def _multiply(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    """Multiplies the tensors that have a mask by it, in place and in one go."""
    names = [name for name in masks if name in tensors]
    if names:
        torch._foreach_mul_([tensors[name] for name in names], [masks[name] for name in names])


@contextlib.contextmanager
def _exchanged(weights: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it the weights named in ``values`` have these values, in the same memory."""
    with torch.no_grad():
        kept = {name: weights[name].detach().clone() for name in values}
        for name, value in values.items():
            weights[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                weights[name].copy_(value)
