"""The real chain, small: from archives in their original formats to a table; one of them through the shell, killed."""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from data_prep import iwslt14_de_en
from lite_transformer import results
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError
from lite_transformer.reproduction import chain
from tests.data_prep.test_cnn_dm import write_sources as write_cnn_dm
from tests.data_prep.test_monolingual import write_wikitext
from tests.helpers import commands
from tests.helpers import corpora as fixtures

DE_EN = fixtures.sentences(("de", "en"), 60)
EN_DE = [(english, german) for german, english in DE_EN]
EN_FR = fixtures.sentences(("en", "fr"), 60)
COMMIT = ("--commit", "0" * 40)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def _trainings(save_dir: Path) -> set[int]:
    """Processes that train into a folder."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"train" in words and str(save_dir).encode() in words:
            found.add(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_iwslt_through_the_shell_killed_in_its_training(tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    fixtures.write_iwslt14(source, DE_EN, dict.fromkeys(iwslt14_de_en.TEST_SETS, DE_EN[:2]))
    words = ("bash", commands.ROOT / "scripts/reproduce.sh", "iwslt", "--smoke", "--cpu", "--rows", "transformer_63m",
             "--source", source, "--out", out, *COMMIT)  # fmt: skip
    path = f"{commands.BIN}{os.pathsep}{os.environ['PATH']}"
    save_dir = out / "runs/iwslt14_de_en_transformer_63m_seed1"
    process = subprocess.Popen(
        commands.words(words), cwd=tmp_path, env=commands.environment(PATH=path),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (save_dir / "train.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    started = _trainings(save_dir)
    process.kill()  # it alone: the training that it started must end by itself
    assert process.wait() == -signal.SIGKILL and len(started) == 1
    deadline = time.monotonic() + 20
    while any(_state(pid) not in ("gone", "Z") for pid in started) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(_state(pid) in ("gone", "Z") for pid in started), "the training outlived the reproduction"
    assert "| not run |" in (out / "table.md").read_text(encoding="utf-8")

    text = commands.run(*words, cwd=tmp_path, PATH=path)
    assert "[1/1] transformer_63m, seed 1: done after" in text
    log = (out / "logs/iwslt14_de_en_transformer_63m_seed1.log").read_text(encoding="utf-8")
    assert log.count("$ lite-transformer train ") == 2 and log.count("$ lite-transformer evaluate ") == 1
    record = results.read_record(out / "results/runs/iwslt14_de_en_transformer_63m_seed1.json")
    assert record.task == "iwslt14_de_en-de-en-smoke" and record.row == "Transformer 63M"
    assert record.config == "configs/iwslt14_de_en_transformer_63m.yaml"
    assert {item.decoding for item in record.metrics} == {"beam 4, lenpen 1, average of the last 2 epochs"}
    table = (out / "table.md").read_text(encoding="utf-8")
    assert "| Transformer 63M | 63M | 27.80 † | 0.5M |" in table and (out / "tradeoff.svg").is_file()
    assert not (tmp_path / "results").exists()


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The chain's commands run in this process, which has imported torch already."""

    def step(plan: chain.Plan, words: list[str], log: Path, lock: int) -> None:
        with monkeypatch.context() as patch, redirect_stdout(io.StringIO()) as output:
            patch.setattr(sys, "argv", ["lite-transformer", *words])
            code = main(words)
        if code:
            raise DataError(output.getvalue())

    monkeypatch.setattr(chain, "_step", step)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def _write_wmt_en_fr(source: Path) -> None:
    source.mkdir()
    fixtures.write_wmt14_en_fr(source, {"europarl": EN_FR[:40], "news": EN_FR[40:]}, EN_FR[:9])


def _write_wmt_en_de(source: Path) -> None:
    source.mkdir()
    splits = {"train": EN_DE, "valid": EN_DE[:9], "test": EN_DE[9:18]}
    raw = {name: splits[name] for name in ("valid", "test")}
    fixtures.write_wmt16_en_de(source / "wmt16_en_de.tar.gz", splits, "#version: 0.2\ne n</w>\n", raw)


def _write_wikitext103(source: Path) -> None:
    source.mkdir()
    generator = random.Random(1)
    words = [f"w{number}" for number in range(250)]  # a smoke run's bands want more than 200

    def text(lines: int) -> str:
        # lines are longer than a smoke run's windows, as real ones are
        drawn = [*words, *generator.choices(words, k=80 * lines - len(words))]
        return "".join(f" {' '.join(drawn[80 * i : 80 * i + 80])} \n" for i in range(lines))

    write_wikitext(source, {"train": text(20), "valid": text(5), "test": text(5)}, "wikitext-103")


@pytest.mark.parametrize(
    ("table", "row", "write", "score"),
    [
        ("wmt_en_fr", "lite_200", _write_wmt_en_fr, ("paper: 35.30", "tokenized_bleu", "sacrebleu")),
        ("wmt_en_de", "transformer_87m", _write_wmt_en_de, ("paper: 21.30", "tokenized_bleu", "sacrebleu")),
        ("cnn_dm", "lite_496", write_cnn_dm, ("paper: 38.30", "rougeL", "rougeLsum")),
        ("wikitext103", "lite_896", _write_wikitext103, ("paper: 22.20", "perplexity")),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_a_row_of_every_other_table_of_the_paper(table, row, write, score, tmp_path: Path, monkeypatch, capsys):
    write(tmp_path / "source")
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", table, "--smoke", "--cpu", "--rows", row, "--source", "source", "--out", "out", *COMMIT]
    assert main(words) == 0

    paths = list(Path("out/results/runs").iterdir())
    assert [path.name.endswith(f"{row}_seed1.json") for path in paths] == [True]
    record = results.read_record(paths[0])
    assert {"test"} == {item.split for item in record.metrics} and set(score[1:]) <= {m.metric for m in record.metrics}
    assert all("one checkpoint" in item.decoding for item in record.metrics)
    rows = [line for line in Path("out/table.md").read_text(encoding="utf-8").splitlines() if paths[0].name in line]
    assert len(rows) == 1 and f"| {score[0].removeprefix('paper: ')} |" in rows[0]
    # the second time, the hash of the experiment's settings must be the one that its checkpoint had
    assert main(words) == 0
    assert results.read_record(paths[0]) == record
