"""Chunks over processes: order, read-ahead, errors."""

from __future__ import annotations

import os
import signal

import pytest

from data_prep.workers import chunked, map_in_order, run_alone
from lite_transformer.errors import DataError


def square(number):
    return number * number, os.getpid()


def fail(number):
    if number == 5:
        raise DataError("five")
    return number


def die(number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_chunks():
    assert list(chunked("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]


@pytest.mark.parametrize("workers", [1, 2])
def test_order_and_bounded_read_ahead(workers):
    read = []

    def tasks():
        for number in range(40):
            read.append(number)
            yield number

    ahead = []
    squares, processes = [], set()
    for result, process in map_in_order(square, tasks(), workers):
        squares.append(result)
        processes.add(process)
        ahead.append(len(read) - len(squares))
    assert squares == [number * number for number in range(40)]
    assert max(ahead) <= 3 * workers + 1
    assert (os.getpid() in processes) is (workers == 1)


def test_few_tasks_start_no_process():
    assert {process for _, process in map_in_order(square, [1, 2], workers=2)} == {os.getpid()}


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_task_is_raised(workers):
    with pytest.raises(DataError, match="five"):
        list(map_in_order(fail, range(10), workers))


def test_killed_process_is_reported():
    with pytest.raises(DataError, match=r"one of 2 processes was killed.*same command again with --workers 1"):
        list(map_in_order(die, range(10), workers=2))


def test_process_of_its_own():
    result, process = run_alone(square, 3)
    assert result == 9 and process != os.getpid()
    with pytest.raises(DataError, match="five"):
        run_alone(fail, 5)
    with pytest.raises(DataError, match="a process was killed, probably for want of memory"):
        run_alone(die, 1)
