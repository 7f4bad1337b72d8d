"""fairseq's ``label_smoothed_cross_entropy`` and ``cross_entropy`` in one pass over the logits each way, on a GPU.

fairseq turns the logits into fp32 log-probabilities and passes over them several times: of 5,000 tokens and 32,000
types a quarter of all that a GPU does in a small model's step. Here they go to `ops.label_smoothed_cross_entropy` as
they are. On a CPU, and for models that make log-probabilities in a way of their own, fairseq computes the loss as ever;
``--loss-backend reference`` (``criterion.loss_backend=reference``) makes it do so everywhere.

Importing this module puts the classes below in the place of fairseq's under its names. Theirs are as they were, for
those who import them; ours have their names, by which a checkpoint knows what it was trained with.
"""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY, CRITERION_REGISTRY, cross_entropy, register_criterion
from fairseq.criterions import label_smoothed_cross_entropy as label_smoothed
from fairseq.dataclass import ChoiceEnum
from fairseq.models import BaseFairseqModel, FairseqDecoder
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor, nn

from lite_transformer.errors import UnsupportedInputError
from lite_transformer.ops.backends import BACKENDS
from lite_transformer.ops.cross_entropy import chosen_backend, label_smoothed_cross_entropy

logger = logging.getLogger(__name__)

BACKEND = ChoiceEnum(list(BACKENDS))

# The ways from logits to log-probabilities that are a log-softmax in fp32.
_PLAIN_LOG_SOFTMAX: tuple[Callable[..., Any], ...] = (
    BaseFairseqModel.get_normalized_probs,
    BaseFairseqModel.get_normalized_probs_scriptable,
    TransformerModelBase.get_normalized_probs,
    FairseqDecoder.get_normalized_probs,
    FairseqDecoder.get_normalized_probs_scriptable,
)


HELP = {
    "help": "how the loss is computed: triton (fused kernels: a GPU), reference (fairseq's computation) or auto (fused "
    "kernels where they can be used)"
}


@dataclass
class LabelSmoothedCrossEntropyConfig(label_smoothed.LabelSmoothedCrossEntropyCriterionConfig):
    """fairseq's options, and how the loss is computed."""

    loss_backend: BACKEND = field(default="auto", metadata=HELP)  # type: ignore[valid-type]


@dataclass
class CrossEntropyConfig(cross_entropy.CrossEntropyCriterionConfig):
    """fairseq's options, and how the loss is computed."""

    loss_backend: BACKEND = field(default="auto", metadata=HELP)  # type: ignore[valid-type]


class LabelSmoothedCrossEntropyCriterion(label_smoothed.LabelSmoothedCrossEntropyCriterion):
    """fairseq's criterion of that name."""

    def __init__(self, task, *args: Any, loss_backend: str = "auto", **options: Any):
        super().__init__(task, *args, **options)
        self.loss_backend = str(loss_backend)

    @classmethod
    def build_criterion(cls, cfg: LabelSmoothedCrossEntropyConfig, task: Any) -> "LabelSmoothedCrossEntropyCriterion":
        return cls(
            task,
            cfg.sentence_avg,
            cfg.label_smoothing,
            cfg.ignore_prefix_size,
            cfg.report_accuracy,
            loss_backend=cfg.loss_backend,
        )

    def compute_loss(self, model, net_output, sample, reduce: bool = True) -> tuple[Tensor, Tensor]:
        """As fairseq's: the sums of loss and negative log-likelihood, of every token unless ``reduce``."""
        logits = logits_for_kernels(model, net_output, self.loss_backend) if reduce else None
        if logits is None:
            return super().compute_loss(model, net_output, sample, reduce=reduce)
        target = model.get_targets(sample, net_output)
        if self.ignore_prefix_size > 0:
            target = target.clone()
            target[:, : self.ignore_prefix_size] = self.padding_idx
        return label_smoothed_cross_entropy(
            logits, target, epsilon=self.eps, ignore_index=self.padding_idx, backend="triton"
        )


class CrossEntropyCriterion(cross_entropy.CrossEntropyCriterion):
    """fairseq's criterion of that name."""

    def __init__(self, task, sentence_avg: bool, loss_backend: str = "auto"):
        super().__init__(task, sentence_avg)
        self.loss_backend = str(loss_backend)

    def compute_loss(self, model, net_output, sample, reduce: bool = True) -> tuple[Tensor, Tensor]:
        """As fairseq's: the sum of the losses, of every token unless ``reduce``, twice."""
        logits = logits_for_kernels(model, net_output, self.loss_backend) if reduce else None
        if logits is None:
            return super().compute_loss(model, net_output, sample, reduce=reduce)
        target = model.get_targets(sample, net_output)
        loss, _ = label_smoothed_cross_entropy(logits, target, ignore_index=self.padding_idx, backend="triton")
        return loss, loss


def logits_for_kernels(model: Any, net_output: Any, backend: str) -> Tensor | None:
    """The logits (B, T, V) of a model's output if the fused kernels compute its loss; None if fairseq has to.

    Raises: UnsupportedInputError for the backend 'triton' where it cannot be used.
    """
    if backend == "reference":
        return None
    found = obstacle(inner_model(model), net_output)
    if found is None:
        return net_output[0] if chosen_backend(net_output[0], backend) == "triton" else None
    if backend == "triton":
        raise UnsupportedInputError(f"--loss-backend triton: {found}; leave the option out")
    if any(parameter.is_cuda for parameter in model.parameters()):
        _log_obstacle(found)
    return None


def obstacle(model: Any, net_output: Any) -> str | None:
    """Why a model's output is no logits whose log-softmax fairseq would take; None if it is."""
    decoder = getattr(model, "decoder", None)
    if getattr(decoder, "adaptive_softmax", None) is not None:
        return "the model's softmax is adaptive"
    for part in (model, decoder):
        for name in ("get_normalized_probs", "get_normalized_probs_scriptable"):
            if getattr(getattr(part, name, None), "__func__", None) not in _PLAIN_LOG_SOFTMAX:
                return f"{type(model).__name__} makes log-probabilities in a way of its own"
    if not isinstance(net_output, (tuple, list)) or not isinstance(net_output[0], Tensor):
        return f"{type(model).__name__} gives no logits"
    return None


@functools.cache
def _log_obstacle(found: str) -> None:
    logger.info("loss: fairseq's computation instead of fused kernels: %s", found)


def inner_model(model: Any) -> Any:
    """The model inside the wrappers of several processes, which call it ``module``."""
    while isinstance(model._modules.get("module"), nn.Module):
        model = model._modules["module"]
    return model


def put_in_place(name: str, config: type, criterion: type) -> None:
    """Registers a criterion under a name of fairseq's, instead of fairseq's."""
    del CRITERION_REGISTRY[name], CRITERION_DATACLASS_REGISTRY[name]
    register_criterion(name, dataclass=config)(criterion)


put_in_place("label_smoothed_cross_entropy", LabelSmoothedCrossEntropyConfig, LabelSmoothedCrossEntropyCriterion)
put_in_place("cross_entropy", CrossEntropyConfig, CrossEntropyCriterion)
