"""The chain from corpus to table, its three commands replaced by quick ones: resuming, failing rows, what is done."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.folders import locked
from data_prep.io import write_json
from lite_transformer import results
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError
from lite_transformer.reproduction import chain, report
from lite_transformer.reproduction.tables import CHECKOUT, TABLES

SCORES = {"cnn_dm_transformer_2g": 30.0, "cnn_dm_lite_496": 31.0}
TABLE = TABLES["cnn_dm"]
RESULTS = CHECKOUT / "results"


class Killed(BaseException):
    """As if the process ended here."""


class Commands:
    """What prepare, train and evaluate leave behind, without their work.

    Attributes:
        done: the commands that were run, in order.
        kill: (number of the command, 'before' or 'after' its work) at which everything ends.
        failing: the word whose commands fail.
        text: of the corpus. draw: from its call on the plot is drawn.
    """

    def __init__(self) -> None:
        self.done: list[list[str]] = []
        self.kill: tuple[int, str] | None = None
        self.failing = ""
        self.text = "a"
        self.draw: Callable[[], None]

    def __call__(self, plan, words, log, lock):
        self.done.append(list(words))
        log.write_text("", encoding="utf-8")
        if self.kill == (len(self.done), "before"):
            raise Killed
        if self.failing and self.failing in words:
            raise DataError(f"RuntimeError: out of memory, see {log}")
        getattr(self, words[0])(words)
        if self.kill == (len(self.done), "after"):
            raise Killed

    def prepare(self, words):
        folder = Path(words[words.index("--dest") + 1]) / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "prepare.json", {"raw_sha256": {"train.article": self.text}})

    def train(self, words):
        (Path(words[words.index("--save-dir") + 1]) / "checkpoint_best.pt").touch()

    def evaluate(self, words):
        given = dict(itertools.pairwise(words))
        state = json.loads((Path(given["--checkpoint"]) / "reproduce.json").read_text(encoding="utf-8"))
        decoding = "beam 4, lenpen 2, max-len-b 140, min-len 55, no-repeat-ngram-size 3, one checkpoint"
        metrics = [
            results.Metric("test", name, SCORES[words[1]] + state["seed"], "signature", decoding)
            for name in ("rouge1", "rouge2", "rougeL", "rougeLsum")
        ]
        metrics.append(results.Metric("valid", "rougeL", 99.0, "signature", decoding))
        record = results.RunRecord(
            given["--task"], given["--row"], "measured", "arch", ["train", "evaluate"], "0" * 40, False,
            f"configs/{words[1]}.yaml", "", state["settings_sha256"], state["data"], state["seed"], "cpu", {},
            metrics, 700_000_000, 0, 1, 1, 1, 1.0, "2026-01-01",
        )  # fmt: skip
        results.write_record(Path(given["--record"]), record)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    fake = Commands()
    plot = report.write_plot
    fake.draw = lambda: monkeypatch.setattr(report, "write_plot", plot)
    monkeypatch.setattr(chain, "_step", fake)
    monkeypatch.setattr(chain, "_LOCK_SECONDS", 0.0)
    monkeypatch.setattr(report, "write_plot", lambda plan, outcomes: plan.out / report.PLOT)  # the slow part
    monkeypatch.chdir(tmp_path)
    return fake


def reproduce(*words: str) -> int:
    return main(["reproduce", "cnn_dm", "--out", "out", "--commit", "0" * 40, *words])


def table() -> str:
    return Path("out/table.md").read_text(encoding="utf-8")


def cells(label: str) -> dict[str, str]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table().splitlines() if line.startswith("|")]
    return next(dict(zip(rows[0], row, strict=True)) for row in rows if row[0] == label)


def test_paper_and_measured_stand_apart_and_records_go_to_results(commands: Commands):
    commands.draw()
    assert reproduce("--seeds", "1,2", "--gpus", "4") == 0

    lite = cells("Lite Transformer 496")
    assert (lite["ROUGE-1, paper"], lite["ROUGE-L, paper"]) == ("41.30 †", "38.30")
    assert lite["ROUGE-L, measured"] == "32.50 (32.00 to 33.00)" and lite["seeds"] == "1, 2"
    assert (lite["Mult-Adds, paper"], lite["Mult-Adds, measured"]) == ("800M", "700M")
    assert "(../results/runs/cnn_dm_lite_496_seed1.json)" in lite["measured by"]
    assert cells("Transformer base")["ROUGE-2, measured"] == "31.50 (31.00 to 32.00)"
    assert "recalled-unverified" in table() and "Not the published experiments" not in table()
    plot = Path("out/tradeoff.svg").read_text(encoding="utf-8")
    for text in ("Lite, measured", "Lite, paper", "Transformer, measured", "Mult-Adds in millions", "ROUGE-L"):
        assert f">{text}<" in plot
    assert len(list(Path("results/runs").glob("*.json"))) == 4 and not Path("out/results").exists()
    assert [words[0] for words in commands.done] == ["prepare"] + ["train", "evaluate"] * 4
    assert commands.done[0] == ["prepare", "cnn_dm", "--pair", "article-summary", "--dest", "out/data"]
    assert commands.done[3] == [
        "train", "cnn_dm_transformer_2g", "--data", "out/data/bin", "--save-dir",
        "out/runs/cnn_dm_transformer_2g_seed2", "--seed", "2", "--gpus", "4",
    ]  # fmt: skip
    evaluation = " ".join(commands.done[-1])
    assert (
        "--macs-lengths 30 60" in evaluation
        and "--task cnn_dm-article-summary --row Lite Transformer 496" in evaluation
    )
    assert "--average-last" not in evaluation and "--cpu" not in evaluation and f"--commit {'0' * 40}" in evaluation


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_killed_anywhere_it_goes_on_to_the_same_table(number: int, when: str, commands: Commands):
    """prepare, then training and evaluation of two rows: what was finished before the kill is not done again."""
    commands.kill = (number, when)
    with pytest.raises(Killed):
        reproduce()
    assert not Path("out/table.md").exists() or "not run" in table()
    commands.kill = None
    assert reproduce() == 0

    steps = ["prepare", *(f"{verb} {config}" for config in SCORES for verb in ("train", "evaluate"))]
    again = [words[0] if words[0] == "prepare" else " ".join(words[:2]) for words in commands.done[number:]]
    # a training that was killed before its end was noted is asked again, and fairseq finds nothing left to do
    first = number - 1 if when == "before" or number in (2, 4) else number
    assert again == ["prepare", *(step for step in steps[first:] if step != "prepare")]
    killed = table()
    for folder in ("out", "results"):
        Path(folder).rename(f"killed-{folder}")
    assert reproduce() == 0
    assert table() == killed and "not run" not in killed


def test_what_is_measured_is_kept_and_the_other_rows_are_shown(commands: Commands, caplog: pytest.LogCaptureFixture):
    assert reproduce("--rows", "lite_496") == 0
    assert cells("Transformer base")["measured by"] == "not run"
    steps = len(commands.done)
    with caplog.at_level(logging.INFO):
        assert reproduce() == 0
    assert [words[:2] for words in commands.done[steps:]] == [
        ["prepare", "cnn_dm"], ["train", "cnn_dm_transformer_2g"], ["evaluate", "cnn_dm_transformer_2g"],
    ]  # fmt: skip
    assert "[2/2] lite_496, seed 1: measured before, results/runs/cnn_dm_lite_496_seed1.json" in caplog.text
    assert "[1/2] transformer_2g, seed 1: begun after 0:00:0" in caplog.text


def test_a_record_counts_by_what_it_measured_not_by_its_name(commands: Commands, capsys):
    assert reproduce("--rows", "lite_496") == 0
    record = Path("results/runs/cnn_dm_lite_496_seed1.json")
    moved = record.rename(record.with_name("of_another_name.json"))
    steps = len(commands.done)
    assert reproduce("--rows", "lite_496") == 0
    assert len(commands.done) == steps + 1, "prepare only"

    for change in ({"settings_sha256": "0" * 64}, {"data": {"train.article": "b"}}, {"task": "cnn"}, {"seed": 2}):
        content = json.loads(moved.read_text(encoding="utf-8"))
        write_json(record, content | change)
        moved.rename("kept.json")
        assert reproduce("--rows", "lite_496") == 1, change
        assert "is the record of another configuration or other data; move it away, or give" in capsys.readouterr().err
        assert cells("Lite Transformer 496")["measured by"].endswith(
            "failed (seed 1): results/runs/cnn_dm_lite_496_seed1.json is the record of another configuration or other "
            "data; move it away, or give --results DIR"
        )
        record.unlink()
        Path("kept.json").rename(moved)


def test_another_seed_of_a_row_gets_the_label_that_the_first_one_has(commands: Commands):
    assert reproduce("--rows", "lite_496") == 0
    record = Path("results/runs/cnn_dm_lite_496_seed1.json")
    record.write_text(record.read_text(encoding="utf-8").replace("Lite Transformer 496", "Mine"), encoding="utf-8")
    assert reproduce("--rows", "lite_496", "--seeds", "2") == 0
    assert commands.done[-1][-2:] == ["--row", "Mine"]
    assert cells("Lite Transformer 496")["seeds"] == "1, 2"


def test_a_record_of_another_decoding_is_not_this_run(commands: Commands):
    assert reproduce("--rows", "lite_496") == 0
    record = Path("results/runs/cnn_dm_lite_496_seed1.json")
    record.write_text(record.read_text(encoding="utf-8").replace("lenpen 2", "lenpen 1"), encoding="utf-8")
    assert reproduce("--rows", "lite_496") == 1


def test_a_failed_row_is_a_row_that_says_so(commands: Commands, capsys):
    commands.failing = "cnn_dm_transformer_2g"
    assert reproduce("--seeds", "1,2") == 1

    reason = "RuntimeError: out of memory, see out/logs/cnn_dm_transformer_2g_seed{}.log"
    assert cells("Transformer base")["measured by"] == "; ".join(
        f"failed (seed {seed}): {reason.format(seed)}" for seed in (1, 2)
    )
    assert cells("Lite Transformer 496")["seeds"] == "1, 2", "the others run"
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"failed: transformer_2g, seed 1: {reason.format(1)}; transformer_2g, seed 2: {reason.format(2)}" in last
    assert "Mend it, then type again: lite-transformer" in last
    commands.failing = ""
    assert reproduce("--seeds", "1,2") == 0
    assert cells("Transformer base")["seeds"] == "1, 2" and "failed" not in table()


def test_a_corpus_that_cannot_be_prepared_ends_it(commands: Commands, capsys):
    commands.failing = "prepare"
    assert reproduce() == 2
    assert "out of memory, see out/logs/prepare.log" in capsys.readouterr().err
    assert len(commands.done) == 1


def test_overrides_that_change_the_result_keep_out_of_the_results(commands: Commands):
    assert reproduce("common.fp16=true") == 0, "fp16 is no other experiment"
    assert len(list(Path("results/runs").iterdir())) == 2
    assert "\n\nEvery training with `common.fp16=true`.\n\n" in table()
    assert reproduce("optimization.max_update=7", "--rows", "lite_496", "--results", "mine", "--out", "other") == 0
    assert len(list(Path("mine/runs").iterdir())) == 1 and not Path("other/results").exists()
    assert reproduce("optimization.max_update=7", "--rows", "lite_496") == 1
    assert "out/runs/cnn_dm_lite_496_seed1 was begun with other settings: delete" in table()
    assert reproduce("optimization.max_update=7", "--rows", "lite_496", "--out", "third") == 0
    assert [path.name for path in Path("third/results/runs").iterdir()] == ["cnn_dm_lite_496_seed1.json"]
    assert len(list(Path("results/runs").iterdir())) == 2
    text = Path("third/table.md").read_text(encoding="utf-8")
    assert "**Not the published experiments.** Every training with `optimization.max_update=7`." in text
    assert "optimization.max_update=7" in commands.done[-2]


def test_checkpoints_of_other_data_are_not_continued(commands: Commands):
    commands.kill = (3, "before")
    with pytest.raises(Killed):
        reproduce("--rows", "lite_496")
    commands.kill, commands.text = None, "b"
    assert reproduce("--rows", "lite_496") == 1
    assert "out/runs/cnn_dm_lite_496_seed1 was begun with other settings" in table()
    Path("out/runs/cnn_dm_lite_496_seed1/reproduce.json").unlink()
    assert reproduce("--rows", "lite_496") == 1
    assert "has checkpoints of another program" in table()


def test_a_smoke_run_is_small_and_says_so_everywhere(commands: Commands):
    commands.draw()
    assert reproduce("--smoke", "--cpu", "common.log_interval=1") == 0

    assert commands.done[0][-4:] == ["--limit", "40", "--bpe-merges", "500"]
    transformer, lite = commands.done[1], commands.done[3]
    assert lite[lite.index("--cpu") :] == [
        "--cpu", "optimization.max_epoch=2", "optimization.update_freq=[1]", "dataset.num_workers=0",
        "model.encoder_embed_dim=64", "model.encoder_layers=2", "model.decoder_layers=2", "common.log_interval=1",
    ]  # fmt: skip
    assert {"model.encoder_ffn_embed_dim=256", "model.decoder_ffn_embed_dim=256"} <= set(transformer)
    assert "--cpu" in commands.done[2]
    assert not Path("results").exists()
    record = results.read_record(Path("out/results/runs/cnn_dm_lite_496_seed1.json"))
    assert record.task == "cnn_dm-article-summary-smoke" and not record.dirty
    assert table().startswith("# CNN/DailyMail summaries, smoke run\n\n**Not the published experiments.** The first 40")
    assert "smoke run<" in Path("out/tradeoff.svg").read_text(encoding="utf-8")


def test_smoke_averages_few_epochs_where_the_protocol_averages_many():
    table = TABLES["iwslt"]
    assert chain.Plan(table, table.rows, smoke=True).decoding == "beam 4, lenpen 1, average of the last 2 epochs"
    assert chain.Plan(table, table.rows).decoding == "beam 4, lenpen 1, average of the last 10 epochs"


def test_kernels_of_a_smoke_run_fit_its_layers():
    row = TABLES["embedded"].rows[0]
    assert {"model.encoder_kernel_sizes=[3,7]", "model.decoder_kernel_sizes=[3,7]"} <= set(chain.smoke_overrides(row))


def test_one_reproduction_a_folder(commands: Commands, capsys):
    Path("out").mkdir()
    with locked(Path("out"), "--out"):
        assert reproduce() == 2
    assert "out: another process is at work in this folder" in capsys.readouterr().err
    assert not commands.done


def test_a_command_leaves_its_words_its_output_and_the_reason_of_its_end(tmp_path: Path):
    plan = chain.Plan(TABLE, TABLE.rows, out=tmp_path)
    log = tmp_path / "log"
    with locked(tmp_path, "--out") as lock:
        chain._step(plan, ["--version"], log, lock)
        with pytest.raises(DataError, match=r"unknown verb 'no'\. Known verbs: .*, see .*/log"):
            chain._step(plan, ["no"], log, lock)
    assert log.read_text(encoding="utf-8").startswith("$ lite-transformer --version\n")
    assert "\n$ lite-transformer no\n" in log.read_text(encoding="utf-8")
    assert chain._reason(log, -9) == "ended by signal SIGKILL"


def test_records_of_the_repository_are_found_again():
    """The settings that an experiment has now are those that its checkpoint had: shipped records prove it."""
    table = TABLES["multi30k_en_de"]
    row = next(row for row in table.rows if row.name == "transformer")
    records = results.read_records(RESULTS)
    record = next(record for path, record in records.items() if path.stem == "multi30k_en_de_transformer_seed1")
    plan = chain.Plan(table, [row])
    outcomes = {row.name: chain.Outcome(row)}
    chain._find_records(plan, RESULTS, record.data, outcomes)
    assert [item.seed for item in outcomes[row.name].records.values()] == [1, 2]


def test_the_hash_of_a_run_does_not_depend_on_its_processes():
    config = {"optimization": {"update_freq": [8]}, "distributed_training": {"distributed_world_size": 1}}
    spread = {"optimization": {"update_freq": [2]}, "distributed_training": {"distributed_world_size": 4}}
    other = {"optimization": {"update_freq": [2]}, "distributed_training": {"distributed_world_size": 1}}
    assert results.settings_hash(config) == results.settings_hash(spread) != results.settings_hash(other)
    assert results.settings_hash({"optimization": {"update_freq": [8]}}) == results.settings_hash(config)
    assert config["optimization"]["update_freq"] == [8]
