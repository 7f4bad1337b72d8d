"""``--task compressed_translation`` and ``compressed_language_modeling``: tasks of fairseq, trained on while a recipe
prunes and quantizes the model.

  lite-transformer train EXPERIMENT --data DIR/bin --save-dir runs/NAME.paper
      task._name=compressed_translation task.compression_recipe=paper
      checkpoint.finetune_from_model=runs/NAME/checkpoint_best.pt
      optimization.max_update=4000 'optimization.lr=[0.0005]'
  lite-transformer compress runs/NAME.paper/checkpoint_best.pt --recipe paper --data DIR/bin --out model.ltpack

Pruning grows up to task.prune_until (a part of all updates), weights are quantized from task.quantize_from on, and the
levels of codebooks are trained from task.tie_from on; what was begun is kept by checkpoints, and the same command goes
on after an interruption. Validation, and so checkpoint_best.pt, is of the model as the recipe would pack it then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FP16Optimizer
from fairseq.optim.fp16_optimizer import MemoryEfficientFP16Optimizer
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II

from lite_transformer.compression.recipes import load_recipe
from lite_transformer.compression.training import Compressor, Plan
from lite_transformer.errors import ConfigError


@dataclass
class CompressionConfig(FairseqDataclass):
    """When to do what the recipe says; names in `compression.training`."""

    compression_recipe: str = field(default="paper", metadata={"help": "name of a recipe, or path of a YAML file"})
    prune_until: float = field(default=0.4, metadata={"help": "pruning grows up to this part of all updates"})
    prune_interval: int = field(default=50, metadata={"help": "updates between two steps of pruning"})
    quantize_from: float = field(default=0.5, metadata={"help": "weights are quantized from this part of all updates"})
    tie_from: float = field(default=0.8, metadata={"help": "levels are trained from this part of all updates"})
    compression_updates: int = II("optimization.max_update")


@dataclass
class CompressedTranslationConfig(CompressionConfig, TranslationConfig):
    """The options of translation and of compression."""


@dataclass
class CompressedLanguageModelingConfig(CompressionConfig, LanguageModelingConfig):
    """The options of language modeling and of compression."""


class CompressedTraining:
    """What a task needs to train by a recipe, to be mixed into one; its options are those above."""

    cfg: Any
    args: Any
    _compressor: Compressor | None = None
    _restored: dict[str, Any] | None = None

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> Any:
        """Raises: ConfigError if the recipe or the schedule cannot be; not when a trained model is only loaded."""
        if not from_checkpoint:
            options = self.cfg or self.args  # fairseq's older tasks, language modeling among them, have args
            self._compressor = Compressor(
                load_recipe(options.compression_recipe),
                Plan.of(
                    options.compression_updates,
                    options.prune_until,
                    options.prune_interval,
                    options.quantize_from,
                    options.tie_from,
                ),
            )
        return super().build_model(cfg, from_checkpoint)  # type: ignore[misc]

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **extra):
        """As fairseq's, on the weights of the recipe. Raises: ConfigError for training in half precision."""
        if isinstance(optimizer, (FP16Optimizer, MemoryEfficientFP16Optimizer)):
            # the optimizer's own copy of the weights would not be held to the recipe
            raise ConfigError(
                "a compressed_ task trains in fp32: leave common.fp16 and common.bf16 out, or common.amp=true"
            )
        compressor = self._ready(model)
        with compressor.quantized(_inner(model), update_num):
            result = super().train_step(  # type: ignore[misc]
                sample, model, criterion, optimizer, update_num, ignore_grad=ignore_grad, **extra
            )
        compressor.project_gradients(_inner(model))
        return result

    def optimizer_step(self, optimizer, model, update_num) -> None:
        super().optimizer_step(optimizer, model=model, update_num=update_num)  # type: ignore[misc]
        self._ready(model).hold(_inner(model))

    def valid_step(self, sample, model, criterion, **extra):
        """As fairseq's, on the weights that the recipe would pack now."""
        with self._ready(model).as_packed(_inner(model)):
            return super().valid_step(sample, model, criterion, **extra)  # type: ignore[misc]

    def get_checkpoint_dict(self) -> dict[str, Any]:
        """What fairseq saves of a task, under its class's name."""
        assert self._compressor is not None
        return {type(self).__name__: self._restored or self._compressor.state_dict()}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        """Takes what was saved; there is no model yet to compare it with, so it waits for the first step."""
        self._restored = state

    def _ready(self, model: Any) -> Compressor:
        assert self._compressor is not None
        if self._restored is not None:
            self._compressor.load_state_dict(self._restored, _inner(model))
            self._restored = None
        return self._compressor


def _inner(model: Any) -> Any:
    """The model inside the wrappers of several processes, which call it ``module``."""
    while "module" in model._modules:
        model = model._modules["module"]
    return model


@register_task("compressed_translation", dataclass=CompressedTranslationConfig)
class CompressedTranslationTask(CompressedTraining, TranslationTask):
    """Translation, trained on by a compression recipe."""


@register_task("compressed_language_modeling", dataclass=CompressedLanguageModelingConfig)
class CompressedLanguageModelingTask(CompressedTraining, LanguageModelingTask):
    """Language modeling, trained on by a compression recipe."""
