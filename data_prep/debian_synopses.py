"""Debian's package descriptions and their one-line synopses: summarization with a small, real corpus.

The text is the English Translation index of a Debian or Ubuntu mirror, which `apt-get update` keeps on the machine;
the Packages index says which packages are built from one source package, for those describe themselves alike.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.apt import APT_HELPER, COMPRESSED, fetch_indexes
from data_prep.io import decode_line, iterate_lines
from data_prep.leakage import Pairs, draw_split, normalise, report_leakage, without_leakage
from data_prep.text import clean_whitespace
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

LANGUAGES = ("description", "synopsis")

MIN_DESCRIPTION_WORDS = 36  # five synopses; a shorter one hardly says more than its synopsis
MAX_DESCRIPTION_SUBWORDS = 400  # cut there: one in a hundred is longer, with lists of features
MIN_SYNOPSIS_WORDS = 3
BOILERPLATE_SOURCES = 3  # a paragraph of that many source packages describes none of them
NO_SOFTWARE = re.compile(r"\b(transitional|dummy|meta-?package)\b", re.IGNORECASE)
SHARES = {"test": 0.05, "valid": 0.05}  # of the source packages, before cleaning; the rest is train's

INDEX_NAMES = {"translations": "Translation-en", "packages": "Packages"}
REMEDY = "Fetch it again: leave out --source, or type as root: apt-get -o Acquire::Languages=en update"


@dataclasses.dataclass(frozen=True)
class Description:
    """A package's synopsis and the paragraphs of its description, each on one line."""

    package: str
    synopsis: str
    paragraphs: tuple[str, ...]


def find_sources(source: Path | None, pair: tuple[str, str]) -> dict[str, Path]:
    """The index files of a folder: {"translations.0": path, "packages.0": path, ...}.

    Without a Packages index, packages are taken to be of one source package if their descriptions begin alike.

    Raises: DataError if there is no Translation index; says what to type.
    """
    _check_pair(pair)
    if source is None or not source.is_dir():
        raise DataError(f"--source {source or 'DIR'}: no such folder. It is to hold Translation-en and Packages.")
    found = {
        key: sorted(path for path in source.iterdir() if _is_index(path.name, name))
        for key, name in INDEX_NAMES.items()
    }
    if not found["translations"]:
        raise DataError(
            f"{source}: no English Translation index (Translation-en, which may be compressed). Leave out --source to "
            "have it fetched, or fetch it on a Debian machine. As root type: apt-get -o Acquire::Languages=en update; "
            "then copy Translation-en and Packages from /var/lib/apt/lists"
        )
    if not found["packages"]:
        logger.warning("%s: no Packages index; packages that begin alike are taken to be of one source", source)
    return {f"{key}.{number}": path for key, paths in found.items() for number, path in enumerate(paths)}


def fetch(pair: tuple[str, str], folder: Path) -> None:
    """Puts the indexes of this Debian or Ubuntu machine, or of its mirror, into ``folder``."""
    _check_pair(pair)
    fetch_indexes(tuple(INDEX_NAMES.values()), folder)


def _check_pair(pair: tuple[str, str]) -> None:
    if pair != LANGUAGES:
        raise DataError(f"corpus debian_synopses has the pair {'-'.join(LANGUAGES)} only, not {'-'.join(pair)}.")


def read_splits(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> dict[str, tuple[list[str], list[str]]]:
    """Descriptions and synopses of every split, one package a source package.

    Raises: DataError if an index is damaged, of another kind, or too small for three splits.
    """
    del pair, seed  # the split depends on the names of the source packages alone
    paths = {key: [path for name, path in sorted(files.items()) if name.startswith(key)] for key in INDEX_NAMES}
    descriptions = read_descriptions(paths["translations"])
    splits = split_descriptions(descriptions, read_source_names(paths["packages"], descriptions))
    if not all(splits.values()):
        sizes = ", ".join(f"{split} {len(pairs)}" for split, pairs in splits.items())
        names = ", ".join(str(path) for path in paths["translations"])
        raise DataError(f"{names}: too few descriptions ({sizes}). Take the index of Debian's main archive.")
    report_leakage(splits)
    return {name: ([s for s, _ in pairs], [t for _, t in pairs]) for name, pairs in splits.items()}


# --- index files ---------------------------------------------------------------------------------------------------


def _is_index(file: str, name: str) -> bool:
    """Whether a file is called like an index: alone, or as apt calls it (deb.debian.org_..._Packages.lz4)."""
    stem = file.removesuffix(Path(file).suffix) if file.endswith(COMPRESSED) else file
    return stem == name or stem.endswith((f"_{name}", f"-{name}"))


def iterate_stanzas(path: Path) -> Iterator[dict[str, str]]:
    """The fields of every stanza; continuation lines keep their line ends and their first blank. Source: deb822(5)."""
    fields: dict[str, str] = {}
    field = ""
    for number, line in enumerate(_lines(path), start=1):
        if not line:
            if fields:
                yield fields
            fields, field = {}, ""
        elif line[0] in " \t" and field:
            fields[field] += f"\n{line}"
        else:
            field, colon, value = line.partition(":")
            if not colon or not field or " " in field:
                raise DataError(
                    f"{path}, line {number}: no index of packages ('{line[:40]}' is no 'Field: value'). {REMEDY}"
                )
            fields[field] = value.strip()
    if fields:
        yield fields


def _lines(path: Path) -> Iterator[str]:
    """The lines of an index: plain and gzip files by ourselves, the other formats by apt."""
    if path.suffix not in COMPRESSED or path.suffix == ".gz":
        yield from iterate_lines(path)
        return
    try:
        command = subprocess.Popen(
            [str(APT_HELPER), "cat-file", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except OSError as error:
        raise DataError(
            f"{path}: needs {APT_HELPER} to be uncompressed ({error.strerror}). "
            f"On a Debian machine type: {APT_HELPER} cat-file {path.name} > {path.stem}, and take that file instead"
        ) from None
    with command:
        assert command.stdout is not None
        for number, raw in enumerate(command.stdout, start=1):
            yield decode_line(raw, path, number)
    if command.returncode:
        raise DataError(f"{path}: damaged, apt cannot uncompress it. {REMEDY}")


def read_descriptions(paths: Sequence[Path]) -> dict[str, Description]:
    """The English description of every package; of several (suites, versions) the first."""
    found: dict[str, Description] = {}
    for path in paths:
        for fields in iterate_stanzas(path):
            text = fields.get("Description-en")
            name = fields.get("Package", "")
            if text and name not in found:
                synopsis, _, body = text.partition("\n")
                paragraphs = (clean_whitespace(part) for part in re.split(r"(?m)^ \.[ \t]*$", body))
                found[name] = Description(name, clean_whitespace(synopsis), tuple(part for part in paragraphs if part))
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no field Description-en, so no Translation index. {REMEDY}")
    return found


def read_source_names(paths: Sequence[Path], descriptions: Mapping[str, Description]) -> dict[str, str]:
    """The source package of every package, as the Packages indexes say.

    A package that they do not know belongs to the first one whose description has the same first paragraph.
    """
    known: dict[str, str] = {}
    for path in paths:
        for fields in iterate_stanzas(path):
            if "Package" in fields:  # "Source: name (version)"; without it source and package are called the same
                known.setdefault(fields["Package"], fields.get("Source", fields["Package"]).split(" ")[0])
    first: dict[tuple[str, ...], str] = {}
    return {
        name: known.get(name) or first.setdefault(description.paragraphs[:1], name)
        for name, description in descriptions.items()
    }


# --- pairs ---------------------------------------------------------------------------------------------------------


def split_descriptions(descriptions: Mapping[str, Description], source_names: Mapping[str, str]) -> dict[str, Pairs]:
    """Train, valid and test: one description a source package, none that begins like another one."""
    packages: dict[str, list[Description]] = collections.defaultdict(list)
    for name, description in descriptions.items():
        packages[source_names[name]].append(description)
    boilerplate = find_boilerplate(packages)
    drawn: dict[str, Pairs] = {"train": [], "valid": [], "test": []}
    beginnings: set[str] = set()
    for source in sorted(packages):
        description = min(packages[source], key=lambda item: (item.package != source, len(item.package), item.package))
        paragraphs = [part for part in description.paragraphs if part not in boilerplate]
        words = " ".join(paragraphs).split()
        if not is_summary(description.synopsis, words):
            continue
        beginning = normalise(first_sentence(paragraphs[0]))
        if beginning not in beginnings:
            beginnings.add(beginning)
            drawn[draw_split(source, SHARES)].append((" ".join(words), description.synopsis))
    test = without_leakage(drawn["test"], drawn["train"], MIN_SYNOPSIS_WORDS)
    valid = without_leakage(drawn["valid"], drawn["train"] + test, MIN_SYNOPSIS_WORDS)
    return {"train": drawn["train"], "valid": valid, "test": test}


def find_boilerplate(packages: Mapping[str, Sequence[Description]]) -> set[str]:
    """The paragraphs that BOILERPLATE_SOURCES source packages or more have in common."""
    counts: collections.Counter[str] = collections.Counter()
    for descriptions in packages.values():
        counts.update({part for description in descriptions for part in description.paragraphs})
    return {part for part, count in counts.items() if count >= BOILERPLATE_SOURCES}


def is_summary(synopsis: str, words: Sequence[str]) -> bool:
    """Whether a synopsis says in short what the words of its description say at length."""
    return (
        len(words) >= MIN_DESCRIPTION_WORDS
        and len(synopsis.split()) >= MIN_SYNOPSIS_WORDS
        and not NO_SOFTWARE.search(synopsis)
    )


def first_sentence(paragraph: str) -> str:
    """A paragraph up to its first full stop, colon, question or exclamation mark before a blank."""
    return re.split(r"(?<=[.:?!])\s", paragraph, maxsplit=1)[0]
