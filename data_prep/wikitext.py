"""WikiText-103 and WikiText-2 (Merity et al. 2016): Wikipedia articles, published as tokens with <unk> for rare words.

The token files are used as they are: a line of the file is a line of the data, empty ones too, so that the number of
tokens is the published one. Both have the same valid and test.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from data_prep.archives import iterate_members
from data_prep.io import decode_line
from data_prep.sources import Source
from lite_transformer.errors import DataError

LICENCE = "CC BY-SA 3.0, text of Wikipedia"
CITATION = "Merity et al. 2016, Pointer Sentinel Mixture Models"

ARCHIVES = {
    name: Source(
        name=f"wikitext-{number}-v1.zip",
        urls=(
            f"https://s3.amazonaws.com/research.metamind.io/wikitext/wikitext-{number}-v1.zip",
            f"https://wikitext.smerity.com/wikitext-{number}-v1.zip",
        ),
        licence=LICENCE,
        citation=CITATION,
        sha256=digest,
    )
    for name, number, digest in (
        ("wikitext103", 103, "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590"),
        ("wikitext2", 2, "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c"),
    )
}
# With an end of line for each line, as fairseq counts them. The lines are those of the token files.
TOKENS = {
    "wikitext103": {"train": 103_227_021, "valid": 217_646, "test": 245_569},
    "wikitext2": {"train": 2_088_628, "valid": 217_646, "test": 245_569},
}
_MEMBER = re.compile(r"(?:.*/)?wiki\.(train|valid|test)\.tokens")


def list_sources(name: str) -> Callable[[tuple[str, str]], tuple[Source, ...]]:
    """What ``prepare`` asks for the published files of 'wikitext103' or 'wikitext2'."""
    return lambda _pair: (ARCHIVES[name],)


def read_lines(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(split, line) of the token files, in the archive's order.

    Raises: DataError if the archive is damaged, holds text that is not UTF-8, or lacks a split.
    """
    (archive,) = files.values()
    missing = {"train", "valid", "test"}
    for name, stream in iterate_members(archive):
        match = _MEMBER.fullmatch(name)
        if match is None:
            continue
        missing.discard(match[1])
        for number, raw in enumerate(stream, start=1):
            yield match[1], decode_line(raw, f"{archive}:{name}", number)
    if missing:
        names = ", ".join(f"wiki.{split}.tokens" for split in sorted(missing))
        raise DataError(f"{archive}: missing {names}. Take the archive of words (-v1.zip), not of raw text.")
