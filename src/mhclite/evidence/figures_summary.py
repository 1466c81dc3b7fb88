"""Figures of one number a run: final loss against depth, throughput."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mhclite.evidence.figures_training import divergence_note
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import (
    REFERENCE,
    differences_by_seed,
    paired_differences,
    summarise,
)
from mhclite.evidence.style import (
    INK,
    colour,
    empty_figure,
    empty_state,
    grid,
    marker,
    remark,
    variant_legend,
    wrapped_grid,
)

DODGE = 0.78  # width that the variants of one depth share, of the 1 between two depths
ROOM = 1.0  # shown of intervals beyond the values, as a multiple of the values' range
BESIDE = 0.012  # seeds stand this much left of their place, the mean as much right


def _offsets(variants: list[str]) -> dict[str, float]:
    """Where each variant stands beside its depth."""
    places = (np.arange(len(variants)) - (len(variants) - 1) / 2) * DODGE / len(variants)
    return dict(zip(variants, places.tolist(), strict=True))


def _points_and_intervals(
    axes: Axes,
    results: Results,
    variants: list[str],
    points: pd.DataFrame,
    intervals: pd.DataFrame,
    column: str,
) -> None:
    """Every seed as a faint point, beside it the mean with its interval, against depth."""
    offsets = _offsets(variants)
    depth = {model: place for place, model in enumerate(results.models)}
    for variant in variants:
        own = points[points["variant"] == variant]
        axes.plot(
            [depth[model] + offsets[variant] - BESIDE for model in own["model"]],
            own[column],
            linestyle="none",
            marker="o",
            markersize=2.6,
            markeredgewidth=0,
            color=colour(variant),
            alpha=0.45,
        )
        means = intervals[(intervals["variant"] == variant) & (intervals["n"] > 0)]
        axes.errorbar(
            [depth[model] + offsets[variant] + BESIDE for model in means["model"]],
            means["mean"],
            yerr=means["half_width"],
            linestyle="none",
            marker=marker(variant),
            markeredgecolor="white",
            markeredgewidth=0.5,
            markersize=5,
            color=colour(variant),
            elinewidth=1.1,
            capsize=2.2,
            zorder=3,
        )
    axes.set_xticks(range(len(results.models)), [results.model_label(m) for m in results.models])
    axes.set_xlim(-0.5, len(results.models) - 0.5)
    axes.grid(visible=False, axis="x")
    for boundary in range(1, len(results.models)):
        axes.axvline(boundary - 0.5, color="#e4e4e4", linewidth=0.8)


def _cut_long_intervals(axes: Axes, values: list[float]) -> None:
    """Keep the values apart where an interval is many times as long as their range.

    With two seeds it often is.
    """
    low, high = axes.get_ylim()
    room = ROOM * (max(values) - min(values))
    if room > 0 and (low < min(values) - room or high > max(values) + room):
        axes.set_ylim(max(low, min(values) - room), min(high, max(values) + room))
        remark(axes, "intervals without an end go on beyond the panel")


def loss_vs_depth(results: Results, confidence: float) -> Figure:
    """Final validation loss against depth, and its paired difference to the plain residual."""
    runs = results.runs
    completed = runs[runs["status"] == "completed"]
    if completed.empty:
        return empty_figure("No run reached its last step, so there is no final loss.")
    losses = summarise(runs, confidence=confidence)
    pairs = differences_by_seed(runs)
    differences = paired_differences(runs, confidence=confidence)
    compared = [variant for variant in results.variants if variant != REFERENCE]
    figure, axes = grid(len(results.corpora), 2, 3.0)
    for (left, right), corpus in zip(axes, results.corpora, strict=True):

        def of(table: pd.DataFrame, corpus: str = corpus) -> pd.DataFrame:
            return table[table["corpus"] == corpus]

        _points_and_intervals(
            left, results, results.variants, of(completed), of(losses), "validation_loss"
        )
        left.set(title=corpus, ylabel="final validation loss (nats/token)", xlabel="depth")
        _cut_long_intervals(left, list(of(completed)["validation_loss"]))
        for model in results.models:
            if diverged := divergence_note(results, corpus, model):
                remark(left, f"{results.model_label(model)}, {diverged}")
        if of(pairs).empty:
            reason = "There is no completed plain residual\nof the same seed to compare with."
            empty_state(right, reason)
            continue
        _points_and_intervals(right, results, compared, of(pairs), of(differences), "difference")
        right.axhline(0, color=colour(REFERENCE), linewidth=1)
        right.set(
            title=f"{corpus}: difference to {results.label(REFERENCE)}",
            ylabel="difference (nats/token)",
            xlabel="depth",
        )
        _cut_long_intervals(right, [0.0, *of(pairs)["difference"]])
    variant_legend(figure, results.variants, results.labels, markers=True)
    return figure


def _throughput_panel(axes: Axes, results: Results, measured: dict[str, Any]) -> None:
    """Bars of one model size: median, quartiles as whiskers, every round as a point.

    What other implementations reach is a dash across the bar.
    """
    variants = [variant for variant in results.variants if variant in measured["variants"]]
    tokens = measured["batch_size"] * measured["block_size"]
    highest = 0.0
    for place, variant in enumerate(variants):
        row = measured["variants"][variant]
        speed, rounds = row["tokens_per_second"], tokens / np.array(row["step_seconds"])
        axes.barh(
            place,
            speed["median"],
            height=0.72,
            color=colour(variant),
            alpha=0.75,
            xerr=[[speed["median"] - speed["q1"]], [speed["q3"] - speed["median"]]],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": INK},
        )
        # Spread over the bar's height, so that equal rounds do not hide each other.
        heights = place + np.linspace(-0.25, 0.25, len(rounds))
        axes.plot(
            rounds, heights, ".", color=INK, markersize=2.2, markeredgewidth=0, alpha=0.7, zorder=3
        )
        end = max(float(rounds.max()), speed["q3"])
        for rows in measured["others"].values():
            if variant in rows:
                other = rows[variant]["tokens_per_second"]["median"]
                axes.plot([other] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=1.4)
                end = max(end, other)
        highest = max(highest, end)
        axes.annotate(
            f"{1 / row['ratio_quartiles']['median']:.2f}×",
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(variants)), [results.label(variant) for variant in variants])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * highest)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.locator_params(axis="x", nbins=5)


def throughput(results: Results, confidence: float) -> Figure:
    """Training tokens a second, and how many times the plain residual's."""
    figure, panels = wrapped_grid(len(results.models), 0.6 + 0.24 * len(results.variants))
    for panel, model in zip(panels, results.models, strict=True):
        measured = results.throughput[model]
        _throughput_panel(panel, results, measured)
        panel.set(
            title=f"{results.model_label(model)} on {measured['device']}, "
            f"{measured['precision']}, {measured['batch_size']} sequences a step",
            xlabel="training tokens per second",
        )
    return figure
