"""Linear layers with the initialisation of the paper's code."""

from __future__ import annotations

import math

from torch import Tensor, nn

from lite_transformer import ops


class Linear(nn.Linear):
    """torch's linear layer; ``backend`` says where its bias gradient comes from, see `ops.linear`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, backend: str = "auto"):
        super().__init__(in_features, out_features, bias)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return ops.linear(x, self.weight, self.bias, backend=self.backend)


def xavier_linear(
    in_features: int, out_features: int, bias: bool = True, widened: bool = False, backend: str = "auto"
) -> Linear:
    """A linear layer with xavier-uniform weights and zero bias.

    Args:
        widened: take fan_out as 2 * fan_in, as the IWSLT architecture does for its flat feed-forward layer: the
            weights then start as small as those of a layer that widens by two.
        backend: as in `ops.linear`.
    """
    layer = Linear(in_features, out_features, bias, backend=backend)
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
