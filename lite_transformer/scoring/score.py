"""A score that cannot be separated from how it was computed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval by bootstrap resampling of the test set: mean - half_width to mean + half_width.

    Attributes:
        mean: of the resamples' scores, near the score itself.
        half_width: half the distance of their 2.5 and 97.5 percentiles, as sacreBLEU gives it.
        resamples, seed: with which it can be computed again.
    """

    mean: float
    half_width: float
    resamples: int
    seed: int

    def __str__(self) -> str:
        how = f"95 %, {self.resamples} bootstrap resamples, seed {self.seed}"
        return f"{self.mean:.2f} ± {self.half_width:.2f} ({how})"


@dataclass(frozen=True)
class Score:
    """One number of one metric on one test set.

    Attributes:
        metric: 'tokenized_bleu', 'sacrebleu', 'chrf', 'rouge1', 'rouge1_stem', ...; never a bare BLEU.
        value: in the metric's own unit, here always 0 to 100.
        signature: the protocol; scores with different signatures must not be compared.
        interval: of the value, if it was asked for. It changes neither value nor signature.
    """

    metric: str
    value: float
    signature: str
    interval: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data; the key 'interval' only if there is one."""
        content = asdict(self)
        if self.interval is None:
            del content["interval"]
        return content

    def __str__(self) -> str:
        interval = f", resampled {self.interval}" if self.interval else ""
        return f"{self.metric} {self.value:.2f}{interval}  [{self.signature}]"
