"""The run folder, owned here: its files, their content, and whether the run is finished.

    run.json       the resolved configuration and where the result comes from (`RunRecord`)
    metrics.jsonl  one line per optimizer step; the same bits whenever the run is repeated
    timing.jsonl   seconds and wall time of each step
    mixing.jsonl   one line per evaluation: the streams and H_res of the model in training
    weights.pt     the final weights
    result.json    written when the run is finished (`Summary`)
    summary.json   the same, written last: Snakemake's declared output, which it deletes at will
    checkpoints/   while the run is under way
    lock           held by the process that trains

Whoever wants to know something of a run asks this module. It needs no torch.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.files import is_locked, locked, read_json, read_jsonl, sha256_of, write_json
from mhclite.records import read_record, to_json
from mhclite.runs.provenance import Provenance

SCHEMA = 2  # of run.json, result.json and summary.json
STEP_FILES = ("metrics", "timing", "mixing")  # .jsonl, one line per step or evaluation
RECORD, RESULT, SUMMARY, WEIGHTS = "run.json", "result.json", "summary.json", "weights.pt"
CHECKPOINTS, LOCK = "checkpoints", "lock"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """A time that a process began to train the run."""

    started: str  # ISO 8601, UTC
    provenance: Provenance
    imported: dict[str, Any] | None = None  # older runs: the checkpoint that they went on from


@dataclass(frozen=True)
class CorpusRecord:
    """The prepared corpus that a run is trained on."""

    name: str
    digest: str
    manifest: str  # path


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters; a tied head is counted once."""

    total: int
    connection: int


@dataclass(frozen=True)
class RunRecord:
    """run.json: what a run is, and where its result comes from."""

    schema: int
    key: str
    code: str  # digest of the code in the key
    config: RunConfig
    corpus: CorpusRecord
    attempts: list[Attempt]
    parameters: ParameterCounts
    implementation: str  # how the connections are computed: reference, fast or fused
    launch: dict[str, Any] | None  # sizes of the kernels' launches, where the run uses them
    modules: dict[str, str] | None = None  # digest of each module in `code`; older runs have none

    @property
    def provenance(self) -> Provenance:
        """Of the last attempt."""
        return self.attempts[-1].provenance


@dataclass(frozen=True)
class Summary:
    """summary.json: what a finished run comes to. A diverged run has no final losses."""

    schema: int
    run: str
    key: str
    status: Literal["completed", "diverged"]
    steps: int
    diverged_step: int | None
    tokens: int
    train_loss: float | None  # mean over the last steps, nats per token
    validation_loss: float | None  # at the last step
    validation_bits_per_byte: float | None
    best_validation_loss: float | None  # None: it diverged before one that is finite
    seconds: float  # of all steps
    tokens_per_second: float
    attempts: int
    metrics_sha256: str
    weights_sha256: str | None


@dataclass(frozen=True)
class FinishedRun:
    """A run that `train` has completed."""

    run: str
    record: RunRecord
    summary: Summary
    metrics: list[dict[str, Any]]  # metrics.jsonl; step 0 first


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._again = f"delete {path} and run `snakemake --cores all`"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    # --- reading ----------------------------------------------------------------------------

    def record(self) -> RunRecord:
        """run.json; `UserError` if it is missing, damaged or of another version."""
        what = f"the record of run {self.path.name}"
        return read_record(RunRecord, self / RECORD, what, SCHEMA, self._again)

    def summary(self) -> Summary:
        """summary.json; `UserError` if the run is not finished or of another version."""
        if not self.is_finished():
            raise UserError(
                f"run {self.path.name} is not finished: {self / SUMMARY} does not exist; "
                "`snakemake --cores all` trains or continues it"
            )
        what = f"the summary of run {self.path.name}"
        return read_record(Summary, self / SUMMARY, what, SCHEMA, self._again)

    def is_finished(self) -> bool:
        """Whether the run has ended, by itself or by diverging."""
        return (self / SUMMARY).is_file()

    def lost(self) -> list[str]:
        """Names of files that results are made from and that are not there any more.

        Not weights.pt, which large studies leave where they were trained, timing.jsonl, and
        result.json, the copy.
        """
        needed = (SUMMARY, RECORD, "metrics.jsonl", "mixing.jsonl")
        return [name for name in needed if not (self / name).is_file()]

    def finished(self) -> FinishedRun:
        """The whole run, its metrics compared with their digest; `UserError` if it is not whole."""
        summary, record = self.summary(), self.record()
        metrics = self / "metrics.jsonl"
        if not metrics.is_file():
            raise UserError(f"run {self.path.name} has no {metrics}; {self._again}")
        if sha256_of(metrics) != summary.metrics_sha256:
            raise UserError(
                f"{metrics} is not what training wrote: it was changed since; {self._again}"
            )
        return FinishedRun(self.path.name, record, summary, read_jsonl(metrics))

    def begun_key(self) -> str | None:
        """Key of the run that run.json describes; None if nothing was begun here.

        Of any version of mhclite, so that a newer one can begin where an older one had begun.
        """
        return self._begun()[0]

    def _begun(self) -> tuple[str | None, int]:
        """(key, schema) from run.json."""
        path = self / RECORD
        if not path.exists():
            return None, SCHEMA
        again = f"delete {self.path} to train this run again"
        try:
            content = read_json(path, "record of the run")
        except UserError as error:  # half a file cannot be: somebody changed it
            raise UserError(f"{error}; {again}") from None
        key = content.get("key") if isinstance(content, dict) else None
        if not (isinstance(key, str) and key.isalnum()):
            raise UserError(f"{path} does not describe a run; {again}")
        return key, content.get("schema")

    def finished_key(self, name: str = SUMMARY) -> str | None:
        """Key of the run that was finished here, by summary.json or its copy; None if none was."""
        path = self / name
        content = read_json(path, "result of the run") if path.is_file() else None
        return str(content.get("key")) if isinstance(content, dict) else None

    def damage(self, summary: Summary) -> Path | None:
        """The first file that does not have the digest of the summary; None if all have.

        Weights are large, and only the probe needs them: they may have been left elsewhere.
        """
        expected = {"metrics.jsonl": summary.metrics_sha256, WEIGHTS: summary.weights_sha256}
        for name, digest in expected.items():
            path = self / name
            found = sha256_of(path) if path.exists() else None
            if found != digest and not (name == WEIGHTS and found is None):
                return path
        return None

    # --- writing: only for the process that trains ------------------------------------------

    @contextmanager
    def only_writer(self) -> Iterator[None]:
        """Hold the folder alone. The lock falls with the process, however it ends."""

        def held(file: IO[str]) -> None:
            file.seek(0)
            log.info(
                "another process (pid %s) is training this run: waiting for it to end",
                file.read().strip() or "unknown",
            )

        with locked(self / LOCK, held) as file:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def is_locked(self) -> bool:
        """Whether a process is training here."""
        return is_locked(self / LOCK)

    def restore_summary(self, key: str) -> bool:
        """Whether the run of this key is finished and whole; a summary.json that was deleted is
        written again."""
        if lost := [name for name in self.lost() if name != SUMMARY]:
            if (self / RESULT).exists():
                log.warning("%s has no %s any more: training again", self.path, lost[0])
            return False
        if self.finished_key() == key:
            return True
        if self.finished_key(RESULT) != key:
            return False
        result = read_record(Summary, self / RESULT, "the result", SCHEMA, self._again)
        if damaged := self.damage(result):
            log.warning("%s is not what training wrote: training again", damaged)
            return False
        log.info("finished before: writing summary.json again from result.json")
        write_json(self / SUMMARY, to_json(result))
        return True

    def attempts(self, key: str) -> list[Attempt]:
        """Earlier attempts at the run of this key."""
        found, schema = self._begun()
        return self.record().attempts if found == key and schema == SCHEMA else []

    def begin(self, record: RunRecord) -> None:
        """Write run.json; what a run of another key had under way here goes first."""
        checkpoints = self / CHECKPOINTS
        if checkpoints.exists() and self.begun_key() != record.key:
            log.warning("other settings, code or corpus than what was under way: from the start")
            shutil.rmtree(checkpoints)
        write_json(self / RECORD, to_json(record))

    def finish(self, summary: Summary) -> None:
        """Write what the run comes to, summary.json last, and remove what it needed on the way."""
        for name in (RESULT, SUMMARY):
            write_json(self / name, to_json(summary))
        self.clear()

    def clear(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self / CHECKPOINTS, ignore_errors=True)
