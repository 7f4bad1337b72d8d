"""Several processes are one training: they share the data, and end where one process ends with the same batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lite_transformer.models.safe_load
from tests.conftest import TINY_SIZES
from tests.helpers import commands

assert lite_transformer.models.safe_load

pytestmark = pytest.mark.slow


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint_last.pt", map_location="cpu", weights_only=True)["model"]


def _assert_same_weights(folder: Path, reference: Path) -> None:
    found, expected = _weights(folder), _weights(reference)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_under_torchrun_each_of_two_processes_sees_half_of_the_data(
    tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path
):
    commands.run(
        "torchrun", "--nproc_per_node", "2", commands.ROOT / "tests/integration/seen_sentences.py", tmp_path,
        commands.EXPERIMENT, "--data", tiny_data, "--save-dir", tmp_path, *commands.overrides(),
    )  # fmt: skip

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    epoch: list[int] = []
    updates = 0
    while len(epoch) < TINY_SIZES["train"]:
        epoch += first[updates] + second[updates]
        updates += 1
    assert sorted(epoch) == list(range(TINY_SIZES["train"])), "no sentence twice before every sentence once"
    assert updates == 3
    _assert_same_weights(tmp_path, tiny_checkpoint.parent)
    assert len(json.loads((tmp_path / "train.json").read_text())["runs"]) == 1


def test_two_processes_of_the_command_end_with_the_weights_of_one(
    tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path
):
    commands.run(
        "lite-transformer", "train", commands.EXPERIMENT, "--data", tiny_data, "--save-dir", tmp_path,
        "--processes", "2", "--cpu", *commands.overrides(),
    )  # fmt: skip

    assert "training on 2 devices" in (tmp_path / "train.log").read_text(encoding="utf-8")
    record = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert record["config"]["optimization"]["update_freq"] == [1]
    assert record["runs"][0]["processes"] == 2
    _assert_same_weights(tmp_path, tiny_checkpoint.parent)


def test_the_documented_torchrun_line_of_fairseq_train_forms_one_group(
    tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path
):
    fairseq_train = " ".join(
        f"'{word}'" for word in commands.words(("fairseq-train", *commands.train_flags(tiny_data, tmp_path)))
    )
    group = (
        "--distributed-world-size 2 --distributed-rank $RANK --device-id $LOCAL_RANK "
        "--distributed-init-method env:// --distributed-no-spawn --distributed-backend gloo --ddp-backend legacy_ddp"
    )

    commands.run(
        "torchrun", "--nproc_per_node", "2", "--no-python", "bash", "-c", f"{fairseq_train} --update-freq 1 {group}"
    )

    _assert_same_weights(tmp_path, tiny_checkpoint.parent)
