"""Where the report's numbers come from: hardware, versions and commits."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pandas as pd

from mhclite.evidence.results import Results
from mhclite.evidence.tables import Table
from mhclite.runs.folder import RunFolder, RunRecord
from mhclite.runs.provenance import Provenance, hardware_in_words

MOST_NAMED = 4  # runs; each has its own run.json


def _commit(run: Provenance) -> str:
    if run.git.commit is None:
        return "unknown (not run from a git checkout)"
    return run.git.commit + (" with uncommitted changes" if run.git.dirty else "")


# Row of the table -> the value of one run.
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


def origin(results: Results) -> Table:
    """The table of provenance: a row for each value of a fact, with the first runs that have it."""
    recorded = {run: record.provenance for run, record in records(results).items()}
    rows = []
    for fact, value_of in _FACTS.items():
        runs_of: dict[str, list[str]] = {}
        for run, provenance in recorded.items():
            runs_of.setdefault(value_of(provenance), []).append(run)
        for value, runs in runs_of.items():
            more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
            names = f"{len(runs)} of {len(recorded)}: {', '.join(runs[:MOST_NAMED])}{more}"
            everywhere = len(runs) == len(recorded)
            rows.append((fact, value, f"all {len(runs)}" if everywhere else names))
    table = pd.DataFrame(rows, columns=["Fact", "Value", "Runs"])
    return Table(
        notes="",
        data=table,
        display=table,
        numeric=(),
        name="origin",
        title="Origin of the training runs",
    )


def training_dates(results: Results) -> str:
    """First and last day on which a process of a run was started: also of published studies."""
    starts = [
        datetime.fromisoformat(attempt.started).astimezone(UTC)
        for record in records(results).values()
        for attempt in record.attempts
    ]
    days = [start.date().isoformat() for start in (min(starts), max(starts))]
    return days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"
