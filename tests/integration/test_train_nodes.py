"""Several nodes are one training: two torchrun agents, as the Slurm script starts them, end where one process ends."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest
import torch

from tests.helpers import commands
from tests.integration.test_train_processes import _assert_same_weights

# What Slurm would do, on one machine: two tasks that know their numbers, and the name of the first node.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$SRUN_LOG"
while [[ "$1" == --* ]]; do [[ "$1" == *=* ]] && shift || shift 2; done
pids=()
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""
SCONTROL = '#!/usr/bin/env bash\n[[ "$*" == "show hostnames nodes[1-2]" ]] && printf "127.0.0.1\\nnode2\\n"\n'


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _losses(folder: Path) -> list[tuple[str, str]]:
    """Loss of train and valid after each epoch, to three digits, and the updates."""
    text = (folder / "train.log").read_text(encoding="utf-8")
    found = re.findall(r"\| (train|valid) \| epoch \d+ \|.*? loss ([\d.]+) .*?num_updates (\d+)", text)
    assert found
    return found


@pytest.mark.slow
def test_two_nodes_of_the_slurm_script_are_one_training(tiny_data: Path, tmp_path: Path):
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    options = ("--data", tiny_data, *commands.overrides())
    path = f"{tmp_path}{os.pathsep}{commands.BIN}{os.pathsep}{os.environ['PATH']}"
    one, two = tmp_path / "one", tmp_path / "two"
    commands.run("lite-transformer", "train", commands.EXPERIMENT, "--save-dir", one, *options)
    commands.run(
        "bash", commands.ROOT / "scripts/train_slurm.sh", commands.EXPERIMENT, "--save-dir", two, *options,
        PATH=path, SRUN_LOG=str(tmp_path / "srun.log"), SLURM_JOB_ID="7", SLURM_NNODES="2",
        SLURM_JOB_NODELIST="nodes[1-2]", PROCESSES_PER_NODE="1", MASTER_PORT=_free_port(),
    )  # fmt: skip

    assert "--nodes 2 --ntasks-per-node 1" in (tmp_path / "srun.log").read_text(encoding="utf-8")
    log = (two / "train.log").read_text(encoding="utf-8")
    assert "up to 128 tokens x 1 accumulated x 2 processes" in log and "training on 2 devices" in log
    record = json.loads((two / "train.json").read_text(encoding="utf-8"))
    assert [run["processes"] for run in record["runs"]] == [2], "one of the nodes writes"
    assert record["config"]["optimization"]["update_freq"] == [1]
    assert _losses(two) == _losses(one)
    _assert_same_weights(two, one)
    states = [torch.load(folder / "checkpoint_last.pt", weights_only=True)["extra_state"] for folder in (one, two)]
    assert states[0]["val_loss"] == pytest.approx(states[1]["val_loss"], abs=1e-3)


def test_outside_a_slurm_job_the_script_says_what_to_type():
    assert "no Slurm job. Type: sbatch" in commands.run("bash", commands.ROOT / "scripts/train_slurm.sh", "x", code=2)
