"""The typed configuration of the language models, as `config` has it for translation; the same rules hold.

A language model is a decoder alone, so its options bear the decoder's names, as fairseq's own language models have it.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, List, Optional

from fairseq.dataclass import ChoiceEnum
from fairseq.models.transformer import TransformerConfig
from omegaconf import II

from lite_transformer.models.config import BranchOptions, FlatConfig, _option

_FIRST_KERNELS = (15, 15, 31, 31, 31, 31)
_LAST_KERNEL = 63
_DEFAULT_POSITIONS = 1024


def default_lm_kernel_sizes(layers: int) -> list[int]:
    """15 twice, 31 four times, then 63, for the given number of layers: the published list of the language model."""
    return [_FIRST_KERNELS[i] if i < len(_FIRST_KERNELS) else _LAST_KERNEL for i in range(layers)]


def cutoff_problems(cutoffs: Sequence[int], option: str, types: int | None = None) -> list[str]:
    """What is wrong with the bands that a vocabulary is cut into; with ``types``, whether the vocabulary is longer."""
    text = ",".join(map(str, cutoffs))
    if not cutoffs or any(cutoff < 1 for cutoff in cutoffs) or sorted(set(cutoffs)) != list(cutoffs):
        return [f"{option} {text or '(empty)'}: write growing numbers of types, such as 20000,60000"]
    if types is not None and cutoffs[-1] > types:
        return [
            f"{option} {text} does not fit a vocabulary of {types} types: the last cutoff must not be above "
            "it, what is left over is the last band"
        ]
    ends = [0, *cutoffs, *([types] if types is not None and types > cutoffs[-1] else [])]
    if any(end - start < 2 for start, end in pairwise(ends)):  # fairseq zeroes the second row of every table
        return [f"{option} {text}: a band of one type{'' if types is None else f' ({types} in all)'}; each needs two"]
    return []


@dataclass
class TransformerLMConfig(FlatConfig):
    """A Transformer language model, pre-norm; with the cutoffs, the one with Adaptive Inputs (Baevski and Auli 2019).

    Layer norms stand before the sublayers always; none follows the last layer, unless ``final_norm``.
    """

    decoder_embed_dim: int = _option(512, "channels")
    decoder_ffn_embed_dim: Optional[int] = _option(2048, "hidden channels of the feed-forward layers")
    decoder_layers: int = _option(12, "number of layers")
    decoder_attention_heads: int = _option(8, "heads of the self-attention")
    final_norm: bool = _option(False, "layer norm after the last layer; the published models have none")

    adaptive_input_cutoff: Optional[List[int]] = _option(
        None, "adaptive input: the vocabulary is cut into bands here, rarer ones get narrower embeddings"
    )
    adaptive_softmax_cutoff: Optional[List[int]] = _option(
        None, "adaptive softmax with these bands; train it with the criterion adaptive_loss"
    )
    adaptive_factor: float = _option(4.0, "a band's embeddings are this many times narrower than the last one's")
    adaptive_softmax_dropout: float = _option(0.0, "dropout on the adaptive softmax's input and its narrow bands")
    untie_adaptive_weights: bool = _option(False, "tables of adaptive input and adaptive softmax of their own")
    untie_adaptive_proj: bool = _option(False, "projections of adaptive input and adaptive softmax of their own")
    share_decoder_input_output_embed: bool = _option(False, "one matrix for embedding and output, without cutoffs")

    tokens_per_sample: int = II("task.tokens_per_sample")
    max_target_positions: Optional[int] = II("task.max_target_positions")

    def _fill_in(self) -> None:
        if self.decoder_ffn_embed_dim is None:
            self.decoder_ffn_embed_dim = self.decoder_embed_dim
        # outside an experiment there is no task to ask
        if isinstance(self.tokens_per_sample, str):
            self.tokens_per_sample = _DEFAULT_POSITIONS
        if self.max_target_positions is None or isinstance(self.max_target_positions, str):
            self.max_target_positions = self.tokens_per_sample

    def problems(self) -> list[str]:
        found = self._size_problems("decoder_embed_dim", "decoder_ffn_embed_dim", "decoder_layers")
        found += self._attention_problems("decoder", self.decoder_embed_dim)
        found += self._probability_problems(
            "dropout", "attention_dropout", "activation_dropout", "adaptive_softmax_dropout", "decoder_layerdrop"
        )
        for name in ("adaptive_input_cutoff", "adaptive_softmax_cutoff"):
            cutoffs = getattr(self, name)
            if cutoffs is not None:
                option = f"--{name.replace('_', '-')}"
                found += cutoff_problems(cutoffs, option)
                narrowest = int(self.decoder_embed_dim // self.adaptive_factor ** len(cutoffs))
                if narrowest < 1:
                    found.append(
                        f"{option}: {len(cutoffs) + 1} bands leave {narrowest} of {self.decoder_embed_dim} channels to "
                        f"the last one at --adaptive-factor {self.adaptive_factor:g}: take fewer cutoffs"
                    )
        if self.ties_weights and self.adaptive_input_cutoff != self.adaptive_softmax_cutoff:
            found.append(
                f"--adaptive-input-cutoff {self.adaptive_input_cutoff} and --adaptive-softmax-cutoff "
                f"{self.adaptive_softmax_cutoff} differ: tied tables need the same bands (or --untie-adaptive-weights)"
            )
        if self.share_decoder_input_output_embed and self.has_adaptive_bands:
            found.append("--share-decoder-input-output-embed is for models without cutoffs: bands are tied already")
        if (self.max_target_positions or 0) < self.tokens_per_sample:
            found.append(
                f"--tokens-per-sample {self.tokens_per_sample} is longer than the positions, "
                f"--max-target-positions {self.max_target_positions}"
            )
        return found

    @property
    def has_adaptive_bands(self) -> bool:
        return self.adaptive_input_cutoff is not None or self.adaptive_softmax_cutoff is not None

    @property
    def ties_weights(self) -> bool:
        """Whether adaptive softmax and adaptive input share their tables."""
        both = self.adaptive_input_cutoff is not None and self.adaptive_softmax_cutoff is not None
        return both and not self.untie_adaptive_weights

    @property
    def ties_projections(self) -> bool:
        """Whether they share the projections of the narrow bands, too; the first band's is the input's own."""
        return self.ties_weights and not self.untie_adaptive_proj

    def vocabulary_problems(self, types: int) -> list[str]:
        """What does not fit a dictionary of so many types, fairseq's special symbols counted."""
        found = []
        for name in ("adaptive_input_cutoff", "adaptive_softmax_cutoff"):
            if getattr(self, name) is not None:
                found += cutoff_problems(getattr(self, name), f"--{name.replace('_', '-')}", types)
        return found

    def to_fairseq(self) -> TransformerConfig:
        """The nested configuration that fairseq's decoder reads."""
        flat = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "_name"}
        flat |= {
            "decoder_input_dim": self.decoder_embed_dim,
            "decoder_output_dim": self.decoder_embed_dim,
            "decoder_normalize_before": True,
            "no_decoder_final_norm": not self.final_norm,
            "adaptive_input": self.adaptive_input_cutoff is not None,
            "adaptive_softmax_factor": self.adaptive_factor,
            "tie_adaptive_weights": self.ties_weights,
            "tie_adaptive_proj": self.ties_projections,
        }
        return TransformerConfig.from_namespace(Namespace(**flat))


@dataclass
class LiteTransformerLMConfig(BranchOptions, TransformerLMConfig):
    """Long-Short Range Attention for language models; the defaults are the paper's WikiText-103 model (896)."""

    decoder_embed_dim: int = _option(896, "channels")
    decoder_ffn_embed_dim: Optional[int] = _option(
        None, "hidden channels of the feed-forward layers; flat (as many as channels) unless given"
    )
    decoder_attention_heads: int = _option(4, "heads of every branch, unless --decoder-branch-heads is given")
    decoder_branches: List[str] = field(
        default_factory=lambda: ["attention", "dynamic"],
        metadata={"help": "kinds of the branches in channel order: attention, lightweight, dynamic"},
    )
    decoder_branch_dims: Optional[List[int]] = _option(None, "channels of each branch; an even split unless given")
    decoder_branch_heads: Optional[List[int]] = _option(None, "heads of each branch")
    decoder_branch_kernel_sizes: Optional[List[int]] = _option(
        None, "kernel size of each branch in all layers; 0 (and attention) for the layer's own"
    )
    decoder_kernel_sizes: Optional[List[int]] = _option(
        None, "kernel size of each layer; one number for all; 15,15,31,31,31,31,63,... unless given"
    )
    decoder_conv_gate: ChoiceEnum(["glu", "none"]) = _option(  # type: ignore[valid-type]
        "glu", "gate of the dynamic convolution branch"
    )

    def _fill_in(self) -> None:
        super()._fill_in()
        self._fill_in_branches("decoder", default_lm_kernel_sizes)

    def problems(self) -> list[str]:
        found = super().problems() + self._branch_problems("decoder") + self._kernel_problems("decoder")
        return found + self._probability_problems("weight_dropout")

    def _attention_problems(self, side: str, embed_dim: int) -> list[str]:
        return []  # heads belong to branches here, see _branch_problems


def is_language_model(config: Any) -> bool:
    """Whether a configuration is a language model's."""
    return isinstance(config, TransformerLMConfig)
