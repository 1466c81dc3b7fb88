"""Where the report's numbers come from: hardware, versions and commits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from mhclite.evidence.results import Results
from mhclite.runs.folder import RunFolder, RunRecord
from mhclite.runs.provenance import Provenance, hardware_in_words


def _commit(run: Provenance) -> str:
    if run.git.commit is None:
        return "unknown (not run from a git checkout)"
    return run.git.commit + (" with uncommitted changes" if run.git.dirty else "")


# Fact -> the value of one run.
_FACTS: dict[str, Callable[[Provenance], str]] = {
    "Commit": _commit,
    "Hardware": lambda run: hardware_in_words(run.hardware),
    "Platform": lambda run: run.platform,
    "Versions": lambda run: ", ".join(f"{name} {v}" for name, v in run.versions.items()),
}


def records(results: Results) -> dict[str, RunRecord]:
    """run -> its run.json."""
    runs = results.folder / "runs"
    return {run: RunFolder(runs / run).record() for run in results.all_runs["run"]}


def origin(results: Results) -> list[tuple[str, str]]:
    """A fact of provenance and its value; where runs differ, how many have each."""
    recorded = [record.provenance for record in records(results).values()]
    found = []
    for fact, value_of in _FACTS.items():
        counts = Counter(map(value_of, recorded))
        several = [f"{value} ({n} of {len(recorded)} runs)" for value, n in counts.items()]
        found.append((fact, "; ".join(several) if len(counts) > 1 else next(iter(counts))))
    return found


def training_dates(results: Results) -> str:
    """First and last day on which a process of a run was started: also of published studies."""
    starts = [
        datetime.fromisoformat(attempt.started).astimezone(UTC)
        for record in records(results).values()
        for attempt in record.attempts
    ]
    days = [start.date().isoformat() for start in (min(starts), max(starts))]
    return days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"
