"""The published language models' names: ``transformer_lm_multibranch_v2`` and its variants, as `reference_names` has
them for translation.

Options and defaults are those of the implementation's branch ``language-model``. Its decoder masks no padding: a
language model's text is padded on the right only, where nothing real can see it.
"""

from __future__ import annotations

from argparse import Namespace
from types import MappingProxyType
from typing import Any

from fairseq.models import register_model

from lite_transformer.errors import ConfigError
from lite_transformer.models.language_model import LiteTransformerLanguageModel
from lite_transformer.models.lm_config import LiteTransformerLMConfig
from lite_transformer.models.reference_names import (
    BranchSpec,
    PublishedOptions,
    parse_branch_spec,
    register_published,
    switch_value,
)

MODEL_NAME = "transformer_lm_multibranch_v2"
_TYPED_KERNEL_SIZES = (15,) * 2 + (31,) * 4 + (63,) * 11  # the flag's default
_KERNEL_SIZES = (3, 7, 15, 31, 31, 31)  # where the option is absent altogether

_BASE: dict[str, Any] = {
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "weight_dropout": None,
    "weight_softmax": True,
    "activation_fn": "relu",
    "conv_linear": False,
    "decoder_embed_dim": 512,
    "decoder_input_dim": None,
    "decoder_output_dim": None,
    "decoder_ffn_embed_dim": 2048,
    "decoder_layers": 6,
    "decoder_attention_heads": 8,
    "decoder_branch_type": None,
    "decoder_glu": True,
    "decoder_learned_pos": False,
    "no_decoder_final_norm": False,
    "adaptive_softmax_cutoff": None,
    "adaptive_softmax_dropout": 0.0,
    "adaptive_softmax_factor": 4.0,
    "adaptive_input": False,
    "adaptive_input_factor": 4.0,
    "adaptive_input_cutoff": None,
    "tie_adaptive_weights": False,
    "tie_adaptive_proj": False,
    "character_embeddings": False,
    "no_token_positional_embeddings": False,
    "share_decoder_input_output_embed": False,
    "max_target_positions": None,
    "ffn_init": None,
}
_ADAPTIVE = {
    "decoder_attention_heads": 8,
    "dropout": 0.3,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
    "adaptive_input": True,
    "adaptive_input_cutoff": "20000,60000",
    "adaptive_softmax_cutoff": "20000,60000",
    "adaptive_softmax_dropout": 0.2,
    "no_decoder_final_norm": True,
    "tie_adaptive_weights": True,
    "tie_adaptive_proj": True,
}
_BIG = _BASE | {
    "decoder_layers": 12,
    "decoder_embed_dim": 1024,
    "decoder_ffn_embed_dim": 4096,
    "decoder_attention_heads": 16,
}
_WIKI = _BIG | _ADAPTIVE | {"decoder_layers": 16}
_WIKI_SMALL = _BASE | _ADAPTIVE | {"decoder_layers": 12, "decoder_ffn_embed_dim": None}
_BILLION_WORDS = _BIG | {"decoder_embed_dim": 512, "attention_dropout": 0.1, "no_decoder_final_norm": True}


def _gpt(dim: int, layers: int, heads: int) -> dict[str, Any]:
    return _BASE | {
        "decoder_embed_dim": dim,
        "decoder_ffn_embed_dim": 4 * dim,
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "attention_dropout": 0.1,
        "activation_fn": "gelu",
    }


# name -> its old defaults; None in a width means the channels
REFERENCE_LM_ARCHITECTURES: MappingProxyType[str, dict[str, Any]] = MappingProxyType(
    {
        MODEL_NAME: _BASE,
        f"{MODEL_NAME}_big": _BIG,
        **{f"{MODEL_NAME}_{prefix}wiki103": _WIKI for prefix in ("", "baevski_")},
        **{f"{MODEL_NAME}_{prefix}wiki103_small": _WIKI_SMALL for prefix in ("", "baevski_")},
        **{f"{MODEL_NAME}_{prefix}gbw": _BILLION_WORDS for prefix in ("", "baevski_")},
        f"{MODEL_NAME}_gpt": _gpt(768, 12, 12),
        f"{MODEL_NAME}_gpt2_small": _gpt(1024, 24, 16),
        f"{MODEL_NAME}_gpt2_medium": _gpt(1280, 36, 20),
        f"{MODEL_NAME}_gpt2_big": _gpt(1600, 48, 25),
    }
)


def fill_in_lm_defaults(args: Namespace, architecture: str) -> None:
    """Puts the old defaults of that architecture where ``args`` has nothing; applying it again changes nothing."""
    if hasattr(args, "no_tie_adaptive_proj"):  # an option before the present one
        args.no_decoder_final_norm = True
        if args.no_tie_adaptive_proj is False:
            args.tie_adaptive_proj = True
    if hasattr(args, "decoder_final_norm"):
        args.no_decoder_final_norm = not args.decoder_final_norm
    for name, value in REFERENCE_LM_ARCHITECTURES[architecture].items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    for name in ("ffn_embed_dim", "input_dim", "output_dim"):
        if getattr(args, f"decoder_{name}") is None:
            setattr(args, f"decoder_{name}", args.decoder_embed_dim)
    if args.weight_dropout is None:
        args.weight_dropout = args.attention_dropout
    if args.activation_dropout == 0:
        args.activation_dropout = getattr(args, "relu_dropout", None) or 0.0
    sizes = getattr(args, "decoder_kernel_size_list", None) or _KERNEL_SIZES
    layers = args.decoder_layers
    args.decoder_kernel_size_list = list(sizes) * layers if len(sizes) == 1 else list(sizes)[:layers]


def translate_lm_options(args: Namespace) -> LiteTransformerLMConfig:
    """The configuration that builds what the old options describe.

    Args:
        args: old options; what is missing gets the defaults of ``args.arch``.
    Raises: ConfigError if a branch is malformed, the branches' widths do not add up, or an option is not supported.
    """
    architecture = str(getattr(args, "arch", None) or getattr(args, "_name", None))
    args = Namespace(**vars(args))
    fill_in_lm_defaults(args, architecture if architecture in REFERENCE_LM_ARCHITECTURES else MODEL_NAME)
    _refuse_unsupported(args)
    branches = _branches(args)
    config = LiteTransformerLMConfig(
        activation_fn=args.activation_fn,
        dropout=args.dropout,
        attention_dropout=args.attention_dropout,
        activation_dropout=args.activation_dropout,
        weight_dropout=args.weight_dropout,
        conv_padding_mask="before_linear",
        no_weight_softmax=not switch_value(args.weight_softmax, "--weight-softmax"),
        no_conv_linear=not switch_value(args.conv_linear, "--conv-linear"),
        ffn_init="xavier" if args.ffn_init is None else "widened",
        decoder_embed_dim=args.decoder_embed_dim,
        decoder_ffn_embed_dim=args.decoder_ffn_embed_dim,
        decoder_layers=args.decoder_layers,
        decoder_attention_heads=args.decoder_attention_heads,
        decoder_learned_pos=switch_value(args.decoder_learned_pos, "--decoder-learned-pos"),
        final_norm=not switch_value(args.no_decoder_final_norm, "--no-decoder-final-norm"),
        adaptive_input_cutoff=_cutoffs(args, "input") if switch_value(args.adaptive_input) else None,
        adaptive_softmax_cutoff=_cutoffs(args, "softmax"),
        adaptive_factor=args.adaptive_softmax_factor,
        adaptive_softmax_dropout=args.adaptive_softmax_dropout,
        untie_adaptive_weights=not switch_value(args.tie_adaptive_weights, "--tie-adaptive-weights"),
        untie_adaptive_proj=not switch_value(args.tie_adaptive_proj, "--tie-adaptive-proj"),
        share_decoder_input_output_embed=switch_value(args.share_decoder_input_output_embed),
        no_token_positional_embeddings=switch_value(args.no_token_positional_embeddings),
        tokens_per_sample=getattr(args, "tokens_per_sample", None) or 1024,
        max_target_positions=args.max_target_positions,
        decoder_branches=[branch.kind for branch in branches],
        decoder_branch_dims=[branch.embed_dim for branch in branches],
        decoder_branch_heads=[branch.num_heads for branch in branches],
        decoder_branch_kernel_sizes=[branch.kernel_size for branch in branches],
        decoder_kernel_sizes=args.decoder_kernel_size_list,
    )
    # Only the dynamic convolution has a gate, and the gate is a part of its first linear layer.
    gated = switch_value(args.decoder_glu, "--decoder-glu") and not config.no_conv_linear
    config.decoder_conv_gate = "glu" if gated and "dynamic" in config.decoder_branches else "none"
    return LiteTransformerLMConfig.resolved(config)


def _refuse_unsupported(args: Namespace) -> None:
    if switch_value(args.character_embeddings, "--character-embeddings"):
        raise ConfigError("--character-embeddings: embeddings from characters are not supported here")
    for name in ("decoder_input_dim", "decoder_output_dim"):
        if getattr(args, name) != args.decoder_embed_dim:
            raise ConfigError(
                f"--{name.replace('_', '-')} {getattr(args, name)} differs from --decoder-embed-dim "
                f"{args.decoder_embed_dim}: not supported here"
            )
    factors = args.adaptive_input_factor, args.adaptive_softmax_factor
    if switch_value(args.adaptive_input) and args.adaptive_softmax_cutoff is not None and factors[0] != factors[1]:
        raise ConfigError(f"--adaptive-input-factor {factors[0]} and --adaptive-softmax-factor {factors[1]} differ")
    if switch_value(args.adaptive_input) and args.adaptive_input_cutoff is None:
        raise ConfigError("--adaptive-input needs --adaptive-input-cutoff, such as 20000,60000")


def _branches(args: Namespace) -> list[BranchSpec]:
    option, specs = "--decoder-branch-type", args.decoder_branch_type
    if specs is None:  # an ordinary Transformer layer
        return [BranchSpec("attention", 0, args.decoder_embed_dim, args.decoder_attention_heads)]
    branches = [parse_branch_spec(spec, option) for spec in ([specs] if isinstance(specs, str) else specs)]
    dims = [branch.embed_dim for branch in branches]
    if sum(dims) != args.decoder_embed_dim:
        raise ConfigError(
            f"{option}: branch widths {' + '.join(map(str, dims))} = {sum(dims)} do not add up to "
            f"--decoder-embed-dim {args.decoder_embed_dim}"
        )
    return branches


def _cutoffs(args: Namespace, end: str) -> list[int] | None:
    """[20000, 60000] of '20000,60000'."""
    name = f"adaptive_{end}_cutoff"
    text = getattr(args, name)
    if text is None:
        return None
    parts = [part.strip() for part in str(text).strip("[]()").split(",") if part.strip()]
    if not parts or not all(part.isdigit() for part in parts):
        raise ConfigError(f"--{name.replace('_', '-')} '{text}': write growing numbers of types, such as 20000,60000")
    return [int(part) for part in parts]


@register_model(MODEL_NAME)
class ReferenceLanguageModel(PublishedOptions, LiteTransformerLanguageModel):
    """A Lite Transformer language model built from the options of the published implementation."""

    @classmethod
    def add_args(cls, parser) -> None:
        """The flags of the published implementation, so that its command lines train here too."""
        super().add_args(parser)
        add = parser.add_argument
        text = "dropout on the adaptive softmax's input and its narrow bands"
        add("--adaptive-softmax-dropout", type=float, metavar="P", help=text)
        for name, text in (
            ("--decoder-embed-dim", "channels"),
            ("--decoder-input-dim", "must be the channels"),
            ("--decoder-output-dim", "must be the channels"),
            ("--decoder-ffn-embed-dim", "hidden channels of the feed-forward layers"),
            ("--decoder-layers", "number of layers"),
            ("--decoder-attention-heads", "heads where there are no branches"),
        ):
            add(name, type=int, metavar="N", help=text)
        for name, text in (
            ("--decoder-normalize-before", "has no effect: norms stand before the sublayers always"),
            ("--no-decoder-final-norm", "no layer norm after the last layer"),
            ("--no-token-positional-embeddings", "no positional embeddings"),
            ("--share-decoder-input-output-embed", "one matrix for embedding and output"),
            ("--character-embeddings", "not supported"),
            ("--adaptive-input", "adaptive input"),
            ("--tie-adaptive-weights", "one table for adaptive input and softmax"),
            ("--tie-adaptive-proj", "and one projection"),
            ("--decoder-learned-pos", "learned positions"),
            ("--conv-linear", "linear layers around the convolution"),
            ("--get-attn", "has no effect"),
            ("--use-all-embedding", "has no effect, as in the published code"),
        ):
            add(name, action="store_true", default=None, help=text)
        for end in ("input", "softmax"):
            add(f"--adaptive-{end}-cutoff", metavar="EXPR", help="where the bands end, such as 20000,60000")
            add(f"--adaptive-{end}-factor", type=float, metavar="X", help="a band is so many times narrower")
        add("--decoder-glu", type=switch_value, metavar="0|1", help="gate the dynamic convolution branch")
        add("--decoder-branch-type", nargs="+", metavar="SPEC", help="branches as type:kernel:dim:heads")
        add(
            "--decoder-kernel-size-list", nargs="*", type=int, default=list(_TYPED_KERNEL_SIZES), metavar="K",
            help="kernel size of each layer",
        )  # fmt: skip

    @staticmethod
    def translate(cfg: Any) -> Any:
        return translate_lm_options(cfg)


register_published(MODEL_NAME, REFERENCE_LM_ARCHITECTURES, fill_in_lm_defaults)
