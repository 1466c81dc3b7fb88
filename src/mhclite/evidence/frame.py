"""The tidy table by cells: values seed by seed, their mean with its interval, differences.

Every table, figure and claim is made of these few functions. A diverged run has no final loss: it
is counted, and part of no mean. Claims take it for the worst outcome (`claim_values`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.metrics import COUNTS, METRICS
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import (
    Interval,
    geometric_interval,
    knockout_interval,
    minus,
    t_interval,
)
from mhclite.study.sections import BASE

FAIR = {"final_norm": "after_sum"}  # the head is given one norm, as the plain residual's
LOSS = "validation_loss"


class Cell(NamedTuple):
    """A cell of the grid: its runs differ in their seed only."""

    corpus: str
    model: str
    variant: str
    condition: str = BASE


def cells(results: Results) -> list[Cell]:
    """The cells of the study's own settings, in its order."""
    return [
        Cell(corpus, model, variant)
        for corpus, model in results.panels()
        for variant in results.variants_of(model)
    ]


# --- values and means -----------------------------------------------------------------------


def values(results: Results, cell: Cell, metric: str = LOSS) -> dict[int, float]:
    """seed -> value, of the runs that have one."""
    return results.by_seed.get((*cell, metric), {})


def mean(results: Results, cell: Cell, metric: str = LOSS) -> Interval:
    """Mean over seeds with its interval: geometric, or over windows too, as the metric is."""
    found, about = values(results, cell, metric), METRICS[metric]
    if about.error:
        return knockout_interval(found.values(), values(results, cell, about.error).values())
    if about.log or about.geometric:
        return geometric_interval(found.values())
    return t_interval(found.values())


def apart(results: Results, cell: Cell, other: Cell | None, metric: str = LOSS) -> Interval:
    """Mean difference to another cell, paired by seed, with its interval."""
    theirs = {} if other is None else values(results, other, metric)
    return t_interval(minus(values(results, cell, metric), theirs).values())


def columns(name: str, interval: Interval) -> dict[str, float]:
    """An interval as columns of a table: `name` is the mean; NaN for None."""
    parts = ("sd", "half_width", "low", "high")
    found = {name: interval.mean} | {f"{name}_{part}": getattr(interval, part) for part in parts}
    return {f"{name}_n": interval.n} | {
        key: math.nan if value is None else value for key, value in found.items()
    }


def row(results: Results, cell: Cell, metrics: Iterable[str] = ()) -> dict[str, Any]:
    """A row of a table: the cell, its runs, and the means of metrics."""
    diverged = values(results, cell, "diverged")
    found: dict[str, Any] = cell._asdict() | {
        "n_layer": results.n_layer(cell.model),
        "runs": len(diverged),
        "n_diverged": int(sum(diverged.values())),
    }
    for metric in metrics:
        found |= columns(metric, mean(results, cell, metric))
    return found


# --- conditions -----------------------------------------------------------------------------


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


def conditions_that_change(results: Results, setting: str) -> dict[str, Any]:
    """Condition -> value, of those that change this setting and nothing else."""
    found = results.settings["conditions"].items()
    changes = {name: _changes(about) for name, about in found}
    return {name: one[setting] for name, one in changes.items() if list(one) == [setting]}


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


# --- for claims -----------------------------------------------------------------------------


def arm(
    results: Results, corpus: str, model: str, variant: str, setting: Mapping[str, Any] | None
) -> Cell:
    """The cell in which a claim's `setting` holds; one without runs if there is none."""
    return Cell(corpus, model, variant, str(condition_of(results, variant, setting or {})))


def claim_values(results: Results, cell: Cell, metric: str) -> dict[int, float]:
    """seed -> value in the unit of the comparison; runs without one are left out.

    A run that diverged is the worst there is: it has the unigram model's loss, and of other metrics
    a value beyond all others (infinity), or none (`Metric.worst`). Counts are per 1,000 steps that
    could have been a spike (`judged_steps`). Where no run of the study is measured, a diverged run
    has no worst either.
    """
    diverged = values(results, cell, "diverged")
    if metric == "diverged":
        return diverged
    if not is_measured(results, metric):
        return {}
    about, found = METRICS[metric], values(results, cell, metric)
    lost = (
        values(results, cell, "unigram") if metric == LOSS else dict.fromkeys(diverged, about.worst)
    )
    judged = values(results, cell, "judged_steps")
    worked: dict[int, float] = {}
    for seed, failed in diverged.items():
        value = lost[seed] if failed else found.get(seed, math.nan)
        if not failed and metric in COUNTS:
            value = 1000 * value / judged[seed] if judged[seed] else math.nan
        elif not failed and about.log:
            value = math.log(value) if value > 0 else math.nan
        if not math.isnan(value):
            worked[seed] = value
    return worked


def is_measured(results: Results, metric: str) -> bool:
    """Whether any run of the study has a value."""
    return any(key[-1] == metric for key in results.by_seed)
