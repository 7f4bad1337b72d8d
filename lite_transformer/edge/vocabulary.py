"""A dictionary of subwords as fairseq writes it, without fairseq."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.io import read_lines
from lite_transformer.errors import CheckpointError, DataError

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # fairseq's, in its order
PAD, END, UNKNOWN = 1, 2, 3


class Vocabulary:
    """Subwords and their ids; `PAD`, `END` and `UNKNOWN` have the ids that fairseq gives them.

    Raises: CheckpointError if a line of the file is not a subword and a count, or a subword stands there twice.
    """

    def __init__(self, path: Path):
        try:
            lines = read_lines(path)
        except DataError as error:
            raise CheckpointError(str(error)) from None
        self.symbols = list(SPECIALS)
        self._ids = {symbol: index for index, symbol in enumerate(self.symbols)}
        for number, line in enumerate(lines, start=1):
            field = line.rstrip()
            overwrites = field.endswith(" #fairseq:overwrite")
            symbol, _, count = field.removesuffix(" #fairseq:overwrite").rpartition(" ")
            if not symbol or not count.isdigit():
                raise CheckpointError(f"{path}, line {number}: no subword and count ('{line[:40]}')")
            if symbol in self._ids and not overwrites:
                raise CheckpointError(f"{path}, line {number}: '{symbol[:40]}' stands there a second time")
            self._ids[symbol] = len(self.symbols)
            self.symbols.append(symbol)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, subwords: str) -> list[int]:
        """The ids of subwords separated by blanks, without the end of the sentence."""
        return [self._ids.get(symbol, UNKNOWN) for symbol in subwords.split()]

    def decode(self, tokens: Iterable[int]) -> str:
        """Subwords separated by blanks; the end of the sentence and padding are left out."""
        hidden: Sequence[int] = (0, PAD, END)
        return " ".join(self.symbols[token] for token in tokens if token not in hidden)
