"""Bring what a bundle has done into results/, so that the workflow takes it as made.

Everything is checked before anything is copied. A run is taken if its key is the study's here; a
finished run is never replaced, an unfinished one only by more steps of the same run. Merging again
changes nothing.
"""

from __future__ import annotations

import logging
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mhclite.bundle.jobs import (
    RESULTS,
    Job,
    finished_key,
    jobs_of,
    receipts,
    run_config,
)
from mhclite.bundle.pipeline import snakemake
from mhclite.errors import UserError
from mhclite.files import misfit, read_json, sha256_of, write_json
from mhclite.runs.key import code_of, deciding
from mhclite.runs.status import is_locked
from mhclite.study.reading import load_study

RUN_FILES = ("run.json", "metrics.jsonl", "timing.jsonl", "mixing.jsonl", "weights.pt")
RESULT_FILES = ("result.json", "summary.json")  # the last one says that the run is finished
PENDING = "merge-pending.json"  # outputs that Snakemake has not recorded yet: a merge was ended
SHOWN = 3  # refused runs that are named

log = logging.getLogger(__name__)


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """The folder itself, or an archive's content in a temporary folder beside the results."""
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise UserError(f"{source} does not exist: a folder or a .tar, .tar.gz is expected")
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix=".merge.") as folder:
        try:
            with tarfile.open(source) as tar:
                tar.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise UserError(
                f"{source} is no whole archive ({error}): bring it back again"
            ) from None
        yield Path(folder)


def find_study(source: Path, name: str) -> Path:
    """The folder of the study in what came back, however much was packed around it."""
    for pattern in (name, f"results/{name}", f"*/results/{name}", f"*/{name}"):
        found = next((path for path in sorted(source.glob(pattern)) if path.is_dir()), None)
        if found:
            return found
    if (source / "runs").is_dir() or (source / "throughput").is_dir():
        return source
    raise UserError(
        f"{source} has no results of study {name!r}: expected is the bundle's folder, or its "
        f"results/{name}, as a folder or an archive"
    )


def _record(folder: Path) -> dict[str, Any] | None:
    """run.json of a run folder; None if nothing was begun there."""
    if not (folder / "run.json").is_file():
        return None
    record = read_json(folder / "run.json", "record of the run")
    problem = misfit(record, {"key": str, "code": str, "config": {}, "corpus": {"digest": str}})
    if problem:
        raise UserError(f"{folder / 'run.json'} is not what training wrote: {problem}")
    return dict(record)


def steps_saved(folder: Path, key: str) -> int:
    """Steps of the newest checkpoint of a run folder; 0 if there is none of this key."""
    saved = [0]
    for path in (folder / "checkpoints").glob("step_*.json"):
        meta = read_json(path, "checkpoint")
        whole = misfit(meta, {"key": str, "step": int}) is None
        if whole and meta["key"] == key and path.with_suffix(".pt").is_file():
            saved.append(int(meta["step"]))
    return max(saved)


def why_not(train: Job, folder: Path) -> str | None:
    """Why the run in a folder is not the study's; None if it is, or if none is there."""
    record = _record(folder)
    if record is None or record["key"] == train.digest:
        return None
    config = run_config(train)
    if deciding(record["config"]) != deciding(config):
        return "other settings than the study has now"
    if record["code"] != code_of(config):
        return "other code than is here now"
    return "another corpus than is prepared here"


def check_run(train: Job, theirs: Path, ours: Path) -> None:
    """Refuse a run that is under way here, or whose files are not those of its summary."""
    if finished_key(ours) == train.digest or _record(theirs) is None:
        return
    if is_locked(ours):
        raise UserError(f"{ours} is being trained here: stop that first, or let it end")
    if finished_key(theirs) == train.digest:
        check_result(theirs)


def check_result(folder: Path) -> None:
    """Refuse a finished run whose files do not have the digests that its summary recorded."""
    summary = read_json(folder / "summary.json", "summary of the run")
    for name, entry in (("metrics.jsonl", "metrics_sha256"), ("weights.pt", "weights_sha256")):
        path = folder / name
        if name == "weights.pt" and not path.exists():
            continue  # they are large, and only the probe needs them
        if not path.exists() or sha256_of(path) != summary.get(entry):
            raise UserError(f"{path} is not whole: bring it back again")


def merge_run(train: Job, theirs: Path, ours: Path) -> str:
    """Take a run over if it is further than ours. Returns what was done, in a word or two."""
    key = train.digest
    if finished_key(ours) == key:
        return "finished here already"
    finished = finished_key(theirs) == key
    steps = steps_saved(theirs, key)
    if not finished and steps == 0:
        return "without a checkpoint"
    if not finished:
        record = _record(ours)
        if record is not None and record["key"] != key:
            log.warning("%s holds a run of other settings or code: left as it is", ours)
            return "left out"
        if steps <= steps_saved(ours, key):
            return "no further than here"
    incoming = ours.with_name(f".{ours.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    for name in (*RUN_FILES, *(RESULT_FILES if finished else ())):
        if (theirs / name).exists():
            shutil.copyfile(theirs / name, incoming / name)
    if not finished:
        shutil.copytree(theirs / "checkpoints", incoming / "checkpoints")
    shutil.rmtree(ours, ignore_errors=True)
    incoming.replace(ours)
    return "finished" if finished else "to be continued"


def merge_output(job: Job, theirs: Path, ours: Path, made_of: dict[str, str]) -> bool:
    """Take over a throughput measurement or a probe. Returns whether it was new here."""
    source, target = theirs / job.output, ours / job.output
    if not source.is_file():
        return False
    if made_of.get(job.output) != job.digest:
        log.warning("%s is of other settings or code than are here now: left out", source)
        return False
    if target.is_file() and target.read_bytes() == source.read_bytes():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return True


def same_result(train: Job, theirs: Path, ours: Path) -> bool:
    """Whether both folders hold the same finished run."""
    folders = (theirs, ours)
    if any(finished_key(folder) != train.digest for folder in folders):
        return False
    first, second = (read_json(folder / "summary.json")["metrics_sha256"] for folder in folders)
    return bool(first == second)


def merge(study_file: Path, source: Path) -> str:
    """Merge what a bundle has done. Returns a line for the reader.

    Raises:
        UserError: a run of other settings, code or corpus, or a damaged one; nothing is changed.
    """
    study = load_study(study_file)
    throughput, runs = jobs_of(study)
    ours = RESULTS / study.name
    with unpacked(source) as folder:
        theirs = find_study(folder, study.name)

        def of(job: Job, place: Path) -> Path:
            return (place / job.output).parent

        refused = {run_config(t)["run"]: why_not(t, of(t, theirs)) for t, _ in runs}
        refused = {run: why for run, why in refused.items() if why}
        if refused:
            names = ", ".join(list(refused)[:SHOWN]) + ", ..." * (len(refused) > SHOWN)
            raise UserError(
                f"{source}: {len(refused)} of {len(runs)} runs ({names}) are of "
                f"{next(iter(refused.values()))}; merge where that is as it was packed, or pack "
                "again and train anew"
            )
        for train, _ in runs:
            check_run(train, of(train, theirs), of(train, ours))
        made_of = receipts(theirs)
        pending = ours / PENDING
        before = read_json(pending, "outputs of a merge") if pending.is_file() else []
        jobs = [*throughput, *(job for run in runs for job in run)]
        there_is = [job.output for job in jobs if (theirs / job.output).is_file()]
        write_json(pending, sorted({*before, *there_is}))
        told: Counter[str] = Counter()
        new = [output for output in before if (ours / output).is_file()]
        for train, probe in runs:
            here, there = of(train, ours), of(train, theirs)
            done = merge_run(train, there, here) if _record(there) else "not begun"
            told[done] += 1
            if done == "finished":
                new.append(train.output)
            if same_result(train, there, here) and merge_output(probe, theirs, ours, made_of):
                new.append(probe.output)
        new += [job.output for job in throughput if merge_output(job, theirs, ours, made_of)]
    new = list(dict.fromkeys(new))
    if new:
        # Snakemake records what they were made of: a later change reruns exactly what it should.
        snakemake(study_file, "--touch", "--force", *(f"{ours}/{output}" for output in new))
    pending.unlink()
    return f"study {study.name}: new files: {len(new)}; runs: " + ", ".join(
        f"{count} {what}" for what, count in told.items()
    )
