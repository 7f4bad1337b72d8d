"""From a branch's description to its module: the one registry of branch kinds."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lite_transformer.errors import ConfigError
from lite_transformer.modules.attention import MultiheadAttention
from lite_transformer.modules.convolution import DynamicConv, LightweightConv

BRANCH_KINDS = ("attention", "lightweight", "dynamic")


@dataclass(frozen=True)
class BranchConfig:
    """One branch of a Long-Short Range Attention layer.

    ``kernel_size`` is K of the layer at hand (unused by attention); the rest as in `ShortRangeConv`.
    """

    kind: str
    embed_dim: int
    num_heads: int
    kernel_size: int
    causal: bool
    attention_dropout: float = 0.0
    weight_dropout: float = 0.0
    weight_softmax: bool = True
    gate: bool = False
    linear: bool = True
    mask_after_gate: bool = True
    backend: str = "auto"


def build_branch(config: BranchConfig) -> nn.Module:
    """The module of a branch. Raises ConfigError for an unknown kind or sizes that do not fit."""
    if config.kind == "attention":
        return MultiheadAttention(
            config.embed_dim, config.num_heads, dropout=config.attention_dropout, backend=config.backend
        )
    if config.kind not in BRANCH_KINDS:
        raise ConfigError(f"unknown branch kind '{config.kind}'; known kinds: {', '.join(BRANCH_KINDS)}")
    conv = LightweightConv if config.kind == "lightweight" else DynamicConv
    return conv(
        config.embed_dim,
        config.kernel_size,
        config.num_heads,
        config.causal,
        weight_dropout=config.weight_dropout,
        weight_softmax=config.weight_softmax,
        # The lightweight convolution of the paper has no gate.
        gate=config.gate and config.kind == "dynamic",
        linear=config.linear,
        mask_after_gate=config.mask_after_gate,
        backend=config.backend,
    )
