"""What a study looks like in MLflow: its training runs, and one run "study" that holds what was
made of them: report, figures and tables.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.evidence.results import Results, load_results
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
    """Mean final validation loss of every cell of the grid, from the table of results."""
    means = {}
    with (folder / "tables" / "results.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["kind"] == "variant" and row["validation_loss"]:
                cell = f"mean_validation_loss/{cell_of(row, corpora)}"
                means[cell] = float(row["validation_loss"])
    return means


def study_run(results: Results, end: int) -> TrackedRun:
    """The run that holds the study's figures, tables and report; `end`: when its last run ended."""
    folder, runs = results.folder, results.all_runs
    headline = {
        **mean_losses(folder, len(results.corpora)),
        "study/runs": len(runs),
        "study/diverged_runs": sum(runs["status"] == "diverged"),
        "study/training_seconds": sum(runs["seconds"]),
    }
    return TrackedRun(
        name=STUDY_RUN,
        tags={
            "kind": "study",
            "status": "completed",
            "mlflow.source.name": "python -m mhclite evidence",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": description(folder, results.study),
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
    study_artifacts(folder)  # before the runs, which take longer: is the study complete?
    results = load_results(folder)
    rows = results.all_runs.to_dict("records")
    runs = [training_run(results, {str(key): row[key] for key in row}) for row in rows]
    return results.study, [study_run(results, max(run.end for run in runs)), *runs]
