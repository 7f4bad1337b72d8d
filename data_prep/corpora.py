"""The corpora that `lite-transformer prepare` knows, with their origin, licence and usual settings, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep import (
    cnn_dm,
    debian_synopses,
    embedded,
    iwslt14_de_en,
    libreoffice_help,
    linux_docs,
    multi30k,
    parallel,
    wikitext,
    wmt14_en_fr,
    wmt16_en_de,
)
from data_prep.cleaning import Limits
from data_prep.sources import Source
from lite_transformer.errors import DataError

SPLITS = ("train", "valid", "test")

Files = Mapping[str, Path]
Pair = tuple[str, str]
# languages of the pair -> the published files it is made from
ListSources = Callable[[Pair], Sequence[Source]]
# (source folder or None, languages of the pair) -> {"train.de": path of the file to read, ...}
FindSources = Callable[[Path | None, Pair], dict[str, Path]]
# (languages of the pair, folder) -> None; puts into the folder what --source would hold
Fetch = Callable[[Pair, Path], None]
# (files found, languages, seed) -> {"train": (source lines, target lines), ...}
ReadSplits = Callable[[Files, Pair, int], dict[str, tuple[list[str], list[str]]]]
# (files found, languages, seed) -> (split, source line, target line), one pair after the other, splits in any order
ReadPairs = Callable[[Files, Pair, int], Iterator[tuple[str, str, str]]]
# (files found) -> (split, line) of a corpus of one language, splits in any order; an empty line ends a document
ReadLines = Callable[[Files], Iterator[tuple[str, str]]]
# (files found, languages, folder to write SPLIT.LANG and the codes to)
WriteSubwords = Callable[[Files, Pair, Path], None]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What a corpus is, how its raw text is had, and how it is cleaned.

    A corpus has either ``sources``, published files that are downloaded or taken from --source, or ``find_sources``,
    for the user's own files; and either ``read_pairs``, for text of any size, or ``read_splits``; or ``read_lines``,
    which makes it a corpus of one language, for language models.

    Attributes:
        languages: the languages it has; empty for "whatever the user's files are".
        text: settings of ``TextPipeline`` that differ from its defaults.
        merges: usual size of the subword model.
        sources: the published files, by name.
        find_sources: the files it is read from; raises DataError saying what to fetch if they are missing.
        fetch: gets the files of ``find_sources`` without --source; None: the user must have them.
        read_pairs: its raw text, pair by pair.
        read_splits: its raw text by split, in memory.
        verbatim: raw lines stay as they are, empty ones too: a published protocol counts them.
        word_limits: pairs of tokenized lines that train keeps; None: all that are not empty.
        valid_every: every n-th pair of train, after ``word_limits``, goes to valid instead.
        subword_limits: pairs of lines in subwords that train and valid keep, after everything else.
        split_text: settings of ``text`` that differ in one split.
        joined_dictionary: one dictionary for both languages.
        dictionary_size: the most types of a dictionary; None: all of train.
        write_subwords: for a corpus published in subwords: writes them and their codes; nothing is learnt.
        published_lines: lines by split that others report; a difference is logged.
        text_language: the language of both sides, if "languages" are in truth kinds of text (article, summary).
        source_limit: subwords of the source that are kept, its first ones.
    """

    name: str
    description: str
    licence: str
    citation: str
    languages: tuple[str, ...]
    default_pair: Pair
    text: Mapping[str, Any]
    merges: int
    sources: ListSources | None = None
    find_sources: FindSources | None = None
    fetch: Fetch | None = None
    read_pairs: ReadPairs | None = None
    read_splits: ReadSplits | None = None
    verbatim: bool = False
    word_limits: Limits | None = None
    valid_every: int | None = None
    subword_limits: Limits | None = None
    split_text: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    joined_dictionary: bool = True
    dictionary_size: int | None = None
    write_subwords: WriteSubwords | None = None
    published_lines: Mapping[str, int] = dataclasses.field(default_factory=dict)
    text_language: str = ""
    source_limit: int | None = None
    read_lines: ReadLines | None = None
    min_count: int = 1
    published_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def is_monolingual(self) -> bool:
        return self.read_lines is not None


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
            fetch=libreoffice_help.fetch,
            read_splits=libreoffice_help.read_splits,
        ),
        Corpus(
            name="cnn_dm",
            description="summaries of news: 287,113 articles of CNN and Daily Mail with their highlights",
            licence=cnn_dm.LICENCE,
            citation=cnn_dm.CITATION,
            languages=cnn_dm.LANGUAGES,
            default_pair=cnn_dm.LANGUAGES,
            text={},
            merges=30000,
            sources=cnn_dm.list_sources,
            read_pairs=cnn_dm.read_pairs,
            published_lines={"train": 287113, "valid": 13368, "test": 11490},
            text_language="en",
            source_limit=cnn_dm.MAX_ARTICLE_TOKENS,
        ),
        Corpus(
            name="debian_synopses",
            description="summaries of one line: descriptions of 19,000 software packages, from Debian's indexes",
            licence="each description under the free licence of its package, see its debian/copyright",
            citation="Debian Project, https://www.debian.org/distrib/packages",
            languages=debian_synopses.LANGUAGES,
            default_pair=debian_synopses.LANGUAGES,
            text={},
            merges=10000,
            find_sources=debian_synopses.find_sources,
            fetch=debian_synopses.fetch,
            read_splits=debian_synopses.read_splits,
            text_language="en",
            source_limit=debian_synopses.MAX_DESCRIPTION_SUBWORDS,
        ),
        Corpus(
            name="iwslt14_de_en",
            description="transcripts of TED talks with their translations; 160,239 pairs, lower-cased",
            licence=iwslt14_de_en.LICENCE,
            citation=iwslt14_de_en.CITATION,
            languages=("de", "en"),
            default_pair=("de", "en"),
            text={
                "normalize": False,
                "tokenizer": "moses-scripts",
                "aggressive_dash": False,
                "escape": True,
                "lowercase": True,
            },
            merges=10000,
            sources=iwslt14_de_en.list_sources,
            read_pairs=iwslt14_de_en.read_pairs,
            verbatim=True,
            word_limits=Limits(maximum=175, ratio=1.5),
            valid_every=23,
            joined_dictionary=False,
            published_lines={"train": 160239, "valid": 7283, "test": 6750},
        ),
        Corpus(
            name="wmt14_en_fr",
            description="parliament, news, web and UN text; about 35.5 million pairs",
            licence=wmt14_en_fr.LICENCE,
            citation=wmt14_en_fr.CITATION,
            languages=("en", "fr"),
            default_pair=("en", "fr"),
            text={"normalize": True, "tokenizer": "moses-scripts", "aggressive_dash": True, "escape": True},
            split_text={"test": {"normalize": False}},
            merges=40000,
            sources=wmt14_en_fr.list_sources,
            read_pairs=wmt14_en_fr.read_pairs,
            verbatim=True,
            valid_every=1333,
            subword_limits=Limits(maximum=250, ratio=1.5),
            published_lines={"test": 3003},
        ),
        Corpus(
            name="wmt16_en_de",
            description="WMT'16 news translation, published in 32,000 subwords; 4.5 million pairs",
            licence=wmt16_en_de.LICENCE,
            citation=wmt16_en_de.CITATION,
            languages=("en", "de"),
            default_pair=("en", "de"),
            text={"normalize": False, "tokenizer": "moses-scripts", "aggressive_dash": False, "escape": True},
            merges=32000,
            sources=wmt16_en_de.list_sources,
            read_pairs=wmt16_en_de.read_pairs,
            verbatim=True,
            write_subwords=wmt16_en_de.write_subwords,
            dictionary_size=32768,
            published_lines={"train": 4500966, "valid": 3000, "test": 3003},
        ),
        *(
            Corpus(
                name=name,
                description=description,
                licence=wikitext.LICENCE,
                citation=wikitext.CITATION,
                languages=("en",),
                default_pair=("en", "en"),
                text={"normalize": False, "tokenizer": "none", "subword": "none"},
                merges=0,
                sources=wikitext.list_sources(name),
                read_lines=wikitext.read_lines,
                verbatim=True,
                published_tokens=wikitext.TOKENS[name],
            )
            for name, description in (
                ("wikitext103", "language model: 103 million words of Wikipedia, published as tokens"),
                ("wikitext2", "language model: 2 million words of Wikipedia, published as tokens"),
            )
        ),
        Corpus(
            name="linux_docs",
            description="language model: 5 million words about the Linux kernel and Python, from Debian's packages",
            licence=linux_docs.LICENCE,
            citation=linux_docs.CITATION,
            languages=("en",),
            default_pair=("en", "en"),
            text={"subword": "none"},
            merges=8000,
            find_sources=linux_docs.find_sources,
            fetch=linux_docs.fetch,
            read_lines=linux_docs.read_lines,
            min_count=3,
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
    if corpus.is_monolingual:
        raise DataError(f"corpus {corpus.name} is text of one language: leave out --pair.")
    languages = ", ".join(corpus.languages) or "any two language codes"
    parts = text.split("-")
    if len(parts) != 2 or not all(part.isalpha() for part in parts):
        raise DataError(f"'{text}' is no language pair; write SOURCE-TARGET, for example --pair de-en ({languages}).")
    source, target = parts
    unknown = [part for part in parts if corpus.languages and part not in corpus.languages]
    if unknown or source == target:
        raise DataError(f"corpus {corpus.name} has no pair '{text}'. Take two different languages of: {languages}.")
    return source, target
