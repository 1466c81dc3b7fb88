"""What a study looks like in MLflow: its training runs, and one run "study" that holds what was
made of them: report, figures and tables.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.evidence.results import Results, load_results
from mhclite.tracking.content import NOTE, TrackedRun, training_run

# Tags of a study's experiment: what the UI says of it.
EXPERIMENT_TAGS = {
    # Without it the UI asks whether this is about agents or about training.
    "mlflow.experimentKind": "custom_model_development",
    # The UI shows the first line, until the reader unfolds the rest.
    NOTE: (
        "Traces and no runs? Choose *Model training* at the top left. The run *study* has the "
        "report; *Views* (top right) the variants of each model size.\n\nRuns of a *cell* differ "
        "in their seed. This is a copy of the results folder: what is changed here is lost when "
        "the study is tracked again."
    ),
}
STUDY_RUN = "study"  # no training run can have this id: theirs have hyphens
TAG_LIMIT = 8000  # characters that MLflow keeps of a run's tag


def study_artifacts(folder: Path) -> dict[str, Path]:
    """The study's own files: report, figures, tables and what they were made of."""
    single = ["report.html", "study.json", "runs.csv", "stability.json"]
    several = ["figures/*.png", "figures/*.svg", "tables/*", "throughput/*.json", "sinkhorn.json"]
    for name in (*single, "tables/results.md"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} does not exist: the study is not complete; run "
                "`snakemake --cores all`, which makes what is missing"
            )
    files = [folder / name for name in single]
    for pattern in several:
        files += sorted(file for file in folder.glob(pattern) if file.is_file())
    return {file.relative_to(folder).as_posix(): file for file in files}


def study_run(results: Results, end: int) -> TrackedRun:
    """The run that holds the study's figures, tables and report; `end`: when its last run ended."""
    return TrackedRun(
        name=STUDY_RUN,
        tags={
            "kind": "study",
            "status": "completed",
            "mlflow.source.name": "python -m mhclite evidence",
            "mlflow.source.type": "LOCAL",
            NOTE: description(results.folder, results.study),
        },
        params={},
        metrics=[],
        artifacts=study_artifacts(results.folder),
        start=end,  # after the last run: it stands on top of the list
        end=end,
    )


def description(folder: Path, study: dict[str, Any]) -> str:
    """The study in Markdown, for readers of the UI: the table of results, if it is short enough."""
    table = (folder / "tables" / "results.md").read_text(encoding="utf-8")
    head = f"# {study.get('title', study['name'])}\n\nReport, figures and tables: *Artifacts*.\n\n"
    return head + table if len(head + table) <= TAG_LIMIT else head


def tracked_runs(folder: Path) -> tuple[dict[str, Any], list[TrackedRun]]:
    """(study.json, all runs of results/<study> with "study" first, then in the study's order).

    A missing, unfinished or outdated part is a `UserError` that names it.
    """
    study_artifacts(folder)  # before the runs, which take longer: is the study complete?
    results = load_results(folder)
    rows = results.all_runs.to_dict("records")
    runs = [training_run(results, {str(key): row[key] for key in row}) for row in rows]
    return results.study, [study_run(results, max(run.end for run in runs)), *runs]
