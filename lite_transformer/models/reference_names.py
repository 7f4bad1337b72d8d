"""The names of the published implementation, so that its checkpoints and command lines keep working.

``transformer_multibranch_v2`` and its variants are registered as fairseq models without a model of their own: the old
options are translated into a `LiteTransformerConfig`, the old parameter names into ours. What differs in behaviour is
padding, which stays as those checkpoints were trained: source positions are zeroed before the first linear layer of a
convolution branch, target positions are not masked at all (the decoder is causal, so right padding cannot be seen).

Old options live in a flat ``Namespace``, from the command line or from a checkpoint of fairseq 0.8; nothing in it is
evaluated.
"""

from __future__ import annotations

import functools
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fairseq import utils
from fairseq.models import register_model, register_model_architecture
from torch import Tensor

from lite_transformer.errors import ConfigError
from lite_transformer.models.config import SIDES, LiteTransformerConfig
from lite_transformer.models.lite_transformer import LiteTransformerModel

MODEL_NAME = "transformer_multibranch_v2"
_KERNEL_SIZES = (3, 7, 15, 31, 31, 31, 31)
_KINDS = {"attn": "attention", "lightweight": "lightweight", "dynamic": "dynamic"}

# What the old code fills in where an option was not given; None in a decoder's width means the encoder's.
_BASE: dict[str, Any] = {
    "encoder_embed_path": None,
    "encoder_embed_dim": 512,
    "encoder_ffn_embed_dim": 2048,
    "encoder_layers": 6,
    "encoder_attention_heads": 8,
    "encoder_normalize_before": False,
    "encoder_learned_pos": False,
    "encoder_branch_type": None,
    "encoder_glu": True,
    "decoder_embed_path": None,
    "decoder_embed_dim": None,
    "decoder_ffn_embed_dim": None,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "decoder_normalize_before": False,
    "decoder_learned_pos": False,
    "decoder_branch_type": None,
    "decoder_glu": True,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "weight_dropout": None,
    "weight_softmax": True,
    "conv_linear": False,
    "activation_fn": "relu",
    "share_decoder_input_output_embed": False,
    "share_all_embeddings": False,
    "no_token_positional_embeddings": False,
    "adaptive_softmax_cutoff": None,
    "max_source_positions": 1024,
    "max_target_positions": 1024,
    "ffn_init": None,
}
_IWSLT = {
    "encoder_ffn_embed_dim": 1024,
    "encoder_attention_heads": 4,
    "decoder_embed_dim": 512,
    "decoder_ffn_embed_dim": 1024,
    "decoder_attention_heads": 4,
    "ffn_init": "widened",
}
_BIG = {
    "encoder_embed_dim": 1024,
    "encoder_ffn_embed_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_embed_dim": 1024,
    "decoder_ffn_embed_dim": 4096,
    "decoder_attention_heads": 16,
    "dropout": 0.3,
}
_T2T = {"encoder_normalize_before": True, "decoder_normalize_before": True, "activation_dropout": 0.1}

# name -> its old defaults
REFERENCE_ARCHITECTURES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        MODEL_NAME: _BASE,
        f"{MODEL_NAME}_iwslt_de_en": _BASE | _IWSLT,
        f"{MODEL_NAME}_wmt_en_de": _BASE,
        f"{MODEL_NAME}_vaswani_wmt_en_de_big": _BASE | _BIG,
        f"{MODEL_NAME}_vaswani_wmt_en_fr_big": _BASE | _BIG | {"dropout": 0.1},
        f"{MODEL_NAME}_wmt_en_de_big": _BASE | _BIG | {"attention_dropout": 0.1},
        f"{MODEL_NAME}_wmt_en_de_big_t2t": _BASE | _BIG | _T2T | {"attention_dropout": 0.1},
    }
)


class BranchSpec(NamedTuple):
    """One ``type:kernel:dim:heads``; ``kernel_size`` 0 stands for the layer's own."""

    kind: str
    kernel_size: int
    embed_dim: int
    num_heads: int


def parse_branch_spec(spec: str, option: str) -> BranchSpec:
    """The meaning of one ``type:kernel:dim:heads``, such as ``dynamic:default:248:4``.

    Args:
        option: the flag it was given to, for the message.
    Raises: ConfigError if it is malformed or names an unknown type.
    """
    shape = "type:kernel:dim:heads, such as attn:1:248:4 or dynamic:default:248:4"
    parts = str(spec).split(":")
    if len(parts) != 4:
        raise ConfigError(f"{option}: '{spec}' has {len(parts)} fields; write {shape}")
    kind, kernel, dim, heads = (part.strip() for part in parts)
    if kind not in _KINDS:
        raise ConfigError(f"{option}: unknown branch type '{kind}' in '{spec}'; known: {', '.join(_KINDS)}")
    for name, text in (("dim", dim), ("heads", heads), *((("kernel", kernel),) if kernel != "default" else ())):
        if not re.fullmatch(r"[1-9]\d{0,8}", text):
            raise ConfigError(f"{option}: {name} '{text}' in '{spec}' is not a positive number; write {shape}")
    own_kernel = kernel == "default" or kind == "attn"
    return BranchSpec(_KINDS[kind], 0 if own_kernel else int(kernel), int(dim), int(heads))


def fill_in_defaults(args: Namespace, architecture: str) -> None:
    """Puts the old defaults of that architecture where ``args`` has nothing; applying it again changes nothing."""
    for name, value in REFERENCE_ARCHITECTURES[architecture].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    for name in ("embed_dim", "ffn_embed_dim"):
        if getattr(args, f"decoder_{name}") is None:
            setattr(args, f"decoder_{name}", getattr(args, f"encoder_{name}"))
    if args.weight_dropout is None:
        args.weight_dropout = args.attention_dropout
    if args.activation_dropout == 0:
        args.activation_dropout = getattr(args, "relu_dropout", None) or 0.0
    for side in SIDES:
        sizes = getattr(args, f"{side}_kernel_size_list", None) or _KERNEL_SIZES
        layers = getattr(args, f"{side}_layers")
        setattr(args, f"{side}_kernel_size_list", list(sizes) * layers if len(sizes) == 1 else list(sizes)[:layers])


# Options that mean the same under the same name.
_UNCHANGED = (
    "activation_fn",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "weight_dropout",
    *(
        f"{side}_{name}"
        for side in SIDES
        for name in (
            "embed_dim",
            "ffn_embed_dim",
            "layers",
            "attention_heads",
            "embed_path",
        )
    ),
    "max_source_positions",
    "max_target_positions",
)
_SWITCHES = (
    *(f"{side}_{name}" for side in SIDES for name in ("normalize_before", "learned_pos")),
    "share_decoder_input_output_embed",
    "share_all_embeddings",
    "no_token_positional_embeddings",
)


def translate_options(args: Namespace) -> LiteTransformerConfig:
    """The configuration that builds what the old options describe.

    Args:
        args: old options; what is missing gets the defaults of ``args.arch``.
    Raises: ConfigError if a branch is malformed, the branches' widths do not add up, or an option is not supported.
    """
    architecture = str(getattr(args, "arch", None) or getattr(args, "_name", None))
    known = architecture if architecture in REFERENCE_ARCHITECTURES else MODEL_NAME
    args = Namespace(**vars(args))
    fill_in_defaults(args, known)
    if args.adaptive_softmax_cutoff is not None:
        raise ConfigError(
            f"--adaptive-softmax-cutoff {args.adaptive_softmax_cutoff}: an adaptive softmax is not supported here"
        )
    config = LiteTransformerConfig(
        cross_attention_heads=args.decoder_attention_heads,
        conv_padding_mask="before_linear",
        no_weight_softmax=not switch_value(args.weight_softmax, "--weight-softmax"),
        no_conv_linear=not switch_value(args.conv_linear, "--conv-linear"),
        # an old checkpoint holds a function here; `safe_load` puts a marker in its place
        ffn_init="xavier" if args.ffn_init is None else "widened",
    )
    for name in _UNCHANGED:
        setattr(config, name, getattr(args, name))
    for name in _SWITCHES:
        setattr(config, name, switch_value(getattr(args, name), "--" + name.replace("_", "-")))
    for side in SIDES:
        _translate_side(args, config, side)
    return LiteTransformerConfig.resolved(config)


def _translate_side(args: Namespace, config: LiteTransformerConfig, side: str) -> None:
    """Sets the branches, kernels and gate of encoder or decoder."""
    option = f"--{side}-branch-type"
    specs: Sequence[str] | None = getattr(args, f"{side}_branch_type")
    embed_dim = getattr(args, f"{side}_embed_dim")
    if specs is None:  # an ordinary Transformer layer
        branches = [BranchSpec("attention", 0, embed_dim, getattr(args, f"{side}_attention_heads"))]
    else:
        branches = [parse_branch_spec(spec, option) for spec in ([specs] if isinstance(specs, str) else specs)]
    total = sum(branch.embed_dim for branch in branches)
    if total != embed_dim:
        dims = " + ".join(str(branch.embed_dim) for branch in branches)
        raise ConfigError(f"{option}: branch widths {dims} = {total} do not add up to --{side}-embed-dim {embed_dim}")
    path = getattr(args, f"{side}_embed_path")
    if path and not Path(path).is_file():
        raise ConfigError(
            f"--{side}-embed-path {path} does not exist. If the embeddings are in the checkpoint, add "
            f"--model-overrides \"{{'{side}_embed_path': None}}\""
        )
    setattr(config, f"{side}_branches", [branch.kind for branch in branches])
    setattr(config, f"{side}_branch_dims", [branch.embed_dim for branch in branches])
    setattr(config, f"{side}_branch_heads", [branch.num_heads for branch in branches])
    setattr(config, f"{side}_branch_kernel_sizes", [branch.kernel_size for branch in branches])
    setattr(config, f"{side}_kernel_sizes", list(getattr(args, f"{side}_kernel_size_list")))
    # Only the dynamic convolution has a gate, and the gate is a part of its first linear layer.
    gated = (
        switch_value(getattr(args, f"{side}_glu"), f"--{side}-glu")
        and not config.no_conv_linear
        and any(branch.kind == "dynamic" for branch in branches)
    )
    setattr(config, f"{side}_conv_gate", "glu" if gated else "none")


def switch_value(value: Any, option: str = "switch") -> bool:
    """True or False from a bool, a number or one of the words people type. Raises ConfigError for anything else."""
    word = str(value).strip().lower()
    if word in ("1", "true", "yes"):
        return True
    if word in ("0", "false", "no", "none"):
        return False
    raise ConfigError(f"{option}: '{value}' is neither true nor false; write 1 or 0")


def upgrade_parameter_names(state_dict: MutableMapping[str, Tensor]) -> None:
    """Renames and reshapes the parameters of an old checkpoint, in place; names that are ours already stay.

    Besides the names of the last published version it knows ``branchs``, the merged ``in_proj_*`` of query, key and
    value, a plain attention without ``branches``, and convolution kernels of shape (H, 1, K).
    """
    for old in list(state_dict):
        name = old.replace(".branchs.", ".branches.")
        name = re.sub(
            r"\.self_attn\.((?:[qkv]|out)_proj\.|in_proj_|[qkv]_proj_weight)", r".self_attn.branches.0.\1", name
        )
        name = re.sub(r"\.([qkv]_proj)_weight$", r".\1.weight", name)
        value = state_dict.pop(old)
        merged = re.fullmatch(r"(.*\.)in_proj_(weight|bias)", name)
        if merged:
            prefix, kind = merged.groups()
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                state_dict[f"{prefix}{letter}_proj.{kind}"] = part
        elif re.search(r"\.branches\.\d+\.weight$", name) and value.dim() == 3:
            state_dict[name] = value.squeeze(1)
        else:
            state_dict[name] = value


def show_target_padding(_layer, arguments: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a decoder layer without the mask of target padding, which the published code did not have."""
    return arguments, options | {"self_attn_padding_mask": None}


class PublishedOptions:
    """What models built from the options of the published implementation have in common; goes before the model."""

    @classmethod
    def add_args(cls, parser) -> None:
        """The flags that both published models have."""
        add = parser.add_argument
        add("--activation-fn", choices=utils.get_available_activation_fns(), help="feed-forward activation")
        for name, text in (
            ("--dropout", "dropout after each sublayer and on the embeddings"),
            ("--attention-dropout", "dropout on attention probabilities"),
            ("--weight-dropout", "DropConnect on the convolution kernels; --attention-dropout unless given"),
        ):
            add(name, type=float, metavar="P", help=text)
        add("--activation-dropout", "--relu-dropout", type=float, metavar="P", help="after the activation")
        add("--weight-softmax", default=True, type=switch_value, metavar="0|1", help="normalise the kernels")

    @staticmethod
    def translate(cfg: Any) -> Any:
        """Our configuration for the old options. Raises: ConfigError."""
        raise NotImplementedError

    @classmethod
    def build_model(cls, cfg, task):
        """Raises ConfigError if the old options do not fit together, or not the dictionary."""
        model = super().build_model(cls.translate(cfg), task)  # type: ignore[misc]
        for layer in model.decoder.layers:
            layer.register_forward_pre_hook(show_target_padding, with_kwargs=True)
        return model

    def upgrade_state_dict_named(self, state_dict: MutableMapping[str, Tensor], name: str) -> None:
        """Called by fairseq before it loads a checkpoint's parameters."""
        upgrade_parameter_names(state_dict)
        super().upgrade_state_dict_named(state_dict, name)  # type: ignore[misc]


@register_model(MODEL_NAME)
class ReferenceLiteTransformer(PublishedOptions, LiteTransformerModel):
    """A Lite Transformer built from the options of the published implementation."""

    @classmethod
    def add_args(cls, parser) -> None:
        """The flags of the published implementation, so that its command lines train here too."""
        super().add_args(parser)
        add = parser.add_argument
        for side in SIDES:
            add(f"--{side}-embed-path", metavar="FILE", help=f"pre-trained embedding of the {side}")
            add(f"--{side}-embed-dim", type=int, metavar="N", help=f"channels of the {side}")
            add(f"--{side}-ffn-embed-dim", type=int, metavar="N", help="hidden channels of the feed-forward layers")
            add(f"--{side}-layers", type=int, metavar="N", help=f"number of {side} layers")
            add(f"--{side}-attention-heads", type=int, metavar="N", help="heads where there are no branches")
            add(f"--{side}-normalize-before", action="store_true", help="layer norm before each sublayer")
            add(f"--{side}-learned-pos", action="store_true", help="learned positions")
            add(f"--{side}-glu", type=switch_value, metavar="0|1", help="gate the dynamic convolution branch")
            add(f"--{side}-branch-type", nargs="+", metavar="SPEC", help="branches as type:kernel:dim:heads")
            add(f"--{side}-kernel-size-list", nargs="*", type=int, metavar="K", help="kernel size of each layer")
            add(f"--{side}-ffn-list", nargs="+", metavar="X", help="has no effect, as in the published code")
        add("--encoder-decoder-branch-type", nargs="+", metavar="X", help="has no effect, as in the published code")
        add("--share-decoder-input-output-embed", action="store_true", help="one matrix for decoder input and output")
        add("--share-all-embeddings", action="store_true", help="one matrix for all (needs a joined dictionary)")
        add("--no-token-positional-embeddings", action="store_true", help="no positional embeddings")
        add("--adaptive-softmax-cutoff", metavar="EXPR", help="not supported")
        add("--conv-linear", action="store_true", help="linear layers around the convolution")

    @staticmethod
    def translate(cfg: Any) -> Any:
        return translate_options(cfg)


def register_published(model: str, names: Iterable[str], fill_in: Callable[..., None]) -> None:
    """Registers the old architectures of a model; ``fill_in(args, architecture)`` puts one's defaults into options."""
    for name in names:
        register_model_architecture(model, name)(functools.partial(fill_in, architecture=name))


register_published(MODEL_NAME, REFERENCE_ARCHITECTURES, fill_in_defaults)
