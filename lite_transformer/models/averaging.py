"""The mean of several checkpoints' weights, as a checkpoint."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lite_transformer.errors import CheckpointError
from lite_transformer.models.safe_load import load_checkpoint

logger = logging.getLogger(__name__)

_EPOCH = re.compile(r"checkpoint(\d+)\.pt")


def last_epochs(folder: Path, count: int) -> list[Path]:
    """The checkpoints of the last ``count`` epochs of a folder, the newest first.

    Raises: CheckpointError if there are fewer, or an epoch between them is missing.
    """
    if count < 1:
        raise CheckpointError(f"the average of the last {count} checkpoints: at least 1 is needed")
    epochs = {int(match[1]): path for path in folder.glob("checkpoint*.pt") if (match := _EPOCH.fullmatch(path.name))}
    chosen = sorted(epochs, reverse=True)[:count]
    if len(chosen) < count:
        raise CheckpointError(
            f"{folder} has {len(epochs)} epoch checkpoints (checkpointN.pt), {count} are to be averaged. "
            "Train longer, or keep more of them: checkpoint.keep_last_epochs"
        )
    if chosen[0] - chosen[-1] != count - 1:
        raise CheckpointError(
            f"{folder}: the last {count} epoch checkpoints are {', '.join(map(str, reversed(chosen)))}; "
            "an epoch between them is missing (checkpoint.save_interval must be 1)"
        )
    return [epochs[epoch] for epoch in chosen]


def average_weights(paths: Sequence[Path]) -> dict[str, Any]:
    """The first checkpoint with the mean of all checkpoints' weights, computed in fp32 (fp64 stays).

    Whole numbers are divided without remainder, as fairseq's script does. The optimizer's state is left out: it
    belongs to no average.

    Raises: CheckpointError if a file cannot be loaded, or does not hold the same parameters.
    """
    if not paths:
        raise CheckpointError("no checkpoint to average")
    total: dict[str, torch.Tensor] = {}
    first: dict[str, Any] = {}
    for path in tqdm(paths, desc="average", unit="checkpoint", disable=None, leave=False):
        state = load_checkpoint(path)
        weights = state["model"]
        if not first:
            first = state
            total = {name: _wide(value).clone() for name, value in weights.items()}
            continue
        if weights.keys() != total.keys():
            differing = sorted(weights.keys() ^ total.keys())
            raise CheckpointError(f"{path} and {paths[0]} hold different parameters, such as {differing[0]}")
        for name, value in weights.items():
            if value.shape != total[name].shape:
                raise CheckpointError(
                    f"{name} is {tuple(value.shape)} in {path} and {tuple(total[name].shape)} in {paths[0]}"
                )
            total[name] += _wide(value)
    for value in total.values():
        if value.is_floating_point():
            value.div_(len(paths))
        else:
            value.floor_divide_(len(paths))
    return {key: value for key, value in first.items() if key != "last_optimizer_state"} | {"model": total}


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def write_average(paths: Sequence[Path], output: Path) -> None:
    """Writes the average of checkpoints; the file appears under its name only when it is whole."""
    state = average_weights(paths)
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{output.name}-", dir=output.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {output}: {error.strerror or error}") from None
    try:
        with os.fdopen(descriptor, "wb") as stream:
            torch.save(state, stream)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(output)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    logger.info("average of %s written to %s", ", ".join(path.name for path in paths), output)
