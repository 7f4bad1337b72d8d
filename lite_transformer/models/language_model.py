"""The language models: the translation model's decoder alone, with adaptive input and adaptive softmax.

Layers, branches and their step-by-step decoding are those of `lite_transformer`; nothing is written twice. The
baseline is fairseq's Transformer layer over the same attention, so that both models run on the same kernels.
"""

from __future__ import annotations

from typing import Any

from fairseq.models import FairseqLanguageModel
from fairseq.models.transformer import Embedding, TransformerConfig
from torch import Tensor, nn

from lite_transformer.errors import ConfigError
from lite_transformer.models.adaptive import BandedInput, BandedSoftmax
from lite_transformer.models.architectures import ARCHITECTURES
from lite_transformer.models.cuda_graphs import TrainingGraphs
from lite_transformer.models.full_pass import FullPassDecoder
from lite_transformer.models.lite_transformer import (
    GraphedModel,
    LiteTransformerDecoder,
    read_lists_of_names,
    register_architecture,
    wrap_layer,
)
from lite_transformer.models.lm_config import LiteTransformerLMConfig, TransformerLMConfig
from lite_transformer.models.sublayers import FusedDecoderLayer
from lite_transformer.modules.attention import CAUSAL, MultiheadAttention
from lite_transformer.modules.incremental import IncrementalState
from lite_transformer.modules.linear import Linear


class LanguageModelDecoder(FullPassDecoder):
    """fairseq's decoder without an encoder; its output is features where there is an adaptive softmax, else logits."""

    def build_output_projection(self, cfg: TransformerConfig, dictionary: Any, embed_tokens: nn.Module) -> None:
        """An adaptive softmax if there are cutoffs, otherwise a matrix."""
        if cfg.adaptive_softmax_cutoff is None:
            super().build_output_projection(cfg, dictionary, embed_tokens)
            return
        self.adaptive_softmax = BandedSoftmax(
            len(dictionary),
            self.output_embed_dim,
            list(cfg.adaptive_softmax_cutoff),
            dropout=cfg.adaptive_softmax_dropout,
            adaptive_inputs=embed_tokens if cfg.tie_adaptive_weights else None,
            factor=cfg.adaptive_softmax_factor,
            tie_proj=cfg.tie_adaptive_proj,
        )

    def output_layer(self, features: Tensor) -> Tensor:
        """Logits (B, T, V), or the features (B, T, C) that an adaptive softmax reads.

        These are fp32 whatever the model's dtype: fairseq's criterion sums its losses in their dtype.
        """
        return super().output_layer(features) if self.adaptive_softmax is None else features.float()

    def future_mask(self, x: Tensor) -> str:
        return CAUSAL


class LiteTransformerLMDecoder(LanguageModelDecoder, LiteTransformerDecoder):
    """LSRA layers without attention to an encoder."""


class _SelfAttention(MultiheadAttention):
    """Attention where fairseq's decoder layer expects its own."""

    def _get_input_buffer(self, incremental_state: IncrementalState | None) -> dict[str, Tensor | None]:
        return {}  # asked for by the layer, which makes nothing of it here


class TransformerLMDecoderLayer(FusedDecoderLayer):
    """fairseq's decoder layer over the attention of this project."""

    def build_fc1(self, input_dim: int, output_dim: int, *_quant_noise: Any) -> nn.Module:
        return Linear(input_dim, output_dim)

    build_fc2 = build_fc1

    def build_self_attention(
        self, embed_dim: int, cfg: TransformerConfig, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> nn.Module:
        return _SelfAttention(embed_dim, cfg.decoder.attention_heads, dropout=cfg.attention_dropout)


class TransformerLMDecoder(LanguageModelDecoder):
    """Transformer layers without attention to an encoder."""

    def build_decoder_layer(self, cfg: TransformerConfig, no_encoder_attn: bool = False) -> nn.Module:
        return wrap_layer(TransformerLMDecoderLayer(cfg, no_encoder_attn), cfg)


class _FlatConfigLanguageModel(GraphedModel, FairseqLanguageModel):
    """A language model for fairseq's task ``language_modeling``, built from one of our flat configurations.

    While it trains on a GPU, everything up to the features runs as a CUDA graph where that is safe (`cuda_graphs`).
    """

    config_class: type[TransformerLMConfig]

    def __init__(self, decoder: LanguageModelDecoder, config: TransformerLMConfig):
        super().__init__(decoder)
        # blocks of text are long and few: rows of padding would cost as much as real ones
        self.graphs = TrainingGraphs(enabled=str(config.cuda_graphs) == "auto", batch_multiple=1)

    def forward(self, src_tokens: Tensor, **options: Any) -> tuple[Tensor, dict[str, list]]:
        """Logits (B, T, V), or features (B, T, C) for an adaptive softmax, and what fairseq returns beside them."""
        if self.training and options.keys() <= {"src_lengths"}:
            features = self.graphs.features(self, src_tokens[:, :1], src_tokens)
            if features is not None:
                return self.decoder.output_layer(features), {"attn": [None], "inner_states": []}
        return super().forward(src_tokens, **options)

    def decoder_features(self, _source: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, C), the decoder's output before the softmax; tokens: (B, T)."""
        return self.decoder.extract_features(tokens, None)[0]

    @classmethod
    def add_args(cls, parser) -> None:
        """The configuration's fields as flags; a list of names is typed with commas."""
        super().add_args(parser)
        read_lists_of_names(parser)

    @classmethod
    def build_model(cls, cfg, task):
        """Raises ConfigError that lists everything in ``cfg`` that does not fit together, or not the dictionary."""
        config = cls.config_class.resolved(cfg)
        dictionary = task.source_dictionary
        found = config.vocabulary_problems(len(dictionary))
        if found:
            raise ConfigError("; ".join(found))
        nested = config.to_fairseq()
        nested.decoder.layers = len(config.kept_layers("decoder"))
        decoder = cls.build_decoder(nested, config, task.target_dictionary, cls.build_embedding(config, dictionary))
        return cls(decoder, config)

    @classmethod
    def build_embedding(cls, config: TransformerLMConfig, dictionary: Any) -> nn.Module:
        """Token ids -> (..., C): one table, or adaptive input."""
        channels = config.decoder_embed_dim
        if config.adaptive_input_cutoff is None:
            return Embedding(len(dictionary), channels, dictionary.pad())
        return BandedInput(
            len(dictionary),
            dictionary.pad(),
            channels,
            config.adaptive_factor,
            channels,
            list(config.adaptive_input_cutoff),
        )

    @classmethod
    def build_decoder(
        cls, cfg: TransformerConfig, config: TransformerLMConfig, dictionary: Any, embed_tokens: nn.Module
    ) -> LanguageModelDecoder:
        raise NotImplementedError


class LiteTransformerLanguageModel(_FlatConfigLanguageModel):
    """Lite Transformer (Wu et al., ICLR 2020) as a language model."""

    config_class = LiteTransformerLMConfig

    @classmethod
    def build_decoder(cls, cfg, config, dictionary, embed_tokens):
        return LiteTransformerLMDecoder(cfg, config, dictionary, embed_tokens, no_encoder_attn=True)


class TransformerLanguageModel(_FlatConfigLanguageModel):
    """The Transformer language model with Adaptive Inputs at the budgets of the paper's tables."""

    config_class = TransformerLMConfig

    @classmethod
    def build_decoder(cls, cfg, config, dictionary, embed_tokens):
        return TransformerLMDecoder(cfg, dictionary, embed_tokens, no_encoder_attn=True)


LANGUAGE_MODEL_CLASSES: dict[str, type[_FlatConfigLanguageModel]] = {
    "lite_transformer_lm": LiteTransformerLanguageModel,
    "transformer_lm": TransformerLanguageModel,
}

for _architecture in ARCHITECTURES.values():
    if _architecture.model in LANGUAGE_MODEL_CLASSES:
        register_architecture(_architecture, LANGUAGE_MODEL_CLASSES[_architecture.model], globals())
