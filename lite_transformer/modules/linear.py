"""Linear layers with the initialisation of the paper's code."""

from __future__ import annotations

import math

from torch import Tensor, nn


def xavier_linear(in_features: int, out_features: int, bias: bool = True, widened: bool = False) -> nn.Linear:
    """A linear layer with xavier-uniform weights and zero bias.

    Args:
        widened: take fan_out as 2 * fan_in, as the IWSLT architecture does for its flat feed-forward layer: the
            weights then start as small as those of a layer that widens by two.
    """
    layer = nn.Linear(in_features, out_features, bias=bias)
    if widened:
        bound = math.sqrt(6.0 / (in_features + 2 * in_features))
        nn.init.uniform_(layer.weight, -bound, bound)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def by_rows(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer`` of (N, B, C), row by row: on a slice of channels torch adds the bias in a pass of its own."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
