"""The engine compiled for ARM and run by an emulator: the same log-probabilities as here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lite_transformer.edge import native
from lite_transformer.edge.folder import WEIGHTS_FILE, read_manifest
from lite_transformer.edge.native.plan import plan
from lite_transformer.edge.vocabulary import END
from tests.edge.models import exported, loaded_model

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
SOURCES = Path(native.__file__).parent
WORDS, STEPS, SOURCE = 44, 9, (7, 12, 30, 5, 41, 9, END)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        native.compiled() is None or not shutil.which(COMPILER) or not shutil.which(EMULATOR),
        reason=f"needs the native engine, {COMPILER} and {EMULATOR} (Debian: g++-aarch64-linux-gnu, qemu-user)",
    ),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("arm") / "program"
    files = [*sorted(SOURCES.glob("*.cpp")), Path(__file__).with_name("native_program.cpp")]
    options = ["-std=c++17", "-O2", "-ffp-contract=fast", "-static", "-pthread", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([COMPILER, *options, *map(str, files), "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module", params=["fp32", "int8"])
def folder(request, tmp_path_factory):
    options = {"encoder_branches": ["lightweight", "attention"], "share_all_embeddings": True}
    return exported(loaded_model(**options), tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize(
    ("processor", "kernels"),
    [("max", "neon-dotprod"), ("max", "neon"), ("max", "generic"), ("cortex-a53", "neon")],
)
def test_the_same_log_probabilities(program, folder, tmp_path, processor, kernels):
    manifest = read_manifest(folder)
    numbers = tmp_path / "plan"
    numbers.write_bytes(plan(manifest).tobytes())
    done = subprocess.run(
        [EMULATOR, "-cpu", processor, str(program), kernels, str(numbers), str(folder / WEIGHTS_FILE), str(STEPS)]
        + [str(token) for token in SOURCE],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, *lines = done.stdout.splitlines()
    assert first.split() == (["neon-dotprod"] if processor == "max" else []) + ["neon", "generic"]
    found = np.array([line.split() for line in lines], np.float32)
    engine = native.NativeEngine(folder, manifest, kernels="generic")
    state, token = engine.encode(np.array([SOURCE])), END
    expected = np.empty((STEPS, WORDS), np.float32)
    for step in range(STEPS):
        result = engine.step(state, np.array([[token]]), np.zeros((1, 1), np.int64), None, WORDS)
        expected[step, result.tokens[0, 0]] = result.scores[0, 0]
        token = 4 + step
    assert found.shape == expected.shape
    # a float rounded otherwise may turn a code of int8 over
    assert np.median(np.abs(found - expected)) < 1e-5
    assert np.abs(found - expected).max() < (1e-4 if manifest.precision == "fp32" else 0.3)
