"""Debian's synopses: what is read from the indexes, which packages and paragraphs count, one-line errors."""

from __future__ import annotations

import gzip
import json
import lzma

import pytest

from data_prep import debian_synopses as synopses
from data_prep.io import read_lines
from data_prep.leakage import draw_split
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError

# Written for this test, in the shape of the indexes.
TRANSLATION = """\
Package: sorter
Description-md5: 0
Description-en: sorts   files by colour
 Sorter reads a folder
 and sorts it.
 .
  * fast
  * small

Package: sorter-data
Description-en: sorts files by colour (data)
 Sorter reads a folder
 and sorts it.

Package: strange
Description-md5: 0
"""
PACKAGES = """\
Package: sorter
Version: 1

Package: sorter-data
Source: sorter (1-2)
"""
LONG = " ".join(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyzabcdefghij")


def describe(package, synopsis, *paragraphs):
    return synopses.Description(package, synopsis, paragraphs)


def split(*descriptions, sources=None):
    found = {item.package: item for item in descriptions}
    return synopses.split_descriptions(found, {name: (sources or {}).get(name, name) for name in found})


def spell(number):
    """A name for a number, in letters: names that differ in digits count as the same."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


def train_names(count):
    """Names of source packages that belong to train."""
    names = [f"source{spell(number)}" for number in range(count * 2)]
    return [name for name in names if draw_split(name, synopses.SHARES) == "train"][:count]


def write_indexes(folder):
    """Indexes of 300 source packages of two packages each, compressed in two ways."""
    folder.mkdir()
    stanzas, packages = [], []
    for number in range(300):
        name = spell(number)
        more = "x q " * 300 * (number % 3 == 0)
        text = f" The {name} is unlike any other {name}.\n {LONG}\n {more}\n .\n This text is in every package."
        stanzas += [f"Package: {name}-doc\nDescription-en: manual of the {name} program\n{text}\n"]
        stanzas += [f"Package: {name}\nDescription-en: program that does {name} things\n{text}\n .\n Even {name}.\n"]
        packages += [f"Package: {name}\n", f"Package: {name}-doc\nSource: {name}\n"]
    (folder / "mirror_i18n_Translation-en.gz").write_bytes(gzip.compress("\n".join(stanzas).encode(), mtime=0))
    (folder / "Packages").write_text("\n".join(packages), encoding="utf-8")
    return folder


def test_indexes_are_read(tmp_path):
    translation, packages = tmp_path / "Translation-en", tmp_path / "Packages"
    translation.write_text(TRANSLATION, encoding="utf-8")
    packages.write_text(PACKAGES, encoding="utf-8")
    found = synopses.read_descriptions([translation])
    assert found == {
        "sorter": describe(
            "sorter", "sorts files by colour", "Sorter reads a folder and sorts it.", "* fast * small"
        ),
        "sorter-data": describe("sorter-data", "sorts files by colour (data)", "Sorter reads a folder and sorts it."),
    }  # fmt: skip
    assert synopses.read_source_names([packages], found) == {"sorter": "sorter", "sorter-data": "sorter"}
    assert synopses.read_source_names([], found) == {"sorter": "sorter", "sorter-data": "sorter"}  # same beginning
    packages.write_text("Package: sorter-data\nSource: other\n", encoding="utf-8")
    assert synopses.read_source_names([packages], found)["sorter-data"] == "other"


@pytest.mark.skipif(not synopses.APT_HELPER.is_file(), reason="apt is not installed")
def test_formats_that_apt_uncompresses(tmp_path):
    path = tmp_path / "Translation-en.xz"
    path.write_bytes(lzma.compress(TRANSLATION.encode()))
    assert len(synopses.read_descriptions([path])) == 2
    path.write_bytes(lzma.compress(TRANSLATION.encode() * 99)[:-60])
    with pytest.raises(
        DataError, match=r"Translation-en\.xz: damaged, apt cannot uncompress it\. Fetch it again: leave"
    ):
        synopses.read_descriptions([path])


def test_without_apt_a_compressed_index_names_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(synopses, "APT_HELPER", tmp_path / "no-helper")
    with pytest.raises(DataError, match=r"needs .*no-helper to be uncompressed .* cat-file a\.lz4 > a, and take that"):
        list(synopses.iterate_stanzas(tmp_path / "a.lz4"))


def test_one_package_a_source_package():
    name = train_names(1)[0]
    packages = ["zz", "aaa", name, f"{name}-doc"]
    descriptions = [describe(package, f"what {package} is for", f"{package}. {LONG}") for package in packages]
    of_one = dict.fromkeys(packages, name)
    assert split(*descriptions, sources=of_one)["train"] == [(f"{name}. {LONG}", f"what {name} is for")]
    assert split(*descriptions[:2], sources=of_one)["train"] == [(f"zz. {LONG}", "what zz is for")]


def test_boilerplate_goes():
    names = train_names(3)
    own = [f"The program {name} is special. {LONG}" for name in names]
    pairs = split(*(describe(name, f"the {name} program", own[i], "Same text.") for i, name in enumerate(names)))
    assert [source for source, _ in pairs["train"]] == sorted(own)
    pairs = split(*(describe(name, f"the {name} program", own[i], "Same text.") for i, name in enumerate(names[:2])))
    assert all(source.endswith(" Same text.") for source, _ in pairs["train"])


def test_text_of_one_source_package_is_no_boilerplate():
    name = train_names(1)[0]
    packages = [f"{name}{letter}" for letter in "abcd"]
    found = split(*(describe(p, "a program it is", LONG) for p in packages), sources=dict.fromkeys(packages, name))
    assert found["train"] == [(LONG, "a program it is")]


def test_descriptions_that_begin_alike_count_once():
    first, second, third = sorted(train_names(3))
    found = split(
        describe(first, "reads all data", f"Begins alike. {LONG}"),
        describe(second, "writes all data", f"BEGINS alike! {LONG} more"),
        describe(third, "checks all data", f"Begins otherwise: {LONG}"),
    )
    assert [target for _, target in found["train"]] == ["reads all data", "checks all data"]


@pytest.mark.parametrize(
    ("synopsis", "words", "kept"),
    [
        ("sorts your files", 36, True),
        ("sorts your files", 35, False),
        ("sorts files", 36, False),
        ("sorts your files (transitional package)", 36, False),
        ("Meta-package of all sorters", 36, False),
        ("metaphors of all sorters", 36, True),
    ],
)
def test_what_a_summary_must_be(synopsis, words, kept):
    assert synopses.is_summary(synopsis, ["w"] * words) is kept


def test_prepared_by_the_command(tmp_path, capsys, caplog):
    source = write_indexes(tmp_path / "source")
    command = ["prepare", "debian_synopses", "--source", str(source), "--dest", str(tmp_path / "out")]
    with caplog.at_level("INFO"):
        assert main([*command, "--bpe-merges", "20"]) == 0
    assert "debian_synopses description-synopsis is ready" in capsys.readouterr().out
    assert "leakage check of test: " in caplog.text
    sources, targets = (read_lines(tmp_path / "out" / "raw" / f"train.{side}") for side in synopses.LANGUAGES)
    name = targets[0].split()[3]
    assert targets[0] == f"program that does {name} things"
    assert sources[0].startswith(f"The {name} is unlike any other {name}. {LONG} ")
    assert sources[0].endswith(f" Even {name}.") and "every package" not in sources[0]
    lengths = [len(line.split()) for line in read_lines(tmp_path / "out" / "bpe" / "train.description")]
    assert max(lengths) == 400 and min(lengths) < 400
    record = json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))
    assert record["text"]["synopsis"]["language"] == "en"
    assert sum(record["lines"].values()) == 300


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no English Translation index (Translation-en, which may be compressed). Leave out --source"),
        ({"Translation-en": "<!DOCTYPE html>\n"}, "Translation-en, line 1: no index of packages ('<!DOCTYPE html>'"),
        ({"Translation-en": PACKAGES}, "no field Description-en, so no Translation index"),
        ({"Translation-en": ""}, "no field Description-en, so no Translation index"),
        ({"Translation-en": TRANSLATION}, "too few descriptions (train 0, valid 0, test 0). Take the index of"),
        ({"Translation-en": TRANSLATION, "Packages": "odd\n"}, "Packages, line 1: no index of packages ('odd'"),
    ],
)
def test_bad_indexes_are_one_line(tmp_path, capsys, files, message):
    source = tmp_path / "source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text, encoding="utf-8")
    assert main(["prepare", "debian_synopses", "--source", str(source), "--dest", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if " | INFO | " not in line and "WARN" not in line]
    assert message in line
    assert not (tmp_path / "out" / "raw").exists()


def test_other_direction_is_refused(tmp_path, capsys):
    command = ["prepare", "debian_synopses", "--dest", str(tmp_path / "out"), "--pair", "synopsis-description"]
    assert main(command) == 2
    assert "has the pair description-synopsis only, not synopsis-description" in capsys.readouterr().err
