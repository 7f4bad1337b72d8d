"""The tables of language models: their steps, their smoke runs, what their table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from lite_transformer import training
from lite_transformer.models.lm_config import LiteTransformerLMConfig, TransformerLMConfig
from lite_transformer.reproduction import chain, report
from lite_transformer.reproduction.tables import TABLES

TABLE = TABLES["wikitext103"]


def test_rows_and_figures_of_the_table():
    assert [row.name for row in TABLE.rows if row.config] == [
        "transformer_256", "lite_408", "transformer_320", "lite_512", "lite_640", "transformer_512", "lite_896",
    ]  # fmt: skip
    assert (TABLE.task, TABLE.metrics, TABLE.other_metrics) == ("wikitext103", ("perplexity",), ())
    assert TABLES["linux_docs"].task == "linux_docs" and len(TABLES["linux_docs"].rows) == 4


@pytest.mark.parametrize("name", ["lite_896", "transformer_512"])
def test_a_smoke_run_is_a_model_of_the_same_kind(name: str):
    row = next(row for row in TABLE.rows if row.name == name)
    path = training.find_config(row.config)
    model = training.load_config(path, ["task.data=none", *chain.smoke_overrides(row)]).model
    kind = LiteTransformerLMConfig if name.startswith("lite") else TransformerLMConfig
    config = kind.resolved(model)
    assert (config.decoder_embed_dim, config.decoder_layers, config.tokens_per_sample) == (32, 2, 64)
    assert config.vocabulary_problems(300) == []


def test_commands_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    typed: list[list[str]] = []
    monkeypatch.setattr(chain, "_step", lambda plan, words, log, lock: typed.append(list(words)))
    monkeypatch.setattr(chain.results, "data_hashes", lambda folder: {})
    monkeypatch.setattr(chain.results, "read_record", lambda path: None)
    row = next(row for row in TABLE.rows if row.name == "lite_408")
    plan = chain.Plan(TABLE, [row], out=tmp_path, smoke=True, cpu=True, commit="a" * 40)
    outcomes = chain.reproduce(plan, tmp_path / "results", lambda found: None)
    prepare, train, evaluate = typed
    assert prepare == ["prepare", "wikitext103", "--dest", str(tmp_path / "data"), "--limit", "600"]
    assert train[:2] == ["train", "wikitext103_lite_408"]
    assert "--output" not in evaluate
    assert evaluate[evaluate.index("--tokens-per-sample") :][:6] == [
        "--tokens-per-sample", "64", "--context-window", "48", "--sample-break-mode", "none",
    ]  # fmt: skip
    assert plan.decoding == "one checkpoint"
    for outcome in outcomes:
        outcome.records.clear()
    text = report.render_table(plan, outcomes, report.published_figures(TABLE), chain.changes_of(plan))
    assert "The first 600 lines of each split" in text
    assert "64 tokens per sample, context window 48, break mode none; Mult-Adds counted at 30 tokens" in text
    assert "published: perplexity per word token" in text
