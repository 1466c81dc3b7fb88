"""What a study looks like in MLflow: its training runs, and one run "study" with all that was made
of them: report, figures, tables.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.evidence.collect import check_run
from mhclite.runs.folder import finished_run, read_schema
from mhclite.tracking.content import TrackedRun, cell_of, training_run

STUDY_RUN = "study"  # no training run can have this id: theirs have hyphens
TAG_LIMIT = 8000  # characters that MLflow keeps of a run's tag


def study_artifacts(folder: Path) -> dict[str, Path]:
    """The study's own files: report, figures, tables and what they were made of."""
    single = ["report.html", "study.json", "runs.csv", "stability.json"]
    several = ["figures/*.png", "figures/*.svg", "tables/*", "throughput/*.json", "sinkhorn.json"]
    for name in (*single, "tables/results.md", "tables/results.csv"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} does not exist: the study is not complete; run "
                "`snakemake --cores all`, which makes what is missing"
            )
    files = [folder / name for name in single]
    for pattern in several:
        files += sorted(file for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in files}


def mean_losses(folder: Path, corpora: int) -> dict[str, float]:
    """Mean final validation loss of every cell of the grid, as in the table of results."""
    means = {}
    with (folder / "tables" / "results.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["kind"] == "variant" and row["validation_loss"]:
                cell = cell_of(row["corpus"], row["model"], row["variant"], corpora)
                means[f"mean_validation_loss/{cell}"] = float(row["validation_loss"])
    return means


def study_run(folder: Path, study: dict[str, Any], runs: list[TrackedRun]) -> TrackedRun:
    """The run that holds the study's figures, tables and report."""
    end = max(run.end for run in runs)
    seconds = [value for run in runs for name, value, *_ in run.metrics if name == "cost/seconds"]
    headline = {
        **mean_losses(folder, len(study["corpora"])),
        "study/runs": len(runs),
        "study/diverged_runs": sum(run.tags["status"] == "diverged" for run in runs),
        "study/training_seconds": sum(seconds),
    }
    return TrackedRun(
        name=STUDY_RUN,
        tags={
            "kind": "study",
            "status": "completed",
            "mlflow.source.name": "python -m mhclite report",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": description(folder, study),
        },
        params={},
        metrics=[(name, float(value), end, 0) for name, value in headline.items()],
        artifacts=study_artifacts(folder),
        start=end,  # after the last run: it stands on top of the list
        end=end,
    )


def description(folder: Path, study: dict[str, Any]) -> str:
    """The study in Markdown, for readers of the UI: the table of results, if it is short enough."""
    table = (folder / "tables" / "results.md").read_text(encoding="utf-8")
    head = (
        f"# {study.get('title', study['name'])}\n\nThe whole study: report, figures and tables are "
        "under *Artifacts*. The training runs are the other runs of this experiment.\n\n"
    )
    text = head + re.sub(" {2,}|-{4,}", lambda found: found[0][:3].replace("   ", " "), table)
    return text if len(text) <= TAG_LIMIT else f"{head}The results: tables/results.md there."


def tracked_runs(folder: Path) -> tuple[dict[str, Any], list[TrackedRun]]:
    """(study.json, all runs of results/<study> with "study" first, then in the study's order).

    A missing, unfinished or outdated part is a `UserError` that names it.
    """
    study = read_schema(folder / "study.json", "the study's description", "collect")
    stability = read_schema(folder / "stability.json", "the stability of the runs", "stability")
    study_artifacts(folder)  # before the runs, which take longer: is the study complete?
    runs = []
    for name, configuration in study["runs"].items():
        run = finished_run(folder / "runs", name)
        manifest = study["corpora"][configuration["corpus"]]["manifest"]
        check_run(run, configuration, manifest)
        if name not in stability["runs"]:
            raise UserError(
                f"{folder / 'stability.json'} has no run {name}; write it again with "
                "`python -m mhclite stability`"
            )
        runs.append(
            training_run(folder, run, configuration, stability["runs"][name], study["corpora"])
        )
    return study, [study_run(folder, study, runs), *runs]
