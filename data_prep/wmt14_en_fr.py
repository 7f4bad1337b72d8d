"""WMT'14 English-French: five parallel corpora of the shared task, test set newstest2014.

The protocol is fairseq's, which the paper follows: punctuation normalised and non-printing characters removed in the
training text alone, every 1333rd pair for validation, lengths limited in subwords. About 40.8 million pairs go in.

Source: fairseq, examples/translation/prepare-wmt14en2fr.sh, and lite-transformer, configs/wmt14.en-fr/prepare.sh.
Sizes and checksums: tensorflow/datasets, url_checksums/wmt14_translate.txt and wmt15_translate.txt.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.archives import iterate_member_lines
from data_prep.io import iterate_parallel
from data_prep.iwslt14_de_en import segments
from data_prep.sources import Source

LICENCE = "as of the shared task: for research; Europarl, UN and Giga text are of public institutions"
CITATION = "Bojar et al. 2014, Findings of the 2014 Workshop on Statistical Machine Translation"
_HOST = "https://www.statmt.org/"


def _source(address: str, size_bytes: int | None = None, sha256: str | None = None) -> Source:
    return Source(address.rpartition("/")[2], (_HOST + address,), LICENCE, CITATION, size_bytes, sha256)


TEST = _source("wmt14/test-full.tgz")
# archive, its member without the ending .en or .fr, what packs the member; in the order in which lines are counted
TRAIN = (
    (
        _source(
            "wmt13/training-parallel-europarl-v7.tgz",
            657632379,
            "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
        ),
        "training/europarl-v7.fr-en",
        "",
    ),
    (
        _source(
            "wmt13/training-parallel-commoncrawl.tgz",
            918311367,
            "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
        ),
        "commoncrawl.fr-en",
        "",
    ),
    (
        _source(
            "wmt13/training-parallel-un.tgz",
            2365634246,
            "29141b5c1eba149a94f7a59d3b1a834b2e47fe0f8758d68dcd77a3d3f497ee47",
        ),
        "un/undoc.2000.fr-en",
        "",
    ),
    (
        _source(
            "wmt14/training-parallel-nc-v9.tgz",
            80418416,
            "cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        ),
        "training/news-commentary-v9.fr-en",
        "",
    ),
    (
        _source(
            "wmt10/training-giga-fren.tar",
            2595102720,
            "3ff8319f6919393520559bfbc7ad6a747ec81b3abc7be9993b338d4b017b4d9a",
        ),
        "giga-fren.release2.fixed",
        ".gz",
    ),
)


def list_sources(pair: tuple[str, str]) -> tuple[Source, ...]:
    """Five archives of training text and one of test sets, 6.6 GB in all."""
    return (*(source for source, _, _ in TRAIN), TEST)


def read_pairs(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> Iterator[tuple[str, str, str]]:
    """(split, source line, target line) of the test set, then of the training text; valid is cut from train later."""
    # the English original is the source of both directions, as in the protocol
    test = {"en": "test-full/newstest2014-fren-src.en.sgm", "fr": "test-full/newstest2014-fren-ref.fr.sgm"}
    for source, target in _read(files[TEST.name], [test[language] for language in pair], is_test=True):
        yield "test", source, target
    for archive, stem, packed in TRAIN:
        for source, target in _read(files[archive.name], [f"{stem}.{language}{packed}" for language in pair]):
            yield "train", source, target


def _read(archive: Path, members: list[str], is_test: bool = False) -> Iterator[tuple[str, str]]:
    sides = [iterate_member_lines(archive, member) for member in members]
    if is_test:
        sides = [segments(side) for side in sides]
    return iterate_parallel(*sides, names=members)
