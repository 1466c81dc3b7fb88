"""Kill a training process at chosen points, again and again, each time in a child of this process.

    python killing.py CONFIG.json CORPUS FOLDER SEED

A child is a fork of this process, which has torch loaded and the source's digest taken but has
computed nothing: a point costs a fraction of a second. Prints one JSON object per point.

A point is `operation k` (before the k-th file that is opened for writing, renamed, cut or removed),
`half k` (when the k-th file is half written), or `time t` (after t seconds).

Checkpoints are written in a thread. A kill there comes when training has gone as far as it can
without that checkpoint, which is when it costs most, and is the same each time.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mhclite.config import RunConfig
from mhclite.files import read_jsonl, sha256_of
from mhclite.runs.key import code_digest
from mhclite.training import checkpoint, loop

OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.rmdir")
RESULTS = ("metrics.jsonl", "mixing.jsonl", "weights.pt")
TIMES = 20 if "EXHAUSTIVE" in os.environ else 5
MOVES = 14  # operations at the start of a run that finds another one under way in its folder

WAITING = threading.Event()

Arm = Callable[[], None]


def die() -> None:
    if threading.current_thread() is not threading.main_thread():
        assert WAITING.wait(60), "training does not wait for its checkpoint"
    os.kill(os.getpid(), signal.SIGKILL)


def note_waits() -> None:
    """Set `WAITING` while the main thread waits for the checkpoint that is under way."""
    wait = checkpoint.Saver.wait

    def noted(saver: checkpoint.Saver) -> None:
        if saver._under_way is not None:
            WAITING.set()
        wait(saver)
        WAITING.clear()

    checkpoint.Saver.wait = noted  # type: ignore[method-assign]


def in_child(work: Callable[[], None], seconds: float | None = None) -> bool:
    """Do `work` in a child, killed after `seconds`; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "it failed by itself"
    return os.WIFEXITED(status)


def on_operation(folder: Path, act: Callable[[int], None]) -> Arm:
    """Call `act(k)` before the k-th operation on a file of the run folder."""

    def arm() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if event not in OPERATIONS or not str(arguments[0]).startswith(str(folder)):
                return
            if event == "open" and arguments[1] in ("r", "rb", None):
                return
            act(count)
            count += 1

        sys.addaudithook(hook)

    return arm


def at_half(k: int) -> Arm:
    """Die when half of the k-th state (checkpoint or final weights) is written."""

    def arm() -> None:
        count = 0
        save = torch.save

        def half(state: Any, file: Any) -> None:
            nonlocal count
            if count == k:
                whole = io.BytesIO()
                save(state, whole)
                file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
                file.flush()
                die()
            count += 1
            save(state, file)

        checkpoint.torch.save = half  # type: ignore[assignment]

    return arm


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256_of(folder / name) for name in RESULTS}


class Kills:
    def __init__(self, config: RunConfig, corpus: Path, folder: Path, seed: int) -> None:
        self.config, self.corpus, self.folder = config, corpus, folder
        self.random = np.random.default_rng(seed)
        self.other = replace(config, training=replace(config.training, weight_decay=0.2))
        code_digest(config)  # parsed and cached once: it is half of the time of a short run
        self.train(folder / "whole")
        self.expected = digests(folder / "whole")

    def train(
        self,
        folder: Path,
        arm: Arm = lambda: None,
        seconds: float | None = None,
        config: RunConfig | None = None,
    ) -> bool:
        def work() -> None:
            note_waits()
            arm()
            loop.train(config or self.config, self.corpus, folder)

        return in_child(work, seconds)

    def point(self, name: str, arm: Arm = lambda: None, seconds: float | None = None) -> None:
        """One kill, then the same run again to its end."""
        folder = self.folder / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        ended = self.train(folder, arm, seconds)
        while ended and seconds is not None:  # the run that was timed met a busier machine
            seconds /= 2
            shutil.rmtree(folder)
            ended = self.train(folder, arm, seconds)
        self.tell(name, folder, ended)

    def say(
        self, name: str, folder: Path, ended: bool, lost: int, steps: bool = True, left: Any = ()
    ) -> None:
        point = {"point": name, "ended": ended, "lost": lost, "steps": steps, "left": list(left)}
        print(json.dumps(point | {"same": digests(folder) == self.expected}), flush=True)

    def tell(self, name: str, folder: Path, ended: bool) -> None:
        saved = [int(p.stem[5:]) for p in folder.glob("checkpoints/step_*.json")]
        metrics = folder / "metrics.jsonl"
        done = metrics.read_bytes().count(b"\n") - 1 if metrics.exists() else 0
        before = max(saved, default=0)
        finished = (folder / "summary.json").exists() or (folder / "result.json").exists()
        assert self.train(folder)
        steps = [line["step"] for line in read_jsonl(folder / "timing.jsonl")]
        left = [p.name for p in folder.iterdir() if p.name == "checkpoints"]
        lost = 0 if finished else max(0, done - before)
        self.say(name, folder, ended, lost, steps == list(range(1, len(steps) + 1)), left)

    def operations(self, folder: Path, config: RunConfig) -> int:
        """How many operations on files an undisturbed run makes."""
        counted = self.folder / "counted"

        def count(k: int) -> None:
            counted.write_text(str(k + 1))  # outside of the run folder: not counted itself

        assert self.train(folder, on_operation(folder, count), config=config)
        return int(counted.read_text())

    def all(self) -> None:
        whole = self.folder / "whole2"
        count = self.operations(whole, self.config)
        killed = self.folder / "killed"
        for k in range(count):
            self.point(f"operation {k}", on_operation(killed, lambda at, k=k: at == k and die()))
        training = self.config.training
        states = (training.steps - 1) // training.checkpoint_interval + 1
        for k in range(states):
            self.point(f"half {k}", at_half(k))
        began = time.perf_counter()
        self.train(self.folder / "timed")
        whole_time = time.perf_counter() - began
        for fraction in self.random.uniform(0, 1, TIMES):
            self.point(f"time {fraction:.3f}", seconds=fraction * whole_time)
        self.switch()

    def switch(self) -> None:
        """Other settings while the run is under way, killed at each operation; then ours again."""
        folder, begun = self.folder / "switched", self.folder / "begun"

        def under_way(_at: int) -> None:
            if len(list(begun.glob("checkpoints/step_*.json"))) == 2:  # at the third checkpoint
                die()

        assert not self.train(begun, on_operation(begun, under_way))
        for k in range(MOVES):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(begun, folder)
            at_start = on_operation(folder, lambda at, k=k: at == k and die())
            self.train(folder, at_start, config=self.other)
            assert self.train(folder)
            self.say(f"switch {k}", folder, False, 0)  # what the other settings found is gone


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    configuration, corpus, folder, seed = sys.argv[1:]
    Path(folder).mkdir(exist_ok=True)
    run = RunConfig.from_json(json.loads(Path(configuration).read_text()))
    Kills(run, Path(corpus), Path(folder), int(seed)).all()
