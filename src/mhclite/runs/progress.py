"""Where runs stand, from their files alone.

Works while the study runs, on any machine that sees the results, and without torch.
"""

from __future__ import annotations

import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.files import no_number
from mhclite.runs.folder import RunFolder, RunRecord
from mhclite.runs.key import code_digest, deciding

TAIL = 16384  # bytes read of the end of a file
LATEST = 50  # steps from which the rate is taken
# A run on another machine, whose lock may not be seen from here, is under way if its last step was
# so recent: in seconds, or in steps where those are longer.
FRESH_SECONDS, FRESH_STEPS = 60.0, 20.0

LOGGED = re.compile(r"\d\d:\d\d:\d\d ")  # what a line of a step's log begins with
ENDS = ("error:", "interrupted:")  # or its last word

SHOWN = ("under way", "diverged", "failed", "stopped", "outdated", "damaged")  # line by line
STATES = ("finished", *SHOWN, "waiting")


@dataclass(frozen=True)
class RunStatus:
    """Where one run stands."""

    run: str
    cell: str  # model and variant: runs of one cell take equally long
    state: str
    step: int
    steps: int
    seconds_per_step: float | None
    note: str = ""


def tail(path: Path) -> list[str]:
    """The last whole lines of a file, none if there is no such file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
    except OSError:
        return []
    if size > TAIL:
        lines = lines[1:]
    return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def latest_steps(folder: Path) -> list[dict[str, Any]]:
    """The last records of timing.jsonl; what is not one is passed over."""
    found = []
    for line in tail(folder / "timing.jsonl")[-LATEST:]:
        try:
            record = json.loads(line, parse_constant=no_number)
            found.append({name: float(record[name]) for name in ("step", "seconds", "wall")})
        except (ValueError, KeyError, TypeError):
            continue
    return found


def last_words(log: Path) -> str:
    """What a step's log ends with, empty if it has none.

    Its last word is that of its last attempt; what torchrun says after it does not count.
    """
    lines = [line.strip() for line in tail(log) if line.strip()]
    for line in reversed(lines):
        if line.startswith(ENDS):
            return line
        if LOGGED.match(line):
            break
    return (lines or [""])[-1]


def outdated(config: RunConfig, corpus: str | None, record: RunRecord) -> str:
    """What a run was decided by that the study has otherwise; empty if nothing.

    Args:
        config: as the study has it.
        corpus: digest of its corpus, None if it is not known.
        record: of the run.
    """
    if deciding(record.config) != deciding(config):
        return "of other settings"
    if record.code != code_digest(config):
        return "of other code"
    return "of another corpus" if corpus not in (None, record.corpus.digest) else ""


def status_of(out: Path, config: RunConfig, corpus: str | None = None) -> RunStatus:
    """Where a run stands.

    Args:
        out: the study's folder.
        config: the run, as the study has it.
        corpus: digest of its corpus, None if it is not known.
    """
    run, steps = config.run, config.training.steps
    folder, log = RunFolder(out / "runs" / run), out / "logs" / "train" / f"{run}.log"
    cell = f"{config.model.name} {config.connection.variant}"
    latest = latest_steps(folder.path)
    seconds = statistics.median(record["seconds"] for record in latest) if latest else None
    step = int(latest[-1]["step"]) if latest else 0

    def at(state: str, note: str = "") -> RunStatus:
        return RunStatus(run, cell, state, step, steps, seconds, note)

    if folder.is_finished():
        if lost := folder.lost():
            return at("damaged", f"{lost[0]} is gone")
        try:
            summary, record = folder.summary(), folder.record()
        except UserError as error:
            return at("failed", str(error))
        if why := outdated(config, corpus, record):
            return RunStatus(run, cell, "outdated", 0, steps, seconds, why)
        if summary.status == "diverged":
            return at("diverged", f"at step {summary.diverged_step}")
        return at("finished")
    words = last_words(log)
    age = time.time() - latest[-1]["wall"] if latest and not words.startswith(ENDS) else -1.0
    if folder.is_locked() or 0 <= age < max(FRESH_SECONDS, FRESH_STEPS * (seconds or 0)):
        return at("under way")
    if words.startswith("interrupted:") or (latest and not words.startswith("error:")):
        return at("stopped", words)
    if words.startswith("error:") or (words and folder.path.is_dir()):
        return at("failed", words)
    return at("waiting")


def seconds_left(found: list[RunStatus]) -> float | None:
    """Time until all runs are finished, with as many at once as are under way now; None: unknown.

    A run's step takes as long as that of the same model and variant elsewhere, or else the mean.
    """
    known: dict[str, list[float]] = defaultdict(list)
    for status in found:
        if status.seconds_per_step is not None:
            known[status.cell].append(status.seconds_per_step)
    if not known:
        return None
    means = {cell: statistics.fmean(values) for cell, values in known.items()}
    mean = statistics.fmean(means.values())
    left = [
        (status.steps - status.step) * means.get(status.cell, mean)
        for status in found
        if status.state not in ("finished", "diverged")
    ]
    at_once = max(1, sum(status.state == "under way" for status in found))
    return max(sum(left) / at_once, max(left, default=0.0))


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def report(
    name: str, runs: Iterable[RunConfig], out: Path, corpora: Mapping[str, str | None]
) -> str:
    """The lines that are printed.

    Args:
        name: of the study.
        runs: its runs.
        out: its folder under results/.
        corpora: corpus -> its digest, None if it is not known.
    """
    found = [status_of(out, config, corpora[config.corpus]) for config in runs]
    counts = [(state, sum(status.state == state for status in found)) for state in STATES]
    summary = ", ".join(f"{count} {state}" for state, count in counts if count)
    lines = [f"study {name}: {len(found)} runs: {summary}"]
    width = max(len(status.run) for status in found)
    for state in SHOWN:
        for status in found:
            if status.state != state:
                continue
            note = status.note
            if state in ("under way", "stopped"):
                place = f"step {status.step:,} of {status.steps:,}"
                if state == "under way" and status.seconds_per_step:
                    left = (status.steps - status.step) * status.seconds_per_step
                    rate = 1 / status.seconds_per_step
                    place += f", {rate:.3g} steps/s, {duration(left)} left"
                note = f"{place}; {note}" if note else place
            lines.append(f"  {state:<9}  {status.run:<{width}}  {note}")
    done = sum(status.state in ("finished", "diverged") for status in found)
    left_over = seconds_left(found)
    if done == len(found):
        written = "the report is" if (out / "report.html").exists() else "no report yet:"
        lines.append(f"all runs are finished; {written} {out / 'report.html'}")
    elif left_over is not None:
        lines.append(f"about {duration(left_over)} of training left")
    return "\n".join(lines)
