"""Bring what a bundle has done into results/, so that the workflow takes it as made.

A published study is taken as well: with more seeds or variants in the study file, only those train.

Everything is checked before anything is copied. A finished run is taken if its key is the study's
here and it is not finished here already. Merging again changes nothing.
"""

from __future__ import annotations

import logging
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mhclite.archives import extract
from mhclite.bundle.drive import PackedJob, receipts
from mhclite.bundle.pack import bundle_of, snakemake
from mhclite.errors import UserError
from mhclite.jobs import PROBE, results_folder
from mhclite.measure.files import read_probe
from mhclite.runs.folder import RECORD, RESULT, STEP_FILES, SUMMARY, WEIGHTS, RunFolder
from mhclite.runs.parquet import STUDY, unpack
from mhclite.runs.status import outdated
from mhclite.study.reading import load_study
from mhclite.study.sections import RESULTS

RUN_FILES = (RECORD, *(f"{name}.jsonl" for name in STEP_FILES), WEIGHTS, RESULT, SUMMARY)
SHOWN = 3  # refused runs that are named

log = logging.getLogger(__name__)


@contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """The folder itself, or what an archive or a published study holds, beside the results."""
    published = (source / STUDY).is_file()
    if source.is_dir() and not published:
        yield source
        return
    if not source.exists():
        raise UserError(f"{source} does not exist: a folder or a .tar, .tar.gz is expected")
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix=".merge.") as folder:
        try:
            if published:
                unpack(source / STUDY, Path(folder))
            else:
                extract(source, Path(folder))
        except tarfile.TarError as error:
            raise UserError(
                f"{source} is not a complete archive ({error}): bring it back again"
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


def why_not(train: PackedJob, folder: RunFolder) -> str:
    """Of what else the run in a folder is than the study's; empty if it is, or if none is there."""
    if folder.begun_key() in (None, train.digest):
        return ""
    return outdated(train.config(), None, folder.record()) or "of another corpus"


def check_run(train: PackedJob, theirs: RunFolder, ours: RunFolder) -> None:
    """Refuse a run that is under way here, or whose files are not those of its summary."""
    if not is_new(train, theirs, ours):
        return
    if ours.is_locked():
        raise UserError(f"{ours.path} is being trained here: stop that first, or let it end")
    # Weights are large, and only the probe needs them: they may have been left behind.
    damaged = theirs.damage(theirs.summary(), weights_needed=False)
    if damaged is not None:
        raise UserError(f"{damaged} is damaged: bring it back again")


def is_new(train: PackedJob, theirs: RunFolder, ours: RunFolder) -> bool:
    """Whether a run is finished there, and not here."""
    return theirs.finished_key() == train.digest != ours.finished_key()


def take(theirs: RunFolder, ours: RunFolder) -> None:
    """Copy a finished run; what is here of it, or of another run of its name, gives way."""
    incoming = ours.path.with_name(f".{ours.path.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    for name in RUN_FILES:
        if (theirs / name).exists():
            shutil.copyfile(theirs / name, incoming / name)
    shutil.rmtree(ours.path, ignore_errors=True)
    incoming.replace(ours.path)


def merge_output(
    job: PackedJob, key: str, theirs: Path, ours: Path, made_of: dict[str, str]
) -> bool:
    """Take over a throughput measurement or a probe. Returns whether it was new here.

    What is published has no receipts: a probe says itself of which run it is (`key`), and whether
    it will do the rule decides; throughput is measured here.
    """
    source, target = theirs / job.output, ours / job.output
    if not source.is_file():
        return False
    if not made_of:
        is_probe = job.step == PROBE.name
        if not is_probe or target.exists() or read_probe(source, source.stem).key != key:
            return False
    elif made_of.get(job.output) != job.digest:
        log.warning("%s is of other settings or code than are here now: left out", source)
        return False
    elif target.is_file() and target.read_bytes() == source.read_bytes():
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return True


def same_result(train: PackedJob, theirs: RunFolder, ours: RunFolder) -> bool:
    """Whether both folders hold the same finished run."""
    if any(folder.finished_key() != train.digest for folder in (theirs, ours)):
        return False
    return theirs.summary().metrics_sha256 == ours.summary().metrics_sha256


def merge(study_file: Path, source: Path) -> str:
    """Merge what a bundle has done. Returns a line for the reader.

    Raises:
        UserError: a run of other settings, code or corpus, or a damaged one; nothing is changed.
    """
    study = load_study(study_file)
    bundle = bundle_of(study)
    runs = bundle.runs
    ours = results_folder(study)
    with unpacked(source) as folder:
        theirs = find_study(folder, study.name)

        def of(job: PackedJob, place: Path) -> RunFolder:
            return RunFolder((place / job.output).parent)

        refused = {t.config().run: why_not(t, of(t, theirs)) for t, _ in runs}
        refused = {run: why for run, why in refused.items() if why}
        if refused:
            names = ", ".join(list(refused)[:SHOWN]) + ", ..." * (len(refused) > SHOWN)
            raise UserError(
                f"{source}: {len(refused)} of {len(runs)} runs ({names}) are "
                f"{next(iter(refused.values()))} than here; merge where that is as it was packed, "
                "or pack again and train anew"
            )
        for train, _ in runs:
            check_run(train, of(train, theirs), of(train, ours))
        made_of = receipts(theirs)
        new: list[str] = []
        probes = 0
        for train, probe in runs:
            here, there = of(train, ours), of(train, theirs)
            if is_new(train, there, here):
                take(there, here)
                new.append(train.output)
            if same_result(train, there, here):
                # Not for Snakemake: the rule takes a probe that is right as made.
                probes += merge_output(probe, train.digest, theirs, ours, made_of)
        taken = len(new)
        new += [
            job.output for job in bundle.throughput if merge_output(job, "", theirs, ours, made_of)
        ]
    if new:
        # Snakemake records what they were made of: a later change reruns exactly what it should.
        snakemake(study_file, "--touch", "--force", *(f"{ours}/{output}" for output in new))
    done = sum(of(train, ours).finished_key() == train.digest for train, _ in runs)
    return (
        f"study {study.name}: {taken} runs and {len(new) + probes - taken} other files are new; "
        f"{done} of {len(runs)} runs are finished here"
    )
