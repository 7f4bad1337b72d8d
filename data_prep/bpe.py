"""Learns one subword model for both languages of a pair, with subword-nmt or SentencePiece."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable
from pathlib import Path

from data_prep.io import atomic_open
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)


def learn(subword: str, lines: Iterable[str], size: int, path: Path) -> None:
    """Writes a subword model learnt on ``lines`` to ``path``, atomically.

    Args:
        subword: "bpe": ``size`` merges, pairs seen at least twice. "sentencepiece": BPE too, ``size`` pieces in all,
            every digit a piece of its own, no normalisation beyond the caller's.
        lines: tokenized text of both languages.
    Raises: DataError if the text is too small for any merge, or for that many pieces.
    """
    if size < 1:
        raise DataError(f"{size} subword merges: the number must be at least 1. Type for example: --bpe-merges 10000")
    if subword == "bpe":
        _learn_bpe(lines, size, path)
    else:
        _learn_sentencepiece(lines, size, path)


def _learn_bpe(lines: Iterable[str], merges: int, path: Path) -> None:
    from subword_nmt.learn_bpe import learn_bpe

    text = [f"{line}\n" for line in lines]
    if not any(len(word) > 1 for line in text for word in line.split()):
        raise DataError("the training text holds no word of two letters: there is nothing to merge.")
    with atomic_open(path) as codes, contextlib.redirect_stderr(_TqdmLines()):
        learn_bpe(text, codes, merges, min_frequency=2)


class _TqdmLines(io.StringIO):
    """Swallows subword-nmt's progress output; the caller logs what it does."""

    def write(self, text: str) -> int:
        return len(text)


def _learn_sentencepiece(lines: Iterable[str], size: int, path: Path) -> None:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            split_digits=True,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(f"SentencePiece cannot learn {size} pieces on this text: {error}") from error
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(model.getvalue())
    temporary.replace(path)
