"""The typed configuration of the models: the single source of ``--arch`` flags, Hydra YAML and Python use.

fairseq builds flags from the annotations themselves, so they stay real types in the spellings it knows
(``Optional[...]``, ``List[...]``), and a switch defaults to False (one that defaults to True would turn off).
"""

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, List, Optional

from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.models.transformer import TransformerConfig

from lite_transformer.errors import ConfigError
from lite_transformer.modules.branches import BRANCH_KINDS, BranchConfig

SIDES = ("encoder", "decoder")

# Options that say how fast a model is computed and trained, not what it computes.
SPEED_OPTIONS = ("cuda_graphs", "conv_backend", "loss_backend", "wait_for_gpu")

_FIRST_KERNELS = (3, 7, 15)
_LAST_KERNEL = 31


def default_kernel_sizes(layers: int) -> list[int]:
    """3, 7, 15, 31, 31, ... for the given number of layers: the paper's growth with depth."""
    return [_FIRST_KERNELS[i] if i < len(_FIRST_KERNELS) else _LAST_KERNEL for i in range(layers)]


def _option(default: Any, text: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": text, **metadata})


@dataclass
class FlatConfig(FairseqDataclass):
    """The options that every model here has, and how a flat, typed list of options is completed and checked."""

    activation_fn: ChoiceEnum(utils.get_available_activation_fns()) = _option(  # type: ignore[valid-type]
        "relu", "feed-forward activation"
    )
    dropout: float = _option(0.1, "dropout after each sublayer and on the embeddings")
    attention_dropout: float = _option(0.0, "dropout on attention probabilities")
    activation_dropout: float = _option(
        0.0, "dropout after the feed-forward activation", argparse_alias="--relu-dropout"
    )
    decoder_learned_pos: bool = _option(False, "learned positions in the decoder")
    decoder_layerdrop: float = _option(0.0, "probability to drop a decoder layer in training")
    decoder_layers_to_keep: Optional[str] = _option(None, "load only these decoder layers, such as 0,2,4")
    no_token_positional_embeddings: bool = _option(False, "no positional embeddings")
    no_scale_embedding: bool = _option(False, "do not scale embeddings by the square root of their width")
    layernorm_embedding: bool = _option(False, "layer norm on the embeddings")
    checkpoint_activations: bool = _option(False, "recompute activations in the backward pass to save memory")
    offload_activations: bool = _option(False, "keep checkpointed activations in main memory")
    min_params_to_wrap: int = _option(100_000_000, "smallest layer wrapped by fully sharded data parallelism")
    cuda_graphs: ChoiceEnum(["auto", "off"]) = _option(  # type: ignore[valid-type]
        "auto",
        "train through CUDA graphs, one for each rounded batch shape, where that is safe: same results, no waiting for "
        "kernel launches",
    )

    def problems(self) -> list[str]:
        """What does not fit together, one sentence each; empty if the model can be built."""
        raise NotImplementedError

    def _fill_in(self) -> None:
        """Puts a number where None means 'as another option'."""

    @classmethod
    def resolved(cls, options: Any):
        """A complete, checked configuration of this class.

        Args:
            options: a DictConfig, Namespace, mapping or configuration; names this class lacks are ignored, because
                fairseq hands the whole command line over.
        Raises: ConfigError that lists every problem at once.
        """
        if isinstance(options, Mapping):
            options = Namespace(**options)
        config = cls()
        for item in fields(cls):
            if item.name != "_name" and hasattr(options, item.name):
                value = getattr(options, item.name)
                is_list = isinstance(value, (list, tuple)) or type(value).__name__ == "ListConfig"
                setattr(config, item.name, list(value) if is_list else value)
        config._fill_in()
        found = config.problems()
        if found:
            raise ConfigError("; ".join(found))
        return config

    def kept_layers(self, side: str) -> list[int]:
        """Indices of the layers that are built: all, or those of ``*_layers_to_keep``."""
        keep = getattr(self, f"{side}_layers_to_keep")
        layers = getattr(self, f"{side}_layers")
        if not keep:
            return list(range(layers))
        indices = sorted(int(index) for index in str(keep).split(","))
        if indices[0] < 0 or indices[-1] >= layers:
            raise ConfigError(f"--{side}-layers-to-keep {keep}: layers are numbered 0 to {layers - 1}")
        return indices

    def _probability_problems(self, *names: str) -> list[str]:
        return [
            f"{_flag(name)} {getattr(self, name)} is not a probability"
            for name in names
            if not 0 <= getattr(self, name) <= 1
        ]

    def _size_problems(self, *names: str) -> list[str]:
        return [
            f"{_flag(name)} {getattr(self, name)} is not a positive number" for name in names if getattr(self, name) < 1
        ]

    def _attention_problems(self, side: str, embed_dim: int) -> list[str]:
        heads = getattr(self, f"{side}_attention_heads")
        if heads < 1 or embed_dim % heads != 0:
            return [f"--{side}-attention-heads {heads} does not divide --{side}-embed-dim {embed_dim}"]
        return []


@dataclass
class TransformerBaselineConfig(FlatConfig):
    """fairseq's Transformer as one flat, typed list of options; the baselines of the paper's tables use it."""

    encoder_embed_dim: int = _option(512, "channels of the encoder")
    encoder_ffn_embed_dim: Optional[int] = _option(2048, "hidden channels of the encoder's feed-forward layers")
    encoder_layers: int = _option(6, "number of encoder layers")
    encoder_attention_heads: int = _option(8, "heads of the encoder's self-attention")
    encoder_normalize_before: bool = _option(False, "layer norm before each encoder sublayer instead of after it")
    encoder_learned_pos: bool = _option(False, "learned positions in the encoder")
    encoder_layerdrop: float = _option(0.0, "probability to drop an encoder layer in training")
    encoder_layers_to_keep: Optional[str] = _option(None, "load only these encoder layers, such as 0,2,4")
    encoder_embed_path: Optional[str] = _option(None, "pre-trained encoder embedding, a text file")

    decoder_embed_dim: Optional[int] = _option(None, "channels of the decoder; the encoder's unless given")
    decoder_ffn_embed_dim: Optional[int] = _option(2048, "hidden channels of the decoder's feed-forward layers")
    decoder_layers: int = _option(6, "number of decoder layers")
    decoder_attention_heads: int = _option(8, "heads of the decoder's self-attention")
    decoder_normalize_before: bool = _option(False, "layer norm before each decoder sublayer instead of after it")
    decoder_embed_path: Optional[str] = _option(None, "pre-trained decoder embedding, a text file")

    share_decoder_input_output_embed: bool = _option(False, "one matrix for the decoder's embedding and output")
    share_all_embeddings: bool = _option(False, "one matrix for both embeddings and the output (joined dictionary)")
    max_source_positions: int = _option(1024, "longest source, in tokens")
    max_target_positions: int = _option(1024, "longest target, in tokens")

    def problems(self) -> list[str]:
        """What does not fit together, one sentence each; empty if the model can be built."""
        found = []
        for side in SIDES:
            embed_dim = getattr(self, f"{side}_embed_dim")
            found += self._size_problems(f"{side}_embed_dim", f"{side}_ffn_embed_dim", f"{side}_layers")
            found += self._attention_problems(side, embed_dim)
        if self.share_all_embeddings and self.encoder_embed_dim != self.decoder_embed_dim:
            found.append(
                "--share-all-embeddings needs equal widths, got "
                f"{self.encoder_embed_dim} (encoder) and {self.decoder_embed_dim} (decoder)"
            )
        return found + self._probability_problems(
            "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"
        )

    def _fill_in(self) -> None:
        """Puts a number where None means 'as another option'."""
        if self.decoder_embed_dim is None:
            self.decoder_embed_dim = self.encoder_embed_dim
        for side in SIDES:
            if getattr(self, f"{side}_ffn_embed_dim") is None:
                setattr(self, f"{side}_ffn_embed_dim", getattr(self, f"{side}_embed_dim"))

    def to_fairseq(self) -> TransformerConfig:
        """The nested configuration that fairseq's encoder and decoder classes read."""
        flat = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "_name"}
        flat |= {"decoder_input_dim": self.decoder_embed_dim, "decoder_output_dim": self.decoder_embed_dim}
        return TransformerConfig.from_namespace(Namespace(**flat))


@dataclass
class BranchOptions(FlatConfig):
    """What all LSRA models have in common, on either side: options of the branches, their completion, their checks."""

    weight_dropout: float = _option(0.0, "DropConnect on the convolution kernels")
    no_weight_softmax: bool = _option(False, "do not normalise the convolution kernels by a softmax")
    no_conv_linear: bool = _option(False, "no linear layers around the convolution")
    conv_padding_mask: ChoiceEnum(["after_gate", "before_linear"]) = _option(  # type: ignore[valid-type]
        "after_gate",
        "where padded positions are zeroed: after the gate, so that real tokens never see padding, or before the "
        "first linear layer, as the published checkpoints were trained",
    )
    ffn_init: ChoiceEnum(["xavier", "widened"]) = _option(  # type: ignore[valid-type]
        "xavier", "initial scale of the feed-forward layers; widened: as if they widened by two (IWSLT)"
    )
    conv_backend: ChoiceEnum(["auto", "triton", "reference"]) = _option(  # type: ignore[valid-type]
        "auto",
        "what computes the convolutions and, in training, bias gradients, residuals and layer norms: the Triton "
        "kernels on a GPU, or plain torch; same results",
    )

    def _fill_in_branches(self, side: str, default_kernels: Callable[[int], list[int]]) -> None:
        count = len(getattr(self, f"{side}_branches"))
        embed_dim, layers = getattr(self, f"{side}_embed_dim"), getattr(self, f"{side}_layers")
        if getattr(self, f"{side}_branch_dims") is None and count and embed_dim % count == 0:
            setattr(self, f"{side}_branch_dims", [embed_dim // count] * count)
        if getattr(self, f"{side}_branch_heads") is None:
            setattr(self, f"{side}_branch_heads", [getattr(self, f"{side}_attention_heads")] * count)
        if getattr(self, f"{side}_branch_kernel_sizes") is None:
            setattr(self, f"{side}_branch_kernel_sizes", [0] * count)
        sizes = getattr(self, f"{side}_kernel_sizes")
        if sizes is None:
            setattr(self, f"{side}_kernel_sizes", default_kernels(layers))
        elif len(sizes) == 1:
            setattr(self, f"{side}_kernel_sizes", sizes * layers)

    def _kernel_problems(self, side: str) -> list[str]:
        found = []
        sizes, layers = getattr(self, f"{side}_kernel_sizes"), getattr(self, f"{side}_layers")
        if len(sizes) != layers:
            found.append(
                f"--{side}-kernel-sizes has {len(sizes)} entries for --{side}-layers {layers}: give one a layer, "
                "or one for all"
            )
        if side == "encoder":
            used = sizes + getattr(self, f"{side}_branch_kernel_sizes")
            found += [
                f"--encoder-kernel-sizes: {size} is even; the encoder's convolution is centred and needs odd sizes"
                for size in dict.fromkeys(used)
                if size and size % 2 == 0
            ]
        return found + [f"--{side}-kernel-sizes: {size} is not a positive number" for size in sizes if size < 1]

    def _branch_problems(self, side: str) -> list[str]:
        kinds = getattr(self, f"{side}_branches")
        embed_dim = getattr(self, f"{side}_embed_dim")
        if not kinds:
            return [f"--{side}-branches is empty; known kinds: {', '.join(BRANCH_KINDS)}"]
        found = [
            f"--{side}-branches: unknown kind '{kind}'; known kinds: {', '.join(BRANCH_KINDS)}"
            for kind in kinds
            if kind not in BRANCH_KINDS
        ]
        dims, heads = getattr(self, f"{side}_branch_dims"), getattr(self, f"{side}_branch_heads")
        if dims is None:
            return [
                *found,
                f"--{side}-embed-dim {embed_dim} does not split evenly into {len(kinds)} branches: "
                f"give --{side}-branch-dims",
            ]
        for name in ("branch_dims", "branch_heads", "branch_kernel_sizes"):
            if len(getattr(self, f"{side}_{name}")) != len(kinds):
                found.append(
                    f"{_flag(f'{side}_{name}')} has {len(getattr(self, f'{side}_{name}'))} entries for "
                    f"{len(kinds)} branches ({', '.join(kinds)})"
                )
        if sum(dims) != embed_dim:
            found.append(
                f"branch widths {' + '.join(map(str, dims))} = {sum(dims)} do not add up to "
                f"--{side}-embed-dim {embed_dim}: change --{side}-branch-dims"
            )
        for kind, dim, head in zip(kinds, dims, heads, strict=False):
            if dim < 1 or head < 1 or dim % head != 0:
                found.append(f"{side}: {head} heads do not divide the {kind} branch of {dim} channels")
        return found

    def branches(self, side: str, layer: int) -> list[BranchConfig]:
        """The branches of one layer, in channel order; ``layer`` is its index before any layers_to_keep."""
        own_kernel = getattr(self, f"{side}_kernel_sizes")[layer]
        return [
            BranchConfig(
                kind=kind,
                embed_dim=dim,
                num_heads=heads,
                kernel_size=kernel or own_kernel,
                causal=side == "decoder",
                attention_dropout=self.attention_dropout,
                weight_dropout=self.weight_dropout,
                weight_softmax=not self.no_weight_softmax,
                gate=str(getattr(self, f"{side}_conv_gate")) == "glu",
                linear=not self.no_conv_linear,
                mask_after_gate=str(self.conv_padding_mask) == "after_gate",
                backend=str(self.conv_backend),
            )
            for kind, dim, heads, kernel in zip(
                getattr(self, f"{side}_branches"),
                getattr(self, f"{side}_branch_dims"),
                getattr(self, f"{side}_branch_heads"),
                getattr(self, f"{side}_branch_kernel_sizes"),
                strict=True,
            )
        ]


@dataclass
class LiteTransformerConfig(BranchOptions, TransformerBaselineConfig):
    """Long-Short Range Attention with a flat feed-forward layer; the defaults are the paper's WMT model (496)."""

    encoder_embed_dim: int = _option(496, "channels of the encoder")
    encoder_ffn_embed_dim: Optional[int] = _option(
        None, "hidden channels of the encoder's feed-forward layers; flat (as many as channels) unless given"
    )
    encoder_attention_heads: int = _option(4, "heads of every encoder branch, unless --encoder-branch-heads is given")
    decoder_ffn_embed_dim: Optional[int] = _option(
        None, "hidden channels of the decoder's feed-forward layers; flat (as many as channels) unless given"
    )
    decoder_attention_heads: int = _option(4, "heads of every decoder branch, unless --decoder-branch-heads is given")
    cross_attention_heads: int = _option(8, "heads of the decoder's attention to the encoder")

    encoder_branches: List[str] = field(
        default_factory=lambda: ["attention", "dynamic"],
        metadata={"help": "kinds of the branches in channel order: attention, lightweight, dynamic"},
    )
    encoder_branch_dims: Optional[List[int]] = _option(None, "channels of each branch; an even split unless given")
    encoder_branch_heads: Optional[List[int]] = _option(None, "heads of each branch")
    encoder_branch_kernel_sizes: Optional[List[int]] = _option(
        None, "kernel size of each branch in all layers; 0 (and attention) for the layer's own"
    )
    encoder_kernel_sizes: Optional[List[int]] = _option(
        None, "kernel size of each layer; one number for all; 3,7,15,31,31,... unless given"
    )
    encoder_conv_gate: ChoiceEnum(["glu", "none"]) = _option(  # type: ignore[valid-type]
        "glu", "gate of the dynamic convolution branch"
    )

    decoder_branches: Optional[List[str]] = _option(None, "as --encoder-branches; the encoder's unless given")
    decoder_branch_dims: Optional[List[int]] = _option(None, "as --encoder-branch-dims")
    decoder_branch_heads: Optional[List[int]] = _option(None, "as --encoder-branch-heads")
    decoder_branch_kernel_sizes: Optional[List[int]] = _option(None, "as --encoder-branch-kernel-sizes")
    decoder_kernel_sizes: Optional[List[int]] = _option(None, "as --encoder-kernel-sizes")
    decoder_conv_gate: ChoiceEnum(["glu", "none"]) = _option(  # type: ignore[valid-type]
        "glu", "as --encoder-conv-gate"
    )

    def _fill_in(self) -> None:
        super()._fill_in()
        if self.decoder_branches is None:
            self.decoder_branches = list(self.encoder_branches)
        for side in SIDES:
            self._fill_in_branches(side, default_kernel_sizes)

    def problems(self) -> list[str]:
        found = super().problems()
        for side in SIDES:
            found += self._branch_problems(side) + self._kernel_problems(side)
        if self.cross_attention_heads < 1 or (self.decoder_embed_dim or 0) % self.cross_attention_heads != 0:
            found.append(
                f"--cross-attention-heads {self.cross_attention_heads} does not divide "
                f"--decoder-embed-dim {self.decoder_embed_dim}"
            )
        return found + self._probability_problems("weight_dropout")

    def _attention_problems(self, side: str, embed_dim: int) -> list[str]:
        return []  # heads belong to branches here, see _branch_problems


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
