"""The evaluate verb on a tiny model that was trained for a few updates on a digit-copy corpus."""

import itertools
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from data_prep.io import read_lines
from lite_transformer import results
from lite_transformer.cli.evaluate import settings_hash
from lite_transformer.cli.main import main
from lite_transformer.errors import CheckpointError
from lite_transformer.models.averaging import average_weights, last_epochs, write_average
from lite_transformer.models.safe_load import load_checkpoint
from lite_transformer.scoring import bleu, rouge, significance

SENTENCES = {"train": 400, "valid": 19, "test": 21}  # neither test size is a multiple of fairseq's default of 8
MODEL = [
    "model.encoder_embed_dim=16", "model.encoder_layers=2", "model.decoder_layers=2", "model.dropout=0.0",
    "model.encoder_branch_heads=[2,2]", "model.decoder_branch_heads=[2,2]",
]  # fmt: skip
EPOCHS = 4


def write_corpus(folder: Path) -> None:
    """Source and target are the same sentences: numbers in a frame that even a tiny model learns at once."""
    generator = random.Random(1)
    folder.mkdir()
    for split, count in SENTENCES.items():
        lines = []
        for _ in range(count):
            numbers = generator.choices(["11", "12", "27", "35", "4", "6", "7"], k=generator.randint(1, 4))
            lines.append(f"We can count {' '.join(numbers)}, and that is all{generator.choice('.!')}")
        for language in ("de", "en"):
            (folder / f"{split}.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(bin folder, checkpoint folder) of a prepared corpus and a model trained for a few epochs."""
    torch.set_num_threads(1)  # so small that a second thread only waits
    root = tmp_path_factory.mktemp("digits")
    write_corpus(root / "text")
    prepare = ["prepare", "parallel", "--source", str(root / "text"), "--dest", str(root / "data"), "--pair", "de-en"]
    assert main([*prepare, "--bpe-merges", "5", "--lowercase"]) == 0
    train = [
        "train",
        "iwslt14_de_en_lite_160",
        "--data",
        str(root / "data/bin"),
        "--save-dir",
        str(root / "run"),
        "--cpu",
    ]
    limits = [
        f"optimization.max_epoch={EPOCHS}", "dataset.max_tokens=400", "lr_scheduler.warmup_updates=10",
        "optimization.lr=[0.01]", "dataset.num_workers=0", "optimization.max_update=0", "common.log_format=none",
    ]  # fmt: skip
    assert main([*train, *MODEL, *limits]) == 0
    return root / "data/bin", root / "run"


def evaluate(capsys, *words):
    code = main(["evaluate", "--cpu", *map(str, words)])
    return code, *capsys.readouterr()


def evaluate_json(capsys, *words):
    code, out, err = evaluate(capsys, *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_scores_every_sentence_with_protocols(trained, capsys, tmp_path):
    data, run = trained
    output = tmp_path / "translations"
    result = evaluate_json(capsys, "--checkpoint", run, "--data", data, "--beam", 2, "--output", output)
    assert result["sentences"] == SENTENCES["test"]
    assert result["decoding"] == "beam 2, lenpen 1, one checkpoint"
    assert [score["metric"] for score in result["scores"]] == ["tokenized_bleu", "sacrebleu", "chrf"]
    assert "tok:none" in result["scores"][0]["signature"]
    assert all(score["value"] > 20 for score in result["scores"]), "a model that learnt nothing would prove nothing"
    assert "case:lc" in result["scores"][1]["signature"], "the data is lower-cased"
    lines = read_lines(output)
    raw = read_lines(data.parent / "raw" / "test.en")
    assert len(lines) == len(raw) == SENTENCES["test"]
    assert result["scores"][1]["value"] == bleu.sacrebleu(lines, raw, lowercase=True).value
    assert result["scores"][2]["value"] == bleu.chrf(lines, raw, lowercase=True).value
    code, out, _ = evaluate(capsys, "--checkpoint", run / "checkpoint_best.pt", "--data", data, "--beam", 2)
    assert code == 0
    assert f"tokenized_bleu {result['scores'][0]['value']:.2f}  [nrefs:1|" in out


def test_rouge_on_request(trained, capsys, tmp_path):
    data, run = trained
    output = tmp_path / "summaries"
    result = evaluate_json(
        capsys, "--checkpoint", run, "--data", data, "--beam", 1, "--output", output, "--metric", "bleu", "rouge"
    )  # fmt: skip
    expected = [
        score
        for stem in (False, True)
        for score in rouge.rouge(read_lines(output), read_lines(data.parent / "raw" / "test.en"), stem)
    ]
    assert result["scores"][3:] == [score.to_json() for score in expected]
    assert [score.metric for score in expected[::4]] == ["rouge1", "rouge1_stem"]
    alone = shutil.copytree(data, tmp_path / "alone")
    code, _, err = evaluate(capsys, "--checkpoint", run, "--data", alone, "--metric", "rouge")
    assert code == 2 and f"--metric rouge needs raw text, and there is no test.en beside {alone}" in err
    (alone / "prepare.json").unlink()
    code, _, err = evaluate(capsys, "--checkpoint", run, "--data", alone, "--metric", "rouge")
    assert code == 2 and f"--metric rouge needs raw text, and {alone} has no prepare.json" in err


def test_tokenized_bleu_and_hypotheses_equal_fairseq_generate(trained, capsys, tmp_path, monkeypatch):
    from fairseq import options
    from fairseq_cli import generate

    from lite_transformer.scoring.generation import read_generation

    data, run = trained
    words = [str(data), "--path", str(run / "checkpoint_best.pt"), "--beam", "4", "--remove-bpe", "--cpu"]
    words += ["--required-batch-size-multiple", "1", "--results-path", str(tmp_path), "--max-tokens", "50"]
    parser = options.get_generation_parser()
    generate.main(options.parse_args_and_arch(parser, input_args=words))
    path = tmp_path / "generate-test.txt"
    expected = read_generation(path, expected=SENTENCES["test"])
    output = tmp_path / "ours"
    bare = tmp_path / "bin"
    shutil.copytree(data, bare)
    (bare / "prepare.json").unlink()  # then nothing is detokenized
    result = evaluate_json(capsys, "--checkpoint", run, "--data", bare, "--output", output, "--batch-size", 3)
    assert read_lines(output) == [row.hypothesis for row in expected]
    assert [score["metric"] for score in result["scores"]] == ["tokenized_bleu"]
    printed = float(path.read_text(encoding="utf-8").rsplit("BLEU4 = ", 1)[1].split(",")[0])
    assert round(result["scores"][0]["value"], 2) == printed
    dropped = [*words, "--required-batch-size-multiple", "8", "--batch-size", "8"]
    generate.main(options.parse_args_and_arch(options.get_generation_parser(), input_args=dropped))
    from lite_transformer.errors import ScoringError

    with pytest.raises(ScoringError, match=r"hypotheses for 21 source lines.*--required-batch-size-multiple 1"):
        read_generation(path, expected=SENTENCES["test"])


# the model's own translations have 20 or 21 subwords
@pytest.mark.parametrize(
    ("search", "printed"),
    [
        (
            {"--beam": 3, "--lenpen": 0.6, "--max-len-a": 0.3, "--max-len-b": 12},
            "beam 3, lenpen 0.6, max-len-a 0.3, max-len-b 12, one checkpoint",
        ),
        ({"--beam": 2, "--min-len": 24}, "beam 2, lenpen 1, min-len 24, one checkpoint"),
    ],
)
def test_search_options_are_those_of_fairseq_generate(trained, capsys, tmp_path, search, printed):
    from fairseq import options
    from fairseq_cli import generate

    from lite_transformer.scoring.generation import read_generation

    def flags(chosen):
        return [str(word) for pair in chosen.items() for word in pair]

    data, run = trained
    words = [str(data), "--path", str(run / "checkpoint_best.pt"), *flags(search), "--cpu", "--remove-bpe"]
    words += ["--required-batch-size-multiple", "1", "--results-path", str(tmp_path)]
    generate.main(options.parse_args_and_arch(options.get_generation_parser(), input_args=words))
    expected = [row.hypothesis for row in read_generation(tmp_path / "generate-test.txt", SENTENCES["test"])]
    bare = shutil.copytree(data, tmp_path / "bin")
    (bare / "prepare.json").unlink()
    base = ["--checkpoint", run, "--data", bare, "--output", tmp_path / "ours"]
    assert evaluate_json(capsys, *base, *flags(search))["decoding"] == printed
    assert read_lines(tmp_path / "ours") == expected
    for name in set(search) - {"--beam", "--lenpen"}:  # neither is without effect here
        evaluate_json(capsys, *base, *flags({key: value for key, value in search.items() if key != name}))
        assert read_lines(tmp_path / "ours") != expected, name


def test_no_ngram_is_repeated(trained, capsys, tmp_path):
    data, run = trained
    bare = shutil.copytree(data, tmp_path / "bin")
    (bare / "prepare.json").unlink()
    words = ["--checkpoint", run, "--data", bare, "--output", tmp_path / "ours", "--subwords", "none"]
    words += ["--max-len-b", 40, "--min-len", 25]  # longer than the model likes, so that it repeats itself

    def repeated():
        lines = [line.split() for line in read_lines(tmp_path / "ours")]
        pairs = [list(itertools.pairwise(line)) for line in lines]
        return sum(len(set(line)) < len(line) for line in pairs)

    evaluate_json(capsys, *words)
    assert repeated() > 5
    result = evaluate_json(capsys, *words, "--no-repeat-ngram-size", 2)
    assert repeated() == 0
    assert result["decoding"].endswith("max-len-b 40, min-len 25, no-repeat-ngram-size 2, one checkpoint")


def test_protocol_of_an_experiment_holds_and_options_override(trained, capsys):
    data, run = trained
    base = ["--checkpoint", run, "--data", data]
    result = evaluate_json(capsys, "wmt16_en_de_lite_200", *base)
    assert result["decoding"] == "beam 4, lenpen 0.6, one checkpoint"
    assert "compound_split:yes" in result["scores"][0]["signature"]
    protocol = result["protocol"]
    assert protocol["name"] == "wmt16_en_de" and "configs/wmt16.en-de/test.sh" in protocol["source"]
    assert protocol["differences"] == ["corpus is parallel, not wmt16_en_de", "sentences is 21, not 3003"]
    result = evaluate_json(
        capsys, *base, "--beam", 2, "--no-compound-split", "--average-last", 2, "--split", "valid", "wmt16_en_de"
    )  # fmt: skip
    assert result["decoding"] == "beam 2, lenpen 0.6, average of the last 2 epochs"
    assert "compound_split:no" in result["scores"][0]["signature"]
    assert result["protocol"]["differences"] == [
        "split is valid, not test",
        "corpus is parallel, not wmt16_en_de",
        "sentences is 19, not 3000",
        "checkpoint is average of the last 2 epochs, not checkpoint_best.pt",
        "compound split is False, not True",
        "beam is 2, not 4",
    ]
    code, out, _ = evaluate(capsys, "iwslt14_de_en", "--checkpoint", run / "checkpoint_last.pt", "--data", data)
    assert code == 0
    assert "protocol iwslt14_de_en: average of the last 10 epochs, beam 4, lenpen 1; tokenized_bleu, sac" in out
    assert "  not as in the protocol: checkpoint is checkpoint_last.pt, not average of the last 10 epochs\n" in out
    code, _, err = evaluate(capsys, "iwslt14_de_en_lite_160", *base)
    assert code == 2 and f"has {EPOCHS} epoch checkpoints (checkpointN.pt), 10 are to be averaged" in err
    assert evaluate_json(capsys, *base, "--beam", 1)["protocol"] is None


def test_rouge_protocol_scores_rouge_only_and_its_record_has_a_table(trained, capsys, tmp_path):
    data, run = trained
    output, path = tmp_path / "summaries", tmp_path / "results" / "runs" / "s.json"
    limits = ["--min-len", 1, "--max-len-b", 40, "--no-repeat-ngram-size", 0, "--batch-size", 6]
    words = ["cnn_dm_lite_496", "--checkpoint", run, "--data", data, "--output", output, *limits]
    result = evaluate_json(capsys, *words, "--record", path, "--commit", "abc", "--row", "Tiny")
    raw = read_lines(data.parent / "raw" / "test.en")
    expected = rouge.rouge(read_lines(output), raw) + rouge.rouge(read_lines(output), raw, stem=True)
    assert result["scores"] == [score.to_json() for score in expected]
    assert expected[0].value > 20
    record = results.read_record(path)
    assert [item.metric for item in record.metrics] == [score.metric for score in expected]
    assert main(["results", "--dir", str(tmp_path / "results")]) == 0
    assert (tmp_path / "results" / "plots" / "parallel-de-en.png").is_file()
    capsys.readouterr()
    other = evaluate_json(capsys, *words, "--metric", "bleu")
    assert [score["metric"] for score in other["scores"]] == ["tokenized_bleu", "sacrebleu", "chrf"]
    assert "metric is bleu, not rouge" in other["protocol"]["differences"]
    alone = shutil.copytree(data, tmp_path / "alone")
    code, _, err = evaluate(capsys, "--checkpoint", run, "--data", alone, "--metric", "rouge")
    assert code == 2 and f"--metric rouge needs raw text, and there is no test.en beside {alone}" in err


def test_confidence_gives_intervals_and_changes_no_score(trained, capsys, tmp_path, monkeypatch):
    data, run = trained
    output = tmp_path / "translations"
    words = ["--checkpoint", run, "--data", data, "--beam", 2, "--metric", "bleu", "rouge", "--output", output]
    plain = evaluate_json(capsys, *words)["scores"]
    sure = evaluate_json(capsys, *words, "--confidence")["scores"]
    assert [{key: score[key] for key in score if key != "interval"} for score in sure] == plain
    assert len(sure) == 11 and all(score["interval"]["seed"] == 12345 for score in sure)
    raw = read_lines(data.parent / "raw" / "test.en")
    for found in sure[1:5]:
        lowercase = not found["metric"].startswith("rouge")
        expected = significance.score(found["metric"], read_lines(output), raw, lowercase, confidence=True)
        assert expected.to_json() == found
    code, out, err = evaluate(capsys, *words[:-2], "--confidence")
    assert "Using default tokenizer" not in err, "a line of rouge-score's for each summary"
    assert code == 0 and "± " in out and "(95 %, 1000 bootstrap resamples, seed 12345)  [nrefs:1|" in out
    monkeypatch.setenv("SACREBLEU_SEED", "none")
    code, out, err = evaluate(capsys, *words, "--confidence")
    assert (code, out) == (2, "") and "SACREBLEU_SEED=none: a whole number from 1 is needed" in err


def test_averages_the_last_epochs(trained, capsys):
    data, run = trained
    result = evaluate_json(capsys, "--checkpoint", run / "checkpoint_last.pt", "--data", data, "--average-last", 2)
    assert result["decoding"] == "beam 4, lenpen 1, average of the last 2 epochs"
    (path,) = map(Path, result["checkpoint"])
    averaged = load_checkpoint(path)["model"]
    before, last = (load_checkpoint(run / f"checkpoint{epoch}.pt")["model"] for epoch in (EPOCHS - 1, EPOCHS))
    assert averaged.keys() == before.keys()
    name = "encoder.layers.0.fc1.weight"
    assert not torch.equal(before[name], last[name])
    torch.testing.assert_close(averaged[name], (before[name] + last[name]) / 2)
    assert not list(run.glob(".average*")), "no temporary file is left"
    code, out, err = evaluate(capsys, "--checkpoint", run, "--data", data, "--average-last", 9)
    assert (code, out) == (2, "") and f"has {EPOCHS} epoch checkpoints (checkpointN.pt), 9 are to be averaged" in err


def test_average_of_odd_types_and_of_strangers(tmp_path):
    def write(name, **weights):
        torch.save(
            {"model": weights, "args": None, "cfg": {"task": {}}, "last_optimizer_state": {"x": 1}}, tmp_path / name
        )
        return tmp_path / name

    half = [torch.tensor([60000.0], dtype=torch.float16), torch.tensor([50016.0], dtype=torch.float16)]
    paths = [write(f"checkpoint{i + 1}.pt", w=half[i], n=torch.tensor([5 - 2 * i])) for i in range(2)]
    write_average(paths, tmp_path / "average.pt")
    state = load_checkpoint(tmp_path / "average.pt")
    assert state["model"]["w"].dtype == torch.float32 and state["model"]["w"].item() == 55008
    assert state["model"]["n"].item() == 4
    assert "last_optimizer_state" not in state
    assert last_epochs(tmp_path, 2) == paths[::-1]
    other = write("other.pt", v=half[0], n=torch.tensor([1]))
    with pytest.raises(CheckpointError, match="hold different parameters, such as v"):
        average_weights([paths[0], other])
    wide = write("wide.pt", w=torch.zeros(2), n=torch.tensor([1]))
    with pytest.raises(CheckpointError, match=r"w is \(2,\) in .*wide.pt and \(1,\) in"):
        average_weights([paths[0], wide])
    write("checkpoint4.pt", w=half[0], n=torch.tensor([1]))
    with pytest.raises(
        CheckpointError, match="the last 2 epoch checkpoints are 2, 4; an epoch between them is missing"
    ):
        last_epochs(tmp_path, 2)


def test_record_of_a_run(trained, capsys, tmp_path):
    data, run = trained
    path = tmp_path / "results" / "runs" / "digits.json"
    words = ["--checkpoint", run, "--data", data, "--record", path, "--row", "Tiny", "--commit", "abc123-dirty"]
    result = evaluate_json(capsys, *words)
    record = results.read_record(path)
    assert (record.task, record.row, record.kind) == ("parallel-de-en", "Tiny", "measured")
    assert (record.commit, record.dirty) == ("abc123", True)
    assert record.arch == "lite_transformer_iwslt_de_en"
    assert record.config == "configs/iwslt14_de_en_lite_160.yaml" and len(record.config_sha256) == 64
    assert record.data["test.en"] and set(record.data) == {
        f"{split}.{lang}" for split in SENTENCES for lang in ("de", "en")
    }
    assert record.updates > 0 and record.wall_time_seconds > 0 and record.seed == 1
    assert [(item.metric, item.value) for item in record.metrics] == [
        (score["metric"], score["value"]) for score in result["scores"]
    ]
    assert record.metrics[0].decoding == "beam 4, lenpen 1, one checkpoint"
    assert record.commands[0].startswith("lite-transformer")
    model = load_checkpoint(run / "checkpoint_best.pt")["model"]
    assert record.params_core == sum(
        value.numel()
        for name, value in model.items()
        if "embed" not in name and "output" not in name and "version" not in name
    )
    # 2 + 2 layers, d 16, kernels 3 and 7, as in the tiny case derived by hand, at 30 and 30 tokens
    assert record.taps_macs == 2 * (3 + 7) * 8 * 30
    evaluate_json(capsys, *words, "--split", "valid")
    assert [item.split for item in results.read_record(path).metrics] == ["test"] * 3 + ["valid"] * 3
    code, _, err = evaluate(capsys, *words[:-2], "--commit", "other")
    assert code == 2 and "is the record of another run: commit is 'abc123' there and 'other' here" in err
    assert main(["results", "--dir", str(tmp_path / "results")]) == 0
    table = (tmp_path / "results" / "tables.md").read_text(encoding="utf-8")
    assert "| Tiny |" in table and "(runs/digits.json)" in table


def test_settings_hash_ignores_seed_and_paths_only():
    config = {
        "model": {"dropout": 0.1, "seed": 1},
        "task": {"data": "a"},
        "common": {"seed": 1},
        "dataset": {"num_workers": 1},
    }
    same = {
        "model": {"dropout": 0.1, "seed": 2},
        "task": {"data": "b"},
        "common": {"seed": 2},
        "dataset": {"num_workers": 0},
    }
    other = config | {"model": {"dropout": 0.2, "seed": 1}}
    assert settings_hash(config) == settings_hash(same) != settings_hash(other)
    # how fast it was computed; records older than these options keep their hash
    fast = config | {"model": {"dropout": 0.1, "cuda_graphs": "auto", "conv_backend": "triton"}}
    assert settings_hash(fast) == settings_hash(config)


@pytest.mark.parametrize("name", ["dict.en.txt", "test.de-en.de.bin", "test.de-en.en.idx"])
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_half_binarized_folder_names_the_file_and_the_command(trained, capsys, tmp_path, name, how):
    data, run = trained
    broken = tmp_path / "data" / "bin"
    shutil.copytree(data, broken)
    (broken / name).unlink() if how == "missing" else (broken / name).write_bytes(b"")
    code, out, err = evaluate(capsys, "--checkpoint", run, "--data", broken)
    assert (code, out) == (2, "")
    assert f"no complete binarized data in {broken} ({name} is {how})" in err
    assert f"Run: lite-transformer prepare CORPUS --pair de-en --dest {broken.parent}, then give --data {broken}" in err


def test_file_that_was_cut_off_is_an_error(trained, capsys, tmp_path):
    data, run = trained
    shutil.copytree(data, tmp_path / "bin")
    path = tmp_path / "bin" / "test.de-en.de.bin"
    path.write_bytes(path.read_bytes()[:-6])
    code, _, err = evaluate(capsys, "--checkpoint", run, "--data", tmp_path / "bin")
    assert code == 2 and "the test split of" in err and "cannot be read" in err


def test_bad_input_is_one_line_and_exit_code_2(trained, capsys, tmp_path):
    data, run = trained
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no checkpoint", encoding="utf-8")
    other = tmp_path / "bin"
    shutil.copytree(data, other)
    for language in ("de", "en"):
        with (other / f"dict.{language}.txt").open("a", encoding="utf-8") as stream:
            stream.writelines(f"more{number} 1\n" for number in range(8))
    (tmp_path / "short").write_text("one line\n", encoding="utf-8")
    cases = [
        (
            ["--checkpoint", run, "--data", tmp_path / "none"],
            "no binarized data in",
            "(no such folder). Run: lite-tran",
        ),
        (["--checkpoint", run, "--data", tmp_path / "empty"], "(dict.de.txt is missing)", ""),
        (["--checkpoint", run, "--data", data, "--split", "nosuch"], "(nosuch.de-en.de.idx is missing)", ""),
        (["--checkpoint", tmp_path / "no.pt", "--data", data], "no.pt does not exist", ""),
        (["--checkpoint", tmp_path / "text.pt", "--data", data], "text.pt is not a checkpoint", ""),
        (["--checkpoint", run, "--data", other], "are not those it was trained with", ""),
        (["--checkpoint", run, "--data", data, "--beam", "0"], "--beam 0: at least 1 is needed", ""),
        (["--checkpoint", run, run, "--data", data, "--average-last", "2"], "give one --checkpoint", ""),
        (["--data", data], "--checkpoint is missing: a file, or the folder of a run", ""),
        (["nosuch", "--checkpoint", run, "--data", data], "unknown experiment 'nosuch'. Known: cnn_dm_lite_496, ", ""),
        (["small_cpu", "--checkpoint", run, "--data", data], "no evaluation protocol for 'small_cpu'. Known: ", ""),
        (["cnn_dm", "--checkpoint", run, "--data", data, "--max-len-b", "50"], "--min-len 55 is more than", ""),
        (["cnn_dm", "--checkpoint", run, "--data", data, "--min-len", "200"], "--max-len-b 140 leave", ""),
        (["cnn_dm", "--data", data], f"{Path('runs') / 'cnn_dm'}: no such folder. Give --checkpoint", ""),
        (["--checkpoint", run, "--data", data, "--reference", tmp_path / "short"], "21 hypotheses for 1 lines of", ""),
    ]
    for words, *messages in cases:
        code, out, err = evaluate(capsys, *words)
        last = err.splitlines()[-1]
        assert (code, out) == (2, ""), words
        assert all(message in last for message in messages), (words, err)
        assert "Traceback" not in err


def test_changed_reference_is_refused(trained, capsys, tmp_path):
    data, run = trained
    shutil.copytree(data.parent, tmp_path / "data")
    reference = tmp_path / "data" / "raw" / "test.en"
    reference.write_text(reference.read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8")
    code, _, err = evaluate(capsys, "--checkpoint", run, "--data", tmp_path / "data" / "bin")
    assert code == 2 and "test.en was changed after the data was prepared" in err
    reference.unlink()
    result = evaluate_json(capsys, "--checkpoint", run, "--data", tmp_path / "data" / "bin")
    assert [score["metric"] for score in result["scores"]] == ["tokenized_bleu"]
