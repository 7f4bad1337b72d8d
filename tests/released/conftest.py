"""A tiny prepared corpus, two checkpoints of one run on it, and the released model made of them by the real verb."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from lite_transformer import training
from lite_transformer.cli.main import main
from lite_transformer.results import Metric, RunRecord, settings_hash
from tests.helpers.corpora import sentences, text_of

SEED, UPDATES = 5, 7
OVERRIDES = [
    "model.encoder_embed_dim=16", "model.encoder_layers=2", "model.decoder_layers=1",
    "model.encoder_kernel_sizes=[3,7]", "model.decoder_kernel_sizes=[3]", f"common.seed={SEED}",
]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """``data``: a bin folder; ``checkpoints``: two of a model that has seen nothing, for nothing here needs sense."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "source").mkdir()
    for split, count in (("train", 80), ("valid", 10), ("test", 21)):
        pairs = sentences(("de", "en"), count, seed=count)
        for side, language in enumerate(("de", "en")):
            (folder / "source" / f"{split}.{language}").write_text(text_of(pairs, side), encoding="utf-8")
    data = folder / "data" / "bin"
    prepare = ["prepare", "parallel", "--source", folder / "source", "--dest", folder / "data", "--bpe-merges", "40"]
    assert main([*map(str, prepare), "--workers", "1", "--lowercase"]) == 0
    config = training.load_config(
        training.find_config("libreoffice_help_de_en_lite"),
        OVERRIDES,
        {"task.data": str(data), "checkpoint.save_dir": str(folder / "run")},
    )
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    (folder / "run").mkdir()
    for number in (1, 2):
        torch.manual_seed(number)
        model = training.build_model(config)
        model.encoder.embed_tokens.weight.data *= 4  # surer of its words: rounding must not decide between two
        state = {
            "args": None,
            "cfg": plain,
            "model": model.state_dict(),
            "optimizer_history": [{"optimizer_name": "Adam", "lr_scheduler_state": {}, "num_updates": UPDATES}],
            "extra_state": {"train_iterator": {"epoch": number, "iterations_in_epoch": 0}},
            "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(1000, 1000)}}},
        }
        torch.save(state, folder / "run" / f"checkpoint{number}.pt")
    return SimpleNamespace(
        folder=folder,
        data=data,
        config=plain,
        checkpoints=[folder / "run" / f"checkpoint{number}.pt" for number in (1, 2)],
    )


@pytest.fixture(scope="session")
def record(trained: SimpleNamespace, released: Path) -> RunRecord:
    """The record of the run, as `evaluate --record` would have written it."""
    from lite_transformer.released.card import read_card

    card = read_card(released)
    return RunRecord(
        task="parallel-de-en", row="Lite", kind="measured", arch=card.arch,
        commands=["lite-transformer train NAME --data /home/me/data/bin", "lite-transformer evaluate NAME"],
        commit="b" * 40, dirty=False, config="configs/NAME.yaml", config_sha256="", seed=SEED,
        settings_sha256=settings_hash(trained.config), data=card.data.sha256, device="a device",
        versions={"torch": "2.13"}, macs=card.cost.macs, taps_macs=card.cost.taps_macs,
        params_core=card.cost.params_core, params_total=card.cost.params_total, updates=9, wall_time_seconds=1.0,
        date="2026-01-02T03:04:05+0000",
        metrics=[
            Metric("valid", "sacrebleu", 30.125, "nrefs:1|a", "beam 5, lenpen 1"),
            Metric("test", "sacrebleu", 31.5, "nrefs:1|a", "beam 5, lenpen 1"),
            Metric("test", "chrf", 52.25, "nrefs:1|b", "beam 5, lenpen 1"),
        ],
    )  # fmt: skip


def release(trained: SimpleNamespace, out: Path, *words: object) -> int:
    """The exit code of the verb on both checkpoints."""
    argv = ["release", *trained.checkpoints, "--data", trained.data, "--out", out, *words]
    return main([str(word) for word in argv])


@pytest.fixture(scope="session")
def released(trained: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checkpoints/tiny_de_en, without records."""
    folder = tmp_path_factory.mktemp("released") / "checkpoints" / "tiny_de_en"
    assert release(trained, folder, "--commit", "a" * 40, "--beam", "2") == 0
    return folder


@pytest.fixture
def other_record(record: RunRecord, tmp_path: Path) -> Iterator[object]:
    """Writes the record with changes; returns its path."""
    from lite_transformer.results import write_record

    def write(name: str, **changes: object) -> Path:
        path = tmp_path / "records" / name
        write_record(path, dataclasses.replace(record, **changes))
        return path

    return write
