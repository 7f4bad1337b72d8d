"""The language models' experiments: recipes, learning rates, equal Mult-Adds, training on a tiny corpus, its traps."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from fairseq.models import ARCH_MODEL_REGISTRY

from lite_transformer import training
from lite_transformer.cli.main import main
from lite_transformer.errors import DataError
from lite_transformer.macs.closed_form import closed_form
from lite_transformer.models.architectures import ARCHITECTURES
from tests.helpers import commands
from tests.helpers.models import tiny_task
from tests.integration.test_configs import LANGUAGE_MODELS, load, rate_of

LITE_896 = commands.ROOT / "configs" / "wikitext103_lite_896.yaml"
WIKITEXT = [path for path in LANGUAGE_MODELS if path.stem.startswith("wikitext103_")]
LINUX = [path for path in LANGUAGE_MODELS if path.stem.startswith("linux_docs_")]


def test_the_experiments_are_there():
    wikitext = [f"lite_{dim}" for dim in (408, 512, 640, 896)] + [f"transformer_{dim}" for dim in (256, 320, 512)]
    linux = [f"{kind}_{size}" for kind in ("lite", "transformer") for size in ("small", "large")]
    assert {path.stem for path in WIKITEXT} == {f"wikitext103_{name}" for name in wikitext}
    assert {path.stem for path in LINUX} == {f"linux_docs_{name}" for name in linux}


def lines_of(path: Path) -> list[str]:
    """Those that say what is done, without comments and the name of the architecture."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith(("#", "model:"))]


def test_experiments_of_wikitext_differ_in_their_models_alone():
    assert len({tuple(lines_of(path)) for path in WIKITEXT}) == 1
    for path in LANGUAGE_MODELS:
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# @package _global_\n")
        assert f"lite-transformer train {path.stem} --data " in text
    for path in WIKITEXT:
        model = training.read_config(path).model
        kind, dim = path.stem.removeprefix("wikitext103_").split("_")
        assert model.keys() == {"_name"} and ARCHITECTURES[model._name].is_language_model
        assert (
            model._name
            == {
                "lite": f"lite_transformer_lm_wikitext103{'' if dim == '896' else f'_{dim}'}",
                "transformer": f"transformer_lm_wikitext103_{dim}",
            }[kind]
        )


@pytest.mark.parametrize("path", [LITE_896, *LINUX], ids=lambda path: path.stem)
def test_an_experiment_has_none_of_the_traps(path: Path):
    config = load(path)
    assert config.dataset.required_batch_size_multiple == 1
    assert config.distributed_training.distributed_world_size == 1
    # the criterion refuses fairseq's default
    assert (config.criterion._name, config.distributed_training.ddp_backend) == ("adaptive_loss", "legacy_ddp")
    assert config.dataset.max_tokens >= config.task.tokens_per_sample
    assert config.model.tokens_per_sample == config.task.tokens_per_sample


def test_recipe_of_wikitext_is_the_published_one():
    config = load(LITE_896)
    assert (config.optimizer._name, config.optimizer.momentum) == ("nag", 0.99)
    assert (config.optimization.clip_norm, config.optimization.max_update) == (0.1, 286_000)
    assert config.dataset.max_tokens * config.optimization.update_freq[0] == 73_728
    assert (config.dataset.max_tokens, config.task.tokens_per_sample) == (3072, 3072)
    assert (config.task.sample_break_mode, config.optimization.stop_min_lr) == ("none", 1e-9)
    assert config.dataset.skip_invalid_size_inputs_valid_test
    assert not config.common.fp16 and config.common.seed == 1
    with torch.device("meta"):
        model = ARCH_MODEL_REGISTRY[config.model._name].build_model(config.model, tiny_task(60_100))
    outside = ("embed", "adaptive")
    core = sum(p.numel() for n, p in model.named_parameters() if not n.split(".")[1].startswith(outside))
    assert core == ARCHITECTURES[config.model._name].core_params == 37_182_208


def test_dropouts_of_the_published_model():
    model = load(LITE_896).model
    assert (model.dropout, model.attention_dropout, model.weight_dropout) == (0.21, 0.14, 0.14)
    assert (model.activation_dropout, model.adaptive_softmax_dropout) == (0.1, 0.2)


# Golden learning rates: step -> rate, exact but for the rounding of floats; the last is the restart's.
GOLDEN = {0: 1e-7, 1: 6.26e-5, 16_000: 1.0, 151_000: 0.50005, 285_999: 1e-4, 286_000: 0.75}


def test_the_learning_rate_is_the_published_one():
    rates = rate_of(load(LITE_896))
    for step, rate in GOLDEN.items():
        assert rates(step) == pytest.approx(rate, rel=1e-3), f"step {step}"


@pytest.mark.parametrize("size", ["small", "large"])
def test_two_models_of_a_budget_cost_the_same_and_learn_by_one_recipe(size: str):
    lite, transformer = (load(commands.ROOT / "configs" / f"linux_docs_{kind}_{size}.yaml") for kind in KINDS)
    macs = {}
    for name, config in (("lite", lite), ("transformer", transformer)):
        resolved = type(ARCH_MODEL_REGISTRY[config.model._name].config_class()).resolved(config.model)
        macs[name] = [closed_form(resolved, 0, length, 0, 28_544).macs for length in (30, 512)]
    assert macs["lite"][0] == pytest.approx(macs["transformer"][0], rel=0.013)
    assert macs["lite"][1] <= macs["transformer"][1]
    head = (commands.ROOT / "configs" / f"linux_docs_lite_{size}.yaml").read_text(encoding="utf-8")
    assert f"{macs['lite'][0] / 1e6:.1f}M Mult-Adds at 30 tokens, {macs['lite'][1] / 1e6:,.0f}M at 512" in head
    for group in ("task", "criterion", "optimizer", "lr_scheduler", "optimization", "dataset", "common"):
        assert lite[group] == transformer[group]
    same = ("dropout", "attention_dropout", "activation_dropout", "adaptive_softmax_dropout", "decoder_layers")
    assert all(lite.model[name] == transformer.model[name] for name in same)


KINDS = ("lite", "transformer")

TINY = commands.TINY_TEXT


def test_several_processes_each_read_the_checkpoint(monkeypatch):
    """fairseq has one of them send it to the others, and torch refuses to read what arrives."""
    config = deepcopy(load(LINUX[0]))
    started = []
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda function, args, **options: started.append(args[0]))
    training.run(config, training.ProcessGroup(2))
    assert started[0].checkpoint.load_checkpoint_on_all_dp_ranks


def run(capsys, *words: object) -> str:
    assert main(["train", *map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_data_that_is_missing_or_damaged(tiny_text: Path, tmp_path: Path):
    config = deepcopy(load(LINUX[0]))

    def error_of(folder: object, experiment: str = "linux_docs_lite_small") -> str:
        config.task.data = folder if folder is None else str(folder)
        with pytest.raises(DataError) as error:
            training.check_data(config, experiment)
        return str(error.value)

    prepare = "Run: lite-transformer prepare {} --dest {}"
    text = error_of(tmp_path / "none" / "bin")
    assert "(no such folder). " + prepare.format("linux_docs", tmp_path / "none") in text
    text = error_of(None, "wikitext103_lite_896")
    assert "no data folder given: --data DIR. " + prepare.format("wikitext103", "data/NAME") in text
    for name, damage, text in (
        ("dict.txt", Path.unlink, "(dict.txt is missing)"),
        ("valid.idx", Path.unlink, "(valid.idx is missing)"),
        ("train.bin", lambda path: path.write_bytes(path.read_bytes()[:-2]), "(train.bin has "),
        ("train.bin", lambda path: path.write_bytes(b""), "(train.bin is empty)"),
    ):
        shutil.rmtree(tmp_path / "bin", ignore_errors=True)
        shutil.copytree(tiny_text, tmp_path / "bin")
        damage(tmp_path / "bin" / name)
        assert text in error_of(tmp_path / "bin")


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("model.adaptive_input_cutoff=[6,900]", "does not fit a vocabulary of "),
        (
            "task.max_target_positions=8",
            "--tokens-per-sample 16 is longer than the positions, --max-target-positions 8",
        ),
    ],
)
def test_options_that_do_not_fit(override: str, text: str, tiny_text: Path, tmp_path: Path, capsys):
    words = [*TINY, override, override.replace("input", "softmax") if "input" in override else "common.seed=2"]
    assert text in run(capsys, "linux_docs_lite_small", "--data", tiny_text, "--save-dir", tmp_path / "x", *words)
    assert not (tmp_path / "x").exists()


def test_one_line_a_block_needs_an_older_numpy(capsys):
    words = ["linux_docs_lite_small", "--data", "none", "task.sample_break_mode=eos"]
    assert "fairseq 0.12 needs numpy 1 for one line a block. Take complete or complete_doc" in run(capsys, *words)


@pytest.mark.parametrize("mode", ["complete", "complete_doc"])
def test_blocks_that_respect_lines_and_documents(mode: str, tiny_text: Path, tmp_path: Path):
    config = training.load_config(
        commands.ROOT / "configs" / "linux_docs_lite_small.yaml",
        [word for word in TINY if word != "--cpu"],
        {"task.data": str(tiny_text), "task.sample_break_mode": mode},
    )
    from fairseq import tasks

    task = tasks.setup_task(config.task)
    task.load_dataset("train")
    eos, texts = task.dictionary.eos(), [item["target"].tolist() for item in task.dataset("train")]
    assert all(text[-1] == eos for text in texts if len(text) < 16)
    # an empty line is an end of line alone
    crossing = sum([eos, eos] == text[i : i + 2] for text in texts for i in range(len(text)))
    assert crossing == 0 if mode == "complete_doc" else crossing > 10
