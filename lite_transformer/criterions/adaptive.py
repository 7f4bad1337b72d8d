"""fairseq's ``adaptive_loss`` without a wait for the GPU.

fairseq asks the device which bands the targets are of, which tokens are of each, and whether their targets are sound: a
dozen times a step the host waits until the GPU has done all that was launched, and then the GPU waits for the host.
Here the bands are counted while the targets are still in main memory; the rest needs no values. The bands' losses are
`ops.label_smoothed_cross_entropy`. The losses are fairseq's; only a target that is no type gives NaN, on which a
training stops as well, where fairseq has an assertion.

Importing this module puts the class below in the place of fairseq's; ``--loss-backend reference`` gives its computation
back, and on a CPU it is what it was.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import adaptive_loss, cross_entropy
from fairseq.trainer import Trainer
from torch import Tensor

from lite_transformer.criterions.fused import BACKEND, HELP, inner_model, put_in_place
from lite_transformer.models.adaptive import BandedSoftmax
from lite_transformer.ops.cross_entropy import label_smoothed_cross_entropy

# Under it, a batch has what was counted of its targets: tokens of each band but the first, and tokens at all.
COUNTS = "target_counts"


@dataclass
class AdaptiveLossConfig(adaptive_loss.AdaptiveLossConfig):
    """fairseq's options, and how the loss is computed."""

    loss_backend: BACKEND = field(default="auto", metadata=HELP)


class AdaptiveLoss(adaptive_loss.AdaptiveLoss):
    """fairseq's criterion of that name."""

    def __init__(self, task, sentence_avg: bool, loss_backend: str = "auto"):
        super().__init__(task, sentence_avg)
        self.loss_backend = str(loss_backend)

    @classmethod
    def build_criterion(cls, cfg: AdaptiveLossConfig, task: Any) -> "AdaptiveLoss":
        criterion = super().build_criterion(cfg, task)
        criterion.loss_backend = str(cfg.loss_backend)
        return criterion

    def softmax(self, model: Any) -> BandedSoftmax | None:
        """The model's, if it is one that this class computes without fairseq."""
        found = getattr(getattr(inner_model(model), "decoder", None), "adaptive_softmax", None)
        return found if isinstance(found, BandedSoftmax) and self.loss_backend != "reference" else None

    def forward(self, model, sample, reduce: bool = True) -> tuple[Tensor, int, dict[str, Any]]:
        """As fairseq's: the sum of the losses (1), of every token unless ``reduce``, sample size, what is logged."""
        softmax = self.softmax(model)
        target = sample["target"]
        if softmax is None or not reduce or not (target.is_cuda or self.loss_backend == "triton"):
            return super().forward(model, sample, reduce)
        features = model(**sample["net_input"])[0]
        *counts, tokens = sample[COUNTS] if COUNTS in sample else self.count(softmax, target)
        logits, targets, _ = softmax.bands(features, target, counts)
        losses = [
            label_smoothed_cross_entropy(band, wanted, ignore_index=self.padding_idx, backend=self.loss_backend)[0]
            for band, wanted in zip(logits, targets, strict=True)
            if band is not None and wanted is not None
        ]
        loss = sum(losses[1:], losses[0]).reshape(1)
        sentences = target.size(0)
        sample_size = sentences if self.sentence_avg else tokens
        logged = {"loss": loss.data, "ntokens": tokens, "nsentences": sentences, "sample_size": sample_size}
        return loss, sample_size, logged

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """As fairseq's; losses on a GPU stay there until they are read, as fairseq's cross entropy leaves them."""
        on_gpu = any(isinstance(log.get("loss"), Tensor) and log["loss"].is_cuda for log in logging_outputs)
        theirs = cross_entropy.CrossEntropyCriterion if on_gpu else adaptive_loss.AdaptiveLoss
        theirs.reduce_metrics(logging_outputs)

    def count(self, softmax: BandedSoftmax, target: Tensor) -> list[int]:
        """Of targets (...): tokens of each band but the first, and tokens at all. Waits for a device, once."""
        tokens = target.ne(self.padding_idx).sum().reshape(1)
        return torch.cat([softmax.count_bands(target), tokens]).tolist()


_prepare_sample = Trainer._prepare_sample


def prepare_sample(trainer: Trainer, sample: Any, is_dummy: bool = False) -> tuple[Any, bool]:
    """As fairseq's, which moves a batch to the GPU; what the loss counts of the targets is counted before."""
    criterion = trainer.get_criterion()
    if trainer.cuda and isinstance(criterion, AdaptiveLoss) and isinstance(sample, dict) and COUNTS not in sample:
        softmax, target = criterion.softmax(trainer.get_model()), sample.get("target")
        if softmax is not None and isinstance(target, Tensor) and not target.is_cuda:
            sample = sample | {COUNTS: criterion.count(softmax, target)}
    return _prepare_sample(trainer, sample, is_dummy)


Trainer._prepare_sample = prepare_sample
put_in_place("adaptive_loss", AdaptiveLossConfig, AdaptiveLoss)
