"""One function over many jobs, in this process or in a pool of several."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mhclite.errors import UserError

J = TypeVar("J")
R = TypeVar("R")
Report = Callable[[int, int], None]  # documents and tokens done since the last call
LOOK_SECONDS = 0.5

_done: Any = None  # in a worker: shared [documents, tokens]


def run_jobs(
    function: Callable[[J, Report], R], jobs: Sequence[J], processes: int, report: Report
) -> Iterator[R]:
    """Yield the results of all jobs, in the order in which they are finished.

    Args:
        function: called with a job and how to report progress. With several processes, the
            function, its jobs and its results are pickled.
        jobs: what to do.
        processes: at most so many; with one process or one job everything happens in this one.
        report: called in this process with what was done in any of them.

    Raises:
        UserError: of a job, or if a worker was killed.
    """
    processes = min(processes, len(jobs))
    if processes <= 1:
        for job in jobs:
            yield function(job, report)
        return
    # Not fork: this process may have threads (pyarrow, tokenizers) that hold locks.
    context = multiprocessing.get_context("spawn")
    done, seen = context.Array("q", 2), (0, 0)
    pool = ProcessPoolExecutor(processes, context, _begin, (done,))
    try:
        pending = {pool.submit(_call, function, job) for job in jobs}
        while pending:
            finished, pending = wait(pending, LOOK_SECONDS, FIRST_COMPLETED)
            now = (done[0], done[1])
            report(now[0] - seen[0], now[1] - seen[1])
            seen = now
            for future in finished:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process of the preparation was killed, by lack of memory or by hand; run the same "
            "command again: finished parts are kept (`--processes` takes fewer)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(done: Any) -> None:
    """In a new worker: use one thread, and end with the process that started it, even killed."""
    global _done
    _done = done
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _call(function: Callable[[J, Report], R], job: J) -> R:
    return function(job, _add)


def _add(documents: int, tokens: int) -> None:
    with _done.get_lock():
        _done[0] += documents
        _done[1] += tokens
