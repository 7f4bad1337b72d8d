"""`prepare --limit`: the first pairs of each split, in a folder that nothing takes for the whole corpus."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from data_prep import iwslt14_de_en
from data_prep.io import read_lines
from lite_transformer.cli.main import main
from tests.helpers import corpora as fixtures

DE_EN = fixtures.sentences(("de", "en"), 60)
EN_FR = fixtures.sentences(("en", "fr"), 60)
EN_DE = [(english, german) for german, english in DE_EN]


def prepare(corpus: str, source: Path, *options: str) -> int:
    dest = source.parent / "out"
    return main(["prepare", corpus, "--source", str(source), "--dest", str(dest), "--workers", "1", *options])


def lines(folder: Path, name: str) -> list[str]:
    return read_lines(folder / "out" / name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


def write_parallel(source: Path) -> None:
    for split, pairs in (("train", DE_EN[:40]), ("valid", DE_EN[40:50]), ("test", DE_EN[50:])):
        for side, language in enumerate(("de", "en")):
            (source / f"{split}.{language}").write_text(fixtures.text_of(pairs, side), encoding="utf-8")


def test_the_first_pairs_of_each_split(tmp_path: Path, source: Path, capsys):
    write_parallel(source)
    assert prepare("parallel", source, "--bpe-merges", "30", "--limit", "7") == 0
    assert "a slice of parallel de-en is ready in" in capsys.readouterr().out
    record = json.loads((tmp_path / "out/bin/prepare.json").read_text(encoding="utf-8"))
    assert record["limit"] == 7 and record["lines"] == {"train": 7, "valid": 7, "test": 7}
    assert lines(tmp_path, "raw/test.en") == [english for _, english in DE_EN[50:57]]


def test_a_slice_is_never_taken_for_the_whole(tmp_path: Path, source: Path, capsys):
    write_parallel(source)
    assert prepare("parallel", source, "--bpe-merges", "30", "--limit", "7") == 0
    for options, change in (([], "limit was 7, now None"), (["--limit", "8"], "limit was 7, now 8")):
        assert prepare("parallel", source, "--bpe-merges", "30", *options) == 2
        assert change in capsys.readouterr().err
    assert prepare("parallel", source, "--limit", "0") == 2
    assert "--limit 0: at least 1 is needed" in capsys.readouterr().err


def test_a_folder_made_before_there_were_slices_is_whole(tmp_path: Path, source: Path):
    write_parallel(source)
    assert prepare("parallel", source, "--bpe-merges", "30") == 0
    options = json.loads((tmp_path / "out/options.json").read_text(encoding="utf-8"))
    assert options.pop("limit") is None
    (tmp_path / "out/options.json").write_text(json.dumps(options), encoding="utf-8")
    assert prepare("parallel", source, "--bpe-merges", "30") == 0


def test_valid_is_cut_from_a_slice_too(tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture):
    fixtures.write_iwslt14(source, DE_EN, dict.fromkeys(iwslt14_de_en.TEST_SETS, DE_EN[:4]))
    with caplog.at_level(logging.WARNING):
        assert prepare("iwslt14_de_en", source, "--limit", "30") == 0
    counts = [len(lines(tmp_path, f"bpe/{split}.de")) for split in ("train", "valid", "test")]
    assert counts == [20, 10, 20], "every third pair of 30; the test sets have 20"
    assert "are published" not in caplog.text


def test_what_comes_after_the_slice_is_not_read(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch):
    fixtures.write_wmt14_en_fr(source, {"europarl": EN_FR[:40], "giga": EN_FR[40:]}, EN_FR[:30])
    from data_prep import wmt14_en_fr

    opened: list[str] = []
    read = wmt14_en_fr._read
    monkeypatch.setattr(
        wmt14_en_fr, "_read", lambda path, *rest, **more: opened.append(path.name) or read(path, *rest, **more)
    )
    assert prepare("wmt14_en_fr", source, "--bpe-merges", "30", "--limit", "25") == 0
    assert opened == ["test-full.tgz", "training-parallel-europarl-v7.tgz"]
    counts = [len(lines(tmp_path, f"bpe/{split}.fr")) for split in ("train", "valid", "test")]
    assert counts[1] == 10 and counts[2] == 25, "every second pair, but for two that cleaning leaves out"
    assert read_lines(tmp_path / "out/raw/train.en") == [english for english, _ in EN_FR[:25]]


def test_text_published_in_subwords_is_cut_too(tmp_path: Path, source: Path):
    pairs = {"train": EN_DE, "valid": EN_DE[:12], "test": EN_DE[12:30]}
    raw = {"valid": EN_DE[:12], "test": EN_DE[12:30]}
    fixtures.write_wmt16_en_de(source / "wmt16_en_de.tar.gz", pairs, "#version: 0.2\ne n</w>\n", raw)
    assert prepare("wmt16_en_de", source, "--limit", "15") == 0
    assert [len(lines(tmp_path, f"bpe/{split}.en")) for split in ("train", "valid", "test")] == [15, 12, 15]
    assert lines(tmp_path, "raw/test.de") == lines(tmp_path, "bpe/test.de") == [german for _, german in EN_DE[12:27]]
