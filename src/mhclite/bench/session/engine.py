"""Stages of a session: items done in processes of their own, each result kept at once.

A wrong kernel can end a process, hang it, or leave its GPU unusable for whatever that process does
next. So this process never touches the GPU: its children do, each with a part of the items, and one
that is lost costs the item that it was at. Children are forks, so torch is imported once; a GPU's
own state must not be forked, which is the other reason not to have any here.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mhclite.bench.session.records import Result, Session
from mhclite.errors import UserError
from mhclite.measure import memory

GRACE_SECONDS = 20.0  # of the end of a session, beyond which nothing goes on
LOST_EXIT = 3  # of a child whose GPU is of no more use to it

log = logging.getLogger(__name__)


class NotDone(Exception):  # noqa: N818 - no error: what is left for the next time
    """An item came to no end in the time that it had; it is done again when there is more."""


class Item(NamedTuple):
    """One result of a stage."""

    key: str
    work: Callable[[float], Result]  # given when it must end, on the monotonic clock


@dataclass(frozen=True)
class Stage:
    """Part of a session.

    Items do not depend on one another. What a stage leaves on the machine (compiled kernels) is not
    brought home, so one that `serves` others is done in every session in which those have something
    left; its results are of that session alone.
    """

    name: str
    about: str
    items: Callable[[Session], list[Item]]  # must not touch the GPU
    minutes: float  # then no item is begun; what is under way has half as much again
    workers: Callable[[Session], int] = lambda session: 1
    serves: tuple[str, ...] = ()


class Worker:
    """A child and the item that it is at."""

    def __init__(self, items: dict[str, Item], end: float, log_file: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.ours, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_child, args=(items, end, theirs, log_file), daemon=False
        )
        self.process.start()
        theirs.close()
        self.key: str | None = None
        self.began = 0.0

    def begin(self, key: str) -> None:
        self.key, self.began = key, time.monotonic()
        self.ours.send(key)

    def kill(self) -> None:
        """With all that it has started."""
        if self.process.pid is not None and self.process.is_alive():
            for target in (os.killpg, os.kill):  # its group is there once it has made one
                try:
                    target(self.process.pid, signal.SIGKILL)
                    break
                except ProcessLookupError:
                    continue
        self.process.join()
        self.ours.close()


def _child(items: dict[str, Item], end: float, connection: Connection, log_file: Path) -> None:
    """Do the items that are asked for, until there are no more."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for stop in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(stop, signal.SIG_DFL)
    # What its own children say goes there too.
    file = open(log_file, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - as long as it lives
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdout = sys.stderr = file
    logging.getLogger().handlers = [logging.StreamHandler(file)]
    while True:
        try:
            key = connection.recv()
        except EOFError:
            key = None
        if key is None:
            sys.stdout.flush()
            os._exit(0)  # without the handlers of the process that it is a copy of
        print(f"--- {key}", flush=True)
        result = _done(items[key], end)
        connection.send(result)
        if _gpu_is_lost():
            os._exit(LOST_EXIT)


def _done(item: Item, end: float) -> Result | None:
    """The result of an item, or why there is none; None if it is not done."""
    try:
        return item.work(end)
    except NotDone as reason:
        print(f"not done: {reason}", flush=True)
        return None
    except Exception as error:  # whatever it is, the other items must be measured
        traceback.print_exc()
        sys.stderr.flush()
        return {"failed": _in_a_line(error)}
    finally:
        if "torch._dynamo" in sys.modules:
            torch._dynamo.reset()
        if torch.cuda.is_initialized():
            with suppress(RuntimeError):  # of a GPU that is lost
                memory.release(torch.device("cuda"))


def _in_a_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = "" if isinstance(error, UserError) else type(error).__name__
    return ": ".join(filter(None, [name, *lines[:1]]))[:300]


def _gpu_is_lost() -> bool:
    """Whether an error of a kernel has made this process's GPU unusable."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def run_stage(session: Session, stage: Stage, end: float) -> bool:
    """Do what is missing of a stage, as far as the time goes. Returns whether anything was done."""
    items = {item.key: item for item in stage.items(session)}
    kept = {} if stage.serves else session.results(stage.name)
    todo = deque(key for key in items if key not in kept)
    if not todo:
        return False
    began = time.monotonic()
    seconds = 60 * stage.minutes * session.plan.patience
    last_begin = min(began + seconds, end)
    last_end = min(began + 1.5 * seconds, end + GRACE_SECONDS)
    count = min(max(1, stage.workers(session)), len(todo))
    log.info("%s: %s; %d to do, %d at a time", stage.name, stage.about, len(todo), count)
    workers: list[Worker] = []
    took: list[float] = []
    done = 0

    def ended(worker: Worker, result: Result | None) -> None:
        nonlocal done
        assert worker.key is not None
        spent = time.monotonic() - worker.began
        if result is not None:
            took.append(spent)
            done += 1
            session.keep(stage.name, worker.key, {"seconds": round(spent, 3), **result})
            if "failed" in result:
                log.warning("%s: %s: %s", stage.name, worker.key, result["failed"])
        worker.key = None

    def more() -> bool:
        """Whether there is another item, and time for it."""
        now = time.monotonic()
        usual = statistics.median(took) if took else 0.0
        return bool(todo) and now < last_begin and now + usual < end

    try:
        while True:
            for worker in [worker for worker in workers if worker.key is None]:
                if more() and worker.process.is_alive():
                    worker.begin(todo.popleft())
                else:
                    worker.kill()
                    workers.remove(worker)
            while len(workers) < count and more():
                workers.append(Worker(items, end, session.log_file))
                workers[-1].begin(todo.popleft())
            if not workers:
                break
            left = last_end - time.monotonic()
            if left <= 0:
                break
            for ready in wait([w.ours for w in workers], timeout=left):
                worker = next(w for w in workers if w.ours is ready)
                try:
                    ended(worker, worker.ours.recv())
                except EOFError:
                    worker.process.join()
                    ended(worker, {"failed": _how_it_ended(worker.process.exitcode)})
    finally:
        for worker in workers:
            key, spent = worker.key, time.monotonic() - worker.began
            worker.kill()
            if key is not None and spent >= seconds:
                worker.key = key  # it had all the time of the stage
                ended(worker, {"failed": f"not done after {spent:.0f} s"})
    spent = time.monotonic() - began
    log.info("%s: %d of %d done in %.0f s", stage.name, done, len(items) - len(kept), spent)
    return done > 0


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process ended with exit code {code}"


def in_a_child(work: Callable[[], Any], seconds: float, log_file: Path) -> Any:
    """What a function finds on the GPU; None if it fails or takes longer."""
    end = time.monotonic() + seconds
    worker = Worker({"": Item("", lambda _: {"found": work()})}, end, log_file)
    try:
        worker.begin("")
        if wait([worker.ours], timeout=seconds):
            found = worker.ours.recv()
            return found and found.get("found")
        return None
    except EOFError:
        return None
    finally:
        worker.kill()


def plain(value: Any) -> Any:
    """As JSON has it: numbers that are not finite become text."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
