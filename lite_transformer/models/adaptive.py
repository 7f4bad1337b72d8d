"""fairseq's adaptive input and adaptive softmax (Grave et al. 2017, Baevski and Auli 2019) for every device and dtype.

Parameters, their names and the results are fairseq's. What is added: the input never makes the host wait for a GPU, so
that a pass can be captured as a CUDA graph; and the softmax is computed in fp32 whatever the dtype of the model, since
a sum of losses over some thousand tokens is more than fp16 can hold.

The vocabulary is cut into bands, frequent types first. Band i has embeddings 4^i times narrower than the model, and a
projection to the model's width; the softmax has one class for each further band beside the types of the first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq.modules import AdaptiveInput, AdaptiveSoftmax
from torch import Tensor


class BandedInput(AdaptiveInput):
    """fairseq's adaptive input."""

    def forward(self, input: Tensor) -> Tensor:
        """(...) token ids -> (..., C)."""
        if input.device.type == "cpu":
            return super().forward(input)  # every token in its own band only
        return self.in_every_band(input)

    def in_every_band(self, input: Tensor) -> Tensor:
        """The same, computed for every token in every band, so that no shape depends on values."""
        result: Tensor | None = None
        start = 0
        for end, band in zip(self.cutoff, self.embeddings, strict=True):
            # tokens of other bands look up any row, and leave no gradient there
            part = band((input - start).remainder(end - start))
            inside = ((input >= start) & (input < end)).unsqueeze(-1)
            result = part if result is None else torch.where(inside, part, result)
            start = end
        assert result is not None
        return result


class BandedSoftmax(AdaptiveSoftmax):
    """fairseq's adaptive softmax, with fp32 logits."""

    def _compute_dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, input: Tensor, target: Tensor) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """Logits of each band in fp32 for the tokens it concerns, and their targets there, as fairseq's.

        Args:
            input: (..., C). target: (...).
        """
        logits, targets, _ = self.bands(input, target)
        return [None if band is None else band.float() for band in logits], targets

    def bands(
        self, input: Tensor, target: Tensor, counts: list[int] | None = None
    ) -> tuple[list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
        """Logits of each band in the model's dtype, their targets there, and the tokens of each band but the first.

        Args:
            input: (..., C). target: (...). counts: `count_bands` of the target; the host waits for them if not given.
        """
        flat = self.dropout_module(input.reshape(-1, input.size(-1)).to(self._compute_dtype()))
        targets, rows = self.adapt_target(target, counts)
        logits = [self.head(flat)]
        for tail, chosen in zip(self.tail, rows, strict=True):
            logits.append(None if chosen is None else tail(flat.index_select(0, chosen)))
        return logits, targets, rows

    def count_bands(self, target: Tensor) -> Tensor:
        """(bands - 1) int64: how many of these targets (...) are of each band but the first."""
        band = self._band(target)
        return torch.stack([band.eq(number).sum() for number in range(1, len(self.cutoff))])

    def adapt_target(
        self, target: Tensor, counts: list[int] | None = None
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """As fairseq's: targets (...) of each band, and the tokens of each but the first; None for a band without any.

        The host waits for a device once, for the counts, and not if they are given.
        """
        target = target.reshape(-1)
        band = self._band(target)
        if counts is None:
            counts = self.count_bands(target).tolist()
        # the tokens of one band after those of the one before, each in their order
        order = band.argsort(stable=True)
        targets: list[Tensor | None] = [torch.where(band > 0, band + (self.cutoff[0] - 1), target)]
        rows: list[Tensor | None] = []
        for chosen, start in zip(order.split([target.numel() - sum(counts), *counts])[1:], self.cutoff, strict=False):
            rows.append(chosen if chosen.numel() else None)
            targets.append(target.index_select(0, chosen) - start if chosen.numel() else None)
        return targets, rows

    def _band(self, target: Tensor) -> Tensor:
        """(...) int64: the band of each target, 0 for the most frequent types."""
        return torch.stack([target.ge(start) for start in self.cutoff[:-1]]).sum(dim=0)

    def get_log_prob(self, input: Tensor, target: Tensor | None) -> Tensor:
        """Log-probabilities (B, T, V) in fp32 for input (B, T, C).

        With a ``target`` (B, T), types of the narrow bands are right only where the target is of the same band.
        """
        flat = input.reshape(-1, input.size(-1)).to(self._compute_dtype())
        first = self.cutoff[0]
        head = F.log_softmax(self.head(flat).float(), dim=-1)
        scores = head.new_zeros(flat.size(0), self.vocab_size)
        scores[:, :first] = head[:, :first]
        for band, (start, end) in enumerate(zip(self.cutoff, self.cutoff[1:], strict=False)):
            rows: slice | Tensor = slice(None)
            if target is not None:
                rows = (target.reshape(-1).ge(start) & target.reshape(-1).lt(end)).nonzero(as_tuple=True)[0]
            tail = F.log_softmax(self.tail[band](flat[rows]).float(), dim=-1)
            scores[rows, start:end] = tail + head[rows, first + band, None]
        return scores.view(*input.shape[:-1], -1)

    def target_log_probs(self, input: Tensor, target: Tensor) -> Tensor:
        """(N,) in fp32: the log-probability of each target (N,) after input (N, C); no other is computed."""
        logits, targets, rows = self.bands(input, target)
        scores = torch.zeros(target.numel(), device=target.device)
        every = torch.arange(target.numel(), device=target.device)
        for band, wanted, chosen in zip(logits, targets, [every, *rows], strict=True):
            if band is not None and wanted is not None and chosen is not None:
                scores = scores.index_add(0, chosen, _chosen(band.float(), wanted))
        return scores


def _chosen(logits: Tensor, target: Tensor) -> Tensor:
    """(N,): the log-probability of target (N,) by logits (N, V)."""
    return -F.cross_entropy(logits, target, reduction="none")
