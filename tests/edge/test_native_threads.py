"""What the native engine's pool decides, by times that are given instead of measured; what the processors give."""

from __future__ import annotations

import itertools
import math
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lite_transformer.edge import native
from lite_transformer.errors import UnsupportedInputError

SOURCES = Path(native.__file__).parent
LIBRARY = native.compiled()
CALLS = 2000


@pytest.fixture(scope="module")
def shared_calls(tmp_path_factory) -> Callable[[list[tuple[float, float]]], list[bool]]:
    """Which calls are shared, of their times alone and shared."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("balance") / "program"
    files = [SOURCES / "threads.cpp", Path(__file__).with_name("balance_program.cpp")]
    subprocess.run(
        ["c++", "-std=c++17", "-O0", "-Wall", "-Werror", "-pthread", f"-I{SOURCES}", *files, "-o", program], check=True
    )

    def run(times: list[tuple[float, float]]) -> list[bool]:
        lines = "\n".join(f"{alone} {shared}" for alone, shared in times)
        done = subprocess.run([program], input=lines, text=True, capture_output=True, check=True)
        assert len(done.stdout) == len(times)
        return [character == "1" for character in done.stdout]

    return run


def test_calls_are_shared_at_first_and_while_it_pays(shared_calls):
    shared = shared_calls([(1.5, 1.0)] * CALLS)
    assert all(shared[:4])
    assert 0.96 < sum(shared) / CALLS < 1  # but for trials


def test_trials_become_rare_while_they_say_the_same(shared_calls):
    shared = shared_calls([(1.5, 1.0)] * CALLS)
    trials = [number for number in range(1, CALLS) if not shared[number] and shared[number - 1]]
    pauses = [after - before for before, after in itertools.pairwise(trials)]
    assert pauses[0] < 12 and pauses == sorted(pauses) and pauses[-1] == 130


def test_calls_go_alone_where_sharing_costs_time(shared_calls):
    shared = shared_calls([(1.0, 1.3)] * CALLS)
    assert sum(shared[40:]) < 0.03 * CALLS


def test_they_are_shared_again_when_it_pays_again(shared_calls):
    shared = shared_calls([(1.0, 1.3)] * 500 + [(1.5, 1.0)] * CALLS)
    assert sum(shared[900:]) / len(shared[900:]) > 0.96


def test_a_loss_that_begins_is_seen_soon(shared_calls):
    # trials are 130 calls apart by then
    shared = shared_calls([(1.5, 1.0)] * 1000 + [(1.5, 2.5)] * 200)
    assert sum(shared[1000:1030]) <= 12
    assert sum(shared[1030:]) < 20


@pytest.mark.parametrize("share", [True, False])
def test_a_gain_within_the_noise_changes_nothing(share, shared_calls):
    """Once decided, two ways that take the same time but for noise are not tried in turn for ever."""
    rng = random.Random(1)
    noise = [(rng.uniform(0.99, 1.01), rng.uniform(0.99, 1.01)) for _ in range(CALLS)]
    shared = shared_calls([(1.5, 1.0) if share else (1.0, 1.5)] * 100 + noise)
    changed = sum((a != b) for a, b in itertools.pairwise(shared[100:]))
    trials = sum((number != share) for number in shared[100:]) / 2
    assert changed == pytest.approx(2 * trials, abs=2)
    assert sum((number == share) for number in shared[100:]) > CALLS / 2


def test_single_calls_that_take_long_do_not_change_a_decision(shared_calls):
    rng = random.Random(2)

    def slow() -> float:
        return 20.0 if rng.random() < 0.05 else 1.0

    runs = [shared_calls([(1.5 * slow(), slow()) for _ in range(CALLS)]) for _ in range(10)]
    assert sum(map(sum, runs)) / (10 * CALLS) > 0.953


@pytest.mark.skipif(LIBRARY is None, reason="the native engine was not built")
def test_the_processors_are_measured():
    for threads, rows, size in ((1, 1, 1), (1, 8, 100_000), (2, 1, 300_000)):
        speed = LIBRARY.machine(threads, rows, size, 0.002)
        assert math.isfinite(speed) and speed > 1e6
    for wrong in ((0, 1, 1, 0.1), (1, 0, 1, 0.1), (1, 1, 0, 0.1), (1, 1, 1, 0.0), (1, 1, 1, math.nan)):
        with pytest.raises(UnsupportedInputError, match="sizes that cannot be"):
            LIBRARY.machine(*wrong)
