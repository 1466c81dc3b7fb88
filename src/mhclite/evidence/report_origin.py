"""Where the report's numbers come from: hardware, versions and commits, and how to redo them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from mhclite.evidence.results import Results
from mhclite.runs.folder import RunFolder
from mhclite.runs.provenance import GitState, Provenance, hardware_in_words

MOST_NAMED = 4  # runs; each has its own run.json


def _commit(git: GitState) -> str:
    if git.commit is None:
        return "unknown (not run from a git checkout)"
    return git.commit + (" with uncommitted changes" if git.dirty else "")


# Row of the table -> the value of one run.
_FACTS: dict[str, Callable[[Provenance], str]] = {
    "Commit": lambda run: _commit(run.git),
    "Hardware": lambda run: hardware_in_words(run.hardware),
    "Platform": lambda run: run.platform,
    "Versions": lambda run: ", ".join(f"{name} {v}" for name, v in run.versions.items()),
}


def origin_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table of provenance.

    One row per fact where all runs agree; where they differ, one for each value with its runs: if
    they are many, the first of them (each run's run.json has its own).
    """
    recorded = {
        run: RunFolder(results.folder / "runs" / run).record().provenance
        for run in results.all_runs["run"]
    }
    rows = []
    for fact, value_of in _FACTS.items():
        runs_of: dict[str, list[str]] = {}
        for run, provenance in recorded.items():
            runs_of.setdefault(value_of(provenance), []).append(run)
        for value, runs in runs_of.items():
            everywhere = len(runs) == len(recorded)
            more = f" and {len(runs) - MOST_NAMED} more" if len(runs) > MOST_NAMED else ""
            names = f"{len(runs)} of {len(recorded)}: {', '.join(runs[:MOST_NAMED])}{more}"
            rows.append([fact, value, f"all {len(runs)}" if everywhere else names])
    rows.append(["Training begun (UTC)", training_dates(results), f"all {len(recorded)}"])
    return ["Fact", "Value", "Runs"], rows


def training_dates(results: Results) -> str:
    """First and last day on which a process of a run was started: also of published studies."""
    starts = [
        datetime.fromisoformat(attempt.started).astimezone(UTC)
        for run in results.all_runs["run"]
        for attempt in RunFolder(results.folder / "runs" / run).record().attempts
    ]
    days = [start.date().isoformat() for start in (min(starts), max(starts))]
    return days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"


def rerun_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: a kind of number, the file that has it, the command that makes it again.

    Commands are for the root of the repository; RUN and MODEL stand for a run and a model.
    """
    folder = f"results/{results.name}"
    again = "snakemake --cores all --configfile STUDY.yaml"
    rows = [
        ["everything that is missing or outdated", f"{folder}/", again],
        [
            "loss, gradient norm and speed of one run",
            f"{folder}/runs/RUN/metrics.jsonl, summary.json",
            f"{again} --force {folder}/runs/RUN/summary.json",
        ],
        [
            "H_res of one run: row sums, gain, log(1/ν), distance from identity",
            f"{folder}/probes/RUN.json",
            f"{again} --force {folder}/probes/RUN.json",
        ],
        [
            "throughput, memory, FLOPs of one model size",
            f"{folder}/throughput/MODEL.json",
            f"{again} --force {folder}/throughput/MODEL.json",
        ],
        [
            "spikes and gradient-norm fluctuation",
            f"{folder}/stability.json",
            f"{again} --force {folder}/stability.json",
        ],
        [
            "one row per run, curves",
            f"{folder}/runs.csv, curves.csv",
            f"{again} --force {folder}/runs.csv",
        ],
        [
            "means, intervals, verdicts, figures, this page",
            f"{folder}/tables/, figures/, report.html",
            f"python -m mhclite evidence --results {folder}",
        ],
    ]
    return ["Number", "File", "Command"], rows
