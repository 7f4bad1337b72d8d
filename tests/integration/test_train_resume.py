"""An interrupted training goes on as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import lite_transformer.models.safe_load
from lite_transformer import training
from lite_transformer.errors import CheckpointError
from tests.helpers import commands

assert lite_transformer.models.safe_load

UPDATES = 14


def _command(data: Path, save_dir: Path) -> tuple[Any, ...]:
    # six updates an epoch; dropout, so that random numbers must go on too
    changes = {
        "optimization.max_update": UPDATES,
        "optimization.update_freq": "[1]",
        "checkpoint.save_interval_updates": 2,
        "checkpoint.keep_interval_updates": 9,
        "model.dropout": 0.1,
    }
    return (
        "lite-transformer", "train", commands.EXPERIMENT, "--data", data, "--save-dir", save_dir,
        *commands.overrides(**changes),
    )  # fmt: skip


def _load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint_last.pt", map_location="cpu", weights_only=True)


@pytest.mark.slow
def test_a_killed_training_resumes_in_the_middle_of_its_second_epoch_to_the_same_loss(tiny_data: Path, tmp_path: Path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = subprocess.Popen(
        commands.words(_command(tiny_data, killed)), cwd=commands.ROOT, env=commands.environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (killed / "checkpoint_2_10.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    assert (killed / "checkpoint_2_10.pt").exists()
    assert not (killed / "checkpoint2.pt").exists(), "the kill came too late to interrupt the epoch"
    output, _ = commands.run_together(_command(tiny_data, killed), _command(tiny_data, whole))

    assert "Loaded checkpoint" in output
    uninterrupted, resumed = _load(whole), _load(killed)
    assert resumed["optimizer_history"][-1]["num_updates"] == UPDATES
    assert resumed["extra_state"]["val_loss"] == uninterrupted["extra_state"]["val_loss"]
    assert resumed["extra_state"]["best"] == uninterrupted["extra_state"]["best"]
    for name, weight in uninterrupted["model"].items():
        torch.testing.assert_close(resumed["model"][name], weight, rtol=0, atol=1e-6, msg=lambda t, n=name: f"{n}: {t}")


def _config(save_dir: Path) -> Any:
    checkpoint = {"save_dir": str(save_dir), "no_last_checkpoints": False, "restore_file": "checkpoint_last.pt"}
    return OmegaConf.create({"checkpoint": checkpoint})


def test_a_cut_off_last_checkpoint_is_replaced_by_the_newest_whole_one(
    tiny_checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    for number, name in enumerate(("checkpoint1.pt", "checkpoint_2_5.pt", "checkpoint_last.pt", "checkpoint_best.pt")):
        shutil.copyfile(tiny_checkpoint.parent / "checkpoint1.pt", tmp_path / name)
        os.utime(tmp_path / name, (number, number))
    whole = tiny_checkpoint.read_bytes()
    (tmp_path / "checkpoint_2_5.pt").write_bytes(whole)
    (tmp_path / "checkpoint_last.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "average.pt").write_bytes(whole)

    training.mend_last_checkpoint(_config(tmp_path))

    assert (tmp_path / "checkpoint_last.pt").read_bytes() == whole
    assert "checkpoint_last.pt is cut off; going on from checkpoint_2_5.pt" in caplog.text


def test_a_whole_last_checkpoint_is_left_alone(tiny_checkpoint: Path, tmp_path: Path):
    shutil.copyfile(tiny_checkpoint, tmp_path / "checkpoint_last.pt")
    before = (tmp_path / "checkpoint_last.pt").stat()
    shutil.copyfile(tiny_checkpoint.parent / "checkpoint1.pt", tmp_path / "checkpoint9.pt")

    training.mend_last_checkpoint(_config(tmp_path))

    assert (tmp_path / "checkpoint_last.pt").stat().st_mtime_ns == before.st_mtime_ns


def test_a_cut_off_checkpoint_without_another_one_is_an_error(tmp_path: Path):
    (tmp_path / "checkpoint_last.pt").write_bytes(b"PK\x03\x04 cut")

    with pytest.raises(CheckpointError, match="is cut off and there is no other checkpoint"):
        training.mend_last_checkpoint(_config(tmp_path))
