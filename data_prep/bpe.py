"""Learns one subword model for both languages of a pair, with subword-nmt or SentencePiece."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_prep.io import atomic_open
from data_prep.workers import chunked
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

# subword-nmt keeps about a kilobyte for a word it learns from; no text of less than some 10 million lines has as many
LEARNT_WORDS = 1_000_000
COUNTED_WORDS = 4_000_000  # about 200 bytes each


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


def count_words(lines: Iterable[str], limit: int = COUNTED_WORDS) -> Counter[str]:
    """How often each blank-separated word occurs, words in the order of their first occurrence.

    Beyond ``limit`` different words the rarest so far are forgotten, so memory does not grow with the text.
    """
    counts: Counter[str] = Counter()
    forgotten = 0
    for chunk in chunked(lines):
        for line in chunk:
            counts.update(line.split(" "))
        if len(counts) > limit:
            rarest = 0
            while len(counts) > limit // 2:  # to half, so that it is seldom necessary
                rarest += 1
                counts = Counter({word: count for word, count in counts.items() if count > rarest})
            forgotten = max(forgotten, rarest)
    if forgotten:
        logger.warning("more than %d different words: words seen %d times or less were forgotten", limit, forgotten)
    counts.pop("", None)
    return counts


def _learn_bpe(lines: Iterable[str], merges: int, path: Path) -> None:
    from subword_nmt.learn_bpe import learn_bpe

    counts = count_words(line.strip("\r\n ") for line in lines)
    if not any(len(word) > 1 for word in counts):
        raise DataError("the training text holds no word of two letters: there is nothing to merge.")
    frequent = list(counts.items())
    if len(frequent) > LEARNT_WORDS:
        logger.info("learning from the %d most frequent of %d different words", LEARNT_WORDS, len(frequent))
        frequent = counts.most_common(LEARNT_WORDS)
    del counts
    vocabulary = (f"{word} {count}" for word, count in frequent)
    with atomic_open(path) as codes, contextlib.redirect_stderr(_TqdmLines()):
        learn_bpe(vocabulary, codes, merges, min_frequency=2, is_dict=True)


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
