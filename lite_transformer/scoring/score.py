"""A score that cannot be separated from how it was computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """One number of one metric on one test set.

    Attributes:
        metric: 'tokenized_bleu', 'sacrebleu', 'chrf', 'rouge1', 'rouge1_stem', ...; never a bare BLEU.
        value: in the metric's own unit, here always 0 to 100.
        signature: the protocol; scores with different signatures must not be compared.
    """

    metric: str
    value: float
    signature: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.2f}  [{self.signature}]"
