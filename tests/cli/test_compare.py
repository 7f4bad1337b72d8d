"""The compare verb on files: what is printed, and bad input. What it computes: scoring/test_significance.py."""

import json
import random

import pytest

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
