"""The encoder-decoder models: fairseq's Transformer with its self-attention replaced by LSRA.

Everything around the layers (embeddings, layer drop, activation checkpointing, FSDP wrapping, beam search) is
fairseq's own. One seam is missing there: ``build_encoder_layer(cfg)`` does not say which layer it builds, and LSRA's
kernel size depends on it. `_LayerNumbers` is the bridge.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from fairseq.distributed import fsdp_wrap
from fairseq.models import MODEL_DATACLASS_REGISTRY, BaseFairseqModel, register_model
from fairseq.models.transformer import TransformerConfig, TransformerModelBase
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from lite_transformer.errors import ConfigError
from lite_transformer.models.architectures import ARCHITECTURES, Architecture, find_architecture
from lite_transformer.models.config import BranchOptions, FlatConfig, LiteTransformerConfig, TransformerBaselineConfig
from lite_transformer.models.cuda_graphs import TrainingGraphs
from lite_transformer.models.full_pass import FullPassDecoder, FullPassEncoder
from lite_transformer.models.sublayers import FusedDecoderLayer, FusedEncoderLayer
from lite_transformer.modules.attention import CAUSAL, MultiheadAttention
from lite_transformer.modules.incremental import IncrementalModule, IncrementalState
from lite_transformer.modules.linear import xavier_linear
from lite_transformer.modules.lsra import LongShortRangeAttention


class _FlatFeedForward:
    """fc1 and fc2 of a fairseq layer with the paper's initialisation."""

    lsra: BranchOptions

    def build_fc1(self, input_dim: int, output_dim: int, *_quant_noise: Any) -> nn.Module:
        widened = str(self.lsra.ffn_init) == "widened"
        return xavier_linear(input_dim, output_dim, widened=widened, backend=str(self.lsra.conv_backend))

    build_fc2 = build_fc1


class LiteTransformerEncoderLayer(_FlatFeedForward, FusedEncoderLayer):
    """fairseq's encoder layer with LSRA for self-attention."""

    def __init__(self, cfg: TransformerConfig, lsra: BranchOptions, layer_number: int):
        self.lsra = lsra
        self.layer_number = layer_number
        self.backend = str(lsra.conv_backend)
        super().__init__(cfg)

    def build_self_attention(self, embed_dim: int, cfg: TransformerConfig) -> nn.Module:
        return LongShortRangeAttention(self.lsra.branches("encoder", self.layer_number))


class LiteTransformerDecoderLayer(_FlatFeedForward, FusedDecoderLayer):
    """fairseq's decoder layer with LSRA for self-attention; attention to the encoder sees all channels."""

    def __init__(self, cfg: TransformerConfig, lsra: BranchOptions, layer_number: int, no_encoder_attn: bool = False):
        self.lsra = lsra
        self.layer_number = layer_number
        self.backend = str(lsra.conv_backend)
        super().__init__(cfg, no_encoder_attn)

    def build_self_attention(
        self, embed_dim: int, cfg: TransformerConfig, add_bias_kv: bool = False, add_zero_attn: bool = False
    ) -> nn.Module:
        return LongShortRangeAttention(self.lsra.branches("decoder", self.layer_number))

    def build_encoder_attention(self, embed_dim: int, cfg: TransformerConfig) -> nn.Module:
        return MultiheadAttention(
            embed_dim,
            self.lsra.cross_attention_heads,
            key_dim=self.lsra.encoder_embed_dim,
            dropout=self.lsra.attention_dropout,
            backend=self.backend,
        )


class _LayerNumbers:
    """Tells each layer its number: fairseq builds layers in order, one call each, without saying which."""

    def __init__(self, lsra: BranchOptions, side: str):
        self.lsra = lsra
        self._numbers: Iterator[int] = iter(lsra.kept_layers(side))

    def next(self) -> int:
        return next(self._numbers)


def wrap_layer(layer: nn.Module, cfg: TransformerConfig) -> nn.Module:
    """fairseq's wrapping of a built layer: activation checkpointing, then fully sharded data parallelism."""
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)


class LiteTransformerEncoder(FullPassEncoder):
    """fairseq's encoder over LSRA layers."""

    def __init__(self, cfg: TransformerConfig, lsra: BranchOptions, dictionary, embed_tokens):
        self._layer_numbers = _LayerNumbers(lsra, "encoder")
        super().__init__(cfg, dictionary, embed_tokens)
        del self._layer_numbers

    def build_encoder_layer(self, cfg: TransformerConfig) -> nn.Module:
        numbers = self._layer_numbers
        return wrap_layer(LiteTransformerEncoderLayer(cfg, numbers.lsra, numbers.next()), cfg)


class LiteTransformerDecoder(FullPassDecoder):
    """fairseq's decoder over LSRA layers."""

    def __init__(self, cfg: TransformerConfig, lsra: BranchOptions, dictionary, embed_tokens, **options):
        self._layer_numbers = _LayerNumbers(lsra, "decoder")
        super().__init__(cfg, dictionary, embed_tokens, **options)
        del self._layer_numbers

    def build_decoder_layer(self, cfg: TransformerConfig, no_encoder_attn: bool = False) -> nn.Module:
        numbers = self._layer_numbers
        return wrap_layer(LiteTransformerDecoderLayer(cfg, numbers.lsra, numbers.next(), no_encoder_attn), cfg)

    def future_mask(self, x: Tensor) -> str:
        return CAUSAL

    @functools.cached_property
    def _keepers(self) -> list[IncrementalModule]:
        return [module for module in self.modules() if isinstance(module, IncrementalModule)]

    def reorder_incremental_state_scripting(self, incremental_state: IncrementalState, new_order: Tensor) -> None:
        """As fairseq's, which its search calls at each step, without a walk through all modules."""
        for module in self._keepers:
            module.reorder_incremental_state(incremental_state, new_order)


class GraphedModel(BaseFairseqModel):
    """What models that train through CUDA graphs have in common; ``graphs`` are made by the model itself."""

    graphs: TrainingGraphs

    def train(self, mode: bool = True):
        """As for any module. fairseq asks for training mode at every update, and setting it anew takes milliseconds."""
        if all(module.training is mode for module in self.modules()):
            return self
        return super().train(mode)

    def set_num_updates(self, num_updates: int) -> None:
        """Tells the modules that want to know. Asking the classes costs a tenth of asking the modules."""
        for module in self.modules():
            if module is not self and hasattr(type(module), "set_num_updates"):
                module.set_num_updates(num_updates)

    def _apply(self, fn, recurse: bool = True):
        """Moving or casting the model puts its parameters elsewhere: captured graphs would read the old ones."""
        self.graphs.clear()
        return super()._apply(fn, recurse)


class _FlatConfigModel(GraphedModel, TransformerModelBase):
    """A fairseq encoder-decoder built from one of our flat configurations.

    While it trains on a GPU, encoder and decoder run as CUDA graphs where that is safe (see `cuda_graphs`).
    """

    config_class: type[TransformerBaselineConfig]

    def __init__(self, cfg, encoder, decoder):
        super().__init__(cfg, encoder, decoder)
        self.graphs = TrainingGraphs(enabled=str(cfg.flat.cuda_graphs) == "auto")

    @classmethod
    def add_args(cls, parser) -> None:
        """The configuration's fields as flags; a list of names is typed with commas."""
        super(TransformerModelBase, cls).add_args(parser)
        read_lists_of_names(parser)

    @classmethod
    def build_model(cls, cfg, task):
        """Raises ConfigError that lists everything in ``cfg`` that does not fit together."""
        config = cls.config_class.resolved(cfg)
        if config.share_all_embeddings and task.source_dictionary != task.target_dictionary:
            raise ConfigError("--share-all-embeddings needs a joined dictionary: prepare the data with one")
        nested = config.to_fairseq()
        nested.flat = config
        model = super().build_model(nested, task)
        model.decoder.left_pad_target = _left_pads_target(task)
        return model

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        return FullPassEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        return FullPassDecoder(cfg, tgt_dict, embed_tokens)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None,
        prev_output_tokens: Tensor,
        return_all_hiddens: bool = True,
        features_only: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict[str, list]]:
        """Logits (B, T, V) and what fairseq returns beside them, for a whole batch.

        A pass through a CUDA graph has no attention weights, as always in training, and no ``inner_states``.
        """
        if self.training and not features_only and alignment_layer is None and alignment_heads is None:
            features = self.graphs.features(self, src_tokens, prev_output_tokens)
            if features is not None:
                return self.decoder.output_layer(features), {"attn": [None], "inner_states": []}
        return super().forward(
            src_tokens,
            src_lengths,
            prev_output_tokens,
            return_all_hiddens=return_all_hiddens,
            features_only=features_only,
            alignment_layer=alignment_layer,
            alignment_heads=alignment_heads,
        )

    def decoder_features(self, src_tokens: Tensor, prev_output_tokens: Tensor) -> Tensor:
        """(B, T, C), the decoder's output before the projection to the vocabulary; src_tokens: (B, S)."""
        memory = self.encoder(src_tokens)
        return self.decoder.extract_features(prev_output_tokens, memory)[0]


class LiteTransformerModel(_FlatConfigModel):
    """Lite Transformer (Wu et al., ICLR 2020) as a fairseq translation model."""

    config_class = LiteTransformerConfig

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens):
        return LiteTransformerEncoder(cfg, cfg.flat, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens):
        return LiteTransformerDecoder(cfg, cfg.flat, tgt_dict, embed_tokens)


class TransformerBaselineModel(_FlatConfigModel):
    """fairseq's own Transformer, built from the flat configuration, at the budgets of the paper's tables."""

    config_class = TransformerBaselineConfig


def _left_pads_target(task: Any) -> bool:
    """Whether the task pads targets on the left; fairseq's default is the right."""
    options = getattr(task, "cfg", None) or getattr(task, "args", None)
    return str(getattr(options, "left_pad_target", False)).strip().lower() in ("true", "1")


def read_lists_of_names(parser) -> None:
    """Lets the branches be typed with commas."""
    for action in parser._actions:
        if action.dest in ("encoder_branches", "decoder_branches"):
            action.type = _comma_separated


def _comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.strip("[]").replace("'", "").split(",") if part.strip()]


MODEL_CLASSES: dict[str, type[_FlatConfigModel]] = {
    "lite_transformer": LiteTransformerModel,
    "transformer": TransformerBaselineModel,
}


def _config_with_defaults(architecture: Architecture, base: type[FlatConfig]) -> type[FlatConfig]:
    """The model's configuration class with the architecture's settings as its defaults."""
    overridden = []
    for item in dataclasses.fields(base):
        if item.name not in architecture.settings:
            continue
        value = architecture.settings[item.name]
        if isinstance(value, list):
            new = dataclasses.field(default_factory=functools.partial(list, value), metadata=item.metadata)
        else:
            new = dataclasses.field(default=value, metadata=item.metadata)
        overridden.append((item.name, item.type, new))
    unknown = set(architecture.settings) - {item.name for item in dataclasses.fields(base)}
    if unknown:
        raise ConfigError(f"architecture {architecture.name} sets unknown options: {', '.join(sorted(unknown))}")
    return dataclasses.make_dataclass(
        f"{base.__name__}_{architecture.name}", overridden, bases=(base,), namespace={"__doc__": base.__doc__}
    )


def register_architecture(architecture: Architecture, base: Any, namespace: dict[str, Any]) -> None:
    """Registers a name as a model of its own, so that flags, YAML and old checkpoints get the same defaults.

    fairseq's architecture functions would not do: with Hydra the base model's defaults are filled in before they run.

    Args:
        base: the model class. namespace: of the module that registers; tests and spawned workers find the classes
            there by name, as they would written ones.
    """
    config_class = _config_with_defaults(architecture, base.config_class)
    config_class.__module__ = namespace["__name__"]
    namespace[config_class.__name__] = config_class
    model_class = type(
        f"{base.__name__}_{architecture.name}",
        (base,),
        {"config_class": config_class, "__module__": namespace["__name__"], "__doc__": base.__doc__},
    )
    namespace[model_class.__name__] = model_class
    register_model(architecture.name, dataclass=config_class)(model_class)


for _architecture in ARCHITECTURES.values():
    if _architecture.model in MODEL_CLASSES:
        register_architecture(_architecture, MODEL_CLASSES[_architecture.model], globals())


def resolved_config(name: str, **overrides: Any) -> Any:
    """The complete configuration of a named architecture, with options overridden by keyword.

    Raises: UnknownArchitectureError, ConfigError.
    """
    config_class = MODEL_DATACLASS_REGISTRY[find_architecture(name).name]
    defaults = config_class()
    known = {item.name for item in dataclasses.fields(config_class)}
    for key, value in overrides.items():
        if key not in known:
            raise ConfigError(f"unknown option '{key}' of architecture {name}")
        setattr(defaults, key, value)
    return config_class.resolved(defaults)
