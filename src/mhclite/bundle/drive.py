"""Do the jobs of a bundle on a machine that has torch and numpy, as far as the time allows.

Each job is a process of its own, as the workflow would start it: what it writes is the same, and
one that fails stops none but the probe of its run. Nothing is remembered but files, so that the
same command goes on wherever the folder is, or its `results/`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mhclite.config import RunConfig
from mhclite.data.manifest import load_manifest
from mhclite.errors import Interrupted, UserError
from mhclite.files import read_json, write_json
from mhclite.records import read_record
from mhclite.runs import progress
from mhclite.runs.folder import RunFolder
from mhclite.runs.key import run_key
from mhclite.training import compiler_caches, torchrun

SCHEMA = 2
BUNDLE = "bundle.json"  # the jobs, in the folder of the bundle
RECEIPTS = "bundle-receipts.json"  # in results/<study>
RESULTS = Path("results")
TRAIN = "train"
POLL_SECONDS = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedJob:
    """A job (`mhclite.jobs`), with the digest of all that decides its output."""

    step: str
    output: str  # declared output, under results/<study>/
    log: str  # likewise
    digest: str  # for `train` the key of the run
    arguments: list[str]
    processes: int = 1

    def config(self) -> RunConfig:
        """The run that a training job trains."""
        assert self.step == TRAIN
        text = self.arguments[self.arguments.index("--config") + 1]
        return RunConfig.from_json(json.loads(text))

    def corpus(self) -> Path:
        """The prepared corpus of a training job."""
        return Path(self.arguments[self.arguments.index("--corpus") + 1])


Chain = list[PackedJob]  # done one after the other


@dataclass(frozen=True)
class Bundle:
    """bundle.json."""

    schema: int
    study: str
    throughput: list[PackedJob]
    runs: list[Chain]  # training and probe of each run, in the order of their work


def receipts(out: Path) -> dict[str, str]:
    """Output -> digest of what it was made of, for the throughput and probes of a bundle."""
    path = out / RECEIPTS
    found = read_json(path, "receipts") if path.is_file() else {}
    if not isinstance(found, dict):
        raise UserError(f"{path} is not what a bundle wrote; delete it")
    return found


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
                "runs would be refused by `bundle merge`; unpack or pack it again"
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

    def is_done(self, job: PackedJob) -> bool:
        """Whether the output of a job is there, and is of what the bundle holds."""
        if job.step == TRAIN:
            return RunFolder((self.out / job.output).parent).finished_key() == job.digest
        made_of = receipts(self.out).get(job.output)
        return (self.out / job.output).is_file() and made_of == job.digest

    def work(self, chain: Chain, deadline: float | None) -> None:
        """Do jobs one after the other, until one fails or there is a reason to stop."""
        for job in chain:
            if not self.is_done(job) and (self._must_stop(deadline) or not self._do(job, deadline)):
                return

    def _must_stop(self, deadline: float | None) -> bool:
        """Whether there is a reason to stop, which is then `stopping`."""
        if self.signals:
            self.stopping = self.stopping or signal.Signals(self.signals[0]).name
        elif deadline is not None and time.monotonic() >= deadline:
            self.stopping = "the time is up"
        return self.stopping != ""

    def command(self, job: PackedJob) -> tuple[list[str], dict[str, str]]:
        """How a job is called, and its environment."""
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
        return command, environment

    def _do(self, job: PackedJob, deadline: float | None) -> bool:
        """Do a job; returns whether it made its output, and says so, with a receipt."""
        command, environment = self.command(job)
        path = self.out / job.log
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("%s: started, log: %s", job.output, path)
        with path.open("ab") as file:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=file, stderr=file
            )
        asked = False
        try:
            while (code := process.poll()) is None:
                if not asked and self._must_stop(deadline):
                    process.terminate()  # once: it saves, and ends
                    asked = True
                time.sleep(POLL_SECONDS)
        finally:  # an error of ours must not leave it behind
            process.terminate()
        if code == 0 and job.step != TRAIN:
            write_json(self.out / RECEIPTS, {**receipts(self.out), job.output: job.digest})
        if code == 0 and self.is_done(job):
            log.info("%s: done; %s", job.output, self.progress())
            return True
        words = progress.last_words(path)
        if asked:
            log.info("%s: %s", job.output, words if words.startswith("interrupted") else "stopped")
        else:
            self.failed.append(job.output)
            log.error("%s: failed (exit code %d); %s", job.output, code, words)
        return False

    def progress(self) -> str:
        """How many runs are finished, and about how long the others take."""
        found = [progress.status_of(self.out, config) for config in self.runs]
        done = sum(one.state in ("finished", "diverged") for one in found)
        text = f"{done} of {len(found)} runs finished"
        left = progress.seconds_left(found) if done < len(found) else None
        return text if left is None else f"{text}, about {progress.duration(left)} of training left"


def run_bundle(folder: Path, minutes: float | None) -> int:
    """Do what is left of a bundle: its runs, then throughput with nothing beside it.

    Args:
        folder: of the bundle.
        minutes: after which the running job is asked to save and stop; None: no limit.

    Returns:
        the exit code: 1 if a job failed, 0 if all is done.

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
    with stop_signals() as signals:
        driver = Driver(folder, bundle, signals)
        chains = [*bundle.runs, *([job] for job in bundle.throughput)]
        for chain in chains:
            driver.work(chain, deadline)
    everything = [job for chain in chains for job in chain]
    left = [job for job in everything if not driver.is_done(job)]
    log.info("%s", driver.progress())
    if driver.failed:
        log.error("%d jobs failed, the first: %s", len(driver.failed), driver.failed[0])
        return 1
    if left:
        raise Interrupted(
            f"{driver.stopping}; saved, {len(left)} of {len(everything)} jobs left: run the same "
            "command to continue"
        )
    log.info("nothing is left; merge %s with `bundle merge`", driver.out)
    return 0
