"""Values of a metric, seed by seed, from the collected runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.metrics import COUNTS, METRICS
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import Interval, difference
from mhclite.study.sections import BASE

FAIR = {"final_norm": "after_sum"}  # the head is given one norm, as the plain residual's
# Columns of metrics that are made from others.
SOURCES = {"gap_growth": ("product_deviation_99", "single_deviation_99")}


def deepest_first(results: Results) -> list[str]:
    """Model sizes, the deepest first."""
    return sorted(results.models, key=results.n_layer, reverse=True)


def keeps_sums(variant: str) -> bool:
    """Whether the rows and columns of its H_res are meant to sum to 1."""
    return VARIANTS[variant].mixes in ("never", "doubly_stochastic")


def _changes(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a condition sets, by the names that a claim's `setting` has; empty if training too."""
    if about["training"] or about["learning_rate_factor"] != 1:
        return {}
    width = about.get("match_parameters")  # studies of earlier versions have neither
    matched = {"match_parameters": width} if width else {}
    return {**about["connections"], **about.get("model", {}), **matched}


def conditions_that_change(results: Results, setting: str) -> list[str]:
    """Conditions that change this setting and nothing else."""
    found = results.settings["conditions"].items()
    return [name for name, about in found if list(_changes(about)) == [setting]]


def condition_of(results: Results, variant: str, setting: Mapping[str, Any]) -> str | None:
    """The runs in which a claim's `setting` holds for a variant, and nothing else changes.

    The study's own runs, if they have it; else the condition that sets just that; else None.
    """
    own = results.settings["connections"]
    if all(own.get(key) == value for key, value in setting.items()):
        return BASE
    for name, condition in results.settings["conditions"].items():
        if variant in condition["variants"] and _changes(condition) == dict(setting):
            return str(name)
    return None


def runs_of(
    results: Results, corpus: str, model: str, variant: str, setting: Mapping[str, Any]
) -> pd.DataFrame:
    """The rows of runs.csv of one variant; empty if no run has the setting."""
    condition = condition_of(results, variant, setting)
    cell = (corpus, model, variant, str(condition))
    return results.runs_by_cell.get(cell, results.all_runs.iloc[:0])


def measured(row: Mapping[Any, Any], column: str) -> float:
    """A number of runs.csv; NaN where a study of an earlier version has no such column."""
    value = row.get(column, math.nan)
    return math.nan if pd.isna(value) else float(value)


def completed_by_seed(
    results: Results, corpus: str, model: str, variant: str, column: str, condition: str = BASE
) -> dict[int, float]:
    """seed -> value of a column of runs.csv, of completed runs that have one."""
    rows = results.runs_by_cell.get((corpus, model, variant, condition))
    if rows is None or column not in rows:
        return {}
    rows = rows[rows["status"] == "completed"].dropna(subset=[column])
    return dict(zip(map(int, rows["seed"]), map(float, rows[column]), strict=True))


def loss_difference(
    results: Results, corpus: str, model: str, variant: str, other: str, condition: str = BASE
) -> Interval:
    """Final loss of a variant under a condition minus another's without one, paired by seed.

    With `other` the variant itself: what the condition changes.
    """
    own = completed_by_seed(results, corpus, model, variant, "validation_loss", condition)
    base = completed_by_seed(results, corpus, model, other, "validation_loss")
    return difference(own, base, results.confidence)


def values_by_seed(
    results: Results,
    corpus: str,
    model: str,
    variant: str,
    metric: str,
    setting: Mapping[str, Any] | None = None,
) -> dict[int, float]:
    """seed -> value in the unit of the comparison; runs without one are left out.

    A run that diverged is the worst there is: it has the unigram model's loss, and of other metrics
    a value beyond all others (infinity), or none (`Metric.worst`). Counts are per 1,000 steps that
    could have been a spike (`judged_steps`).
    """
    values: dict[int, float] = {}
    runs = runs_of(results, corpus, model, variant, setting or {})
    if not is_measured(results, metric):
        return values
    needed = {"seed", "status", "judged_steps", "unigram", *SOURCES.get(metric, (metric,))}
    for row in runs[[name for name in runs if name in needed]].to_dict("records"):
        value = _value(row, metric)
        if not math.isnan(value):
            values[int(row["seed"])] = value
    return values


def is_measured(results: Results, metric: str) -> bool:
    """Whether any run of the study has a value: without one, a diverged run has no worst either."""
    runs, columns = results.all_runs, SOURCES.get(metric, (metric,))
    return metric == "diverged" or all(c in runs and runs[c].notna().any() for c in columns)


def _value(row: Mapping[Any, Any], metric: str) -> float:
    diverged = row["status"] == "diverged"
    if metric == "diverged":
        return float(diverged)
    if diverged:
        return measured(row, "unigram") if metric == "validation_loss" else METRICS[metric].worst
    if metric in COUNTS:
        judged = measured(row, "judged_steps")
        return 1000 * measured(row, metric) / judged if judged else math.nan
    if metric == "gap_growth":
        product, single = (measured(row, name) for name in SOURCES[metric])
        value = product / single if single > 0 else math.nan
    else:
        value = measured(row, metric)
    if METRICS[metric].log:
        return math.log(value) if value > 0 else math.nan
    return value


def events(runs: pd.DataFrame, metric: str) -> int:
    """How often something happened in runs of a variant, over all seeds."""
    if metric == "diverged":
        return int((runs["status"] == "diverged").sum())
    return int(runs[metric].sum())
