"""IWSLT'14 German-English, from the organisers' archive: tagged training text and XML test sets.

The protocol is the one of all published scores on this set: lines of training text without their tags, titles and
descriptions included; five development and test sets together are the test set; entities stay as they are written.
Cleaning, split and tokenization are settings of the corpus (``corpora.py``).

Source: fairseq, examples/translation/prepare-iwslt14.sh, and lite-transformer, configs/iwslt14.de-en/prepare.sh.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from data_prep.archives import iterate_member_lines
from data_prep.io import iterate_parallel
from data_prep.sources import Source

LICENCE = "TED talks, CC BY-NC-ND 4.0; never redistributed here"
CITATION = (
    "Cettolo et al. 2014, Report on the 11th IWSLT evaluation campaign; "
    "Cettolo et al. 2012, WIT3: Web Inventory of Transcribed and Translated Talks"
)
ARCHIVE = Source(
    name="de-en.tgz",
    urls=(
        "https://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz",
        "https://wit3.fbk.eu/archive/2014-01/texts/de/en/de-en.tgz",  # the original address, dead since 2020
    ),
    licence=LICENCE,
    citation=CITATION,
)
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")

_DROPPED = ("<url>", "<talkid>", "<keywords>")  # lines with one of these anywhere
_TAGS = re.compile(r"</?(?:title|description)>")
_SEGMENT = re.compile(r'<seg id="[0-9]*">\s*|\s*</seg>\s*', re.ASCII)


def list_sources(pair: tuple[str, str]) -> tuple[Source, ...]:
    """The one archive, whatever the direction."""
    return (ARCHIVE,)


def read_pairs(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> Iterator[tuple[str, str, str]]:
    """(split, source line, target line) of the training text, then of the test sets; valid is cut from train later."""
    archive = files[ARCHIVE.name]
    members = [f"de-en/train.tags.de-en.{language}" for language in pair]
    sides = [_training_lines(iterate_member_lines(archive, member)) for member in members]
    for source, target in iterate_parallel(*sides, names=members):
        yield "train", source, target
    for name in TEST_SETS:
        members = [f"de-en/IWSLT14.{name}.de-en.{language}.xml" for language in pair]
        sides = [segments(iterate_member_lines(archive, member)) for member in members]
        for source, target in iterate_parallel(*sides, names=members):
            yield "test", source, target


def _training_lines(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if not any(tag in line for tag in _DROPPED):
            yield _TAGS.sub("", line)


def segments(lines: Iterator[str]) -> Iterator[str]:
    """The text of every line with a <seg id=...> of an XML or SGML test set, with straight apostrophes."""
    for line in lines:
        if "<seg id" in line:
            yield _SEGMENT.sub("", line).replace("’", "'")
