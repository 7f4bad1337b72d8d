"""The corpora that `lite-transformer prepare` knows, with their origin, licence and usual settings, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_prep import embedded, libreoffice_help, multi30k, parallel
from lite_transformer.errors import DataError

SPLITS = ("train", "valid", "test")

# (source folder or None, languages of the pair) -> {"train.de": path of the file to read, ...}
FindSources = Callable[[Path | None, tuple[str, str]], dict[str, Path]]
# (files found, languages, seed) -> {"train": (source lines, target lines), ...}
ReadSplits = Callable[[Mapping[str, Path], tuple[str, str], int], dict[str, tuple[list[str], list[str]]]]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a corpus is, and how its raw text is had.

    Attributes:
        languages: the languages it has; empty for "whatever the user's files are".
        text: settings of ``TextPipeline`` that differ from its defaults.
        merges: usual size of the subword model.
        find_sources: the files it is read from; raises DataError saying what to fetch if they are missing.
        read_splits: its raw text by split.
        text_language: the language of both sides, if "languages" are in truth kinds of text (article, summary).
    """

    name: str
    description: str
    licence: str
    citation: str
    languages: tuple[str, ...]
    default_pair: tuple[str, str]
    text: Mapping[str, Any]
    merges: int
    find_sources: FindSources
    read_splits: ReadSplits
    text_language: str = ""


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="embedded",
            description="dates, times, names, units, amounts and numbers, rendered in two languages; needs no network",
            licence="generated from CLDR (Unicode licence) by Babel (BSD) and by num2words (LGPL); no text is copied",
            citation="Unicode CLDR Project, https://cldr.unicode.org",
            languages=embedded.LANGUAGES,
            default_pair=("de", "en"),
            # tokenized by SentencePiece alone: Moses cannot put 14:30 or €5.00 together again
            text={"normalize": False, "tokenizer": "none", "subword": "sentencepiece"},
            merges=1600,
            find_sources=embedded.find_sources,
            read_splits=embedded.read_splits,
        ),
        Corpus(
            name="multi30k",
            description="29,000 image captions in English with professional translations into German and French",
            licence="captions of Flickr30K images, for non-commercial research and education; never redistributed here",
            citation="Elliott et al. 2016, Multi30K: Multilingual English-German Image Descriptions; "
            "Elliott et al. 2017, Findings of the Second Shared Task on Multimodal Machine Translation",
            languages=multi30k.LANGUAGES,
            default_pair=("de", "en"),
            # hyphens stay, as for the scores of the literature: test_2016_flickr has 12,103 German words there
            text={"lowercase": True, "aggressive_dash": False},
            merges=10000,
            find_sources=multi30k.find_sources,
            read_splits=multi30k.read_splits,
        ),
        Corpus(
            name="libreoffice_help",
            description="LibreOffice's help: 32,000 aligned paragraphs of technical text, from Debian's packages",
            licence="MPL-2.0",
            citation="The Document Foundation, LibreOffice help, https://help.libreoffice.org",
            languages=libreoffice_help.LANGUAGES,
            default_pair=("de", "en"),
            # typography stays: menus are written with an en dash in German, and options end in an ellipsis
            text={"normalize": False},
            merges=10000,
            find_sources=libreoffice_help.find_sources,
            read_splits=libreoffice_help.read_splits,
        ),
        Corpus(
            name="parallel",
            description="your own text: train, valid and test, one file a language, line n translates line n",
            licence="yours",
            citation="none",
            languages=(),
            default_pair=("de", "en"),
            text={},
            merges=10000,
            find_sources=parallel.find_sources,
            read_splits=parallel.read_splits,
        ),
    )
}


def find_corpus(name: str) -> Corpus:
    """The corpus of that name. Raises: DataError listing the known ones."""
    if name not in CORPORA:
        raise DataError(f"unknown corpus '{name}'. Known corpora: {', '.join(CORPORA)}.")
    return CORPORA[name]


def parse_pair(text: str | None, corpus: Corpus) -> tuple[str, str]:
    """("de", "en") from "de-en"; the corpus's usual pair from None.

    Raises: DataError if it is not two different languages of the corpus.
    """
    if text is None:
        return corpus.default_pair
    languages = ", ".join(corpus.languages) or "any two language codes"
    parts = text.split("-")
    if len(parts) != 2 or not all(part.isalpha() for part in parts):
        raise DataError(f"'{text}' is no language pair; write SOURCE-TARGET, for example --pair de-en ({languages}).")
    source, target = parts
    unknown = [part for part in parts if corpus.languages and part not in corpus.languages]
    if unknown or source == target:
        raise DataError(f"corpus {corpus.name} has no pair '{text}'. Take two different languages of: {languages}.")
    return source, target
