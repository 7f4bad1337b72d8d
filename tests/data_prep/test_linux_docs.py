"""Kernel and Python documentation: pages to paragraphs, packages, split; and the steps of a corpus of one language."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep import linux_docs
from data_prep.corpora import CORPORA
from data_prep.leakage import draw_split
from data_prep.linux_docs import choose_package, find_sources, is_prose, read_lines, read_page, read_pages
from lite_transformer.errors import DataError
from tests.helpers.corpora import write_deb

PAGE = """<html><body><div class="sphinxsidebar"><p>One two three four five six seven eight nine.</p></div>
<div role="main"><section><h1><span class="section-number">1. </span>A title of more than eight words, is one</h1>
<p>The driver   generally needs to
call <code class="literal"><span class="pre">pci_enable_device()</span></code> before it reads any
register<a class="headerlink">¶</a>.</p>
<p>Too few words.</p>
<pre>int main(void) { return one two three four five six seven; }</pre>
<div class="highlight-c"><div class="highlight"><p>code in a paragraph of eight words or more</p></div></div>
<table><tr><td><p>a cell of a table with eight words or more</p></td></tr></table>
<dl><dt>def function(of, a, long, signature, with, eight, words)</dt>
<dd><p>Return the number of bytes that the device wrote since it was opened.</p></dd></dl>
<ul><li><p>An item of a list whose text is a <!-- comment --> paragraph of its own.</p></li></ul>
<div class="note"><p class="admonition-title">Note</p>
<p>Please note that this text stands in a box but is prose.</p></div>
<div class="versionadded"><p>New in version 3.2 of this and that and the other thing.</p></div>
<p>0x00 0x01 0x02 0x03 0x04 0x05 0x06 0x07 0x08 0x09</p>
</section></div></body></html>"""


def test_paragraphs_of_running_text_are_kept():
    assert read_page(PAGE.encode()) == [
        "The driver generally needs to call pci_enable_device() before it reads any register.",
        "Return the number of bytes that the device wrote since it was opened.",
        "An item of a list whose text is a paragraph of its own.",
        "Please note that this text stands in a box but is prose.",
    ]
    assert read_page(b"") == []


def test_what_prose_is():
    assert is_prose("one two three four five six seven eight")
    assert not is_prose("one two three four five six seven")
    assert not is_prose("1 + 2 = 3 and 4 + 5 = 9 and 6")
    assert not is_prose("word " * 401)


def page(*paragraphs: str) -> str:
    return f"<html><body><div role='main'>{''.join(f'<p>{text}</p>' for text in paragraphs)}</div></body></html>"


def sentence(subject: str) -> str:
    """Digits become letters: sentences that differ in numbers alone count as one."""
    letters = subject.translate(str.maketrans("0123456789", "abcdefghij"))
    return f"This is a sentence of eight words about {letters}"


def names_of(split: str, book: str, count: int) -> list[str]:
    """Names of pages that the hash gives to a split."""
    drawn = (f"page{i}" for i in range(10_000))
    return [name for name in drawn if draw_split(f"{book}/{name}", linux_docs.SHARES) == split][:count]


def write_packages(folder: Path, version: str = "6.1", pages: dict[str, str] | None = None) -> None:
    linux = {f"{name}": page(sentence(f"kernels{name}")) for name in names_of("train", "linux", 4)}
    linux |= {name: page(sentence(f"tests{name}")) for name in names_of("test", "linux", 2)}
    linux |= {"translations/zh_CN/index": page(sentence("nothing")), "genindex": page(sentence("indexes"))}
    linux |= pages or {}
    python = {name: page(sentence(f"snakes{name}"), sentence("both")) for name in names_of("valid", "python", 2)}
    python |= {name: page(sentence("both")) for name in names_of("train", "python", 1)}
    for package, place, content in (
        (f"linux-doc-{version}", f"./usr/share/doc/linux-doc-{version}/html", linux),
        ("python3.11-doc", "./usr/share/doc/python3.11/html", python),
    ):
        write_deb(folder / f"{package}_1.0_all.deb", {f"{place}/{name}.html": text for name, text in content.items()})


def test_pages_are_split_by_their_paths_and_repetitions_are_kept_in_train(tmp_path):
    write_packages(tmp_path)
    files = find_sources(tmp_path, ("en", "en"))
    assert sorted(files) == ["linux", "python"]
    lines: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for split, line in read_lines(files):
        lines[split].append(line)
    assert lines["train"].count("") == 5 and lines["valid"].count("") == 2 and lines["test"].count("") == 2
    assert all(lines[split][-1] == "" for split in lines)
    assert lines["train"].count(sentence("both")) == 1
    assert sentence("both") not in lines["valid"] + lines["test"]
    assert lines["valid"][0].startswith(sentence("snakes"))
    everything = " ".join(line for found in lines.values() for line in found)
    assert "nothing" not in everything and "indexes" not in everything


def test_a_package_of_another_version_is_taken(tmp_path):
    write_packages(tmp_path, version="6.12")
    assert find_sources(tmp_path, ("en", "en"))["linux"].name == "linux-doc-6.12_1.0_all.deb"


def test_packages_that_are_missing_or_there_twice(tmp_path):
    with pytest.raises(
        DataError, match=r"missing linux-doc-6\.1_VERSION_all\.deb.*apt-get download linux-doc-6\.1 pyth"
    ):
        find_sources(tmp_path, ("en", "en"))
    with pytest.raises(DataError, match="no such folder"):
        find_sources(None, ("en", "en"))
    write_packages(tmp_path)
    write_packages(tmp_path, version="6.12")
    with pytest.raises(DataError, match=r"linux-doc-6\.12_1\.0_all\.deb and linux-doc-6\.1_1\.0_all\.deb\. Leave one"):
        find_sources(tmp_path, ("en", "en"))


def test_a_package_without_pages(tmp_path):
    write_deb(tmp_path / "linux-doc-6.1_1.0_all.deb", {"./usr/share/doc/linux-doc-6.1/README": "none"})
    with pytest.raises(DataError, match="no pages of text in it"):
        read_pages(tmp_path / "linux-doc-6.1_1.0_all.deb", "linux")


def test_which_package_of_a_release():
    _, pattern, _ = linux_docs.BOOKS["linux"]
    names = ["linux-doc", "linux-doc-6.9", "linux-doc-6.12", "linux-doc-6.12-rt", "linux-docs"]
    assert choose_package("linux-doc-6.1", pattern, names) == "linux-doc-6.12"
    assert choose_package("linux-doc-6.1", pattern, [*names, "linux-doc-6.1"]) == "linux-doc-6.1"
    assert choose_package("linux-doc-6.1", pattern, []) == "linux-doc-6.1"
    assert choose_package("python3.11-doc", linux_docs.BOOKS["python"][1], ["python3.9-doc", "python3.13-doc"]) == (
        "python3.13-doc"
    )


def test_fetch_asks_for_what_is_not_there(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(linux_docs, "download_packages", lambda packages, folder: asked.append(packages))
    monkeypatch.setattr(linux_docs, "_package_names", lambda usual: ["linux-doc-6.12", "python3.11-doc"])
    linux_docs.fetch(("en", "en"), tmp_path)
    (tmp_path / "linux-doc-6.12_1.0_all.deb").touch()
    linux_docs.fetch(("en", "en"), tmp_path)
    assert asked == [["linux-doc-6.12", "python3.11-doc"], ["python3.11-doc"]]


def test_the_corpus_is_known():
    corpus = CORPORA["linux_docs"]
    assert corpus.is_monolingual and corpus.min_count == 3
    assert not CORPORA["multi30k"].is_monolingual
