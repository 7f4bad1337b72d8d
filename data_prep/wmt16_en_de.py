"""WMT'16 English-German as Google published it: tokenized, cleaned and split into 32,000 joint subwords.

Nothing is cleaned or learnt here: other steps would give other sentences than those of the published scores.
Valid is newstest2013, test is newstest2014. If the archive has them untokenized, they are kept as references.

Source: lite-transformer, configs/wmt16.en-de/prepare.sh; google/seq2seq, bin/data/wmt16_en_de.sh, made the archive.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from data_prep.archives import iterate_member_lines, iterate_members
from data_prep.io import iterate_lines, iterate_parallel
from data_prep.sources import Source
from data_prep.text import CODES_FILES
from lite_transformer.errors import DataError

LICENCE = "as of the shared task: for research"
CITATION = (
    "Bojar et al. 2016, Findings of the 2016 Conference on Machine Translation; "
    "Britz et al. 2017, Massive Exploration of Neural Machine Translation Architectures"
)
ARCHIVE = Source(
    name="wmt16_en_de.tar.gz",
    urls=(
        "https://drive.usercontent.google.com/download?id=0B_bZck-ksdkpM25jRUN2X2UxMm8&export=download&confirm=t",
        "https://drive.google.com/uc?export=download&id=0B_bZck-ksdkpM25jRUN2X2UxMm8",
    ),
    licence=LICENCE,
    citation=CITATION,
    hint="Google Drive may ask for a click in a browser first.",
    aliases=("wmt16_en_de_bpe32k.tar.gz",),
)
STEMS = {
    "train": "train.tok.clean.bpe.32000",
    "valid": "newstest2013.tok.bpe.32000",
    "test": "newstest2014.tok.bpe.32000",
}
RAW_STEMS = {"valid": "newstest2013", "test": "newstest2014"}
CODES = "bpe.32000"


def list_sources(pair: tuple[str, str]) -> tuple[Source, ...]:
    """The one archive, whatever the direction."""
    return (ARCHIVE,)


def read_pairs(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> Iterator[tuple[str, str, str]]:
    """(split, source line, target line) of the untokenized test sets that the archive has."""
    archive = files[ARCHIVE.name]
    # people packed it with and without a folder
    names = {PurePosixPath(name).name: name for name, _ in iterate_members(archive)}
    for split, stem in RAW_STEMS.items():
        members = [names[f"{stem}.{language}"] for language in pair if f"{stem}.{language}" in names]
        if len(members) == 2:
            for source, target in iterate_parallel(*(iterate_member_lines(archive, m) for m in members), names=members):
                yield split, source, target


def write_subwords(files: Mapping[str, Path], pair: tuple[str, str], folder: Path) -> None:
    """Writes SPLIT.LANG and the codes as they are in the archive.

    Raises: DataError if a file is missing, is not UTF-8, or the two languages of a split differ in length.
    """
    archive = files[ARCHIVE.name]
    wanted = {f"{stem}.{language}": f"{split}.{language}" for split, stem in STEMS.items() for language in pair}
    wanted[CODES] = CODES_FILES["bpe"]
    for name, stream in iterate_members(archive):
        written = wanted.pop(PurePosixPath(name).name, None)
        if written is not None:
            with (folder / written).open("wb") as copy:
                shutil.copyfileobj(stream, copy, 1 << 20)
    if wanted:
        raise DataError(f"{archive}: no member {', '.join(wanted)}. Fetch the right archive: {ARCHIVE.urls[-1]}")
    for split in STEMS:
        paths = [folder / f"{split}.{language}" for language in pair]
        for _ in iterate_parallel(*map(iterate_lines, paths), names=[f"{archive}:{STEMS[split]}.{x}" for x in pair]):
            pass
