"""The benchmark of several processes, on the CPU: the same losses, and a record."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lite_transformer.training import check_data, find_config, load_config
from tests.helpers.commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import _bench_data
import _benchmark
import bench_scaling

SMALL = [
    "--updates", "4", "--interval", "1", "--cpu", "task.source_lang=de", "task.target_lang=en",
    "model.encoder_embed_dim=16", "model.encoder_layers=1", "model.decoder_layers=1", "model.encoder_kernel_sizes=[3]",
    "model.decoder_kernel_sizes=[3]", "model.dropout=0", "model.attention_dropout=0", "model.activation_dropout=0",
    "model.weight_dropout=0", "dataset.max_tokens=100", "dataset.num_workers=0",
]  # fmt: skip


def test_a_training_is_read_from_its_log(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_benchmark, "git", lambda *words: "abc")
    record = tmp_path / "new" / "scaling.json"
    words = ["multi30k_en_de_lite", "--data", str(tiny_data), "--gpus", "1", "--record", str(record), *SMALL]
    assert bench_scaling.main(words) == 0
    content = json.loads(record.read_text())
    assert content["benchmark"] == "scaling" and "--record" not in content["command"]
    (result,) = content["results"]
    assert len(result["losses"]) == 4 and len(result["tokens_per_second"]["samples"]) == 2
    assert result["tokens_per_second"]["median"] > result["updates_per_second"]["median"] > 0
    assert "1 processes: " in capsys.readouterr().out


def test_sentences_are_drawn_unless_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_scaling, "provenance", lambda *_: {})
    shapes = []

    def look(count, args, data, folder, devices=None):
        config = load_config(find_config(args.config), args.overrides, {"task.data": str(data)})
        check_data(config, args.config)
        dataset = _bench_data.read_training_set(data, None)
        shapes.append((len(dataset), len(dataset.src_dict), set(dataset.src_sizes), set(dataset.tgt_sizes)))
        return [{"wps": "1", "ups": "1", "loss": "1"}] * 4

    monkeypatch.setattr(bench_scaling, "train", look)
    record = tmp_path / "scaling.json"
    words = ["multi30k_en_de_lite", "--vocabulary", "50", "--pairs", "60", "--gpus", "1", "--record", str(record)]
    assert bench_scaling.main([*words, *SMALL]) == 0
    assert shapes == [(60, 50, {25}, {25})]
    (result,) = json.loads(record.read_text())["results"]
    assert len(result["losses"]) == 4


def test_counts_are_compared_at_one_batch_over_the_second_half(monkeypatch, tmp_path):
    asked = []

    def run(words, **_):
        count = int(words[words.index("--processes") + 1])
        asked.extend(word for word in words if "update_freq" in word)
        folder = Path(words[words.index("--save-dir") + 1])
        folder.mkdir()
        lines = [
            f"time | INFO | train_inner | {json.dumps({'wps': str(speed * count), 'ups': '2', 'loss': str(loss)})}"
            for speed, loss in ((1, 9), (7, 8), (100, 7 + count / 10), (102, 6))
        ]
        (folder / "train.log").write_text("\n".join(["time | INFO | fairseq | a line", *lines]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench_scaling.subprocess, "run", run)
    monkeypatch.setattr(bench_scaling, "provenance", lambda *_: {})
    record = tmp_path / "scaling.json"
    bench_scaling.main(["x", "--data", "y", "--gpus", "2,3", "--record", str(record), *SMALL])
    first, second = json.loads(record.read_text())["results"]
    assert set(asked) == {"optimization.update_freq=[6]"}
    assert first["tokens_per_second"]["samples"] == [200, 204]
    assert second["speed_up"] == pytest.approx(1.5)
    assert second["largest_loss_difference"] == pytest.approx(0.1)


def test_a_training_that_fails_says_why(tmp_path):
    with pytest.raises(SystemExit, match=r"training with 1 ended with exit code 2:\n.*no binarized data"):
        bench_scaling.main(["multi30k_en_de_lite", "--data", str(tmp_path / "none"), *SMALL])


def test_together_each_count_has_gpus_of_its_own(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,5")
    asked = {}

    def run(words, env, **_):
        asked[words[words.index("--gpus") + 1]] = env["CUDA_VISIBLE_DEVICES"]
        folder = Path(words[words.index("--save-dir") + 1])
        folder.mkdir()
        line = json.dumps({"wps": words[words.index("--gpus") + 1], "ups": "2", "loss": "1"})
        (folder / "train.log").write_text(f"t | INFO | train_inner | {line}\n" * 4)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(bench_scaling.subprocess, "run", run)
    assert bench_scaling.main(["x", "--data", "y", "--gpus", "1,2", "--together"]) == 0
    assert asked == {"1": "7", "2": "3,5"}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--gpus", "1,x"], "--gpus 1,x: counts, such as 1,2"),
        (["--updates", "20"], "--updates 20: at least two"),
        (["--gpus", "2,3", "--batches", "9"], "--batches 9: a multiple of 6"),
        (["--gpus", "9,99", "--together"], "--together needs a GPU for each process, 108 in all"),
        (["--gpus", "1", "--together", "--cpu"], "--together needs a GPU for each process, 1 in all; --cpu"),
    ],
)
def test_bad_arguments_are_named(words, text, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench_scaling.main(["multi30k_en_de_lite", "--data", "x", *words])
    assert text in capsys.readouterr().err
