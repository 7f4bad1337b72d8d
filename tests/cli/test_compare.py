"""The compare verb on files: what is printed, and bad input. What it computes: scoring/test_significance.py."""

import json
import random
import shutil
from pathlib import Path

import pytest

from data_prep.io import sha256
from lite_transformer import results
from lite_transformer.cli.main import main
from lite_transformer.scoring import significance


@pytest.fixture
def files(tmp_path):
    generator = random.Random(1)
    references = [" ".join(generator.choices("abcdefg", k=12)) for _ in range(40)]
    texts = {
        "ref": references,
        "bad": [" ".join(word for word in line.split() if generator.random() < 0.6) for line in references],
        "good": [line[:-2] + " x" for line in references],
    }
    for name, lines in texts.items():
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path, texts


def compare(capsys, *words):
    code = main(["compare", *map(str, words)])
    return code, *capsys.readouterr()


def test_prints_metric_signature_test_and_seed(files, capsys):
    folder, texts = files
    words = [folder / "bad", folder / "good", folder / "bad", "--reference", folder / "ref", "--trials", 100]
    code, out, _ = compare(capsys, *words)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"40 lines of {folder / 'ref'}"
    assert lines[1].startswith("sacrebleu  [nrefs:1|case:mixed|")
    assert lines[1].endswith("paired bootstrap, 100 resamples, seed 12345")
    value = significance.score("sacrebleu", texts["good"], texts["ref"]).value
    assert lines[3].startswith(f"  {folder / 'good'}: sacrebleu {value:.2f}, 95 % ")
    assert "p = 0.0099: significant at 0.05" in lines[3] and "p = " not in lines[2]
    assert lines[4].endswith("+0.00, p = 1.0000: not significant at 0.05")
    assert lines[5].startswith("chrf  [") and len(lines) == 9


def test_json(files, capsys):
    folder, texts = files
    words = [folder / "bad", folder / "good", "--reference", folder / "ref", "--json", "--metric", "rouge2", "rouge2"]
    code, out, _ = compare(capsys, *words, "--test", "randomization", "--trials", "50")
    assert code == 0
    result = json.loads(out)
    systems = [(str(folder / name), texts[name]) for name in ("bad", "good")]
    expected = significance.compare("rouge2", systems, texts["ref"], "randomization", 50)
    assert result == {"reference": str(folder / "ref"), "lines": 40, "comparisons": [expected.to_json()]}
    assert result["comparisons"][0]["systems"][1]["p_value"] == 1 / 51


def test_case_and_compounds(files, capsys):
    folder, _ = files
    upper = folder / "upper"
    upper.write_text((folder / "ref").read_text(encoding="utf-8").upper(), encoding="utf-8")
    words = [folder / "bad", upper, "--reference", folder / "ref", "--metric", "tokenized_bleu", "--trials", "10"]
    assert f"{upper}: tokenized_bleu 0.00" in compare(capsys, *words)[1]
    out = compare(capsys, *words, "--lowercase", "--compound-split")[1]
    assert f"{upper}: tokenized_bleu 100.00" in out and "case:lc" in out and "compound_split:yes" in out


def test_bad_input_is_one_line_and_exit_code_2(files, capsys):
    folder, _ = files
    (folder / "short").write_text("a\n", encoding="utf-8")
    (folder / "empty").write_text("", encoding="utf-8")
    (folder / "latin").write_bytes("ü\n".encode("latin-1"))
    bad, good = folder / "bad", folder / "good"
    reference = ["--reference", folder / "ref"]
    cases = [
        ([bad, folder / "none", *reference], f"{folder / 'none'}: no such file. Hypotheses are written by"),
        ([bad, folder / "short", *reference], f"{folder / 'short'}: 1 hypotheses for 40 references"),
        ([bad, folder / "empty", *reference], f"{folder / 'empty'} is empty"),
        ([bad, folder / "latin", *reference], "latin"),
        ([bad, good, "--reference", folder], f"{folder}: no such file"),
        ([bad, good, *reference, "--metric", "bleu"], "--metric bleu: unknown. Known: tokenized_bleu, sacrebleu,"),
        ([bad, good, *reference, "--trials", "0"], "--trials 0: at least 1 is needed"),
    ]
    for words, message in cases:
        code, out, err = compare(capsys, *words)
        assert (code, out) == (2, ""), words
        assert message in err and err.count("\n") == 1, err


def test_a_record_is_rendered_beside_its_task(files, capsys, tmp_path):
    folder, texts = files
    record = tmp_path / "results" / "comparisons" / "x.json"
    words = [folder / "bad", folder / "good", "--reference", folder / "ref", "--trials", 100, "--record", record]
    code, _, _ = compare(capsys, *words, "--task", "letters", "--labels", "worse", "better", "--metric", "chrf")
    assert code == 0
    (found,) = results.read_comparisons(tmp_path / "results")
    systems = [("worse", texts["bad"]), ("better", texts["good"])]
    expected = significance.compare("chrf", systems, texts["ref"], trials=100).systems[1]
    assert (found.task, found.baseline, found.split, found.lines) == ("letters", "worse", "test", 40)
    assert found.hypotheses == {"worse": sha256(folder / "bad"), "better": sha256(folder / "good")}
    (line,) = [line for line in results.render_comparisons([found]).splitlines() if line.startswith("| better")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    half = expected.score.interval.half_width
    first = significance.score("chrf", texts["bad"], texts["ref"]).value
    assert cells == [
        "better", "worse", "test", "chrf", f"{expected.score.value:.2f} ± {half:.2f}", f"{first:.2f}",
        f"{expected.score.value - first:+.2f}", f"{expected.p_value:.3f}",
    ]  # fmt: skip


def test_a_record_is_scored_as_the_runs_of_its_task(files, capsys, tmp_path):
    folder, _ = files
    runs = Path(__file__).parents[2] / "results" / results.RUNS / "multi30k_en_de_lite_seed1.json"
    (tmp_path / results.RUNS).mkdir()
    shutil.copy(runs, tmp_path / results.RUNS)
    record = tmp_path / results.COMPARISONS / "x.json"
    words = [folder / "bad", folder / "good", "--reference", folder / "ref", "--trials", 20, "--record", record]
    code, _, err = compare(capsys, *words, "--task", "multi30k-en-de")
    assert code == 2 and "have sacrebleu with case:lc, to compare with: add --lowercase" in err and not record.exists()
    tokenized = ["--metric", "tokenized_bleu", "--lowercase"]
    code, _, err = compare(capsys, *words, "--task", "multi30k-en-de", *tokenized)
    assert code == 2 and "leave out --lowercase" in err and not record.exists()
    assert compare(capsys, *words, "--task", "multi30k-en-de", "--lowercase")[0] == 0 and record.exists()


@pytest.mark.parametrize(
    "words, text",
    [
        (["--record", "x.json"], "--record needs --task NAME"),
        (["--labels", "one"], "--labels: 2 different names are needed"),
        (["--labels", "one", "one"], "--labels: 2 different names are needed"),
    ],
)
def test_records_say_what_was_compared(files, capsys, words, text):
    folder, _ = files
    code, _, err = compare(capsys, folder / "bad", folder / "good", "--reference", folder / "ref", *words)
    assert code == 2 and text in err


def test_a_record_of_something_else_is_kept(files, capsys, tmp_path):
    folder, _ = files
    other = tmp_path / "other.json"
    other.write_text('{"task": "x"}')
    words = [folder / "bad", folder / "good", "--reference", folder / "ref", "--record", other, "--task", "letters"]
    code, _, err = compare(capsys, *words)
    assert code == 2 and "other.json: missing key" in err and other.read_text() == '{"task": "x"}'


def test_examples_stand_side_by_side(files, capsys, monkeypatch):
    folder, texts = files
    monkeypatch.setattr(significance, "compare", lambda *_: pytest.fail("examples are for people: written first"))
    (folder / "source").write_text("\n".join(f"s{number}" for number in range(40)) + "\n", encoding="utf-8")
    words = [folder / "bad", folder / "good", "--reference", folder / "ref", "--labels", "Transformer", "Lite",
             "--sources", folder / "source", "--examples", folder / "new" / "examples.md"]  # fmt: skip
    with pytest.raises(pytest.fail.Exception):
        compare(capsys, *words, "--example-count", 3)
    text = (folder / "new" / "examples.md").read_text(encoding="utf-8")
    numbers = [int(line.removeprefix("## Line ")) - 1 for line in text.splitlines() if line.startswith("## ")]
    assert len(numbers) == 3
    for number in numbers:
        shown = f"> s{number}\n\n|  |  |\n| --- | --- |\n| reference | {texts['ref'][number]} |\n"
        assert f"{shown}| Transformer | {texts['bad'][number]} |\n| Lite | {texts['good'][number]} |\n" in text


def test_examples_want_sources_and_a_number(files, capsys):
    folder, _ = files
    words = [folder / "bad", folder / "good", "--reference", folder / "ref", "--examples", folder / "x.md"]
    for more, text in (
        ([], "--examples FILE.md and --sources FILE, the raw source of the test set, belong together"),
        (["--sources", folder / "ref", "--example-count", "0"], "--example-count 0: at least 1 is needed"),
    ):
        code, _, err = compare(capsys, *words, *more)
        assert code == 2 and text in err and err.count("\n") == 1
    assert not (folder / "x.md").exists()
