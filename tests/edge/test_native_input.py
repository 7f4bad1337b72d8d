"""What the native engine is given that it cannot use: a named error, and never the end of the process."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest

from lite_transformer.edge import native
from lite_transformer.edge.folder import WEIGHTS_FILE, read_manifest
from lite_transformer.edge.native import NativeEngine
from lite_transformer.edge.native.library import Library
from lite_transformer.edge.native.plan import plan
from lite_transformer.edge.vocabulary import END, PAD
from lite_transformer.errors import CheckpointError, ConfigError, UnsupportedInputError
from tests.edge.models import exported, loaded_model

LIBRARY = native.compiled()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the native engine was not built (no C++ compiler?)")


@pytest.fixture
def engine(tiny):
    return NativeEngine(tiny.folder, read_manifest(tiny.folder))


@pytest.fixture(scope="module")
def int8_folder(tied, tmp_path_factory):
    return exported(tied.loaded, tmp_path_factory.mktemp("int8"), "int8")


def test_weights_that_are_cut_off(copy):
    path = copy / WEIGHTS_FILE
    whole = path.read_bytes()
    manifest = read_manifest(copy)
    for size in (len(whole) // 2, len(whole) - 300, 5):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=rf"weights\.bin: the weights end before .* of {size}\)"):
            NativeEngine(copy, manifest)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        NativeEngine(copy, manifest)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        NativeEngine(copy, manifest)


def overwrite(folder: Path, name: str, content: np.ndarray) -> None:
    item = read_manifest(folder).tensors[name]
    with (folder / WEIGHTS_FILE).open("r+b") as stream:
        stream.seek(item["offset"])
        stream.write(content.tobytes())


@pytest.mark.parametrize("name", ["decoder.1.fc1.weight", "encoder.0.norm.bias", "decoder.0.cross.out.bias"])
def test_numbers_that_are_none(copy, name):
    overwrite(copy, name, np.array([np.nan], np.float32))
    with pytest.raises(CheckpointError, match=r"holds numbers that are not finite\. Export the model again"):
        NativeEngine(copy, read_manifest(copy))


def test_codes_that_would_overflow(int8_folder, tmp_path):
    import shutil

    folder = Path(shutil.copytree(int8_folder, tmp_path / "copy"))
    overwrite(folder, "decoder.0.fc1.weight", np.array([65], np.int8))
    with pytest.raises(CheckpointError, match="fc1 holds codes beyond 64"):
        NativeEngine(folder, read_manifest(folder))


def test_a_model_whose_numbers_grow_without_end(copy):
    overwrite(copy, "decoder.1.fc2.bias", np.full(16, 3e38, np.float32))
    overwrite(copy, "decoder.1.final_norm.weight", np.full(16, 3e38, np.float32))
    engine = NativeEngine(copy, read_manifest(copy))
    state = engine.encode(np.array([[5, END]]))
    for message in ("log-probabilities are not finite", "an earlier step of this batch failed"):
        with pytest.raises(UnsupportedInputError, match=message):
            engine.step(state, np.array([[END]]), np.array([[0]]), None, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.tensors.pop("decoder.0.fc1.weight"), "'decoder.0.fc1.weight'|has no decoder.0.fc1"),
        (lambda manifest: manifest.tensors["decoder.0.fc1.weight"].update(shape=[3, 3]), "the model needs float32"),
        (lambda manifest: manifest.tensors["decoder.0.fc1.weight"].update(offset=-64), "the weights end before fc1"),
        (lambda manifest: manifest.tensors["decoder.0.fc1.weight"].update(offset=2), "the weights end before fc1"),
        (lambda manifest: manifest.tensors["decoder.0.fc1.weight"].update(offset=1 << 62), "the weights end before"),
        (lambda manifest: manifest.tensors["decoder.0.fc1.weight"].update(offset=1 << 70), "not describe a model"),
        (lambda manifest: manifest.tensors["decoder.0.fc1.weight"].update(offset="x"), "not describe a model"),
        (lambda manifest: manifest.model.pop("decoder"), "does not describe a model"),
        (lambda manifest: manifest.model["decoder"].update(norm_epsilon=[1e-5, 1e-6]), "several epsilons"),
        (lambda manifest: manifest.model["decoder"]["layers"][0].update(activation="gelu"), "not describe a model"),
        (lambda manifest: manifest.model["decoder"]["layers"][0].update(cross_heads=3), "heads do not divide"),
        (lambda manifest: manifest.model["decoder"]["layers"][0]["branches"].pop(), "8 of 16 channels"),
        (lambda manifest: manifest.special.update(end=99), "end of a sentence 99 is not in 0 to 43"),
    ],
)
def test_descriptions_that_do_not_fit(copy, change, message):
    manifest = read_manifest(copy)
    change(manifest)
    with pytest.raises(CheckpointError, match=message):
        NativeEngine(copy, manifest)


def test_any_plan_at_all(tiny, int8_folder):
    """Numbers of a plan changed at random: a model, or a named error."""
    rng = random.Random(1)
    kinds = set()
    for folder in (tiny.folder, int8_folder):
        whole = plan(read_manifest(folder)).tolist()
        weights = np.fromfile(folder / WEIGHTS_FILE, np.uint8)
        for _ in range(400):
            numbers = list(whole)
            for _ in range(rng.choice((1, 1, 3))):
                place = rng.randrange(len(numbers))
                numbers[place] = rng.choice((-2, -1, 0, 1, 2, 3, 7, 16, 1 << 16, 1 << 31, 1 << 62, -(1 << 63)))
            if rng.random() < 0.1:
                numbers = numbers[: rng.randrange(len(numbers))]
            content = np.array(numbers, np.int64)
            try:
                handle = LIBRARY.try_to(
                    "lt_open", content.ctypes.data, len(content), weights.ctypes.data, len(weights), 1, None,
                    error=CheckpointError,
                )  # fmt: skip
            except CheckpointError as error:
                kinds.add(str(error)[:12])
                continue
            source = np.array([[5, 6, END]])
            state = 0
            try:
                state = LIBRARY.try_to("lt_encode", handle, source.ctypes.data, 1, 3, None, error=UnsupportedInputError)
                arrays = [np.array([END]), np.array([0])]
                results = np.empty(2, np.float32), np.empty(2, np.int64), np.empty(1, np.float32)
                LIBRARY.try_to(
                    "lt_step", handle, state, *(item.ctypes.data for item in arrays), None, 1, 1, 2,
                    *(item.ctypes.data for item in results), error=UnsupportedInputError,
                )  # fmt: skip
            except UnsupportedInputError as error:
                kinds.add(str(error)[:12])
            if state:
                LIBRARY.call("lt_release", state)
            LIBRARY.call("lt_close", handle)
    assert len(kinds) > 10


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([[PAD, PAD]], "sentence 0 of the batch has no token"),
        ([[5, PAD, END]], "padding must stand in front"),
        ([[5, 44, END]], "token 44 of a vocabulary of 44"),
        ([[5, -3, END]], "token -3 of a vocabulary"),
        ([5, END], "a source of 1 dimensions"),
        ([[]], "a batch of 1 x 0 tokens"),
    ],
)
def test_sources_that_cannot_be(engine, source, message):
    with pytest.raises(UnsupportedInputError, match=message):
        engine.encode(np.array(source, np.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [[44], [5]]}, "token 44 of a vocabulary of 44"),
        ({"tokens": [[-1], [5]]}, "token -1 of a vocabulary"),
        ({"order": [[2], [0]]}, "row 2 of 2"),
        ({"order": [[0], [-1]]}, "row -1 of 2"),
        ({"order": [[0, 1]]}, "do not fit together"),
        ({"tokens": [2, 2], "order": [0, 1]}, "do not fit together"),
        ({"tokens": [[2]], "order": [[0]]}, "1 sentences, 2 are left"),
        ({"sentences": [0, 2]}, "sentence 2 of 2"),
        ({"sentences": [0, -1]}, "sentence -1 of 2"),
        ({"sentences": [0]}, "of a batch of 2"),
        ({"count": 0}, "0 candidates"),
        ({"count": 45}, "45 candidates of 44 words"),
    ],
)
def test_steps_that_cannot_be(engine, change, message):
    state = engine.encode(np.array([[5, 6, END], [PAD, 7, END]]))
    good = {"tokens": [[END], [END]], "order": [[0], [1]], "sentences": None, "count": 3}
    arguments = {
        name: value if value is None or name == "count" else np.array(value) for name, value in (good | change).items()
    }
    with pytest.raises(UnsupportedInputError, match=message):
        engine.step(state, **arguments)
    after = engine.step(state, np.array([[END], [END]]), np.array([[0], [1]]), None, 3)  # nothing was lost
    fresh = engine.encode(np.array([[5, 6, END], [PAD, 7, END]]))
    again = engine.step(fresh, np.array([[END], [END]]), np.array([[0], [1]]), None, 3)
    np.testing.assert_array_equal(after.scores, again.scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": 0}, "beam 0 of 2 sentences"),
        ({"beam": 23}, "beam 23 is too wide for 44 words"),
        ({"beam": 1 << 22}, "beam 4194304 of 2 sentences"),
        ({"beam": 1 << 40}, "settings of a search that cannot be"),
        ({"min_len": -1}, "settings of a search that cannot be"),
        ({"no_repeat_ngram_size": -1}, "settings of a search that cannot be"),
        ({"lenpen": float("nan")}, "settings of a search that cannot be"),
        ({"limits": np.array([5, -1])}, "a limit of -1 tokens"),
        ({"limits": np.array([5])}, r"limits \(1,\) of a source \(2, 3\): one for each sentence"),
        ({"source": np.array([[5, 6, END], [PAD, PAD, PAD]])}, "sentence 1 of the batch has no token"),
        ({"source": np.array([5, END])}, r"limits \(2,\) of a source \(2,\)"),
    ],
)
def test_searches_that_cannot_be(engine, change, message):
    good = {"source": np.array([[5, 6, END], [PAD, 7, END]]), "limits": np.array([5, 9]), "beam": 2, "min_len": 1}
    good |= {"no_repeat_ngram_size": 0, "lenpen": 1.0}
    with pytest.raises(UnsupportedInputError, match=message):
        engine.search(**good | change)
    assert all(engine.search(**good))


def test_a_search_whose_numbers_grow_without_end(copy):
    overwrite(copy, "decoder.1.final_norm.weight", np.full(16, 3e38, np.float32))
    engine = NativeEngine(copy, read_manifest(copy))
    with pytest.raises(UnsupportedInputError, match="log-probabilities are not finite"):
        engine.search(np.array([[5, END]]), np.array([5]), 2, 1, 0, 1.0)


def test_a_state_of_another_engine(engine, int8_folder):
    other = NativeEngine(int8_folder, read_manifest(int8_folder))
    with pytest.raises(UnsupportedInputError, match="another engine's"):
        engine.step(other.encode(np.array([[5, END]])), np.array([[END]]), np.array([[0]]), None, 3)


def test_positions_that_a_table_lacks(tmp_path):
    loaded = loaded_model(decoder_learned_pos=True, max_target_positions=4)
    folder = exported(loaded, tmp_path)
    engine = NativeEngine(folder, read_manifest(folder))
    state = engine.encode(np.array([[5, END]]))
    for _ in range(4):
        engine.step(state, np.array([[5]]), np.array([[0]]), None, 3)
    with pytest.raises(UnsupportedInputError, match="position 6 of a table of 6"):
        engine.step(state, np.array([[5]]), np.array([[0]]), None, 3)


def test_a_library_of_another_kind(tmp_path, monkeypatch):
    path = tmp_path / "_engine.so"
    path.write_bytes(b"no library")
    with pytest.raises(ConfigError, match=r"_engine\.so is no native engine .* Install lite-transformer again"):
        Library(path)
    monkeypatch.setattr("lite_transformer.edge.native.library.VERSION", 99)
    with pytest.raises(ConfigError, match=r"has version \d+, 99 is needed"):
        native.compiled.__wrapped__()


def test_an_engine_outlives_its_folder(copy):
    engine = NativeEngine(copy, dataclasses.replace(read_manifest(copy)))
    before = engine.encoder_states(np.array([[5, 6, END]]))
    (copy / WEIGHTS_FILE).write_bytes(b"")
    np.testing.assert_array_equal(engine.encoder_states(np.array([[5, 6, END]])), before)
