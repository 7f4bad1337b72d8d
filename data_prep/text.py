"""From raw text to subwords and back: the same steps for preparing a corpus and for translating a typed line."""

from __future__ import annotations

import dataclasses
import functools
import io
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lite_transformer.errors import DataError

TOKENIZERS = ("moses", "moses-scripts", "none")
SUBWORDS = ("bpe", "sentencepiece", "none")
_CACHED_WORDS = 200_000  # split words that a process remembers, about 100 MB
CODES_FILES = {"bpe": "codes", "sentencepiece": "spm.model"}  # the file, inside the folder of the subword model


def clean_whitespace(line: str) -> str:
    """The line in Unicode NFC, with every run of white space (no-break and line separators too) as one blank."""
    return " ".join(unicodedata.normalize("NFC", line).split())


@dataclasses.dataclass(frozen=True)
class TextPipeline:
    """What happens to a line of one language before the model reads it, and the way back.

    Attributes:
        language: two-letter code; Moses' rules for abbreviations and punctuation depend on it.
        normalize: Moses punctuation normalisation (quotation marks, dashes) before tokenization; with "moses-scripts"
            non-printing characters become blanks as well.
        tokenizer: "moses" (sacremoses, on text in NFC), "moses-scripts" (to the letter what Moses' Perl scripts give,
            as published corpora have it), or "none" to leave words as white space gives them.
        aggressive_dash: Moses splits hyphenated words (a @-@ b).
        escape: Moses writes &, <, > and quotation marks as XML entities.
        lowercase: lower-case after tokenization; ``decode`` cannot undo it.
        subword: "bpe" (subword-nmt), "sentencepiece", or "none" for whole words.
        codes: the learnt subword model, relative to ``folder``.
        folder: where ``codes`` lies; not part of the JSON form, so a prepared folder can be moved.
    """

    language: str
    normalize: bool = True
    tokenizer: str = "moses"
    aggressive_dash: bool = True
    escape: bool = False
    lowercase: bool = False
    subword: str = "bpe"
    codes: str = "bpe/codes"
    folder: Path = dataclasses.field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        for name, known in (("tokenizer", TOKENIZERS), ("subword", SUBWORDS)):
            if getattr(self, name) not in known:
                raise DataError(f"unknown {name} '{getattr(self, name)}'. Known: {', '.join(known)}.")

    @property
    def files(self) -> tuple[str, ...]:
        """What the pipeline reads, relative to ``folder``: the subword model, or nothing."""
        return () if self.subword == "none" else (self.codes,)

    def to_json(self) -> dict[str, Any]:
        """The settings as plain data, without the folder."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "folder"}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any], folder: Path) -> TextPipeline:
        """The pipeline that ``to_json`` described. Raises: DataError naming unknown or missing settings."""
        known = {field.name for field in dataclasses.fields(cls)} - {"folder"}
        if unknown := sorted(set(settings) - known):
            raise DataError(
                f"unknown text settings in {folder}: {', '.join(unknown)}. Known: {', '.join(sorted(known))}."
            )
        if "language" not in settings:
            raise DataError(f"the text settings in {folder} name no language.")
        return cls(folder=folder, **settings)

    def tokenize(self, line: str) -> str:
        """Raw text -> words separated by blanks; what tokenized BLEU is computed on."""
        if self.tokenizer == "moses-scripts":
            return self._tokenize_by_scripts(line)
        line = clean_whitespace(line)
        if self.normalize:
            line = clean_whitespace(_moses_normalizer(self.language).normalize(line))
        if self.tokenizer == "moses":
            line = _moses_tokenizer(self.language).tokenize(
                line, aggressive_dash_splits=self.aggressive_dash, escape=self.escape, return_str=True
            )
        return line.lower() if self.lowercase else line

    def _tokenize_by_scripts(self, line: str) -> str:
        from data_prep import moses

        if self.normalize:
            line = moses.remove_non_printing(moses.normalize_punctuation(line, self.language))
        line = moses.tokenize(line, self.language, self.aggressive_dash, self.escape)
        return moses.lowercase(line) if self.lowercase else line

    def detokenize(self, line: str) -> str:
        """Words separated by blanks -> raw text."""
        if self.tokenizer != "none" and line:
            line = _moses_detokenizer(self.language).detokenize(line.split(), unescape=self.escape)
            line = line.replace(" @-@ ", "-")
        return line

    def split(self, words: str) -> str:
        """Words, as ``tokenize`` gives them -> subwords separated by blanks."""
        if self.subword == "none":
            return words
        splitter = _bpe_splitter if self.subword == "bpe" else _sentencepiece_splitter
        return splitter(self.folder / self.codes)(words)

    def join(self, subwords: str) -> str:
        """Subwords separated by blanks -> words."""
        if self.subword == "none":
            return subwords
        return join_bpe(subwords) if self.subword == "bpe" else join_sentencepiece(subwords)

    def encode(self, line: str) -> str:
        """Raw text -> subwords separated by blanks."""
        return self.split(self.tokenize(line))

    def decode(self, subwords: str) -> str:
        """Subwords separated by blanks -> raw text."""
        return self.detokenize(self.join(subwords))


def join_bpe(subwords: str) -> str:
    """Undoes subword-nmt's splitting: ``lo@@ w er`` -> ``low er``; a dangling ``@@`` at the end is dropped."""
    return (subwords + " ").replace("@@ ", "").strip()


def join_sentencepiece(pieces: str) -> str:
    """Undoes SentencePiece's splitting: pieces are put together, then U+2581 becomes a blank."""
    return "".join(pieces.split()).replace("\u2581", " ").strip()


# Tokenizers and subword models are slow to build; frozen pipelines share them by what they depend on.


@functools.cache
def _moses_normalizer(language: str) -> Any:
    from sacremoses import MosesPunctNormalizer

    return MosesPunctNormalizer(lang=language)


@functools.cache
def _moses_tokenizer(language: str) -> Any:
    from sacremoses import MosesTokenizer

    class Tokenizer(MosesTokenizer):
        """Its questions about periods answered by sets made once, not once a word."""

        lower, alpha = frozenset(MosesTokenizer.IsLower), frozenset(MosesTokenizer.IsAlpha)

        def islower(self, text: str) -> bool:
            return self.lower.issuperset(text)

        def isanyalpha(self, text: str) -> bool:
            return not self.alpha.isdisjoint(text)

    return Tokenizer(lang=language)


@functools.cache
def _moses_detokenizer(language: str) -> Any:
    from sacremoses import MosesDetokenizer

    return MosesDetokenizer(lang=language)


def _read_codes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the subword model is missing ({error.strerror}). "
            "Make it with: lite-transformer prepare CORPUS --dest DIR"
        ) from error


@functools.cache
def _bpe_splitter(path: Path) -> Callable[[str], str]:
    content = _read_codes(path)
    from subword_nmt.apply_bpe import BPE

    try:
        codes = content.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8, so no file of BPE codes.") from None
    if not codes:
        raise DataError(f"{path}: empty, so no file of BPE codes.")
    for number, line in enumerate(codes.splitlines(), start=1):  # BPE() would exit the process instead of raising
        if not line.startswith("#version:") and len(line.strip("\r\n ").split(" ")) != 2:
            raise DataError(f"{path}, line {number}: no BPE merge ('{line[:40]}'); two symbols are needed.")
    segmenter = BPE(io.StringIO(codes))

    def split(line: str) -> str:
        if len(segmenter.cache) > _CACHED_WORDS:  # frequent words come back at once
            segmenter.cache.clear()
        return str(segmenter.process_line(line))

    return split


@functools.cache
def _sentencepiece_splitter(path: Path) -> Callable[[str], str]:
    content = _read_codes(path)
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise DataError(f"{path}: no SentencePiece model ({error}).") from error

    def split(line: str) -> str:
        return " ".join(processor.encode(line, out_type=str))

    return split
