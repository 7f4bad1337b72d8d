"""The tables as data: every experiment has its row, every row its figures, and wrong names are told what is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lite_transformer import results
from lite_transformer.cli.main import main
from lite_transformer.errors import ConfigError
from lite_transformer.models.architectures import ARCHITECTURES
from lite_transformer.reproduction.report import published_figures
from lite_transformer.reproduction.tables import CHECKOUT, TABLES, choose_rows, find_table

PAPER = {"iwslt": 9, "wmt_en_de": 7, "wmt_en_fr": 8, "cnn_dm": 2}


def test_every_experiment_is_a_row_of_one_table():
    """Of every corpus that a table is about."""
    corpora = tuple(table.corpus for table in TABLES.values())
    rows = [row.config for table in TABLES.values() for row in table.rows if row.config]
    configs = [path.stem for path in (CHECKOUT / "configs").glob("*.yaml") if path.stem.startswith(corpora)]
    assert sorted(rows) == sorted(configs)
    for table in TABLES.values():
        for names in ([row.name for row in table.rows], [row.label for row in table.rows]):
            assert len(set(names)) == len(names) > 0
        assert sorted(table.languages) == sorted(table.pair)
        if table.is_of_language_models:
            assert _experiment(table)["task"]["_name"] == "language_modeling"
            assert table.metrics == ("perplexity",) and table.protocol.name == table.corpus
            continue
        assert table.languages == tuple(_experiment(table)["task"][f"{side}_lang"] for side in ("source", "target"))


def _experiment(table, row=None):
    config = (row or table.rows[0]).config
    return yaml.safe_load((CHECKOUT / "configs" / f"{config}.yaml").read_text(encoding="utf-8"))


def test_every_row_of_the_paper_has_all_its_figures_and_its_budget():
    tasks = {TABLES[name].task for name in PAPER}
    literature = [figure for figure in results.read_literature(CHECKOUT / "results") if figure.task in tasks]
    for name, count in PAPER.items():
        table = TABLES[name]
        figures = published_figures(table)
        assert len(table.rows) == count and table.published == "paper"
        for row in table.rows:
            assert [figure.metric for figure in figures[row.label]] == list(table.metrics), row
            claimed = figures[row.label][0]
            if row.config:
                architecture = ARCHITECTURES[_experiment(table, row)["model"]["_name"]]
                assert claimed.macs == pytest.approx(architecture.macs, rel=0.02)
                assert f"{claimed.params / 1e6:g}" == architecture.published_params.removesuffix("M")
                head = (CHECKOUT / "configs" / f"{row.config}.yaml").read_text(encoding="utf-8")
                assert f"{claimed.value:g}" in head
            else:
                assert row.note
        literature = [figure for figure in literature if figure.row not in {row.label for row in table.rows}
                      or figure.task != table.task]  # fmt: skip
    assert literature == [], "figures that no table shows"


@pytest.mark.parametrize("name", ["linux_docs", "synopses", "libreoffice_de_en"])
def test_a_row_is_called_as_its_records_are(name: str):
    records = results.read_records(CHECKOUT / "results").values()
    for row in TABLES[name].rows:
        labels = {item.row for item in records if Path(item.config).stem == row.config}
        assert not labels or row.label in labels


def test_figures_that_nobody_could_check_are_marked():
    """Section 1 of the project's fact sheet: which scores were read somewhere, and which are remembered only."""
    unverified = {
        (name, row.name, figure.metric)
        for name in PAPER
        for row in TABLES[name].rows
        for figure in published_figures(TABLES[name])[row.label]
        if "recalled-unverified" in figure.source
    }
    assert unverified == {
        *(("iwslt", row.name, "tokenized_bleu") for row in TABLES["iwslt"].rows),
        ("wmt_en_de", "transformer_338m", "tokenized_bleu"),
        ("wmt_en_de", "transformer_527m", "tokenized_bleu"),
        *(("cnn_dm", "transformer_2g", metric) for metric in ("rouge1", "rouge2", "rougeL")),
        *(("cnn_dm", "lite_496", metric) for metric in ("rouge1", "rouge2")),
    }


def test_a_new_experiment_of_a_small_corpus_is_a_row_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "configs").mkdir()
    for name in ("libreoffice_help_de_en_lite_7m", "libreoffice_help_de_enough", "libreoffice_help_en_de_x"):
        (tmp_path / "configs" / f"{name}.yaml").write_text("", encoding="utf-8")
    before = TABLES["libreoffice_de_en"].rows
    monkeypatch.chdir(tmp_path)
    new = [row for row in TABLES["libreoffice_de_en"].rows if row not in before]
    assert [(row.name, row.label, row.config) for row in new] == [
        ("lite_7m", "Lite 7M", "libreoffice_help_de_en_lite_7m")
    ]


def test_rows_are_chosen_by_name_in_the_order_of_the_table():
    table = find_table("wmt_en_fr")
    assert [row.name for row in choose_rows(table, "lite_408, transformer_87m")] == ["transformer_87m", "lite_408"]
    chosen = [row.name for row in choose_rows(table, None)]
    assert len(chosen) == 6 and "transformer_base" not in chosen
    with pytest.raises(ConfigError, match=r"has no row 'lite_20'\. Rows: transformer_87m, lite_200,"):
        choose_rows(table, "lite_20")
    with pytest.raises(ConfigError, match="--rows transformer_base: there is no experiment for it"):
        choose_rows(table, "transformer_base")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["iwslt15"], "unknown table 'iwslt15'. Known: iwslt, wmt_en_de, wmt_en_fr, cnn_dm, multi30k_en_de"),
        ([], "which table? One of: iwslt"),
        (["iwslt", "--rows", "lite_161"], "has no row 'lite_161'. Rows: transformer_63m"),
        (["iwslt", "--seeds", "1,x"], "--seeds 1,x: different whole numbers"),
        (["iwslt", "--seeds", "1,1"], "--seeds 1,1: different whole numbers"),
        (["iwslt", "--gpus", "0"], "--gpus 0: at least 1"),
        (["iwslt", "--source", "nowhere"], "--source nowhere: no such folder"),
    ],
)
def test_wrong_names_are_one_line(words, message, capsys):
    assert main(["reproduce", *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_without_git_the_commit_is_asked_for_before_anything_is_trained(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["reproduce", "iwslt", "--out", str(tmp_path / "out")]) == 2
    assert "records need the commit of the code, and this is no git checkout: give --commit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lists_teach(capsys):
    assert main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name} " in text for name in TABLES) and "reproduce TABLE --list" in text
    assert main(["reproduce", "wmt_en_fr", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "beam 4, lenpen 0.6" in lines[0]
    assert "lite_200 Lite Transformer 200 paper: 35.3 configs/wmt14_en_fr_lite_200.yaml" in [
        " ".join(line.split()) for line in lines
    ]
    assert any("transformer_base" in line and "no experiment: its training was never" in line for line in lines)
