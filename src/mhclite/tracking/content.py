"""What a training run looks like in MLflow, as plain data.

Everything here is a pure function of the results folder, and a run's digest covers all of it: an
MLflow run that carries the digest is up to date.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mhclite.evidence.collect import run_row
from mhclite.files import digest_of, read_json, read_jsonl, sha256_of
from mhclite.runs.folder import FinishedRun, read_schema
from mhclite.study.settings import BASE
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
    """One run as MLflow shall hold it. Times are milliseconds since 1970."""

    name: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: list[tuple[str, float, int, int]]  # name, value, time, step; all values finite
    artifacts: dict[str, Path]  # path in MLflow -> file of the same name
    start: int
    end: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that MLflow is given, the content of the artifacts included."""
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
    """At most `CURVE_POINTS` lines, evenly spaced, the first and the last among them."""
    if len(lines) <= CURVE_POINTS:
        return lines
    even = np.unique(np.linspace(0, len(lines) - 1, CURVE_POINTS).round().astype(int))
    return [lines[at] for at in even]


def step_times(folder: Path) -> dict[int, int]:
    """Step -> the time when it was done, in milliseconds, from timing.jsonl; step 0 is the start.

    A run folder without timing.jsonl counts backwards from the time of its summary, at the mean
    speed of the run.
    """
    if (folder / "timing.jsonl").is_file():
        times: dict[int, int] = {}
        for line in read_jsonl(folder / "timing.jsonl"):
            if not times:
                times[0] = round(1000 * (line["wall"] - line["seconds"]))
            times[int(line["step"])] = round(1000 * line["wall"])
        if times:
            return times
    summary = read_json(folder / "summary.json")
    end = round(1000 * (folder / "summary.json").stat().st_mtime)
    duration = round(1000 * summary["seconds"])
    return {
        step: end - duration + round(duration * step / max(summary["steps"], 1))
        for step in range(summary["steps"] + 1)
    }


def curve_points(
    metrics: list[dict[str, Any]], times: dict[int, int]
) -> list[tuple[str, float, int, int]]:
    """The curves of a run: training steps thinned, all evaluations; no value that is not finite."""
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


def hardware_of(hardware: dict[str, Any]) -> str:
    """The device in a few words: the GPU, or else the processor."""
    if hardware.get("gpu"):
        count = hardware.get("gpus", 1)
        return f"{count} x {hardware['gpu']}" if count > 1 else str(hardware["gpu"])
    return f"{hardware['cpu']}, {hardware['cores']} cores"


def cell_of(corpus: str, model: str, variant: str, corpora: int) -> str:
    """Name of a cell of the study's grid: what its runs, one a seed, share in their names."""
    return " ".join([corpus, model, variant] if corpora > 1 else [model, variant])


def run_tags(run: FinishedRun, configuration: dict[str, Any], corpora: int) -> dict[str, str]:
    """Tags to find, filter and group a training run by; `corpora`: how many the study has."""
    provenance = run.description["provenance"]
    git = provenance["git"]
    corpus, model = configuration["corpus"], configuration["model"]["name"]
    variant, condition = configuration["connection"]["variant"], configuration["condition"]
    changed = "" if condition == BASE else f" {condition}"
    tags = {
        "kind": "training",
        "cell": cell_of(corpus, model, variant, corpora) + changed,
        "corpus": corpus,
        "model": model,
        "depth": str(configuration["model"]["n_layer"]),
        "variant": variant,
        "condition": condition,
        "seed": str(configuration["seed"]),
        "n_streams": str(configuration["connection"]["n_streams"]),
        "status": run.summary["status"],
        "config_digest": digest_of(run.description["config"])[:SHORT],
        "corpus_digest": run.description["corpus"]["digest"][:SHORT],
        "hardware": hardware_of(provenance["hardware"]),
        "mlflow.source.name": "python -m mhclite train",
        "mlflow.source.type": "LOCAL",
    }
    if git["commit"] is not None:
        # The UI shows mlflow.source.git.commit in its column "Source".
        tags |= {"git_commit": git["commit"], "mlflow.source.git.commit": git["commit"]}
        tags["git_dirty"] = "true" if git["dirty"] else "false"
    if run.summary["status"] == "diverged":
        step = run.summary["diverged_step"]
        tags["diverged_step"] = str(step)
        tags["mlflow.note.content"] = (
            f"**Diverged at step {step}**: the loss or the gradient norm became non-finite there. "
            "This is a result of the study, not a failure; the curves end before that step."
        )
    return tags


def training_run(
    folder: Path,
    run: FinishedRun,
    configuration: dict[str, Any],
    verdict: dict[str, Any],
    corpora: dict[str, Any],
) -> TrackedRun:
    """A finished training run; `verdict` is its part of stability.json, `corpora` study.json's."""
    baselines = corpora[configuration["corpus"]]["manifest"]["baselines"]
    probe_file = folder / "probes" / f"{run.run}.json"
    probe = read_schema(probe_file, f"the probe of run {run.run}", "probe")
    row = run_row(run, configuration, verdict, probe, baselines)
    times = step_times(folder / "runs" / run.run)
    start, end = min(times.values()), max(times.values())
    summary = {name: row[column] for name, column in SUMMARY.items()}
    summary["stability/diverged"] = row["status"] == "diverged"
    metrics = [
        (name, float(value), end, 0)  # step 0: the UI draws bars, not curves of one point
        for name, value in summary.items()
        if value is not None and math.isfinite(value)
    ]
    files = folder / "runs" / run.run
    return TrackedRun(
        name=run.run,
        tags=run_tags(run, configuration, len(corpora)),
        params=flatten({key: value for key, value in configuration.items() if key != "run"}),
        metrics=metrics + curve_points(run.metrics, times),
        artifacts={
            **{name: files / name for name in ("run.json", "summary.json", "metrics.jsonl")},
            f"probes/{probe_file.name}": probe_file,
        },
        start=start,
        end=end,
    )
