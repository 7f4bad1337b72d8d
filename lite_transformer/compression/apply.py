"""Compressing the weights of a model by a recipe, and getting them back."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lite_transformer.compression import pruning, tensors
from lite_transformer.compression.quantization import METHODS
from lite_transformer.compression.recipes import Quantization, Recipe
from lite_transformer.compression.tensors import Raw

# fairseq's names, old and new, for what the paper's accounting leaves out; adaptive input and softmax, too.
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|embed_positions|output_projection|embed_out|adaptive_softmax)(\.|$)")


def is_embedding(name: str) -> bool:
    """Whether a parameter belongs to embeddings, learned positions or the output matrix, not to the core."""
    return bool(_EMBEDDINGS.search(name))


@dataclass(frozen=True)
class Targets:
    """The parameters that a recipe changes, by name; names that share one tensor occur once.

    Attributes:
        quantized: with how each becomes codes. pruned: of which weights are left out.
    """

    quantized: Mapping[str, Quantization]
    pruned: frozenset[str]


def targets(weights: Mapping[str, Tensor], recipe: Recipe) -> Targets:
    """What a recipe does to which of the weights (without repetitions of shared ones)."""
    quantized = {}
    for name, weight in weights.items():
        how = recipe.embeddings if is_embedding(name) else recipe.core
        matrix = weight.is_floating_point() and weight.dim() > 1 and weight.numel() >= recipe.min_elements
        if matrix and how.method != "none":
            quantized[name] = how
    pruned = [name for name in quantized if recipe.prune and (recipe.prune.embeddings or not is_embedding(name))]
    return Targets(quantized, frozenset(pruned))


def shared_names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """For every name the first one that means the same parameter, mostly itself.

    Checkpoints hold a table shared by encoder, decoder and output matrix up to three times, as copies: embeddings of
    the same bytes are taken for one.
    """
    first: dict[tuple[Any, ...], str] = {}
    found = {}
    for name, weight in weights.items():
        found[name] = name
        if is_embedding(name) and weight.numel() > 1:
            data = weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            key = (weight.dtype, tuple(weight.shape), hashlib.sha256(data.data).digest())
            found[name] = first.setdefault(key, name)
    return found


def prune(weights: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """The weights, those pruned as new tensors. What is 0 already counts as left out."""
    pruned = targets(weights, recipe).pruned
    if recipe.prune is None or not pruned:
        return dict(weights)
    chosen = {name: weights[name] for name in pruned}
    unit = pruning.units(chosen, recipe.prune.factors)
    keep = pruning.masks(chosen, recipe.prune.sparsity, recipe.prune.method, unit)
    return {name: weight * keep[name] if name in keep else weight for name, weight in weights.items()}


def compress(
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> dict[str, tensors.Tensor]:
    """The weights as a packed file holds them, in their order; names that share a tensor share the result.

    Raises: UnsupportedInputError for weights that are not finite.
    """
    shared = shared_names(weights)
    single = prune({name: weight for name, weight in weights.items() if shared[name] == name}, recipe)
    quantized = targets(single, recipe).quantized
    done: dict[str, tensors.Tensor] = {}
    for name, weight in progress(list(single.items())):
        how = quantized.get(name)
        done[name] = _kept(weight, recipe.rest) if how is None else METHODS[how.method](weight, how.bits).packed()
    return {name: done[shared[name]] for name in weights}


def simulated(weights: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Tensor]:
    """The weights that `dense` would give after `compress`, computed where they are; only those that change.

    ``weights``: shared ones once.
    """
    pruned = prune(weights, recipe)
    return {
        name: METHODS[how.method](pruned[name], how.bits).dense()
        for name, how in targets(pruned, recipe).quantized.items()
    }


def _kept(weight: Tensor, rest: str) -> Raw:
    """Whole numbers as they are, others in the precision given, or in fp32 if they do not fit into half."""
    if weight.is_floating_point():
        half = weight.half()
        weight = half if rest == "float16" and bool(torch.isfinite(half).all()) else weight.float()
    return Raw(weight.detach().cpu().numpy())


def dense(packed: Mapping[str, tensors.Tensor]) -> dict[str, Tensor]:
    """The weights that a packed file stands for, on the CPU; shared ones share their memory."""
    found: dict[int, Tensor] = {}
    for item in packed.values():
        if id(item) not in found:
            found[id(item)] = torch.from_numpy(item.dense())
    return {name: found[id(item)] for name, item in packed.items()}
