"""The evaluate verb on a tiny language model that was trained for a few updates."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from data_prep.io import read_json
from lite_transformer.cli.main import main
from lite_transformer.scoring.perplexity import is_language_model
from tests.helpers import commands
from tests.models.slow_reference import old_args

WINDOW = ["--tokens-per-sample", "16", "--context-window", "6"]


def evaluate(capsys, *words: object) -> tuple[int, str, str]:
    code = main(["evaluate", *map(str, words), "--cpu"])
    return code, *capsys.readouterr()


def test_perplexity_by_a_protocol(tiny_text: Path, tiny_text_checkpoint: Path, capsys):
    code, out, _ = evaluate(capsys, "linux_docs", "--checkpoint", tiny_text_checkpoint, "--data", tiny_text, *WINDOW)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("test: ") and " tokens scored, one checkpoint, " in lines[0]
    assert lines[1] == "protocol linux_docs: this project"
    assert "  not as in the protocol: tokens-per-sample is 16, not 512" in lines
    assert (
        lines[-1].startswith("perplexity ") and "[per word token, 16 tokens per sample, context window 6" in lines[-1]
    )


def test_the_command_of_fairseq_gives_the_same(tiny_text: Path, tiny_text_checkpoint: Path, capsys):
    words = [
        "--checkpoint",
        tiny_text_checkpoint,
        "--data",
        tiny_text,
        *WINDOW,
        "--sample-break-mode",
        "none",
        "--json",
    ]
    code, out, _ = evaluate(capsys, *words)
    result = json.loads(out)
    text = commands.run(
        "fairseq-eval-lm", tiny_text, "--user-dir", "lite_transformer", "--path", tiny_text_checkpoint, "--cpu",
        *WINDOW, "--sample-break-mode", "none", "--gen-subset", "test", "--max-tokens", 64, "--num-workers", 0,
    )  # fmt: skip
    assert code == 0
    assert f"Loss (base 2): {result['bits_per_token']:.4f}, Perplexity: {result['scores'][0]['value']:.2f}" in text
    assert result["scores"][0]["value"] == pytest.approx(2 ** result["bits_per_token"])
    assert math.isfinite(result["tokens_per_second"]) and result["protocol"]["name"] == ""


def test_without_options_all_positions_are_used(tiny_text: Path, tiny_text_checkpoint: Path, capsys):
    code, out, _ = evaluate(capsys, "--checkpoint", tiny_text_checkpoint.parent, "--data", tiny_text, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["protocol"]["tokens_per_sample"], result["protocol"]["context_window"]) == (16, 13)
    assert result["checkpoint"].endswith("checkpoint_best.pt")


def test_subwords_are_reported_per_word_too(tiny_text: Path, tiny_text_checkpoint: Path, tmp_path: Path, capsys):
    data = tmp_path / "bin"
    shutil.copytree(tiny_text, data)
    words = (data / "dict.txt").read_text(encoding="utf-8").splitlines()
    words[0] = "x@@ 9"
    (data / "dict.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    prepared = {"corpus": "mine", "text": {"en": {"language": "en", "subword": "bpe"}}, "tokens": {"test": 7}}
    (data / "prepare.json").write_text(json.dumps(prepared), encoding="utf-8")
    code, out, _ = evaluate(capsys, "--checkpoint", tiny_text_checkpoint, "--data", data, *WINDOW, "--json")
    result = json.loads(out)
    assert code == 0
    assert [score["metric"] for score in result["scores"]] == ["subword_perplexity", "perplexity"]
    assert result["words"] < result["tokens"]
    assert f"per word, renormalised from bpe ({result['words']} words)" in result["scores"][1]["signature"]
    assert result["scores"][1]["value"] > result["scores"][0]["value"]
    assert result["differences"] == [f"tokens in the data is {result['tokens']}, not 7"]


def test_run_record(tiny_text: Path, tiny_text_checkpoint: Path, tmp_path: Path, capsys):
    path = tmp_path / "runs" / "lm.json"
    path.parent.mkdir()
    words = ["--checkpoint", tiny_text_checkpoint, "--data", tiny_text, *WINDOW, "--record", path, "--task", "mine"]
    code, out, _ = evaluate(capsys, *words, "--row", "Lite 16", "--commit", "a" * 40)
    assert code == 0 and f"record in {path}" in out
    record = read_json(path)
    record = record[0] if isinstance(record, list) else record
    assert (record["task"], record["row"], record["arch"]) == ("mine", "Lite 16", "lite_transformer_lm")
    assert record["metrics"][0]["metric"] == "perplexity" and record["updates"] == 4
    # 30 tokens of 2 layers of 16 channels, kernels 15 and 15, and the input projection
    assert record["macs"] == 30 * (2 * (7 * 64 + 2 * 256) + 4 * 30 * 8 + 256) + 2 * 2 * 900 * 8


@pytest.fixture
def translation_checkpoint(tmp_path: Path) -> Path:
    """Of a translation model, as far as its options tell."""
    torch.save({"args": old_args(), "model": {}}, tmp_path / "translation.pt")
    return tmp_path / "translation.pt"


def test_which_checkpoints_are_language_models(tiny_text_checkpoint: Path, translation_checkpoint: Path):
    assert is_language_model(tiny_text_checkpoint)
    assert not is_language_model(translation_checkpoint)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--tokens-per-sample", "16", "--context-window", "16"],
            "--context-window 16 must be smaller than --tokens-per",
        ),
        (
            ["--tokens-per-sample", "17", "--context-window", "4"],
            "--tokens-per-sample 17 is longer than the model's 16",
        ),
        (["--sample-break-mode", "eos"], "--sample-break-mode eos: known are none, complete, complete_doc"),
        (["--split", "dev"], "(dev.idx is missing). Run: lite-transformer prepare CORPUS"),
        (
            ["--beam", "4", "--confidence"],
            "--beam, --confidence: of translations; a language model is evaluated by its",
        ),
    ],
)
def test_what_cannot_be_evaluated(words, text, tiny_text: Path, tiny_text_checkpoint: Path, capsys):
    code, out, err = evaluate(capsys, "--checkpoint", tiny_text_checkpoint, "--data", tiny_text, *words)
    assert (code, out) == (2, "")
    assert text in err and err.count("\n") == 1


def test_a_dictionary_of_another_size(tiny_text: Path, tiny_text_checkpoint: Path, tmp_path: Path, capsys):
    data = tmp_path / "bin"
    shutil.copytree(tiny_text, data)
    with (data / "dict.txt").open("a", encoding="utf-8") as stream:
        stream.write("".join(f"new{i} 1\n" for i in range(8)))
    code, _, err = evaluate(capsys, "--checkpoint", tiny_text_checkpoint, "--data", data, *WINDOW)
    assert code == 2 and err.count("\n") == 1
    assert f"The dictionaries of {data} are not those it was trained with: give the data it was trained on" in err


def test_no_checkpoint(tiny_text: Path, capsys):
    code, _, err = evaluate(capsys, "linux_docs_lite_small", "--data", tiny_text, "--checkpoint", "runs/none")
    assert code == 2
    assert "runs/none: no such file or folder. Give --checkpoint, a file or a run's folder" in err


def test_options_of_text_for_a_translation_model(tiny_text: Path, translation_checkpoint: Path, capsys):
    words = ["--checkpoint", translation_checkpoint, "--data", tiny_text, "--context-window", "3"]
    code, _, err = evaluate(capsys, *words)
    assert code == 2
    assert "--context-window: of language models, and this is a translation model. Leave it out" in err
