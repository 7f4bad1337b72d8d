import argparse
import json
import sys

import pytest
import torch

from lite_transformer.macs.closed_form import closed_form
from lite_transformer.macs.counter import build_model
from tests.helpers.commands import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import _bench_data
import _benchmark
import bench_training

ARCH = "lite_transformer_iwslt_de_en"
SMALL = [
    "--cpu", "--max-tokens", "64", "--batches", "2", "--rounds", "2", "--warm-up-rounds", "0", "--vocabulary", "30",
    "--model", "encoder_layers=1", "--model", "decoder_layers=1", "--model", "encoder_embed_dim=16",
    "--model", "dropout=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_commands(monkeypatch):
    monkeypatch.setattr(_benchmark, "git", lambda *words: "abc")


def test_training_is_measured_recorded_plotted_and_profiled(tmp_path, capsys):
    files = {name: tmp_path / "new" / f"bench.{name}" for name in ("json", "svg", "profile")}
    words = ["--arch", ARCH, *SMALL, "--peak-tflops", "1", "--record", str(files["json"]), "--plot", str(files["svg"])]
    assert bench_training.main([*words, "--profile", str(files["profile"])]) == 0
    record = json.loads(files["json"].read_text())
    assert record["benchmark"] == "training"
    assert record["command"].startswith("scripts/bench_training.py --arch")
    assert record["commit"] == "abc"
    (result,) = record["results"]
    assert result["core_params"] < 10_000  # of the model that was measured
    assert list(result["variants"]) == ["plain", "eager", "ours"]
    for figures in result["variants"].values():
        speed = figures["updates_per_second"]
        assert len(speed["samples"]) == 2
        assert 0 < speed["min"] <= speed["median"] <= speed["max"]
        flops = figures["model_tflops"]["median"]
        assert flops == pytest.approx(result["model_tflop_per_update"] * speed["median"])
        assert figures["model_flops_utilisation"]["median"] == pytest.approx(flops)
    assert files["svg"].read_text().lstrip().startswith("<?xml")
    profile = json.loads(files["profile"].read_text())[ARCH]["ours"]
    assert profile["steps"] == 2
    assert profile["top_cpu"][0]["us_per_step"] > 0
    assert "ours" in capsys.readouterr().out


LANGUAGE_MODELS = ["linux_docs_lite_small", "transformer_lm_baseline"]
SMALL_TEXT = [
    "--cpu", "--tokens-per-sample", "8,16", "--max-tokens", "32", "--batches", "2", "--rounds", "1",
    "--warm-up-rounds", "0", "--vocabulary", "40", "--model", "decoder_embed_dim=16", "--model", "decoder_layers=1",
    "--model", "decoder_ffn_embed_dim=16", "--model", "dropout=0", "--model", "adaptive_softmax_dropout=0",
    "--model", "adaptive_input_cutoff=8,20", "--model", "adaptive_softmax_cutoff=8,20",
]  # fmt: skip

BLOCKS_OF_16 = ["--tokens-per-sample", "16"]


def test_language_models_are_measured(tmp_path, capsys):
    record, picture = tmp_path / "lm.json", tmp_path / "lm.svg"
    words = ["--arch", ",".join(LANGUAGE_MODELS), *SMALL_TEXT, "--tokens-per-sample", "16", "--peak-tflops", "1"]
    words += ["--variants", "plain,ours", "--record", str(record), "--plot", str(picture)]
    assert bench_training.main(words) == 0
    results = json.loads(record.read_text())["results"]
    assert [(result["arch"], result["tokens_per_sample"]) for result in results] == [(a, 16) for a in LANGUAGE_MODELS]
    for result in results:
        assert result["target_tokens_per_update"] == 32  # blocks are full
        assert result["core_params"] < 10_000  # the model of the options, not the architecture's own
        for figures in result["variants"].values():
            tokens = figures["target_tokens_per_second"]["median"]
            assert tokens == pytest.approx(32 * figures["updates_per_second"]["median"])
            assert figures["model_flops_utilisation"]["median"] > 0
            assert figures["peak_memory_gigabytes"] is None  # of a CPU
    drawn = picture.read_text()
    for kind in ("Lite Transformer", "Transformer"):
        assert f"<!-- {kind}, 16 tokens, plain -->" in drawn and f"<!-- {kind}, 16 tokens, ours -->" in drawn
    assert "transformer_lm_baseline, 16 tokens a sample: 0M Mult-Adds" in capsys.readouterr().out


def test_language_models_come_at_every_length_of_a_block():
    args = bench_training.parse_args(["--arch", ",".join([*LANGUAGE_MODELS, ARCH]), *SMALL_TEXT[:11]])
    systems = bench_training.find_systems(args)
    assert [system.tokens_per_sample for system in systems] == [8, 16, 8, 16, None]
    assert [system.architecture.name for system in systems[1:]] == [
        "lite_transformer_lm",
        *LANGUAGE_MODELS[1:] * 2,
        ARCH,
    ]
    assert systems[0].config.adaptive_input_cutoff == [4000, 12000]  # the experiment's
    assert len(bench_training.dataset_of(systems[1], args)) == 2 * 2


def test_an_adaptive_softmax_costs_what_the_bands_of_the_targets_cost():
    args = bench_training.parse_args(["--arch", "lite_transformer_lm", *SMALL_TEXT])
    system = bench_training.find_systems(args)[0]
    softmax = build_model(system.config, 40, 40).decoder.adaptive_softmax
    every_type = closed_form(system.config, 0, 1, 0, 40).output_macs
    # one token of each band: the first is computed thrice, each rarer one once
    frequent, *rare = (bench_training.softmax_macs(softmax, torch.tensor([token])) for token in (5, 12, 39))
    assert bench_training.softmax_macs(softmax, torch.tensor([5, 12, 39])) == frequent + sum(rare)
    assert frequent == 16 * (8 + 2)
    assert frequent + sum(cost - frequent for cost in rare) == every_type
    # and the rest of a block is the closed form's
    dataset = bench_training.dataset_of(system, args)
    batch = dataset.collater([dataset[0]])
    rest = closed_form(system.config, 0, 8, 0, 40).macs
    expected = 6.0 * (rest + bench_training.softmax_macs(softmax, batch["target"].view(-1)))
    assert bench_training.flops_of(system, [[batch]], dataset, softmax) == [expected]


def test_drawn_words_are_as_frequent_as_those_of_a_language():
    dataset = _bench_data.drawn_text(1000, 40, 50, seed=1)
    assert len(dataset) == 40
    words = torch.cat([dataset[i]["target"] for i in range(40)]).tolist()
    eos, specials = dataset.vocab.eos(), dataset.vocab.nspecial
    assert words.count(eos) == 2000 / 25
    frequent = sum(specials <= word < specials + 100 for word in words)
    assert 0.5 < frequent / 2000 < 0.75  # of Zipf's law 0.6; were all words as frequent, 0.1
    assert dataset[0]["source"].tolist()[1:] == dataset[0]["target"].tolist()[:-1]


def test_memory_is_what_a_variant_adds_to_what_was_there(monkeypatch):
    """On a card: here its counters are played. A model of 100 bytes lies there beside another one of 1000."""
    calls = []
    counters = {"memory_allocated": 1100, "memory_reserved": 1500, "max_memory_allocated": 5100,
                "max_memory_reserved": 9500}  # fmt: skip
    for name, value in counters.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    for name in ("empty_cache", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(bench_training, "train_round", lambda *_: calls.append("round"))
    args = argparse.Namespace(cpu=False, warm_up_rounds=2)
    peaks = bench_training.warm_up(None, 100, [], args, None)
    assert peaks == {"allocated": pytest.approx(4.1e-6), "reserved": pytest.approx(8.1e-6)}
    assert calls == ["empty_cache", "reset_peak_memory_stats", "round", "round", "empty_cache"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--arch", "lite_transformer_lm_wikitext"], "unknown architecture 'lite_transformer_lm_wikitext'"),
        (["--arch", "linux_docs_lite_small", "--model", "depth=3"], "unknown option 'depth'"),
        (["--arch", "linux_docs_lite_small", "--generate"], "linux_docs_lite_small is a language model"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words, text, capsys):
    assert bench_training.main([*words, "--cpu"]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_a_block_is_not_longer_than_a_batch(capsys):
    with pytest.raises(SystemExit):
        bench_training.parse_args(["--arch", "lite_transformer_lm", "--tokens-per-sample", "1024,8192"])
    assert "--tokens-per-sample 1024,8192: lengths of 2 to --max-tokens 4096" in capsys.readouterr().err


def test_search_is_measured(tmp_path):
    record = tmp_path / "generation.json"
    words = ["--arch", ARCH, *SMALL, "--generate", "--generate-length", "3", "--sentences", "4"]
    assert bench_training.main([*words, "--record", str(record)]) == 0
    (result,) = json.loads(record.read_text())["results"]
    assert list(result["variants"]) == ["greedy", "beam 5"]
    assert result["variants"]["beam 5"]["sentences_per_second"]["median"] > 0


@pytest.mark.parametrize(("arch", "small"), [(ARCH, SMALL), (LANGUAGE_MODELS[1], [*SMALL_TEXT, *BLOCKS_OF_16])])
def test_plain_trains_with_fairseqs_loss(arch, small):
    args = bench_training.parse_args(["--arch", arch, *small])
    (system,) = bench_training.find_systems(args)
    dataset = bench_training.dataset_of(system, args)
    trainers = {name: bench_training.make_trainer(system, name, dataset, args) for name in bench_training.VARIANTS}
    backends = {name: trainer.get_criterion().loss_backend for name, trainer in trainers.items()}
    assert backends == {"plain": "reference", "eager": "auto", "ours": "auto"}
    if system.adaptive:
        softmaxes = {name: trainer.get_model().decoder.adaptive_softmax for name, trainer in trainers.items()}
        target = torch.tensor([5, 12, 39, 5])
        found = {name: softmax.adapt_target(target, None) for name, softmax in softmaxes.items()}
        assert [rows.tolist() for rows in found["plain"][1]] == [rows.tolist() for rows in found["ours"][1]]
        assert softmaxes["plain"].adapt_target.func is bench_training._adapt_target_asking


def test_variants_that_disagree_are_not_measured(monkeypatch):
    original = bench_training.use_fairseqs_pass

    def wrong(model):
        original(model)
        model.decoder.embed_scale *= 3

    monkeypatch.setattr(bench_training, "use_fairseqs_pass", wrong)
    with pytest.raises(SystemExit, match="the variants disagree on the loss"):
        bench_training.main(["--arch", ARCH, *SMALL])


def test_flops_of_a_batch_are_those_of_its_real_tokens():
    args = bench_training.parse_args(["--arch", ARCH, *SMALL])
    (system,) = bench_training.find_systems(args)
    dataset = bench_training.dataset_of(system, args)
    lengths = [(int(s), int(t)) for s, t in zip(dataset.src_sizes, dataset.tgt_sizes, strict=True)]
    pair = dataset.collater([dataset[0], dataset[1]])
    alone = [dataset.collater([dataset[i]]) for i in range(2)]
    together = bench_training.flops_of(system, [[pair]], dataset)
    assert lengths[0] != lengths[1]
    assert together == [sum(bench_training.flops_of(system, [alone], dataset))]


def test_unknown_variant(capsys):
    with pytest.raises(SystemExit):
        bench_training.parse_args(["--arch", ARCH, "--variants", "fast"])
    assert "'fast' is none of plain, eager, ours" in capsys.readouterr().err
