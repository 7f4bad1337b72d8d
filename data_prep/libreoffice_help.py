"""LibreOffice's help in German, English and French: technical text, aligned exactly, from three Debian packages.

The pages bear the same names in every language and their paragraphs the same ids, so the n-th paragraph of an id of a
page translates the n-th one of the other language. Help repeats itself: a split by page alone would leave many lines
of test, or nearly the same ones, in train, so valid and test are cleaned against it (``leakage``).
"""

from __future__ import annotations

import collections
import contextlib
import io
import logging
import lzma
import re
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from data_prep.apt import download_packages
from data_prep.archives import check_name
from data_prep.leakage import Pairs, draw_split, report_leakage, without_leakage
from data_prep.text import clean_whitespace
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

LANGUAGES = ("de", "en", "fr")
PACKAGES = {"de": "libreoffice-help-de", "en": "libreoffice-help-en-us", "fr": "libreoffice-help-fr"}
FOLDERS = {"de": "de", "en": "en-US", "fr": "fr"}  # of the pages of a language, below help/

MAX_WORDS = 175
MAX_CHARACTER_RATIO = 2.2  # of two translations, each counted with 8 characters more: short ones vary
MIN_TEST_WORDS = 4
SHARES = {"test": 0.045, "valid": 0.04}  # of the pages, before cleaning; the rest is train's
CODE_CLASSES = frozenset({"code", "codeintable"})

CONTENT_NAMES = ("data.tar", "data.tar.gz", "data.tar.bz2", "data.tar.xz", "data.tar.zst")
MAX_PAGE_BYTES = 8 << 20  # the largest page of version 7.4 has 0.3 MB

Segments = dict[tuple[str, int], str]  # (id, occurrence on the page) -> text


def find_sources(source: Path | None, pair: tuple[str, str]) -> dict[str, Path]:
    """The package of each language in the folder ``source``, whatever its version.

    Raises: DataError if a package is missing, or there in two versions; says what to type.
    """
    advice = (
        "On a Debian or Ubuntu machine leave out --source, or type in that folder: "
        f"apt-get download {' '.join(PACKAGES[language] for language in pair)}"
    )
    if source is None or not source.is_dir():
        raise DataError(f"--source {source or 'DIR'}: no such folder. {advice}")
    found = {language: sorted(source.glob(f"{PACKAGES[language]}_*.deb")) for language in pair}
    if missing := [f"{PACKAGES[language]}_VERSION_all.deb" for language, files in found.items() if not files]:
        raise DataError(f"{source}: missing {', '.join(missing)}. {advice}")
    for files in found.values():
        if len(files) > 1:
            raise DataError(f"{source}: {' and '.join(path.name for path in files)}. Leave one version there.")
    return {language: files[0] for language, files in found.items()}


def fetch(pair: tuple[str, str], folder: Path) -> None:
    """Puts the packages of a pair into ``folder``, in the version of this Debian or Ubuntu machine."""
    download_packages([PACKAGES[language] for language in pair], folder)


def read_splits(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> dict[str, tuple[list[str], list[str]]]:
    """The aligned paragraphs of every split, by page; ``files`` holds the package of each language.

    Raises: DataError if a package is damaged or of another kind, or if two packages have no paragraph in common.
    """
    del seed  # the split depends on the names of the pages alone
    source, target = (read_pages(files[language], language) for language in pair)
    splits = split_pages(source, target)
    if not all(splits.values()):
        names = " and ".join(str(files[language]) for language in pair)
        raise DataError(
            f"{names} have too little text in common. Take packages of one version: "
            f"apt-get download {PACKAGES[pair[0]]} {PACKAGES[pair[1]]}"
        )
    report_leakage(splits)
    return {name: ([s for s, _ in pairs], [t for _, t in pairs]) for name, pairs in splits.items()}


# --- packages ------------------------------------------------------------------------------------------------------


def read_pages(package: Path, language: str) -> dict[str, Segments]:
    """The paragraphs of every help page of a package, by the page's path below ``text/``."""
    pattern = re.compile(rf"(?:\./)?usr/share/libreoffice/help/{FOLDERS[language]}/text/(.+)\.html")
    pages: dict[str, Segments] = {}
    with package_content(package) as archive:
        members = tqdm(archive, desc=f"read {package.name}", unit="file", disable=None, leave=False)
        for member in members:
            check_name(package, member.name)
            match = pattern.fullmatch(member.name)
            if match and member.isfile():
                if member.size > MAX_PAGE_BYTES:
                    raise DataError(f"{package}: {member.name} has {member.size} bytes, which is no help page.")
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                pages[match[1]] = read_page(content.read())
    if not pages:
        raise DataError(
            f"{package}: no help pages of language '{language}' in it. Fetch: apt-get download {PACKAGES[language]}"
        )
    return pages


@contextlib.contextmanager
def package_content(path: Path) -> Iterator[tarfile.TarFile]:
    """The files of a .deb package as a tar archive, read front to back; nothing is written to disk.

    Raises: DataError if the file is no .deb package or is damaged, also while the archive is being read.
    """
    try:
        with path.open("rb") as stream, contextlib.ExitStack() as stack:
            name, size = _find_content(stream, path)
            if name == "data.tar.zst":  # Ubuntu's packages; Python reads zstd from 3.14 on
                content = stack.enter_context(_unpack_with_dpkg(path))
                yield stack.enter_context(tarfile.open(fileobj=content, mode="r|"))
                return
            mode: Any = f"r|{name.removeprefix('data.tar').removeprefix('.')}"
            yield stack.enter_context(tarfile.open(fileobj=io.BytesIO(stream.read(size)), mode=mode))
    except (OSError, EOFError, tarfile.TarError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut off ({error}). {_fetch_again(path)}") from error


def _find_content(stream: IO[bytes], path: Path) -> tuple[str, int]:
    """Name and size of the member that holds the package's files; the stream stands at its begin.

    A .deb is a Unix ar archive: a line, then for each member 60 bytes of ASCII (name 16, ..., size 10, "`\\n") and its
    content, padded to an even length. Source: deb(5).
    """
    start = stream.read(8)
    if start != b"!<arch>\n":
        raise DataError(f"{path}: no .deb package (it begins with {start!r}). {_fetch_again(path)}")
    while header := stream.read(60):
        name, size = header[:16].decode("ascii", "replace").rstrip(" /"), header[48:58].strip()
        if len(header) < 60 or header[58:] != b"`\n" or not size.isdigit():
            break
        length = int(size)
        if name.startswith("data.tar"):
            rest = path.stat().st_size - stream.tell()
            if rest < length:
                raise DataError(f"{path}: cut off, {length - rest} bytes are missing. {_fetch_again(path)}")
            if name not in CONTENT_NAMES:
                raise DataError(f"{path}: unknown compression ({name}). Known: {', '.join(CONTENT_NAMES)}.")
            return name, length
        stream.seek(length + length % 2, io.SEEK_CUR)
    raise DataError(f"{path}: damaged, no data.tar in this package. {_fetch_again(path)}")


@contextlib.contextmanager
def _unpack_with_dpkg(path: Path) -> Iterator[IO[bytes]]:
    try:
        command = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise DataError(
            f"{path}: compressed with zstd, which needs dpkg-deb (not found). Take Debian's package instead, from "
            f"https://packages.debian.org/{path.name.split('_')[0]}"
        ) from None
    with command:
        assert command.stdout is not None
        yield command.stdout
        while command.stdout.read(1 << 20):  # padding after the archive's end; unread, it would kill the command
            pass
    if command.returncode:
        raise DataError(f"{path}: damaged, dpkg-deb cannot unpack it. {_fetch_again(path)}")


def _fetch_again(path: Path) -> str:
    return f"Fetch it again: apt-get download {path.name.split('_')[0]}"


# --- pages ---------------------------------------------------------------------------------------------------------


def read_page(content: bytes) -> Segments:
    """The paragraphs and headings with an id in the display area of an HTML page, but for code.

    Of a place that differs by operating system (``switchinline``) the default text is taken.
    """
    from lxml import etree

    root = etree.HTML(content, etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True))
    if root is None:
        return {}
    segments: Segments = {}
    seen: collections.Counter[str] = collections.Counter()
    for element in root.xpath(
        "//div[@id='DisplayArea']//*[self::p or self::h1 or self::h2 or self::h3 or self::h4 or self::h5 or self::h6]"
        "[@id]"
    ):
        identity = element.get("id")
        seen[identity] += 1
        if not CODE_CLASSES.intersection(element.get("class", "").split()):
            segments[identity, seen[identity]] = clean_whitespace("".join(_text(element)))
    return segments


def _text(element: Any) -> Iterator[str]:
    """The pieces of text that a reader sees in an element, without what follows it."""
    if element.tag == "br":
        yield " "
    yield element.text or ""
    is_switch = "switchinline" in element.get("class", "").split()
    for child in element:
        if child.tag not in ("script", "style") and not (is_switch and not child.get("id", "").startswith("default")):
            yield from _text(child)
        yield child.tail or ""


# --- pairs ---------------------------------------------------------------------------------------------------------


def split_pages(source: Mapping[str, Segments], target: Mapping[str, Segments]) -> dict[str, Pairs]:
    """Train, valid and test of two languages: aligned, cleaned, each pair once, valid and test not in train."""
    drawn: dict[str, Pairs] = {"train": [], "valid": [], "test": []}
    for page in sorted(source.keys() & target.keys()):
        drawn[draw_split(page, SHARES)] += [
            (text, target[page][key])
            for key, text in source[page].items()
            if key in target[page] and is_translation(text, target[page][key])
        ]
    unique = {split: list(dict.fromkeys(pairs)) for split, pairs in drawn.items()}
    test = without_leakage(unique["test"], unique["train"], MIN_TEST_WORDS)
    valid = without_leakage(unique["valid"], unique["train"] + test, MIN_TEST_WORDS)
    for name, found in (("valid", valid), ("test", test)):
        logger.info(
            "%s: %d of %d pairs kept, the others are short or also in train", name, len(found), len(unique[name])
        )
    return {"train": unique["train"], "valid": valid, "test": test}


def is_translation(source: str, target: str) -> bool:
    """Whether two aligned texts are worth learning from: both of words, not the same, of plausible lengths."""
    lengths = len(source) + 8, len(target) + 8
    return (
        source != target
        and all(any(character.isalpha() for character in text) for text in (source, target))
        and all(len(text.split()) <= MAX_WORDS for text in (source, target))
        and max(lengths) / min(lengths) <= MAX_CHARACTER_RATIO
    )
