"""Work on chunks of lines in several processes, in order, with a bounded number of chunks in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context
from typing import TypeVar

from lite_transformer.errors import DataError

Item = TypeVar("Item")
Task = TypeVar("Task")
Result = TypeVar("Result")

CHUNK_LINES = 1000
_IN_FLIGHT = 3  # chunks for each process: one at work, two on their way there or back


def default_workers() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def chunked(items: Iterable[Item], size: int = CHUNK_LINES) -> Iterator[list[Item]]:
    """The items in lists of ``size``, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def run_alone(function: Callable[[Task], Result], task: Task) -> Result:
    """function(task), computed by a process of its own: the memory it took is free again afterwards."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        try:
            return executor.submit(function, task).result()
        except BrokenProcessPool:
            raise DataError(
                "a process was killed, probably for want of memory. Run the same command again on a machine with more; "
                "finished steps are kept."
            ) from None


def map_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """function(task) for every task, in the order of the tasks, computed by ``workers`` processes.

    No more than three tasks for each process are read ahead. One or two tasks do not start any process.

    Raises: whatever ``function`` raises; DataError if a process is killed from outside.
    """
    tasks = iter(tasks)
    first = list(islice(tasks, 3))
    if workers == 1 or len(first) < 3:
        yield from map(function, chain(first, tasks))
        return
    # spawn, not fork: the caller may hold threads and locks
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    pending: deque[Future[Result]] = deque()
    try:
        for task in chain(first, tasks):
            pending.append(executor.submit(function, task))
            if len(pending) > _IN_FLIGHT * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            f"one of {workers} processes was killed, probably for want of memory. Run the same command again with "
            f"--workers {max(1, workers // 2)}; finished steps are kept."
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)
