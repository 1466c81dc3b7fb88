"""The learning rate of each arm, and the losses of the sweep that it was chosen from."""

from __future__ import annotations

import statistics
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.style import (
    INK,
    colour,
    empty_state,
    line_style,
    marker,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.tables import NONE, Col, Record, Rows, number, places, rows_of, significant
from mhclite.study.sections import BASE


def arms_of(results: Results) -> list[dict[str, Any]]:
    """The entries of the study's file of learning rates that are arms of the study."""
    conditions: dict[str, Any] = results.settings["conditions"]

    def is_trained(arm: dict[str, Any]) -> bool:
        model, variant = arm["model"], arm["variant"]
        if arm["corpus"] not in results.corpora or model not in results.models:
            return False
        change = conditions.get(arm["condition"], {})
        return (
            variant in results.variants_of(model)
            and (arm["condition"] == BASE or arm["condition"] in conditions)
            and variant in change.get("variants", results.variants)
            and model in (change.get("models") or results.models)
        )

    return [arm for arm in results.settings["learning_rates"]["arms"] if is_trained(arm)]


def mean_losses(results: Results, arm: dict[str, Any], final: bool) -> dict[float, float | None]:
    """Rate, rising -> mean loss of the grid, or of the whole length; None where a run diverged."""
    rule = results.settings["learning_rates"]["rule"]
    seeds = rule["final_seeds"] if rule else []
    losses: dict[float, list[float | None]] = {}
    for trial in arm["trials"]:
        if (trial["seed"] in seeds) == final:
            losses.setdefault(trial["rate"], []).append(trial["loss"])
    found: dict[float, float | None] = {}
    for rate, values in sorted(losses.items()):
        finite = [value for value in values if value is not None]
        found[rate] = statistics.fmean(finite) if len(finite) == len(values) else None
    return found


@exhibits.table(
    "learning_rates",
    title="Learning rate of each arm",
    caption="The rate of each arm, and its sweep's losses. Source: the file that the study names.",
    heading="loss",
    needs="learning_rates",
)
def learning_rates(results: Results) -> Rows:
    """One row per arm."""
    rows: list[Record] = []
    for arm in arms_of(results):
        grid, final = (mean_losses(results, arm, final=final) for final in (False, True))
        rate, band = arm["rate"], arm["band"] or (None, None)
        finite = [loss for loss in grid.values() if loss is not None]
        rows.append(
            {name: arm[name] for name in ("corpus", "model", "condition", "variant", "rate")}
            | {
                "shared_rate": arm["shared_rate"],
                "grid_at_shared_rate": grid.get(arm["shared_rate"]),
                "grid_at_rate": grid.get(rate),
                "grid_best": min(finite, default=None),
                "band_low": band[0],
                "band_high": band[1],
                "final_loss": final.get(rate),
                "tried": len(grid),
                "inside": min(grid) < rate < max(grid) if grid and rate is not None else None,
            }
        )

    def changed(row: Record) -> str:
        condition = row["condition"]
        return NONE if condition == BASE else results.settings["conditions"][condition]["title"]

    def good(row: Record) -> str:
        ends = [significant(row[f"band_{end}"]) for end in ("low", "high")]
        return " to ".join(dict.fromkeys(ends))

    rule = results.settings["learning_rates"]["rule"]
    band = f"{rule['band']:g} nats" if rule else "the band"
    *place, variant = places(results)
    return rows_of(
        pd.DataFrame(rows),
        [*place, Col("Changed", changed), variant],
        [
            Col("Rate", number("rate")),
            Col(
                "Inside the grid",
                lambda row: {None: "by hand", True: "yes", False: "at its edge"}[row["inside"]],
            ),
            Col("Grid, size's rate", number("grid_at_shared_rate", 4)),
            Col("Grid, this rate", number("grid_at_rate", 4)),
            Col("Rates as good", good),
            Col("Whole length", number("final_loss", 4)),
        ],
        "Losses of the sweep, nats per token. Grid: its shorter runs, at the size's rate and at "
        f"the one chosen. Rates as good: at most {band} above the best. Whole length: other "
        f"seeds, by which the rate was chosen. {NONE}: none, or a run diverged.",
    )


@exhibits.figure(
    "loss_against_rate",
    title="Final loss against the learning rate, every arm",
    caption=(
        "Loss of the sweep's grid at each rate, mean over its seeds; the {seeds} of this study "
        "are others. Thin: under a condition. Ring: the rate chosen. Cross: a run diverged. "
        "Source: the file of learning rates."
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
        grids = [mean_losses(results, arm, final=False) for arm in own]
        finite = [loss for grid in grids for loss in grid.values() if loss is not None]
        if not finite:
            empty_state(panel, "The file has no losses: rates were given by hand.")
            continue
        for arm, grid in zip(own, grids, strict=True):
            variant, base = arm["variant"], arm["condition"] == BASE
            points = {rate: loss for rate, loss in grid.items() if loss is not None}
            panel.plot(
                list(points),
                list(points.values()),
                color=colour(variant),
                linestyle=line_style(variant),
                linewidth=1.2 if base else 0.5,
                marker=marker(variant),
                markersize=3.6 if base else 2,
            )
            diverged = [rate for rate, loss in grid.items() if loss is None]
            panel.plot(diverged, [max(finite)] * len(diverged), "x", color=colour(variant))
            if arm["rate"] in points:
                panel.plot(
                    [arm["rate"]],
                    [points[arm["rate"]]],
                    "o",
                    color=colour(variant),
                    fillstyle="none",
                    markersize=8,
                )
        tried = sorted({rate for grid in grids for rate in grid})
        panel.set_xscale("log", base=2)
        panel.set_xticks(tried)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        panel.set(
            title=results.panel_title(corpus, model),
            xlabel="peak learning rate",
            ylabel="validation loss (nats/token)",
        )
    ring = Line2D([], [], color=INK, linestyle="none", marker="o", fillstyle="none", label="chosen")
    variant_legend(figure, results.variants, results.labels, markers=True, extra=[ring])
    return figure
