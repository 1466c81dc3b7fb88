"""A packed study (docs/gpu.md), trained at the end of a session; its weights stay behind."""

from __future__ import annotations

import logging
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from mhclite.bench.session.engine import Item, NotDone
from mhclite.bench.session.records import Result, Session
from mhclite.errors import UserError
from mhclite.tarball import extract

ARCHIVE = "study.tar.gz"
LARGEST = 16 * 2**20  # bytes of a file that can be brought home
LEFT_OUT = ("weights.pt", "checkpoints")
SAVING_SECONDS = 60.0  # that the driver has to save what is under way
FEWEST_SECONDS = 60.0  # for which it is worth while to start it

log = logging.getLogger(__name__)


def study_items(session: Session) -> list[Item]:
    """What is left of the bundle; one item, which is done when nothing is."""
    bundle = session.plan.bundle
    if bundle is None:
        return []
    return [Item(bundle.name, lambda end: train(bundle, session, end))]


def train(bundle: Path, session: Session, end: float) -> Result:
    """Start the bundle's own driver, several runs at once.

    Raises:
        NotDone: something is left.
    """
    seconds = end - time.monotonic() - SAVING_SECONDS
    if seconds < FEWEST_SECONDS:
        raise NotDone("too little time is left for the study")
    with tempfile.TemporaryDirectory() as place:
        folder = unpacked(bundle, Path(place))
        if (session.folder / ARCHIVE).is_file():
            extract(session.folder / ARCHIVE, folder)
        jobs = max(1, session.cores // 4)
        command = [sys.executable, "run.py", "--minutes", f"{seconds / 60:.2f}"]
        command += ["--jobs", str(jobs), "--throughput", "no"]
        code = subprocess.run(command, cwd=folder).returncode
        runs = bring_home(folder, session.folder / ARCHIVE)
    if code:
        raise NotDone(f"the bundle's driver ended with exit code {code}, {runs} runs are whole")
    return {"runs": runs, "jobs": jobs}


def unpacked(bundle: Path, place: Path) -> Path:
    """The folder of a bundle, which may be an archive.

    Raises:
        UserError: it is neither.
    """
    if bundle.is_dir():
        return bundle
    try:
        extract(bundle, place)
    except tarfile.TarError as error:
        raise UserError(f"{bundle} is not a complete archive ({error})") from None
    found = next(place.glob("*/run.py"), None)
    if found is None:
        raise UserError(f"{bundle} is no bundle: it has no run.py")
    return found.parent


def bring_home(folder: Path, archive: Path) -> int:
    """Pack the runs that are finished and probed; returns how many there are.

    A run without its probe stays here: the probe needs its weights, which do not come home, so it
    is trained again where the next part of the study is.
    """
    runs = 0

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(entry.name).parts  # results, study, runs, run, file
        if any(part in LEFT_OUT for part in parts):
            return None
        if len(parts) > 3 and parts[2] == "runs":
            probe = folder.joinpath(*parts[:2], "probes", f"{parts[3]}.json")
            return entry if probe.is_file() else None
        return entry

    new = archive.with_name(f".{archive.name}")
    with tarfile.open(new, "w:gz") as tar:
        for results in sorted((folder / "results").glob("*")):
            if results.name != "corpora" and results.is_dir():
                tar.add(results, f"results/{results.name}", filter=wanted)
                runs += len(list((results / "probes").glob("*.json")))
    new.replace(archive)
    if archive.stat().st_size > LARGEST:
        log.warning("%s has more than %d MiB", archive, LARGEST // 2**20)
    return runs
