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
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

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


class Driver:
    """The jobs of one bundle. A signal in `signals` ends its work."""

    def __init__(self, folder: Path, bundle: Bundle, signals: list[int]) -> None:
        self.folder = folder
        self.out = folder / RESULTS / bundle.study
        self.runs = [run[0].config() for run in bundle.runs]
        self.signals = signals
        self.failed: list[str] = []
        self.stopping = ""  # why, once there is a reason
        self._running: dict[str, subprocess.Popen[bytes]] = {}  # by output
        self._lock = Lock()  # of the receipts

    def is_done(self, job: PackedJob) -> bool:
        """Whether the output of a job is there, and is of what the bundle holds."""
        if job.step == TRAIN:
            return RunFolder((self.out / job.output).parent).finished_key() == job.digest
        made_of = receipts(self.out).get(job.output)
        return (self.out / job.output).is_file() and made_of == job.digest

    def work(self, chains: list[Chain], jobs: int, deadline: float | None) -> None:
        """Do chains of jobs, each in its order and so many at once."""
        gpus: SimpleQueue[list[str]] = SimpleQueue()
        for share in shares(jobs):
            gpus.put(share)
        told: set[subprocess.Popen[bytes]] = set()
        last = time.monotonic()
        self._look(deadline)  # before anything is begun
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self._chain, chain, gpus) for chain in chains]
            try:
                while wait(futures, POLL_SECONDS, FIRST_EXCEPTION).not_done:
                    self._look(deadline)
                    if self.stopping:
                        for process in set(self._running.values()) - told:
                            process.terminate()
                            told.add(process)
                    if time.monotonic() - last >= TOLD_SECONDS:
                        last = time.monotonic()
                        log.info("%s", remaining(self.standing()))
                    for future in futures:
                        if future.done():
                            future.result()
            except BaseException:  # an error of ours must not leave processes behind
                self.stopping = "an error"
                for process in list(self._running.values()):
                    process.terminate()
                raise

    def _look(self, deadline: float | None) -> None:
        """Note a reason to stop, if there is one now."""
        if self.signals:
            self.stopping = signal.Signals(self.signals[0]).name
        elif deadline is not None and time.monotonic() >= deadline:
            self.stopping = "the time is up"

    def _chain(self, chain: Chain, gpus: SimpleQueue[list[str]]) -> None:
        share = gpus.get()
        try:
            for job in chain:
                if self.stopping or not (self.is_done(job) or self._do(job, share)):
                    return
        finally:
            gpus.put(share)

    def command(self, job: PackedJob, gpus: list[str]) -> tuple[list[str], dict[str, str]]:
        """How a job is called, and its environment; no GPUs named: all that there are."""
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
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return command, environment

    def _do(self, job: PackedJob, gpus: list[str]) -> bool:
        """Do one job; whether its output is there."""
        command, environment = self.command(job, gpus)
        path = self.out / job.log
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("%s: started", job.output)
        with path.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=file, stderr=file
            )
        self._running[job.output] = process
        code = process.wait()
        del self._running[job.output]
        if code == 0 and job.step != TRAIN:
            with self._lock:
                write_json(self.out / RECEIPTS, {**receipts(self.out), job.output: job.digest})
        if code == 0 and self.is_done(job):
            log.info("%s: done", job.output)
            return True
        words = status.last_words(self.out / job.log)
        if self.stopping:
            log.info("%s: %s", job.output, words if words.startswith("interrupted") else "stopped")
        else:
            self.failed.append(job.output)
            log.error("%s: failed (exit code %d); %s", job.output, code, words)
        return False

    def standing(self) -> list[status.RunStatus]:
        """Where each run stands."""
        return [status.status_of(self.out, config) for config in self.runs]


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
    steps = [(bundle.runs, jobs)]
    if throughput != "no":  # measured with nothing beside it
        measuring: list[Chain] = [[job] for job in bundle.throughput]
        steps.insert(0 if throughput == "first" else 1, (measuring, 1))
    with stop_signals() as signals:
        driver = Driver(folder, bundle, signals)
        for chains, at_once in steps:
            driver.work(chains, at_once, deadline)
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
