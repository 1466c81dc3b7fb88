"""One function over many jobs, in this process or in a pool of several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from mhclite.errors import UserError

J = TypeVar("J")
R = TypeVar("R")


def run_jobs(
    function: Callable[[J], R], jobs: Sequence[J], processes: int, start: str = "spawn"
) -> Iterator[R]:
    """Yield the results of all jobs, in the order in which they are finished.

    Args:
        function: called with a job. With several processes the function, its jobs and its results
            are pickled.
        jobs: what to do.
        processes: at most so many; with one process or one job everything happens in this one.
        start: how a process begins. Not by `fork` where this one may have threads (pyarrow,
            tokenizers) that hold locks.

    Raises:
        UserError: of a job, or if a worker was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        yield from map(function, jobs)
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(start), _begin)
    try:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process was killed, by lack of memory or by hand; run the same command again: what "
            "is finished is kept (`--processes` takes fewer)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """In a new worker: use one thread, and end with the process that started it, even killed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
