"""The learning rates at which runs cease to learn."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from mhclite.evidence import exhibits
from mhclite.evidence.frame import columns
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, minus, t_interval
from mhclite.evidence.style import (
    FAINT,
    INK,
    colour,
    line_style,
    marker,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Rows,
    mean_and_half,
    missing,
    percent_of,
    places,
    rows_of,
)
from mhclite.measure.files import Critical, critical_rate, read_critical
from mhclite.study.sections import BASE

REFERENCES = (BASELINE, "mhc")
KEYS = ["corpus", "model", "condition", "variant"]


def _coordinates(results: Results) -> pd.DataFrame:
    return results.all_runs[["run", *KEYS, "seed"]]


def _searches(results: Results) -> dict[str, Critical]:
    """run -> its search, for all runs of the study."""
    folder = results.folder / "critical"
    return {run: read_critical(folder / f"{run}.json", run) for run in results.all_runs["run"]}


def critical_rates(results: Results) -> pd.DataFrame:
    """One row per run: its coordinates and what its tries come to.

    run, corpus, model, variant, condition, seed; `critical_rate`, `low`, `high`, `beyond`;
    `holds_above`: whether a rate above the first failure holds.
    """
    rows = []
    for run, found in _searches(results).items():
        rate = critical_rate(found.tries)
        holding = [math.log2(one.factor) for one in found.tries if not one.failed]
        above = rate["high"] is not None and max(holding, default=-math.inf) > rate["high"]
        rows.append({"run": run, **rate, "holds_above": above})
    return _coordinates(results).merge(pd.DataFrame(rows), on="run", validate="one_to_one")


def all_tries(results: Results) -> pd.DataFrame:
    """One row per try: coordinates of the run, the fields of `Try`, and whether it is `common`."""
    rows = [
        {"run": run, **vars(one), "common": at < len(found.settings.factors)}
        for run, found in _searches(results).items()
        for at, one in enumerate(found.tries)
    ]
    table = _coordinates(results).merge(pd.DataFrame(rows), on="run", validate="one_to_many")
    return table.astype({"validation_loss": "float64"})


def stress_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, condition and variant: its critical rates, and differences.

    `critical_rate`: log2, with its interval; `below`, `above`, `holds_above`: seeds;
    `minus_<reference>`: the difference in octaves, paired by seed.
    """
    rates, level = critical_rates(results), results.confidence
    groups = dict(iter(rates.groupby(KEYS, observed=True, sort=True)))
    by_seed = {
        key: dict(zip(own["seed"], own["critical_rate"], strict=True))
        for key, own in groups.items()
    }
    rows: list[Record] = []
    for key, own in groups.items():
        *place, variant = key
        row: Record = dict(zip(KEYS, key, strict=True)) | {
            "seeds": len(own),
            "below": int((own["beyond"] == "below").sum()),
            "above": int((own["beyond"] == "above").sum()),
            "holds_above": int(own["holds_above"].sum()),
        }
        row |= columns("critical_rate", t_interval(own["critical_rate"], level))
        for name in REFERENCES:
            other = {} if name == variant else by_seed.get((*place, name), {})
            difference = t_interval(minus(by_seed[key], other).values(), level)
            row |= columns(f"minus_{name}", difference)
        rows.append(row)
    return pd.DataFrame(rows)


@exhibits.table(
    "stress",
    title="Critical learning rates",
    caption="Multiples of the rate at which runs cease to learn, {seeds}. Source: critical/.",
    heading="stability",
    needs="critical_rate",
)
def stress_table(results: Results) -> Rows:
    """Critical rate of every variant, and what it comes to against two references."""

    def times(row: Record) -> str:
        ends = [row[f"critical_rate{end}"] for end in ("", "_low", "_high")]
        rate, *interval = (NONE if missing(end) else f"x {2**end:.3g}" for end in ends)
        return rate if NONE in interval else f"{rate} ({' to '.join(interval)})"

    def changed(row: Record) -> str:
        conditions, name = results.settings["conditions"], row["condition"]
        return "none" if name == BASE else str(conditions[name]["title"])

    settings = results.settings["critical_rate"]
    rates = ", ".join(
        f"{name} {model['learning_rate']:g}" for name, model in results.settings["models"].items()
    )
    tried = ", ".join(f"{factor:g}" for factor in settings["factors"])
    *place, variant = places(results)
    return rows_of(
        stress_data(results),
        [*place, Col("Changed", changed), variant],
        [
            Col("Critical rate", times),
            Col(
                "Below, above the rates tried",
                lambda row: f"{row['below']}, {row['above']} of {row['seeds']}",
            ),
            Col("A larger rate holds", lambda row: f"{row['holds_above']} of {row['seeds']}"),
            *(
                Col(
                    f"Octaves above {results.labels.get(name, name)}",
                    mean_and_half(f"minus_{name}", 2),
                )
                for name in REFERENCES
            ),
        ],
        f"Multiples of {rates} at which runs end less than "
        f"{settings['below_unigram']:g} nats below the unigram model. Geometric mean (ends of the "
        f"{percent_of(results.confidence)} interval); seeds beyond x {tried} count with the end. "
        "Octaves: paired differences ± half-width.",
    )


ABOVE = 0.4  # nats above the unigram model at which the axis ends; diverged runs stand there


@exhibits.figure(
    "stress_rates",
    title="Final loss at multiples of the learning rate",
    caption=(
        "Loss at multiples of the study's learning rate. Lines: means over {seeds}; points: runs; "
        "crosses: runs that failed. Losses far above the unigram model (dotted) stand at the upper "
        "end. Source: critical/."
    ),
    alt="Rising curves over the learning rate, one colour, marker and line style each.",
    heading="stability",
    needs="critical_rate",
)
def stress_rates(results: Results) -> Figure:
    """Final loss against the learning rate, a panel for each size and condition that has runs."""
    tries = all_tries(results)
    groups = {
        (str(corpus), str(model), str(condition)): runs
        for (corpus, model, condition), runs in tries.groupby(KEYS[:3], observed=True, sort=True)
    }
    figure, axes = wrapped_grid(len(groups), 2.8)
    for panel, ((corpus, model, condition), runs) in zip(axes, groups.items(), strict=True):
        unigram = results.counting_models[corpus]["unigram"]
        top = unigram + ABOVE
        for variant in results.variants:
            own, tint = runs[runs["variant"] == variant], colour(variant)
            loss = own["validation_loss"].fillna(top).clip(upper=top)
            octaves = np.log2(own["factor"])
            means = loss[own["common"]].groupby(octaves[own["common"]]).mean()
            panel.plot(
                means.index,
                means,
                color=tint,
                linestyle=line_style(variant),
                linewidth=1,
                marker=marker(variant),
                markersize=3.6,
            )
            for failed, shape in ((False, "."), (True, "x")):
                part = own["failed"] == failed
                panel.plot(octaves[part], loss[part], shape, color=tint, markersize=3, alpha=0.5)
        panel.axhline(unigram, color=FAINT, linewidth=0.8, ls=":")
        changed = "" if condition == BASE else f", {condition}"
        panel.set(
            title=results.panel_title(corpus, model) + changed,
            xlabel=f"learning rate ({results.settings['models'][model]['learning_rate']:g} x)",
            ylabel="final validation loss (nats/token)",
        )
        panel.xaxis.set_major_locator(MultipleLocator(1))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"x {2**value:g}"))
    cross = Line2D([], [], color=INK, linestyle="none", marker="x", label="failed")
    variant_legend(figure, results.variants, results.labels, extra=[cross])
    return figure
