"""Mult-Adds and parameters of an architecture from its configuration alone: no model is built.

One Mult-Add is one multiplication with its addition. Counted are matrix products: projections, feed-forward layers, the
kernel generator of the dynamic convolution, and the two products of attention over the full rectangle (no causal
halving). Cross-attention projects keys and values once, on the source. Not in the total, because the paper leaves them
out: the taps of the convolutions and the projection to the vocabulary. Free: look-ups, softmax, biases, activations,
gates, layer norms. One teacher-forced pass, no beam.

A language model's pass is over n tokens of text. Adaptive input projects each token once more; the paper counts the
projection of the first band, d x d, for all of them.

Letters: n tokens of a side, S source length, T target length, d channels, h channels of a branch, F hidden channels of
the feed-forward layer, H heads, K kernel size, V vocabulary.
"""

from __future__ import annotations

from collections import Counter

from lite_transformer.errors import ConfigError
from lite_transformer.macs.report import ENCODER_DECODER, INPUT_PROJECTION, OUTPUT, CostReport
from lite_transformer.models.config import BranchOptions, FlatConfig, TransformerBaselineConfig
from lite_transformer.models.lm_config import TransformerLMConfig
from lite_transformer.modules.branches import BranchConfig

# fairseq numbers positions from its padding index + 1 = 2 on.
_POSITIONS_OFFSET = 2


class _Sum:
    """Totals by component."""

    def __init__(self) -> None:
        self.macs: Counter[str] = Counter()
        self.params: Counter[str] = Counter()

    def add(self, component: str, macs: int = 0, params: int = 0) -> None:
        self.macs[component] += macs
        self.params[component] += params


def closed_form(
    config: FlatConfig,
    source_length: int,
    target_length: int,
    source_vocab: int,
    target_vocab: int,
) -> CostReport:
    """The cost of a resolved configuration.

    Args:
        source_length, target_length: tokens of the counted pass. Of a language model only the target's are read.
        source_vocab, target_vocab: sizes of the dictionaries; they touch only embeddings and output projection.
    Raises: ConfigError if a size is not positive, or one table is to serve two dictionaries of different sizes.
    """
    if isinstance(config, TransformerLMConfig):
        return _language_model(config, target_length, target_vocab)
    assert isinstance(config, TransformerBaselineConfig)
    _check_sizes(config, source_length, target_length, source_vocab, target_vocab)
    total = _Sum()
    for side, length in zip(ENCODER_DECODER, (source_length, target_length), strict=True):
        layers = config.kept_layers(side)
        for layer in layers:
            _self_attention(total, config, side, layer, length)
            if side == "decoder":
                _cross_attention(total, config, source_length, target_length)
            _feed_forward(total, config, side, length)
        _layer_norms(total, config, side, len(layers))
    _embeddings(total, config, source_vocab, target_vocab)
    shared_output = config.share_all_embeddings or config.share_decoder_input_output_embed
    matrix = _channels(config, "decoder") * target_vocab
    total.add("output projection", target_length * matrix, 0 if shared_output else matrix)
    return CostReport.build(source_length, target_length, total.macs, total.params)


def _language_model(config: TransformerLMConfig, n: int, vocab: int) -> CostReport:
    for name, size in (("length", n), ("vocabulary", vocab)):
        if size < 1:
            raise ConfigError(f"{name} {size} is not a positive number")
    if config.decoder_learned_pos and n > (config.max_target_positions or 0):
        raise ConfigError(f"length {n} is over max_target_positions {config.max_target_positions}")
    if found := config.vocabulary_problems(vocab):
        raise ConfigError("; ".join(found))
    total = _Sum()
    d, layers = _channels(config, "decoder"), config.kept_layers("decoder")
    for layer in layers:
        _self_attention(total, config, "decoder", layer, n)
        _feed_forward(total, config, "decoder", n)
    norms = 2 * len(layers) + bool(config.final_norm) + bool(config.layernorm_embedding)
    total.add("decoder layer norm", 0, norms * 2 * d)
    if config.adaptive_input_cutoff is None:
        total.add("decoder embeddings", 0, vocab * d)
    else:
        total.add(INPUT_PROJECTION, d * d * n)
        for width, types in _bands(config, config.adaptive_input_cutoff, vocab):
            total.add("decoder embeddings", 0, types * width + width * d)
    if config.decoder_learned_pos and not config.no_token_positional_embeddings:
        total.add("decoder embeddings", 0, ((config.max_target_positions or 0) + _POSITIONS_OFFSET) * d)
    _vocabulary(total, config, n, vocab)
    return CostReport.build(0, n, total.macs, total.params)


def _bands(config: TransformerLMConfig, cutoffs: list[int], vocab: int) -> list[tuple[int, int]]:
    """(width of the embeddings, number of types) of every band of a vocabulary."""
    ends = [*cutoffs, vocab] if vocab > cutoffs[-1] else cutoffs
    starts = [0, *ends]
    return [
        (int(config.decoder_embed_dim // config.adaptive_factor**band), end - starts[band])
        for band, end in enumerate(ends)
    ]


def _vocabulary(total: _Sum, config: TransformerLMConfig, n: int, vocab: int) -> None:
    """The probability of every type at n tokens: V d, or with bands (V_0 + bands - 1) d, and d d_i + d_i V_i of each.

    Of an adaptive softmax that is tied to the input only the classes of the narrow bands are its own.
    """
    d = config.decoder_embed_dim
    if config.adaptive_softmax_cutoff is None:
        total.add(OUTPUT, n * vocab * d, 0 if config.share_decoder_input_output_embed else vocab * d)
        return
    (_, first), *narrow = _bands(config, config.adaptive_softmax_cutoff, vocab)
    own_tables, own_projections = not config.ties_weights, not config.ties_projections
    total.add(OUTPUT, n * d * (first + len(narrow)), d * len(narrow) + own_tables * d * first)
    for width, types in narrow:
        params = own_tables * types * width + own_projections * d * width
        total.add(OUTPUT, n * (d * width + width * types), params)


def _check_sizes(config: TransformerBaselineConfig, *sizes: int) -> None:
    names = ("source length", "target length", "source vocabulary", "target vocabulary")
    for name, size in zip(names, sizes, strict=True):
        if size < 1:
            raise ConfigError(f"{name} {size} is not a positive number")
    source_vocab, target_vocab = sizes[2:]
    if config.share_all_embeddings and source_vocab != target_vocab:
        raise ConfigError(
            f"share_all_embeddings needs one joined vocabulary, got sizes {source_vocab} (source) and "
            f"{target_vocab} (target)"
        )
    limits = (
        (sizes[0], config.max_source_positions, config.encoder_learned_pos, "source"),
        (sizes[1], config.max_target_positions, config.decoder_learned_pos, "target"),
    )
    for length, limit, learned, end in limits:
        if learned and length > limit:
            raise ConfigError(f"{end} length {length} is over max_{end}_positions {limit}, the learned positions")


def _channels(config: FlatConfig, side: str) -> int:
    return int(getattr(config, f"{side}_embed_dim"))


def _self_attention(total: _Sum, config: FlatConfig, side: str, layer: int, n: int) -> None:
    if not isinstance(config, BranchOptions):
        _attention(total, f"{side} attention", _channels(config, side), n)
        return
    for branch in config.branches(side, layer):
        if branch.kind == "attention":
            _attention(total, f"{side} attention", branch.embed_dim, n)
        else:
            _convolution(total, side, branch, n)


def _attention(total: _Sum, component: str, h: int, n: int) -> None:
    """4 h^2 n for the projections, 2 n^2 h for the two products."""
    total.add(component, 4 * h * h * n + 2 * n * n * h, 4 * h * h + 4 * h)


def _convolution(total: _Sum, side: str, branch: BranchConfig, n: int) -> None:
    """(2 h^2 with a gate, else h^2) n + h^2 n for the linear layers, H K h n for the generator, K h n taps."""
    h, taps = branch.embed_dim, branch.kernel_size
    dynamic = branch.kind == "dynamic"
    if branch.linear:
        widened = 2 * h if branch.gate and dynamic else h  # the lightweight convolution has no gate
        total.add(f"{side} convolution", (h * widened + h * h) * n, h * widened + widened + h * h + h)
    kernels = branch.num_heads * taps
    if dynamic:
        total.add(f"{side} kernel generator", kernels * h * n, kernels * h)
    else:
        total.add(f"{side} convolution", 0, kernels)
    total.add(f"{side} convolution taps", taps * h * n)


def _cross_attention(total: _Sum, config: TransformerBaselineConfig, source_length: int, target_length: int) -> None:
    """2 d^2 T for queries and output, 2 d d_enc S for keys and values, 2 S T d for the two products."""
    d, d_encoder = _channels(config, "decoder"), _channels(config, "encoder")
    total.add(
        "decoder cross-attention",
        2 * d * d * target_length + 2 * d * d_encoder * source_length + 2 * source_length * target_length * d,
        2 * d * d + 2 * d * d_encoder + 4 * d,
    )


def _feed_forward(total: _Sum, config: FlatConfig, side: str, n: int) -> None:
    """2 d F n."""
    d, hidden = _channels(config, side), getattr(config, f"{side}_ffn_embed_dim")
    total.add(f"{side} feed-forward", 2 * d * hidden * n, 2 * d * hidden + hidden + d)


def _layer_norms(total: _Sum, config: TransformerBaselineConfig, side: str, layers: int) -> None:
    """Two a layer in the encoder, three in the decoder; one more at the end of a pre-norm stack."""
    norms = layers * (2 if side == "encoder" else 3)
    norms += bool(getattr(config, f"{side}_normalize_before")) + bool(config.layernorm_embedding)
    total.add(f"{side} layer norm", 0, norms * 2 * _channels(config, side))


def _embeddings(total: _Sum, config: TransformerBaselineConfig, source_vocab: int, target_vocab: int) -> None:
    total.add("encoder embeddings", 0, source_vocab * _channels(config, "encoder"))
    if not config.share_all_embeddings:
        total.add("decoder embeddings", 0, target_vocab * _channels(config, "decoder"))
    if config.no_token_positional_embeddings:
        return
    for side, end in zip(ENCODER_DECODER, ("source", "target"), strict=True):
        if getattr(config, f"{side}_learned_pos"):
            positions = getattr(config, f"max_{end}_positions") + _POSITIONS_OFFSET
            total.add(f"{side} embeddings", 0, positions * _channels(config, side))
