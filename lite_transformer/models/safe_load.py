"""Loading checkpoints without executing what they carry.

Since torch 2.6 ``torch.load`` reads plain data only and refuses every class it was not told about; fairseq's own
checkpoints hold an ``argparse.Namespace``, so all of them are refused. Importing this module tells torch about the few
names that fairseq checkpoints, old and new, really contain. The check itself stays on: any other name is an error.

Only the Namespace is the real class. Everything else is a stand-in under the old name that holds data and runs
nothing, even when a hostile file calls it with arguments of its choice. That matters for NumPy most: the real
``numpy.ndarray`` can be told to take raw bytes for object pointers.
"""

from __future__ import annotations

import re
from argparse import Namespace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from lite_transformer.compression.container import is_packed
from lite_transformer.errors import CheckpointError

_RETRY = "Download or copy the file again, or train with --save-dir and take a checkpoint from there."


class PastMeter:
    """What a progress meter of an old training run held; its attributes are the pickled ones."""


class PastAverageMeter(PastMeter):
    """fairseq 0.8's AverageMeter."""


class PastTimeMeter(PastMeter):
    """fairseq 0.8's TimeMeter."""


class PastStopwatchMeter(PastMeter):
    """fairseq 0.8's StopwatchMeter."""


def widened_ffn_init(*_arguments: Any, **_options: Any) -> None:
    """Marks an old configuration whose feed-forward layers started as if they widened by two; returns None."""


# The letters NumPy pickles plain numbers under: kind and size in bytes.
_NUMBER_CODE = re.compile(r"[biuf](1|2|4|8|16)")


class NumberCode:
    """Stands for a pickled ``numpy.dtype``: a number type by its code, with its byte order."""

    def __init__(self, code: object = None, *_flags: object):
        if not isinstance(code, str) or not _NUMBER_CODE.fullmatch(code):
            raise UnpicklingError(f"NumPy data of type {str(code)[:40]!r} is not plain numbers")
        self.code = code
        self.order = "="

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]

    def dtype(self) -> np.dtype:
        """The number type; never one that holds objects."""
        return np.dtype(self.order + self.code)


class NumberArray(np.ndarray):
    """Stands for a pickled ``numpy.ndarray``: an array that accepts nothing but plain numbers."""

    def __new__(cls, *_arguments: object) -> NumberArray:
        return super().__new__(cls, (0,), np.int8)

    def __setstate__(self, state: Any, /) -> None:
        _version, shape, code, fortran_order, raw = state
        if not isinstance(code, NumberCode) or not isinstance(raw, bytes):
            raise UnpicklingError("NumPy data that is not plain numbers")
        super().__setstate__((1, tuple(shape), code.dtype(), bool(fortran_order), raw))  # type: ignore[arg-type]

    def __reduce__(self) -> Any:
        # saved again, it is an ordinary array
        return self.view(np.ndarray).__reduce__()


def _rebuild_array(*_arguments: object) -> NumberArray:
    """An empty array, whatever the file asks for; `NumberArray.__setstate__` fills it."""
    return NumberArray()


def _rebuild_number(code: object, raw: object) -> np.generic:
    """A NumPy number from its bytes."""
    if not isinstance(code, NumberCode) or not isinstance(raw, bytes):
        raise UnpicklingError("NumPy data that is not plain numbers")
    return np.frombuffer(raw, code.dtype(), count=1)[0]


# old qualified name -> what stands there
STAND_INS: dict[str, Any] = {
    "fairseq.meters.AverageMeter": PastAverageMeter,
    "fairseq.meters.TimeMeter": PastTimeMeter,
    "fairseq.meters.StopwatchMeter": PastStopwatchMeter,
    "fairseq.models.transformer_multibranch_v2.ratio_xavier_uniform_": widened_ffn_init,
    "numpy.dtype": NumberCode,
    "numpy.ndarray": NumberArray,
    **{
        f"numpy.{package}.multiarray.{name}": stand_in
        for package in ("core", "_core")
        for name, stand_in in (("_reconstruct", _rebuild_array), ("scalar", _rebuild_number))
    },
}


def register_safe_names() -> None:
    """Adds the names to torch's allow-list for the whole process; doing it twice changes nothing."""
    by_old_name = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    # Under their own names too: an old checkpoint that is loaded and saved again names the stand-ins.
    by_own_name: list[Any] = [PastAverageMeter, PastTimeMeter, PastStopwatchMeter, widened_ffn_init]
    torch.serialization.add_safe_globals([Namespace, *by_old_name, *by_own_name])


register_safe_names()


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a fairseq checkpoint, on the CPU; nothing in the file is executed.

    A packed file (`lite_transformer.compression`) is read as the checkpoint of its dequantized weights.

    Holds at least ``model`` (name -> tensor) and one of ``args`` and ``cfg``, as the file has them.

    Raises: CheckpointError if the file is missing, truncated, not a fairseq checkpoint, or holds more than plain data.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist: check the path; training puts it into --save-dir")
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file: give one of the .pt files, such as checkpoint_best.pt")
    try:
        path.open("rb").close()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error.strerror or error}") from None
    if is_packed(path):
        from lite_transformer.models.packed_checkpoint import read_state

        return _checked(path, read_state(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in as many ways as there are opcodes
        raise CheckpointError(_explain(path, error)) from None
    return _checked(path, state)


def _checked(path: Path, state: Any) -> dict[str, Any]:
    """The state if it is a fairseq checkpoint's. Raises CheckpointError if not."""
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(
            f"{path} is not a fairseq checkpoint: it has no 'model'. Give a .pt file that fairseq-train wrote"
        )
    if state.get("args") is None and state.get("cfg") is None:
        raise CheckpointError(
            f"{path} is not a fairseq checkpoint: it has weights but neither 'args' nor 'cfg' to build the model from"
        )
    strangers = [name for name, value in state["model"].items() if not isinstance(value, torch.Tensor)]
    if strangers:
        raise CheckpointError(f"{path} is damaged: '{strangers[0]}' in its 'model' is not a tensor. {_RETRY}")
    return state


def _explain(path: Path, error: Exception) -> str:
    """One line: what is wrong with a file that torch could not load, and what to do."""
    text = str(error)
    refused = re.search(
        r"(?:GLOBAL|global|function|class) (?:<[^>]*(?:function|class) )?'?([\w.]+)'?"
        r"(?=.*(?:not an allowed|blocked|unrecognized|allowlisted))",
        text,
        flags=re.DOTALL,
    )
    if refused or "not plain numbers" in text:
        what = f"'{refused.group(1)}'" if refused else "objects in a NumPy array"
        return (
            f"checkpoint {path} was refused: it holds {what}, which is more than plain data and could run code. "
            "Nothing was executed. Use a checkpoint from a source you trust"
        )
    size = path.stat().st_size
    if size == 0:
        return f"checkpoint {path} is empty. {_RETRY}"
    with path.open("rb") as file:
        start = file.read(4)
    if start in (b"PK\x03\x04", b"\x80\x02\x8a\x0a"):  # zip, and the format before torch 1.6
        return f"checkpoint {path} is truncated or damaged ({size} bytes). {_RETRY}"
    return f"{path} is not a checkpoint: it does not begin like one. Give a .pt file that fairseq-train wrote"
