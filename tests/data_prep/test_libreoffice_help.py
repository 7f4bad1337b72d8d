"""LibreOffice's help: what is read from a page and a package, what a pair must be, and that test is not in train."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess

import pytest

from data_prep import libreoffice_help as help_
from data_prep.io import read_lines
from data_prep.leakage import draw_split, measure_leakage, nearest_lines
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError
from tests.helpers.corpora import write_deb

# Written for this test, in the shape of a help page.
PAGE = """<!DOCTYPE html><html><body><header><p id="top">Outside.</p></header>
<div id="DisplayArea" itemprop="softwareHelp">
<h1 id="hd_1" dir="auto"><a name="x"></a>Sorting
   tables</h1>
<p id="par_1" class="paragraph">Choose <span class="menuitem">Data &ndash; Sort&hellip;</span>,<br>then&nbsp;press
<span id="swlnsys1" class="switchinline"><span hidden="true" id="MAC1" class="MAC"><span>Command</span></span>
<span hidden="true" id="default1"><span class="keycode">Ctrl</span></span></span><span class="keycode">+F</span>.</p>
<p class="paragraph">No id.</p>
<p id="par_2" class="code">Sub Main</p><p id="par_3" class="table codeintable">Next i</p>
<ul><li><p id="par_4">First <!-- note -->time.<script>run()</script></p></li></ul>
<table><tr><td><p id="par_4">Second time.</p></td></tr></table>
</div><footer><p id="bm_module">Debug</p></footer></body></html>"""

PREFIX = "./usr/share/libreoffice/help"


def page(*paragraphs):
    text = "".join(f'<p id="par_{number}">{line}</p>' for number, line in enumerate(paragraphs))
    return f'<html><body><div id="DisplayArea">{text}</div></body></html>'


def test_paragraphs_of_a_page():
    assert help_.read_page(PAGE.encode()) == {
        ("hd_1", 1): "Sorting tables",
        ("par_1", 1): "Choose Data – Sort…, then press Ctrl+F.",
        ("par_4", 1): "First time.",
        ("par_4", 2): "Second time.",
    }
    assert help_.read_page(b"") == {}


@pytest.mark.parametrize("compression", ["gz", "xz", "bz2"])
def test_pages_of_a_package(tmp_path, compression):
    files = {f"{PREFIX}/en-US/text/scalc/01/sort.html": PAGE, f"{PREFIX}/en-US/noscript.html": PAGE}
    files |= {f"{PREFIX}/de/text/other.html": PAGE, f"{PREFIX}/en-US/text/table.js": PAGE}
    package = write_deb(tmp_path / "libreoffice-help-en-us_1_all.deb", files, compression)
    assert help_.read_pages(package, "en") == {"scalc/01/sort": help_.read_page(PAGE.encode())}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_package_compressed_with_zstd(tmp_path, monkeypatch):
    text = tmp_path / "tree" / "usr/share/libreoffice/help/de/text"
    control = tmp_path / "tree" / "DEBIAN"
    text.mkdir(parents=True)
    control.mkdir()
    (text / "a.html").write_text(page("Eins."), encoding="utf-8")
    (control / "control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n")
    package = tmp_path / "libreoffice-help-de_1_all.deb"
    subprocess.run(["dpkg-deb", "-Zzstd", "-b", tmp_path / "tree", package], check=True, capture_output=True)
    assert help_.read_pages(package, "de") == {"a": {("par_0", 1): "Eins."}}
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"zstd, which needs dpkg-deb .*packages\.debian\.org/libreoffice-help-de$"):
        help_.read_pages(package, "de")


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        ("Datei öffnen", "Open file", True),
        ("OK", "OK", False),
        ("1 + 1 =", "1 + 2", False),
        ("Ja 1", "1 =", False),
        ("w " * 175, "v " * 175, True),
        ("w " * 176, "v " * 175, False),
        ("x" * 36, "y" * 12, True),  # 44 / 20 = 2.2
        ("x" * 37, "y" * 12, False),
        ("x" * 12, "y" * 37, False),
    ],
)
def test_what_a_pair_must_be(source, target, kept):
    assert help_.is_translation(source.strip(), target.strip()) is kept


def pages_of(split):
    """Names of pages that belong to a split, without end."""
    return (
        name for name in (f"page{number}" for number in itertools.count()) if draw_split(name, help_.SHARES) == split
    )


def test_shares_of_pages():
    splits = [draw_split(f"text/{number}", help_.SHARES) for number in range(20000)]
    for split, share in help_.SHARES.items():
        assert splits.count(split) / 20000 == pytest.approx(share, abs=0.005)


def test_alignment_and_leakage():
    train, valid, test = (next(pages_of(split)) for split in ("train", "valid", "test"))
    first, second = ("a", 1), ("a", 2)
    german = {
        train: {
            first: "Wählen Sie Tabelle 1 im Menü.",
            second: "Nur auf Deutsch zu lesen.",
            ("c", 1): "Kurz.",
            ("d", 1): "Kurz.",
        },
        valid: {first: "Drucken Sie das ganze Dokument.", second: "Öffnen Sie eine Datei."},
        test: {
            first: "wählen sie »Tabelle 2« im Menü",  # the source is in train but for typography and number
            second: "Klicken Sie auf die Tabelle.",  # the target is in train
            ("c", 1): "Kurz und gut.",  # three words
            ("d", 1): "Drucken Sie das ganze Dokument.",
            ("e", 1): "Drucken Sie das ganze Dokument.",
        },
        "only/german": {first: "Diese Seite gibt es einmal."},
    }
    english = {
        train: {
            first: "Choose table 1 in the menu.",
            ("c", 1): "Short.",
            ("d", 1): "Short.",
            ("x", 1): "Only in English here.",
        },
        valid: {first: "Print the whole document now.", second: "Open one more file."},
        test: {
            first: "Pick the second table there.",
            second: "Choose TABLE 7 in the menu!",
            ("c", 1): "Short and very good.",
            ("d", 1): "Print all of the document.",
            ("e", 1): "Print all of the document.",
        },
    }
    splits = help_.split_pages(german, english)
    assert splits["train"] == [("Wählen Sie Tabelle 1 im Menü.", "Choose table 1 in the menu."), ("Kurz.", "Short.")]
    assert splits["test"] == [("Drucken Sie das ganze Dokument.", "Print all of the document.")]
    assert splits["valid"] == [("Öffnen Sie eine Datei.", "Open one more file.")]
    assert help_.split_pages(english, german)["test"] == [pair[::-1] for pair in splits["test"]]


def test_leakage_is_measured():
    train = [("eins zwei drei vier", "one two three four"), ("fünf sechs sieben acht", "five six seven eight")]
    copied = [("Fünf sechs sieben neun!", "five six seven eight"), ("eins zwei drei vier", "1 2 3 4")]
    found = measure_leakage(train, copied)
    assert (found.lines, found.sources, found.targets) == (2, 1, 1)
    assert found.copy_bleu == pytest.approx(50, abs=20)
    assert measure_leakage(train, [("fünf sechs sieben acht", "five six seven eight")]).copy_bleu > 99
    assert measure_leakage(train, [("ganz etwas anderes hier", "quite another matter here")]).copy_bleu < 20


def test_nearest_line_shares_the_rare_words():
    lines = ["the file is open", "the sheet is open", "the file the file the file", ""]
    assert nearest_lines(lines, ["close the sheet", "FILE file file the the the", "nothing"]) == [1, 2, 0]
    assert nearest_lines(["the file is here", "sheet", "the end is here"], ["the sheet is there"]) == [1]


def write_packages(folder):
    folder.mkdir()
    verbs = ("öffnen", "drucken", "speichern"), ("open", "print", "save")
    for language, words in zip(("de", "en"), verbs, strict=True):
        files = {}
        for split in ("train", "valid", "test"):
            for name in itertools.islice(pages_of(split), 3):
                lines = [f"{words[number]} {name} {split} {number} {language}" for number in range(3)]
                files[f"{PREFIX}/{help_.FOLDERS[language]}/text/{name}.html"] = page(*lines)
        write_deb(folder / f"{help_.PACKAGES[language]}_7_all.deb", files)
    return folder


def test_prepared_by_the_command(tmp_path, capsys, caplog):
    source = write_packages(tmp_path / "source")
    command = ["prepare", "libreoffice_help", "--source", str(source), "--dest", str(tmp_path / "out")]
    with caplog.at_level("INFO"):
        assert main([*command, "--bpe-merges", "20"]) == 0
    # the pages differ in numbers alone, which count as the same
    assert "lines: train 9, valid 3, test 3" in capsys.readouterr().out
    assert "leakage check of test: 3 lines, 0 sources and 0 targets of them in train; copying" in caplog.text
    assert read_lines(tmp_path / "out" / "raw" / "test.en")[0].startswith("open page")
    record = json.loads((tmp_path / "out" / "prepare.json").read_text(encoding="utf-8"))
    assert record["licence"] == "MPL-2.0" and record["text"]["de"]["normalize"] is False


def damaged(folder, how):
    """The packages in ``folder`` with the German one broken."""
    write_packages(folder)
    path = folder / "libreoffice-help-de_7_all.deb"
    content = path.read_bytes()
    if how == "html":
        path.write_bytes(b"<!DOCTYPE html><title>404</title>")
    elif how == "cut off":
        path.write_bytes(content[:-40])
    elif how == "bits":
        path.write_bytes(content[:-200] + bytes(100) + content[-100:])
    elif how == "outside":
        write_deb(path, {"../../etc/x": "x"})
    elif how == "compression":
        write_deb(path, {}, content_name="data.tar.br")
    elif how == "no content":
        write_deb(path, {}, content_name="other")
    elif how == "other package":
        write_deb(path, {f"{PREFIX}/fr/text/a.html": PAGE})
    elif how == "nothing in common":
        write_deb(path, {f"{PREFIX}/de/text/a.html": PAGE})
    elif how == "missing":
        path.unlink()
    elif how == "two versions":
        (folder / "libreoffice-help-de_8_all.deb").touch()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("html", "no .deb package (it begins with b'<!DOCTYP'). Fetch it again: apt-get download libreoffice-help-de"),
        ("cut off", "cut off, 4"),
        ("bits", "damaged or cut off ("),
        ("outside", "member '../../etc/x' points outside"),
        ("compression", "unknown compression (data.tar.br). Known: data.tar, "),
        ("no content", "damaged, no data.tar in this package"),
        ("other package", "no help pages of language 'de' in it. Fetch: apt-get download libreoffice-help-de"),
        ("nothing in common", "too little text in common. Take packages of one version"),
        ("missing", "missing libreoffice-help-de_VERSION_all.deb. On a Debian or Ubuntu machine leave out --source"),
        ("two versions", "libreoffice-help-de_7_all.deb and libreoffice-help-de_8_all.deb. Leave one version there"),
    ],
)
def test_bad_packages_are_one_line(tmp_path, capsys, how, message):
    damaged(tmp_path / "source", how)
    command = ["prepare", "libreoffice_help", "--source", str(tmp_path / "source"), "--dest", str(tmp_path / "out")]
    assert main(command) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if " | INFO | " not in line]
    assert message in line
    assert not (tmp_path / "out" / "raw").exists()
