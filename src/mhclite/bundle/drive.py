"""Do the jobs of a bundle on a machine that has torch and numpy, as far as the time allows.

Each job is a process of its own, as the workflow would start it: what it writes is the same, and
one that fails stops none of the others. Nothing is remembered but files, so that the same command
goes on wherever the folder is, or its `results/`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from mhclite.bundle.jobs import BUNDLE, RECEIPTS, SCHEMA, TRAIN, Bundle, PackedJob, receipts
from mhclite.data.manifest import load_manifest
from mhclite.errors import Interrupted, UserError
from mhclite.files import write_json
from mhclite.records import read_record
from mhclite.runs import status
from mhclite.runs.folder import RunFolder
from mhclite.runs.key import run_key
from mhclite.training import compiler_caches, torchrun

RESULTS = Path("results")
Chain = list[PackedJob]  # done one after the other
POLL_SECONDS = 0.2
TOLD_SECONDS = 30.0  # between two lines that say where the study stands

log = logging.getLogger(__name__)


def load_bundle(folder: Path) -> Bundle:
    """The bundle in a folder; its code and corpora are checked.

    Raises:
        UserError: no bundle, or its code or corpora are not those that were packed.
    """
    bundle = read_record(Bundle, folder / BUNDLE, "the bundle", SCHEMA, "pack it again")
    for train in (run[0] for run in bundle.runs):
        corpus = folder / train.corpus()
        if run_key(train.config(), load_manifest(corpus).digest) != train.digest:
            raise UserError(
                f"{folder} is not as it was packed: its code or tokens were changed, so that its "
                "runs would be refused by `bundle merge`; unpack or pack it again (if nobody "
                f"changed them: Python {platform.python_version()} reads them otherwise, which is "
                "a bug to report)"
            )
    return bundle


class Slot:
    """A place where one job runs at a time, on its share of the GPUs."""

    def __init__(self, gpus: list[str]) -> None:
        self.gpus = gpus  # empty: all that there are
        self.chain: deque[PackedJob] = deque()  # what it does next
        self.job: PackedJob | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.told = False  # to stop


class Driver:
    """The jobs of one bundle. A signal in `signals` ends its work."""

    def __init__(self, folder: Path, bundle: Bundle, signals: list[int]) -> None:
        self.folder = folder
        self.out = folder / RESULTS / bundle.study
        self.runs = [run[0].config() for run in bundle.runs]
        self.signals = signals
        self.failed: list[str] = []
        self.stopping = ""  # why, once there is a reason

    def is_done(self, job: PackedJob) -> bool:
        """Whether the output of a job is there, and is of what the bundle holds."""
        if job.step == TRAIN:
            return RunFolder((self.out / job.output).parent).finished_key() == job.digest
        made_of = receipts(self.out).get(job.output)
        return (self.out / job.output).is_file() and made_of == job.digest

    def work(self, chains: list[Chain], slots: list[Slot], deadline: float | None) -> None:
        """Do chains of jobs in their order, as many at once as there are slots."""
        waiting = deque(chains)
        told = time.monotonic()
        try:
            while True:
                if self.signals:
                    self.stopping = signal.Signals(self.signals[0]).name
                elif deadline is not None and time.monotonic() >= deadline:
                    self.stopping = "the time is up"
                for slot in slots:
                    self._look_after(slot, waiting)
                if all(slot.process is None for slot in slots) and (self.stopping or not waiting):
                    return
                if time.monotonic() - told >= TOLD_SECONDS:
                    told = time.monotonic()
                    self._tell(slots)
                time.sleep(POLL_SECONDS)
        finally:
            for slot in slots:
                if slot.process is not None:  # an error of ours must not leave them behind
                    slot.process.terminate()
                    slot.process.wait()

    def _look_after(self, slot: Slot, waiting: deque[Chain]) -> None:
        """End what has ended, start what is next; once there is a reason to stop, ask it to."""
        if slot.process is not None and slot.process.poll() is not None:
            self._end(slot)
        if self.stopping:
            slot.chain.clear()
            if slot.process is not None and not slot.told:
                slot.process.terminate()
                slot.told = True
            return
        while slot.process is None and (slot.chain or waiting):
            if not slot.chain:
                slot.chain.extend(waiting.popleft())
            job = slot.chain.popleft()
            if not self.is_done(job):
                self._start(slot, job)

    def _start(self, slot: Slot, job: PackedJob) -> None:
        command = [sys.executable, "-m", *torchrun.launcher(job.processes)]
        command += ["mhclite", job.step, *job.arguments]
        if job.step == "throughput":
            command += ["--threads", str(len(os.sched_getaffinity(0)))]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.folder / "src"),
            **torchrun.environment(),
            **compiler_caches.environment(self.folder),  # kept for the next allocation
        }
        if slot.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(slot.gpus)
        path = self.out / job.log
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("%s: started", job.output)
        with path.open("ab") as file:
            slot.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=file, stderr=file
            )
        slot.job = job

    def _end(self, slot: Slot) -> None:
        job, process = slot.job, slot.process
        assert job is not None
        assert process is not None
        slot.job = slot.process = None
        if process.returncode == 0 and job.step != TRAIN:
            write_json(self.out / RECEIPTS, {**receipts(self.out), job.output: job.digest})
        if process.returncode == 0 and self.is_done(job):
            log.info("%s: done", job.output)
            return
        slot.chain.clear()
        words = status.last_words(self.out / job.log)
        if self.stopping:
            log.info("%s: %s", job.output, words if words.startswith("interrupted") else "stopped")
            return
        self.failed.append(job.output)
        log.error("%s: failed (exit code %d); %s", job.output, process.returncode, words)

    def standing(self) -> list[status.RunStatus]:
        """Where each run stands."""
        return [status.status_of(self.out, config) for config in self.runs]

    def _tell(self, slots: list[Slot]) -> None:
        found = self.standing()
        under_way = {slot.job.output for slot in slots if slot.job is not None}
        for one in found:
            if f"runs/{one.run}/summary.json" in under_way:
                log.info("%s: step %d of %d", one.run, one.step, one.steps)
        log.info("%s", remaining(found))


def remaining(found: list[status.RunStatus]) -> str:
    """How many runs are finished, and about how long the others take."""
    done = sum(one.state in ("finished", "diverged") for one in found)
    text = f"{done} of {len(found)} runs finished"
    left = status.seconds_left(found)
    if done < len(found) and left is not None:
        text += f", about {status.duration(left)} of training left"
    return text


def shares(jobs: int) -> list[list[str]]:
    """GPUs of each of `jobs` slots: equal parts of them, or one for several slots."""
    if jobs == 1:
        return [[]]
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(at) for at in range(torch.cuda.device_count())]
    each = len(gpus) // jobs
    if each:
        return [gpus[at * each : (at + 1) * each] for at in range(jobs)]
    return [[gpus[at % len(gpus)]] if gpus else [] for at in range(jobs)]


def run_bundle(folder: Path, minutes: float | None, jobs: int, throughput: str) -> int:
    """Do what is left of a bundle. Returns the exit code: 1 if a job failed, 0 if all is done.

    Args:
        folder: of the bundle.
        minutes: after which running jobs are asked to save and stop; None: no limit.
        jobs: runs at once.
        throughput: "first", "last" or "no".

    Raises:
        Interrupted: by the time or a signal, with something left to do; all is saved.
        UserError: this is no bundle, or torch is not there.
    """
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    for package in ("torch", "numpy"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{sys.executable} has no {package}: run.py needs torch and numpy")
    import torch

    from mhclite.training.loop import stop_signals

    log.info("torch %s, %d GPUs", torch.__version__, torch.cuda.device_count())
    folder = folder.resolve()
    bundle = load_bundle(folder)
    alone = [Slot([])]  # throughput is measured with nothing beside it
    several = [Slot(gpus) for gpus in shares(jobs)]
    steps: list[tuple[list[Chain], list[Slot]]] = [(bundle.runs, several)]
    if throughput != "no":
        measuring: list[Chain] = [[job] for job in bundle.throughput]
        steps.insert(0 if throughput == "first" else 1, (measuring, alone))
    with stop_signals() as signals:
        driver = Driver(folder, bundle, signals)
        for chains, slots in steps:
            driver.work(chains, slots, deadline)
    return _conclude(driver, [job for chains, _ in steps for chain in chains for job in chain])


def _conclude(driver: Driver, jobs: list[PackedJob]) -> int:
    left = [job for job in jobs if not driver.is_done(job)]
    log.info("%s", remaining(driver.standing()))
    if driver.failed:
        log.error("%d jobs failed, the first: %s", len(driver.failed), driver.failed[0])
        return 1
    if left:
        raise Interrupted(
            f"{driver.stopping}; saved, {len(left)} of {len(jobs)} jobs left: run the same command "
            "to continue"
        )
    log.info("nothing is left; merge %s with `bundle merge`", driver.out)
    return 0
