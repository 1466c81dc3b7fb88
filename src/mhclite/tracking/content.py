"""What a training run looks like in MLflow, as plain data.

Its numbers are those of runs.csv, which `collect` checked; its curves, times and provenance are
read from the run folder. A run's digest covers all of it: an MLflow run that carries the digest is
up to date.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mhclite.evidence.results import Results, evenly_spaced
from mhclite.files import digest_of, read_json, read_jsonl, sha256_of
from mhclite.runs.folder import FinishedRun, RunFolder
from mhclite.runs.key import settings_digest
from mhclite.runs.provenance import hardware_in_words
from mhclite.study.sections import BASE
from mhclite.training.live import CURVE_POINTS, TRAINING_CURVES, VALIDATION_CURVES

SHORT = 12  # hex digits of a digest in a tag; the whole digests are in run.json

# Metric in MLflow -> column of runs.csv.
SUMMARY = {
    "final/validation_loss": "validation_loss",
    "final/validation_bits_per_byte": "validation_bits_per_byte",
    "final/train_loss": "train_loss",
    "final/best_validation_loss": "best_validation_loss",
    "final/unigram_loss": "unigram",
    "final/bigram_loss": "bigram",
    "stability/diverged_step": "diverged_step",
    "stability/loss_spikes": "loss_spikes",
    "stability/grad_norm_spikes": "grad_norm_spikes",
    "stability/spikes_per_1000_steps": "spikes_per_1000_steps",
    "stability/grad_norm_mean": "grad_norm_mean",
    "stability/grad_norm_fluctuation": "grad_norm_fluctuation",
    "mixing/single_max_deviation": "single_max_deviation",
    "mixing/product_max_deviation": "product_max_deviation",
    "mixing/gain_forward": "gain_forward",
    "mixing/gain_backward": "gain_backward",
    "mixing/identity_distance": "identity_distance",
    "mixing/sinkhorn_share_above_30": "sinkhorn_share_above_30",
    "cost/seconds": "seconds",
    "cost/tokens_per_second": "tokens_per_second",
    "cost/parameters": "parameters",
    "cost/connection_parameters": "connection_parameters",
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
        return digest_of(
            {
                "name": self.name,
                "tags": self.tags,
                "params": self.params,
                "metrics": self.metrics,
                "artifacts": {path: sha256_of(file) for path, file in self.artifacts.items()},
                "times": [self.start, self.end],
            }
        )


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

    From timing.jsonl; without it, when summary.json was written.
    """
    times: dict[int, int] = {}
    if (folder / "timing.jsonl").is_file():
        for line in read_jsonl(folder / "timing.jsonl"):
            times.setdefault(0, round(1000 * (line["wall"] - line["seconds"])))
            times[int(line["step"])] = round(1000 * line["wall"])
    if not times:
        end = round(1000 * (folder / "summary.json").stat().st_mtime)
        times = dict.fromkeys(range(read_json(folder / "summary.json")["steps"] + 1), end)
    return times


def curve_points(
    metrics: list[dict[str, Any]], times: dict[int, int]
) -> list[tuple[str, float, int, int]]:
    """The curves of a run: thinned training steps, all evaluations; finite values only."""
    trained = thinned([line for line in metrics if line["step"] > 0])
    evaluated = [line for line in metrics if "validation_loss" in line]
    points = []
    for lines, curves in ((trained, TRAINING_CURVES), (evaluated, VALIDATION_CURVES)):
        for name, key in curves.items():
            for line in lines:
                value, step = line.get(key), line["step"]
                if value is not None and math.isfinite(value):
                    points.append((name, float(value), times.get(step, max(times.values())), step))
    return points


def cell_of(row: dict[str, Any], corpora: int) -> str:
    """Name of the cell of the study's grid that a row of a table is in; its runs differ in seed."""
    names = [row["corpus"], row["model"], row["variant"]]
    return " ".join(names if corpora > 1 else names[1:])


def run_tags(run: FinishedRun, row: dict[str, Any], corpora: int) -> dict[str, str]:
    """Tags to find, filter and group a training run by; `corpora`: how many the study has."""
    record = run.record
    git = record.provenance.git
    changed = "" if row["condition"] == BASE else f" {row['condition']}"
    same = ("corpus", "model", "variant", "condition", "seed", "n_streams", "status")
    tags = {
        "kind": "training",
        "cell": cell_of(row, corpora) + changed,
        **{name: str(row[name]) for name in same},
        "depth": str(row["n_layer"]),
        "config_digest": settings_digest(record.config)[:SHORT],
        "corpus_digest": record.corpus.digest[:SHORT],
        "hardware": hardware_in_words(record.provenance.hardware),
        "mlflow.source.name": "python -m mhclite train",
        "mlflow.source.type": "LOCAL",
    }
    if git.commit is not None:
        # The UI shows mlflow.source.git.commit in its column "Source".
        tags |= {"git_commit": git.commit, "mlflow.source.git.commit": git.commit}
        tags["git_dirty"] = "true" if git.dirty else "false"
    if row["status"] == "diverged":
        tags["diverged_step"] = str(row["diverged_step"])
        tags["mlflow.note.content"] = (
            f"**Diverged at step {row['diverged_step']}**: the loss or the gradient norm became "
            "non-finite there. This is a result of the study, not a failure; the curves end before "
            "that step."
        )
    return tags


def training_run(results: Results, row: dict[str, Any]) -> TrackedRun:
    """A training run; `row` is its row of runs.csv."""
    name = row["run"]
    run = RunFolder(results.folder / "runs" / name).finished()
    settings = {key: value for key, value in results.study["runs"][name].items() if key != "run"}
    connection = settings["connection"]
    settings["connection"] = {k: v for k, v in connection.items() if k != "options"}
    settings["connection"] |= connection["options"]  # the UI lists them side by side
    files = results.folder / "runs" / name
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
        tags=run_tags(run, row, len(results.corpora)),
        params=flatten(settings),
        metrics=metrics + curve_points(run.metrics, times),
        artifacts={
            **{file: files / file for file in ("run.json", "summary.json", "metrics.jsonl")},
            f"probes/{name}.json": results.folder / "probes" / f"{name}.json",
        },
        start=start,
        end=end,
    )
