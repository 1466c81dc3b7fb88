"""Losses against the learning rate: of the sweep that chose each arm's, and of the search for the
rate at which a run ceases to learn.
"""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from mhclite.evidence import exhibits
from mhclite.evidence.frame import columns
from mhclite.evidence.results import Results, critical_rates
from mhclite.evidence.statistics import BASELINE, minus, t_interval
from mhclite.evidence.style import (
    INK,
    colour,
    empty_state,
    line_style,
    marker,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Table,
    changed,
    mean_and_half,
    missing,
    number,
    places,
    rows_of,
    significant,
)
from mhclite.study.sections import BASE

REFERENCES = (BASELINE, "mhc")
KEYS = ["corpus", "model", "condition", "variant"]


# --- the rates of a sweep -------------------------------------------------------------------


def arms_of(results: Results) -> list[dict[str, Any]]:
    """The entries of the study's file of learning rates that are arms of the study."""
    trained = set(results.all_runs[KEYS].astype(str).itertuples(index=False, name=None))
    arms = results.settings["learning_rates"]["arms"]
    return [arm for arm in arms if tuple(arm[key] for key in KEYS) in trained]


def grid_of(results: Results, arm: dict[str, Any]) -> dict[float, float | None]:
    """Rate, rising -> mean loss of the sweep's shorter runs; None where one diverged."""
    rule = results.settings["learning_rates"]["rule"]
    losses: dict[float, list[float | None]] = {}
    for trial in arm["trials"]:
        if not rule or trial["seed"] not in rule["final_seeds"]:  # which have the whole length
            losses.setdefault(trial["rate"], []).append(trial["loss"])
    found: dict[float, float | None] = {}
    for rate, values in sorted(losses.items()):
        finite = [value for value in values if value is not None]
        found[rate] = statistics.fmean(finite) if len(finite) == len(values) else None
    return found


@exhibits.table(
    "learning_rates",
    title="Learning rate of each arm",
    caption="The rate of each arm, chosen by a sweep. Source: the file that the study names.",
    heading="loss",
    needs="learning_rates",
)
def learning_rates(results: Results) -> Table:
    """One row per arm."""
    rows: list[Record] = []
    for arm in arms_of(results):
        grid, rate, band = grid_of(results, arm), arm["rate"], arm["band"] or (None, None)
        # Of all rates that were tried: a final may have followed a winner outwards.
        tried = [trial["rate"] for trial in arm["trials"] or ()]
        inside = min(tried) < rate < max(tried) if tried and rate is not None else None
        found = {"grid_at_rate": grid.get(rate), "band_low": band[0], "band_high": band[1]}
        known = {name: arm[name] for name in (*KEYS, "rate", "shared_rate")}
        rows.append(known | found | {"inside": inside})

    def good(row: Record) -> str:
        ends = [significant(row[f"band_{end}"]) for end in ("low", "high")]
        return " to ".join(dict.fromkeys(ends))

    said = {None: "by hand", True: "yes", False: "at its edge"}
    rule = results.settings["learning_rates"]["rule"]
    band = f"{rule['band']:g} nats" if rule else "the band"
    *place, variant = places(results)
    return rows_of(
        pd.DataFrame(rows),
        [*place, changed(results), variant],
        [
            Col("Rate", number("rate")),
            Col("Inside the grid", lambda row: said[row["inside"]]),
            Col("Loss in the grid", number("grid_at_rate", 4)),
            Col("Rates as good", good),
            Col("Size's rate", number("shared_rate")),
        ],
        "Grid: the sweep's shorter runs, losses in nats per token. Rates as good: at most "
        f"{band} above the best. Size's rate: that of its model, factor 1.",
    )


@exhibits.figure(
    "loss_against_rate",
    title="Final loss against the learning rate, every arm",
    caption=(
        "Loss of the sweep's grid at each rate; the {seeds} of this study are others. "
        "Thin: under a condition. Ring: the rate chosen. Cross: diverged, or more than a nat "
        "above the best. Source: the file of learning rates."
    ),
    alt="Curves over the learning rate, one colour, marker and line style for each variant.",
    heading="loss",
    needs="learning_rates",
)
def loss_against_rate(results: Results) -> Figure:
    """Losses of the grids, one panel a size."""
    panels = results.panels()
    figure, axes = wrapped_grid(len(panels), 2.4)
    for panel, (corpus, model) in zip(axes, panels, strict=True):
        own = [a for a in arms_of(results) if (a["corpus"], a["model"]) == (corpus, model)]
        grids = [grid_of(results, arm) for arm in own]
        finite = [loss for grid in grids for loss in grid.values() if loss is not None]
        if not finite:
            empty_state(panel, "The file has no losses: rates were given by hand.")
            continue
        shown = [loss for loss in finite if loss <= min(finite) + 1]  # more would press curves flat
        for arm, grid in zip(own, grids, strict=True):
            variant, rate = arm["variant"], arm["rate"]
            points = {rate: loss for rate, loss in grid.items() if loss in shown}
            bold = arm["condition"] == BASE
            panel.plot(
                list(points),
                list(points.values()),
                color=colour(variant),
                linestyle=line_style(variant),
                linewidth=1.2 if bold else 0.5,
                marker=marker(variant),
                markersize=3.6 if bold else 2,
            )
            failed = [rate for rate in grid if rate not in points]
            panel.plot(failed, [max(shown)] * len(failed), "x", color=colour(variant))
            if rate in points:
                panel.plot([rate], [points[rate]], "o", color=colour(variant), mfc="none", ms=8)
        tried = sorted({rate for grid in grids for rate in grid})
        panel.set_xscale("log", base=2)
        panel.set_xticks(tried)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        panel.set(title=results.panel_title(corpus, model))
        panel.set(xlabel="peak learning rate", ylabel="validation loss (nats/token)")
    ring = Line2D([], [], color=INK, linestyle="none", marker="o", fillstyle="none", label="chosen")
    variant_legend(figure, results.variants, results.labels, markers=True, extra=[ring])
    return figure


# --- the rates at which runs cease to learn -------------------------------------------------


def stress_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, condition and variant: its critical rates, and differences.

    `critical_rate`: log2, with its interval; `below`, `above`: seeds;
    `minus_<reference>`: the difference in octaves, paired by seed.
    """
    by_seed: dict[Any, dict[int, float]] = {}
    rows: list[Record] = []
    rates = critical_rates(results.critical, results.all_runs)
    for key, own in rates.groupby(KEYS, observed=True, sort=True):
        by_seed[key] = dict(zip(own["seed"], own["critical_rate"], strict=True))
        row: Record = dict(zip(KEYS, key, strict=True)) | {
            "seeds": len(own),
            "below": int((own["beyond"] == "below").sum()),
            "above": int((own["beyond"] == "above").sum()),
        }
        rows.append(row | columns("critical_rate", t_interval(own["critical_rate"])))
    for (*place, variant), row in zip(by_seed, rows, strict=True):
        for name in REFERENCES:
            other = {} if name == variant else by_seed.get((*place, name), {})
            difference = minus(by_seed[*place, variant], other)
            row |= columns(f"minus_{name}", t_interval(difference.values()))
    return pd.DataFrame(rows)


@exhibits.table(
    "stress",
    title="Critical learning rates",
    caption="Multiples of the rate at which runs cease to learn, {seeds}. Source: critical/.",
    heading="stability",
    needs="critical_rate",
)
def stress_table(results: Results) -> Table:
    """Critical rate of every variant, and what it comes to against two references."""

    def times(row: Record) -> str:
        ends = [row[f"critical_rate{end}"] for end in ("", "_low", "_high")]
        rate, *interval = (NONE if missing(end) else f"x {2**end:.3g}" for end in ends)
        return rate if NONE in interval else f"{rate} ({' to '.join(interval)})"

    settings = results.settings["critical_rate"]
    rates = ", ".join(
        f"{name} {model['learning_rate']:g}" for name, model in results.settings["models"].items()
    )
    tried = ", ".join(f"{factor:g}" for factor in settings["factors"])
    *place, variant = places(results)
    return rows_of(
        stress_data(results),
        [*place, changed(results), variant],
        [
            Col("Critical rate", times),
            Col(
                "Below, above the rates tried",
                lambda row: f"{row['below']}, {row['above']} of {row['seeds']}",
            ),
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
        f"95 % interval); seeds beyond x {tried} count with the end. "
        "Octaves: paired differences ± half-width.",
    )
