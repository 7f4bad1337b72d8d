"""Which pairs a training set keeps, by the rules of Moses' clean-corpus-n.perl, which published line counts rest on.

Source: mosesdecoder/scripts/training/clean-corpus-n.perl.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of pairs of tokenized lines.

    Attributes:
        maximum: the most words (or subwords, the caller says which) on either side.
        ratio: the most times that one side may be longer than the other.
        minimum: the fewest on either side.
    """

    maximum: int
    ratio: float = 9.0
    minimum: int = 1

    # a single longer word ends a pair, too: Moses' aligner could not take it
    longest_word = 1000

    def keep(self, source: str, target: str) -> bool:
        """Whether both lines are long enough, short enough, and of similar length."""
        words, others = source.split(), target.split()
        if not self.minimum <= len(words) <= self.maximum or not self.minimum <= len(others) <= self.maximum:
            return False
        if not words or not others:
            return False
        if len(words) / len(others) > self.ratio or len(others) / len(words) > self.ratio:
            return False
        return max(map(len, words)) <= self.longest_word and max(map(len, others)) <= self.longest_word
