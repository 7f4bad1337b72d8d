"""Run records: strict reading, atomic writing, tables that keep apart what must not be compared."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from lite_transformer import results
from lite_transformer.errors import DataError

SIGNATURE = "nrefs:1|case:mixed|tok:none"


def record(row="Lite", seed=1, bleu=40.0, **changes):
    made = results.RunRecord(
        task="multi30k-en-de", row=row, kind="measured", arch="lite_transformer", commands=["lite-transformer train x"],
        commit="abc", dirty=False, config="configs/x.yaml", config_sha256="1" * 64, settings_sha256="2" * 64,
        data={"test.en": "3" * 64}, seed=seed, device="cpu", versions={"torch": "2"},
        metrics=[results.Metric("test", "tokenized_bleu", bleu, SIGNATURE, "beam 5")],
        macs=35_000_000, taps_macs=1000, params_core=1_100_000, params_total=2_300_000, updates=8000,
        wall_time_seconds=12.5, date="2025-01-01T00:00:00+0000",
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


FIGURE = {
    "task": "multi30k-en-de", "row": "Transformer-Tiny", "source": "Wu et al. 2021", "split": "test",
    "metric": "tokenized_bleu", "value": 41.02, "protocol": "tokenized, lower-cased", "macs": 42_086_400, "params": 0,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A results folder: two seeds of one row, one of another, one literature figure."""
    for name, item in {
        "lite-1": record(seed=1, bleu=40.0),
        "lite-2": record(seed=2, bleu=42.0),
        "tiny-1": record("Transformer-Tiny", seed=1, bleu=40.68, macs=42_086_400, settings_sha256="4" * 64),
    }.items():
        results.write_record(tmp_path / "runs" / f"{name}.json", item)
    (tmp_path / "literature.json").write_text(json.dumps([FIGURE]), encoding="utf-8")
    return tmp_path


def cells(table, label):
    """Column head -> cell of a row of the table."""
    lines = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines() if line[:1] == "|"
    ]
    row = next(line for line in lines if line[0] == label)
    return dict(zip(lines[0], row, strict=True))


def test_record_survives_the_file(tmp_path):
    path = tmp_path / "runs" / "a.json"
    results.write_record(path, record())
    assert results.read_record(path) == record()
    assert [item.name for item in path.parent.iterdir()] == ["a.json"], "no temporary file is left"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("seed"), "missing key seed"),
        (lambda data: data.update(colour=1), "unknown key colour"),
        (lambda data: data.update(seed="1"), "key seed: '1' is not of type int"),
        (lambda data: data.update(seed=True), "key seed: True is not of type int"),
        (lambda data: data.update(dirty=0), "key dirty: 0 is not of type bool"),
        (lambda data: data.update(kind="paper"), "key kind: 'paper' is not 'measured'"),
        (lambda data: data.update(metrics=[]), "key metrics is empty"),
        (lambda data: data["metrics"][0].pop("signature"), r"key metrics\[0\]: missing key signature"),
        (
            lambda data: data["metrics"][0].update(value=float("nan")),
            r"key metrics\[0\]: key value: nan is not of type",
        ),
        (lambda data: data["data"].update(x=1), r"key data\.x: 1 is not of type str"),
    ],
)
def test_reading_is_strict_and_names_file_and_key(tmp_path, change, message):
    path = tmp_path / "a.json"
    data = dataclasses.asdict(record())
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        results.read_record(path)


def test_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json: cannot be read as JSON"):
        results.read_record(tmp_path / "a.json")


def test_second_evaluation_adds_scores_and_another_run_is_refused(tmp_path):
    path = tmp_path / "a.json"
    results.write_record(path, record())
    better = results.Metric("test", "tokenized_bleu", 41.0, SIGNATURE, "beam 5")
    other_beam = dataclasses.replace(better, decoding="beam 1")
    added = results.write_record(
        path, record(metrics=[better, other_beam], commands=["lite-transformer train x", "again"])
    )
    assert added == results.read_record(path)
    assert added.metrics == [better, other_beam], "the same protocol is replaced, another one is added"
    assert added.commands == ["lite-transformer train x", "again"]
    with pytest.raises(DataError, match=r"is the record of another run: seed is 1 there and 2 here"):
        results.write_record(path, record(seed=2))


def test_interrupted_writing_leaves_the_old_record(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    results.write_record(path, record())
    monkeypatch.setattr("data_prep.io.json.dump", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.write_record(path, record(date="later"))
    assert results.read_record(path) == record()
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_table_keeps_literature_and_measured_apart(folder):
    table = results.render_tables(folder)
    literature = "tokenized_bleu, test, literature [1]"
    measured = "tokenized_bleu, test, measured [2]"
    tiny, lite = cells(table, "Transformer-Tiny"), cells(table, "Lite")
    assert (tiny[literature], tiny[measured]) == ("41.02", "40.68")
    assert (lite[literature], lite[measured]) == ("", "41.00 (40.00 to 42.00)")
    assert (lite["seeds"], tiny["seeds"]) == ("2", "1")
    assert lite["records, sources"] == "[1](runs/lite-1.json), [2](runs/lite-2.json)"
    assert tiny["records, sources"] == "[1](runs/tiny-1.json), Wu et al. 2021"
    assert lite["MACs"] == "35,000,000" and lite["params (core)"] == "1,100,000"
    assert "[1] `tokenized, lower-cased`" in table and f"[2] `{SIGNATURE}; beam 5`" in table


def test_different_protocols_never_share_a_column(folder):
    for change in ({"signature": "case:lc"}, {"decoding": "beam 1"}, {"split": "valid"}, {"metric": "sacrebleu"}):
        metric = dataclasses.replace(record().metrics[0], value=77.0, **change)
        results.write_record(folder / "runs" / "tiny-1.json", record(
            "Transformer-Tiny", bleu=40.68, macs=42_086_400, settings_sha256="4" * 64, metrics=[metric]
        ))  # fmt: skip
    row = cells(results.render_tables(folder), "Transformer-Tiny")
    assert sorted(row.values()).count("77.00") == 4
    assert "40.68" in row.values()


def test_runs_of_a_row_differ_in_their_seeds_only(folder):
    path = folder / "runs" / "lite-3.json"
    results.write_record(path, record(seed=2))
    with pytest.raises(DataError, match=r"lite-2\.json and .*lite-3\.json: two runs of row 'Lite' with seed 2"):
        results.render_tables(folder)
    path.unlink()
    results.write_record(path, record(seed=3, settings_sha256="9" * 64))
    with pytest.raises(DataError, match="runs of row 'Lite' differ in settings_sha256"):
        results.render_tables(folder)


def test_literature_is_read_strictly(folder):
    (folder / "literature.json").write_text(json.dumps([FIGURE | {"bleu": 1}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"literature\.json, figure 1: unknown key bleu"):
        results.render_tables(folder)


def test_literature_of_the_repository_can_be_read():
    figures = results.read_literature(Path(__file__).parent.parent / "results")
    assert {(item.task, item.value) for item in figures} >= {("multi30k-en-de", 41.02), ("multi30k-en-fr", 61.80)}


def test_plot_shows_measured_rows(folder):
    (path,) = results.write_plots(folder)
    assert path == folder / "plots" / "multi30k-en-de.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert "![multi30k-en-de](plots/multi30k-en-de.png)" in results.render_tables(folder)


ROUGE = {"rouge1": 41.0, "rouge2": 18.0, "rougeL": 38.0, "rougeLsum": 38.5, "rouge1_stem": 42.0, "rougeL_stem": 39.0}


def rouge_metrics(names, signature="f1:mean|stem:no", plus=0.0):
    return [results.Metric("test", name, ROUGE[name] + plus, signature, "beam 4") for name in names]


def test_task_with_rouge_only_has_summary_plot_and_table(tmp_path):
    for seed in (1, 2):
        item = record("Lite", seed=seed, task="cnn", metrics=rouge_metrics(ROUGE, plus=float(seed - 1)))
        results.write_record(tmp_path / "runs" / f"lite-{seed}.json", item)
    low = record("Transformer", task="cnn", metrics=rouge_metrics(ROUGE, plus=-9.0), settings_sha256="5" * 64)
    results.write_record(tmp_path / "runs" / "low.json", low)
    figure = FIGURE | {"task": "cnn", "row": "Lite", "metric": "rougeL", "value": 38.3, "protocol": "files2rouge"}
    bleu = FIGURE | {"task": "cnn", "row": "Lite"}  # nobody here measured it
    (tmp_path / "literature.json").write_text(json.dumps([figure, bleu]), encoding="utf-8")
    rows = results.rows_by_task(results.read_records(tmp_path), results.read_literature(tmp_path))["cnn"]
    assert results.main_metrics(rows) == ("rouge1", "rouge2", "rougeL")
    lite, transformer = (cells(results.render_summary(rows), label) for label in ("Lite", "Transformer"))
    assert list(lite)[4:] == [
        "ROUGE-1, measured", "ROUGE-2, measured", "ROUGE-L, measured", "decoding",
        "ROUGE-1, literature", "ROUGE-2, literature", "ROUGE-L, literature",
    ]  # fmt: skip
    assert lite["ROUGE-2, measured"] == "18.50 (18.00 to 19.00)" and lite["ROUGE-L, literature"] == "38.30"
    assert (lite["decoding"], lite["ROUGE-1, literature"], transformer["ROUGE-L, measured"]) == ("beam 4", "", "29.00")
    summary = results.render_summary(rows)
    assert summary.index("| Transformer |") < summary.index("| Lite |"), "the best is last"
    assert [column[1] for column in results.plotted_columns(rows)] == ["rougeL"]
    (path,) = results.write_plots(tmp_path)
    assert path.name == "cnn.png"
    table = results.render_tables(tmp_path)
    assert "![cnn](plots/cnn.png)" in table
    assert cells(table, "Transformer")["rouge1_stem, test, measured [3]"] == "33.00"


@pytest.mark.parametrize(
    ("measured", "claimed", "expected"),
    [
        (["rougeL", "tokenized_bleu", "sacrebleu"], ["rougeL"], ("tokenized_bleu",)),
        (["rougeL_stem", "rouge1_stem", "chrf"], [], ("rouge1_stem", "rougeL_stem")),
        (["chrf", "sacrebleu"], [], ("sacrebleu",)),
        (["perplexity"], ["rougeL"], ("perplexity",)),
        ([], ["rouge2", "rougeL"], ("rouge2", "rougeL")),
        ([], [], ()),
    ],
)
def test_main_metrics_of_a_task(measured, claimed, expected):
    metrics = [results.Metric("test", name, 1.0, "s", "beam 4") for name in measured]
    runs = {Path("a.json"): record(metrics=metrics)} if measured else {}
    figures = [results.LiteratureFigure(**FIGURE | {"metric": name}) for name in claimed]
    assert results.main_metrics([results.Row("Lite", runs, figures)]) == expected
