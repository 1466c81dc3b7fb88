"""What a study looks like in MLflow, as plain data.

It has its training runs, and one run "study": report, figures and tables. Of each model size the UI
has a named view ("Views" above the runs): its variants compared, means over seeds.

The numbers of a run are those of runs.csv, which `collect` checked; its curves, times and
provenance are read from the run folder. A run's digest covers all of it: an MLflow run that carries
the digest is up to date.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from mhclite.errors import UserError
from mhclite.evidence.results import Results, evenly_spaced, load_results
from mhclite.files import digest_of, read_json, read_jsonl, sha256_of
from mhclite.runs.folder import FinishedRun, RunFolder
from mhclite.runs.provenance import hardware_in_words
from mhclite.study.sections import BASE

CURVE_POINTS = 250  # training steps kept of a run; metrics.jsonl has all
# Metric in MLflow -> key in metrics.jsonl. The UI makes one section of charts of each prefix.
TRAINING_CURVES = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
}
VALIDATION_CURVES = {
    "validation/loss": "validation_loss",
    "validation/bits_per_byte": "validation_bits_per_byte",
    "validation/attention_logit": "attention_logit",
}
MIXING_CURVES = {  # -> key in mixing.jsonl: a number, or one for each sub-layer, of which the mean
    f"mixing_in_training/{key}": key
    for key in ("gain_forward", "gain_backward", "identity_distance", "stream_similarity")
}

# Section of the UI's charts -> columns of runs.csv.
COLUMNS = {
    "final": ("validation_loss", "validation_bits_per_byte", "train_loss"),
    "stability": (
        *("diverged_step", "loss_spikes", "grad_norm_spikes", "spikes_per_1000_steps"),
        *("grad_norm_mean", "grad_norm_fluctuation"),
    ),
    "mixing": (
        *("single_max_deviation", "product_max_deviation", "gain_forward", "gain_backward"),
        *("identity_distance", "sinkhorn_share_above_30"),
    ),
    "cost": ("seconds", "tokens_per_second", "parameters", "connection_parameters"),
}
SUMMARY = {f"{section}/{name}": name for section, names in COLUMNS.items() for name in names}

STUDY_RUN = "study"  # no training run can have this id: theirs have hyphens
# Tags of a study's experiment. Without the first the UI asks what the experiment is about.
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.note.content": "The run *study* has the report; *Views* (top right) the variants of "
    "each model size. This is a copy of the results folder: what is changed here is lost when the "
    "study is tracked again.",
}

VIEW = "mlflow.sharedViewState."  # tag of a view, as JSON of the UI's own state
CURVES = {**VALIDATION_CURVES, **TRAINING_CURVES, **MIXING_CURVES}
# Sections of charts in the order of interest.
SECTIONS = ("validation", "final", "train", "mixing_in_training", "mixing", "stability", "cost")
SELECTED = (  # columns of the table of runs
    "metrics.`final/validation_loss`",
    *(f"tags.`{tag}`" for tag in ("variant", "condition", "model", "seed", "status")),
)
LINE = {  # what the UI needs for curves besides what every chart has: its own defaults
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "xAxisKey": "step",
    "yAxisKey": "metric",
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


@dataclass(frozen=True)
class TrackedRun:
    """One run as MLflow is to hold it. Times are milliseconds since 1970."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[tuple[str, float, int, int]]  # name, value, time, step; finite values
    artifacts: dict[str, Path]  # path in MLflow -> file of the same name
    start: int
    end: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that MLflow is given, including the content of the artifacts."""
        files = {path: sha256_of(file) for path, file in self.artifacts.items()}
        return digest_of({**vars(self), "artifacts": files})


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b` -> text; settings without a value are left out."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = str(value)
    return flat


def thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `CURVE_POINTS` lines, evenly spaced, including the first and the last."""
    if len(lines) <= CURVE_POINTS:
        return lines
    return [lines[at] for at in evenly_spaced(len(lines), CURVE_POINTS)]


def step_times(folder: Path) -> dict[int, int]:
    """Step -> when it was done, in milliseconds since 1970; step 0 is the start.

    From timing.jsonl; what is not known of it is when summary.json was written.
    """
    end = round(1000 * (folder / "summary.json").stat().st_mtime)
    times = dict.fromkeys(range(read_json(folder / "summary.json")["steps"] + 1), end)
    timing = folder / "timing.jsonl"
    if lines := read_jsonl(timing) if timing.is_file() else []:
        times |= {int(line["step"]): round(1000 * line["wall"]) for line in lines}
        times[0] = round(1000 * (lines[0]["wall"] - lines[0]["seconds"]))
    return times


def curve_points(
    metrics: list[dict[str, Any]], mixing: list[dict[str, Any]], times: dict[int, int]
) -> list[tuple[str, float, int, int]]:
    """The curves of a run: thinned training steps, all evaluations; finite values only."""
    trained = thinned([line for line in metrics if line["step"] > 0])
    evaluated = [line for line in metrics if "validation_loss" in line]
    curves = (trained, TRAINING_CURVES), (evaluated, VALIDATION_CURVES), (mixing, MIXING_CURVES)
    points = []
    for lines, names in curves:
        for name, key in names.items():
            for line in lines:
                value, step = line.get(key), line["step"]
                if isinstance(value, list):
                    value = fmean(value) if value else None
                if value is not None and math.isfinite(value):
                    points.append((name, float(value), times[step], step))
    return points


def run_tags(results: Results, run: FinishedRun, row: dict[str, Any]) -> dict[str, str]:
    """Tags to find, filter and group a training run by."""
    record, git = run.record, run.record.provenance.git
    same = ("corpus", "model", "variant", "condition", "seed", "n_streams", "status")
    names = {name: str(row[name]) for name in same}
    # What differs in the seed alone.
    cell = [names["corpus"]] * (len(results.corpora) > 1) + [names["model"], names["variant"]]
    cell += [names["condition"]] * (names["condition"] != BASE)
    tags = {
        "kind": "training",
        "cell": " ".join(cell),
        **names,
        "hardware": hardware_in_words(record.provenance.hardware),
        "mlflow.source.name": "python -m mhclite train",
    }
    if git.commit is not None:
        # The UI shows mlflow.source.git.commit in its column "Source".
        tags |= {"git_commit": git.commit, "mlflow.source.git.commit": git.commit}
        tags["git_dirty"] = str(bool(git.dirty)).lower()
    if row["status"] == "diverged":
        tags["diverged_step"] = str(row["diverged_step"])
    return tags


def training_run(results: Results, row: dict[str, Any]) -> TrackedRun:
    """A training run; `row` is its row of runs.csv."""
    name = row["run"]
    run = RunFolder(results.folder / "runs" / name).finished()
    settings = {**results.study["runs"][name], "run": None}
    connection = settings["connection"]  # the UI lists its options side by side with the rest
    settings["connection"] = {**connection, "options": None, **connection["options"]}
    files, log = results.folder / "runs" / name, results.folder / "logs/train" / f"{name}.log"
    mixing = read_jsonl(files / "mixing.jsonl") if (files / "mixing.jsonl").is_file() else []
    times = step_times(files)
    start, end = min(times.values()), max(times.values())
    summary = {metric: row[column] for metric, column in SUMMARY.items()}
    summary["stability/diverged"] = row["status"] == "diverged"
    metrics = [
        (metric, float(value), end, 0)  # step 0: the UI draws bars, not curves of one point
        for metric, value in summary.items()
        if pd.notna(value) and math.isfinite(value)
    ]
    return TrackedRun(
        name=name,
        tags=run_tags(results, run, row),
        params=flatten(settings),
        metrics=metrics + curve_points(run.metrics, mixing, times),
        artifacts={
            **{file: files / file for file in ("run.json", "summary.json", "metrics.jsonl")},
            f"probes/{name}.json": results.folder / "probes" / f"{name}.json",
            **({f"logs/{name}.log": log} if log.is_file() else {}),
        },
        start=start,
        end=end,
    )


def study_artifacts(folder: Path) -> dict[str, Path]:
    """The study's own files: report, figures, tables and what they were made of."""
    for name in ("report.html", "study.json", "runs.csv", "stability.json", "tables/results.md"):
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name} does not exist: the study is not complete; run "
                "`snakemake --cores all`, which makes what is missing"
            )
    kept = (
        *("report.html", "runs.csv", "study.json", "stability.json", "sinkhorn.json"),
        *("figures/*.png", "figures/*.svg", "tables/*", "throughput/*.json"),
    )
    files = [file for pattern in kept for file in sorted(folder.glob(pattern)) if file.is_file()]
    return {file.relative_to(folder).as_posix(): file for file in files}


def study_run(folder: Path, end: int) -> TrackedRun:
    """The run that holds the study's figures, tables and report; `end`: when its last run ended."""
    return TrackedRun(
        name=STUDY_RUN,
        tags={
            "kind": "study",
            "status": "completed",
            "mlflow.source.name": "python -m mhclite evidence",
        },
        params={},
        metrics=[],
        artifacts=study_artifacts(folder),
        start=end,  # after the last run: it stands on top of the list
        end=end,
    )


def tracked_runs(folder: Path) -> tuple[dict[str, Any], list[TrackedRun]]:
    """(study.json, all runs of results/<study> with "study" first, then in the study's order).

    A missing, unfinished or outdated part is a `UserError` that names it.
    """
    study_artifacts(folder)  # before the runs, which take longer: is the study complete?
    results = load_results(folder)
    rows = results.all_runs.to_dict("records")
    runs = [training_run(results, {str(key): row[key] for key in row}) for row in rows]
    return results.study, [study_run(folder, max(run.end for run in runs)), *runs]


def charts() -> list[dict[str, Any]]:
    """One chart for each metric, in the section of its prefix."""
    return [
        {
            "uuid": name,
            "type": "LINE" if name in CURVES else "BAR",
            "metricKey": name,
            "displayName": name,
            "metricSectionId": section,
            "runsCountToCompare": 100,
            "isGenerated": True,
            **(LINE if name in CURVES else {}),
        }
        for section in SECTIONS
        for name in (*CURVES, "stability/diverged", *SUMMARY)
        if name.split("/")[0] == section
    ]


def models_of(runs: list[TrackedRun]) -> list[str]:
    """The model sizes of training runs, which name the views."""
    return list(dict.fromkeys(run.tags["model"] for run in runs if "model" in run.tags))


def views(runs: list[TrackedRun], created: int) -> dict[str, str]:
    """Tags of an experiment: a view for each model size; `created` in milliseconds.

    The form is that of the pinned MLflow: a UI that does not know it shows its default view.
    """
    found = {}
    for model in models_of(runs):
        own = [run for run in runs if run.tags.get("model") == model]
        state = {
            "searchFilter": f"tags.kind = 'training' and tags.model = '{model}'",
            "orderByKey": "metrics.`final/validation_loss`",
            "orderByAsc": True,
            "runsHiddenMode": "SHOW_ALL",
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": "cell"}],
            },
            "groupsExpanded": {f"tag.cell.{run.tags['cell']}": False for run in own},
            "selectedColumns": list(SELECTED),
            "columnOrder": ["attributes.`Run Name`", *SELECTED],
            "compareRunCharts": charts(),
            "compareRunSections": [
                {"uuid": name, "name": name, "display": True, "isReordered": True}
                | {"isGenerated": True}
                for name in SECTIONS
            ],
            "isAccordionReordered": True,
        }
        envelope = {"name": f"{model}: variants compared", "createdAt": created}
        envelope |= {"updatedAt": created, "state": json.dumps(state, separators=(",", ":"))}
        found[f"{VIEW}{model}"] = json.dumps(envelope)
    return found
