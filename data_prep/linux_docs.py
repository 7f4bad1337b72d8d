"""Running English text from two Debian packages: the documentation of the Linux kernel and of Python.

Both are books of HTML pages made by Sphinx. A page is a document, a paragraph a line, an empty line ends a document.
Code, tables, signatures and paragraphs of fewer than eight words are left out, so are repetitions, which such books are
full of. The split is by page: a hash of its path decides, which is the same in every version of the packages.

Packages: those of Debian 12, ``linux-doc-6.1`` and ``python3.11-doc``. Where a machine's release does not have them,
its newest ``linux-doc-VERSION`` and ``python3.VERSION-doc`` are taken; ``prepare.json`` records by SHA-256 what was
read. Figures of different versions are not comparable.
"""

from __future__ import annotations

import logging
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.apt import download_packages
from data_prep.archives import check_name
from data_prep.leakage import draw_split, normalise
from data_prep.libreoffice_help import package_content
from data_prep.text import clean_whitespace
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

LANGUAGE = "en"
LICENCE = "kernel documentation: GPL-2.0 and others, see the package's copyright; Python's: PSF licence"
CITATION = (
    "The kernel development community, https://docs.kernel.org; Python Software Foundation, https://docs.python.org"
)

# book -> its package in Debian 12, what the package is called in any release, and the page's path in it
BOOKS = {
    "linux": ("linux-doc-6.1", r"linux-doc-\d[\d.]*", r"(?:\./)?usr/share/doc/linux-doc-[\d.]+/html/(.+)\.html"),
    "python": ("python3.11-doc", r"python3\.\d+-doc", r"(?:\./)?usr/share/doc/python3\.\d+/html/(.+)\.html"),
}
SHARES = {"test": 0.03, "valid": 0.03}  # of the pages; the rest is train's
MIN_WORDS = 8
MAX_WORDS = 400  # nothing that long is a paragraph
MIN_LETTERS = 0.6  # of a paragraph's characters without blanks: below that it is data, not prose
MAX_PAGE_BYTES = 32 << 20

# Indexes, searches, other languages; Python's list of all changes, where a release ships it, is bullets, not prose.
_LEFT_OUT = re.compile(
    r"(?:genindex.*|search|py-modindex|contents|copyright|translations/.*|whatsnew/changelog|_.*/.*)"
)
# Subtrees without running text; a class's name is enough, whatever the element.
_SKIPPED_TAGS = frozenset({"pre", "table", "script", "style", "nav", "dt", "svg", "math", "footer", "figure"})
_SKIPPED_CLASSES = frozenset(
    (
        *("highlight", "headerlink", "section-number", "toctree-wrapper", "contents", "topic", "sidebar"),
        *("admonition-title", "field-list", "footnote", "citation", "math", "kernelindent"),
        *("versionadded", "versionchanged", "deprecated", "deprecated-removed"),
    )
)


def find_sources(source: Path | None, pair: tuple[str, str]) -> dict[str, Path]:
    """The package of each book in the folder ``source``, whatever its version.

    Raises: DataError if a package is missing, or there in two versions; says what to type.
    """
    del pair  # one language
    advice = (
        "On a Debian or Ubuntu machine leave out --source, or type in that folder: "
        f"apt-get download {' '.join(package for package, _, _ in BOOKS.values())}"
    )
    if source is None or not source.is_dir():
        raise DataError(f"--source {source or 'DIR'}: no such folder. {advice}")
    found: dict[str, Path] = {}
    for book, (package, name, _) in BOOKS.items():
        files = [path for path in sorted(source.glob("*.deb")) if re.fullmatch(rf"{name}_[^_]+_[^_]+\.deb", path.name)]
        if not files:
            raise DataError(f"{source}: missing {package}_VERSION_all.deb, or another version's. {advice}")
        if len(files) > 1:
            raise DataError(f"{source}: {' and '.join(path.name for path in files)}. Leave one version there.")
        found[book] = files[0]
    return found


def fetch(pair: tuple[str, str], folder: Path) -> None:
    """Puts the packages into ``folder``; those of Debian 12 if this machine's release has them, or its newest."""
    del pair
    missing = [
        (package, name)
        for package, name, _ in BOOKS.values()
        if not any(re.fullmatch(rf"{name}_.*", path.name) for path in folder.glob("*.deb"))
    ]
    download_packages([choose_package(package, name, _package_names(package)) for package, name in missing], folder)


def choose_package(usual: str, pattern: str, names: Sequence[str]) -> str:
    """The usual package if it is among ``names``, otherwise the newest that the pattern describes, or the usual one."""
    candidates = [name for name in names if re.fullmatch(pattern, name)]
    if usual in candidates or not candidates:
        return usual
    newest = max(candidates, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    logger.warning("this machine's release has no %s: taking %s, whose text differs", usual, newest)
    return newest


def _package_names(usual: str) -> list[str]:
    """Packages whose names begin like that one's; none where apt is missing, which is said when it is to download."""
    prefix = re.match(r"[a-z]+(?:-[a-z]+-)?", usual)
    assert prefix is not None
    try:
        done = subprocess.run(["apt-cache", "pkgnames", prefix[0]], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return []
    return done.stdout.split()


def read_lines(files: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """(split, line) of all pages, book by book in the order of their paths; an empty line ends a page.

    A paragraph that occurs twice, but for punctuation, case and numbers, is kept once: in train if it is there at all,
    so that valid and test hold nothing that train holds.

    Raises: DataError if a package is damaged or of another kind.
    """
    pages: dict[str, list[tuple[str, list[str]]]] = {"train": [], "valid": [], "test": []}
    for book, package in files.items():
        for path, paragraphs in sorted(read_pages(package, book).items()):
            pages[draw_split(f"{book}/{path}", SHARES)].append((f"{book}/{path}", paragraphs))
    seen: set[str] = set()
    for split, documents in pages.items():
        read = kept = 0
        for _, paragraphs in documents:
            fresh = []
            for paragraph in paragraphs:
                key = normalise(paragraph)
                if key not in seen:
                    seen.add(key)
                    fresh.append(paragraph)
            read, kept = read + len(paragraphs), kept + len(fresh)
            if fresh:
                yield from ((split, paragraph) for paragraph in fresh)
                yield split, ""
        logger.info("%s: %d pages, %d of %d paragraphs kept, the others repeat one", split, len(documents), kept, read)


def read_pages(package: Path, book: str) -> dict[str, list[str]]:
    """The paragraphs of every page of a book, by the page's path below ``html/``, without its ending."""
    pattern = re.compile(BOOKS[book][2])
    pages: dict[str, list[str]] = {}
    with package_content(package) as archive:
        for member in tqdm(archive, desc=f"read {package.name}", unit="file", disable=None, leave=False):
            check_name(package, member.name)
            match = pattern.fullmatch(member.name)
            if match is None or not member.isfile() or _LEFT_OUT.fullmatch(match[1]):
                continue
            if member.size > MAX_PAGE_BYTES:
                raise DataError(f"{package}: {member.name} has {member.size} bytes, which is no page of text.")
            content = archive.extractfile(member)
            assert content is not None  # it is a regular file
            pages[match[1]] = read_page(content.read())
    if not any(pages.values()):
        raise DataError(f"{package}: no pages of text in it. Fetch: apt-get download {BOOKS[book][0]}")
    return pages


def read_page(content: bytes) -> list[str]:
    """The paragraphs of running text of an HTML page, in its order."""
    from lxml import etree

    root = etree.HTML(content, etree.HTMLParser(encoding="utf-8", no_network=True, remove_comments=True))
    if root is None:
        return []
    found = []
    for body in root.xpath("//*[@role='main']"):
        for paragraph in _paragraphs(body):
            text = clean_whitespace("".join(_text(paragraph)))
            if is_prose(text):
                found.append(text)
    return found


def is_prose(text: str) -> bool:
    """Whether a paragraph is worth learning from: words, not too few, and mostly of letters."""
    words = text.split()
    letters = sum(character.isalpha() for character in text)
    return MIN_WORDS <= len(words) <= MAX_WORDS and letters >= MIN_LETTERS * sum(map(len, words))


def _is_skipped(element: Any) -> bool:
    # comments and processing instructions have no name
    if not isinstance(element.tag, str) or element.tag in _SKIPPED_TAGS:
        return True
    return not _SKIPPED_CLASSES.isdisjoint(element.get("class", "").split())


def _paragraphs(element: Any) -> Iterator[Any]:
    for child in element:
        if _is_skipped(child):
            continue
        if child.tag == "p":
            yield child
        else:
            yield from _paragraphs(child)


def _text(element: Any) -> Iterator[str]:
    """The pieces of text that a reader sees in an element, without what follows it."""
    if element.tag in ("br", "img"):
        yield " "
    yield element.text or ""
    for child in element:
        if not _is_skipped(child):
            yield from _text(child)
        yield child.tail or ""
