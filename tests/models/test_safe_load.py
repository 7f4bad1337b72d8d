"""Checkpoints are data: what fairseq writes loads, what carries code is refused, and every bad file gets one line."""

import os
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from lite_transformer.errors import CheckpointError
from lite_transformer.models import safe_load
from lite_transformer.models.safe_load import load_checkpoint

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Payload:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def save(state, path: Path, zipped: bool = True) -> Path:
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return path


def small_state(**more) -> dict:
    return {"model": {"weight": torch.ones(2)}, "args": Namespace(arch="lite_transformer"), **more}


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@FORMATS
def test_namespace_and_numpy_numbers_load(tmp_path, zipped):
    """--eval-bleu leaves NumPy arrays and scalars in fairseq's checkpoints."""
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    state = small_state(extra_state={"array": array, "scalar": np.float64(2.5), "order": array.astype(">i4")[:, ::-1]})
    extra = load_checkpoint(save(state, tmp_path / "a.pt", zipped))["extra_state"]
    assert np.array_equal(extra["array"], array)
    assert extra["array"].dtype == np.int64
    assert np.array_equal(extra["order"], array[:, ::-1])
    assert extra["scalar"] == 2.5
    assert type(pickle.loads(pickle.dumps(extra["array"]))) is np.ndarray


@FORMATS
@pytest.mark.parametrize(
    "where",
    [
        lambda payload: payload,
        lambda payload: small_state(extra_state=payload),
        lambda payload: {"model": {"weight": payload}, "args": Namespace()},
        lambda payload: small_state() | {"args": Namespace(arch="x", lr=[payload])},
        lambda payload: small_state() | {"args": Namespace(nested=Namespace(deep={"a": (payload,)}))},
        lambda payload: small_state(array=np.array([payload], dtype=object)),
    ],
    ids=["bare", "extra_state", "model", "args", "nested", "array"],
)
@pytest.mark.parametrize("how", ["system", "eval", "exec", "open"])
def test_a_checkpoint_that_carries_code_is_refused(tmp_path, zipped, where, how):
    witness = tmp_path / "executed"
    code = f"open({str(witness)!r}, 'w').close()"
    payload = {
        "system": Payload(os.system, f"touch {witness}"),
        "eval": Payload(eval, code),
        "exec": Payload(exec, code),
        "open": Payload(open, str(witness), "w"),
    }[how]
    path = save(where(payload), tmp_path / "hostile.pt", zipped)
    with pytest.raises(CheckpointError, match="more than plain data") as error:
        load_checkpoint(path)
    assert str(path) in one_line(error)
    with pytest.raises(pickle.UnpicklingError):  # what fairseq itself calls
        torch.load(path, map_location="cpu")
    assert not witness.exists()
    # the payload is a real one: without the check it runs
    torch.load(path, weights_only=False)
    assert witness.exists()


@FORMATS
@pytest.mark.parametrize(
    "gadget",
    [
        Payload(np.ndarray, (1,), np.dtype("O"), b"A" * 8),  # raw bytes taken for an object pointer
        np.array(["text"]),
        Payload(np.dtype, [("a", "O")]),
        np.dtype([("a", "i4")]),
    ],
    ids=["pointer", "text", "record", "plain record"],
)
def test_numpy_holds_nothing_but_plain_numbers(tmp_path, zipped, gadget):
    with pytest.raises(CheckpointError, match="NumPy array"):
        load_checkpoint(save(small_state(extra=gadget), tmp_path / "a.pt", zipped))


def test_the_refusal_names_what_was_found(tmp_path):
    path = save(small_state(x=Payload(os.system, "true")), tmp_path / "a.pt")
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert f"'{os.system.__module__}.system'" in one_line(error)
    assert "source you trust" in str(error.value)


def test_every_stand_in_is_inert():
    """Called with anything, a stand-in makes data or fails; it returns nothing that does something."""
    for name, stand_in in safe_load.STAND_INS.items():
        try:
            made = stand_in("touch", "executed")
        except (TypeError, pickle.UnpicklingError):
            continue
        assert made is None or type(made) in (safe_load.NumberArray,), name
    assert len(safe_load.STAND_INS) == 10


@FORMATS
def test_truncated(tmp_path, zipped):
    whole = save(small_state(filler=torch.randn(500)), tmp_path / "whole.pt", zipped).read_bytes()
    cut = tmp_path / "cut.pt"
    for part in [0.05, 0.3, 0.5, 0.7, 0.9, 0.99]:
        cut.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(CheckpointError, match=r"is truncated or damaged \(\d+ bytes\)\. Download") as error:
            load_checkpoint(cut)
        assert str(cut) in one_line(error)
    cut.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is empty"):
        load_checkpoint(cut)


@FORMATS
@pytest.mark.parametrize(
    ("state", "text"),
    [
        ([1, 2], "is not a fairseq checkpoint: it has no 'model'"),
        ({"weight": torch.ones(1)}, "is not a fairseq checkpoint: it has no 'model'"),
        ({"model": {"a": torch.ones(1)}, "args": None}, "neither 'args' nor 'cfg'"),
        ({"model": {"a": "b"}, "args": Namespace()}, "'a' in its 'model' is not a tensor"),
    ],
)
def test_foreign(tmp_path, zipped, state, text):
    with pytest.raises(CheckpointError, match=text) as error:
        load_checkpoint(save(state, tmp_path / "a.pt", zipped))
    one_line(error)


def test_not_a_checkpoint_missing_and_a_folder(tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("hello world", encoding="utf-8")
    for path, message in [
        (text, "does not begin like one"),
        (tmp_path / "absent.pt", "does not exist"),
        (tmp_path, "is not a file"),
    ]:
        with pytest.raises(CheckpointError, match=message) as error:
            load_checkpoint(path)
        assert str(path) in one_line(error)


def test_old_checkpoints_can_be_saved_and_loaded_again(tmp_path):
    """Averaging old checkpoints writes the stand-ins; they must come back."""
    meter = safe_load.PastAverageMeter()
    meter.sum = 3.5
    state = small_state(meters={"loss": meter}, init=safe_load.widened_ffn_init)
    again = load_checkpoint(save(state, tmp_path / "a.pt"))
    assert again["meters"]["loss"].sum == 3.5
    assert again["init"] is safe_load.widened_ffn_init
