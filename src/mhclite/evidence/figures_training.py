"""Figures of training over its steps: validation loss, gradient norm."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhclite.evidence.results import Results
from mhclite.evidence.statistics import REFERENCE
from mhclite.evidence.style import (
    FAINT,
    colour,
    empty_figure,
    empty_state,
    grid,
    line_style,
    plain_log,
    remark,
    variant_legend,
)

COMPARED_FROM = 0.25  # differences are drawn from this part of training on; before, they are huge
POINTS = 200  # drawn of a window's curve, which is smooth; a panel is 3 inches wide
SEED_LINE = Line2D([], [], color=FAINT, linewidth=0.5, label="one seed")


def cell_title(results: Results, corpus: str, model: str) -> str:
    """Title of a panel: corpus and depth."""
    return f"{corpus}, {results.model_label(model)}"


def divergence_note(
    results: Results, corpus: str, model: str, variants: list[str] | None = None
) -> str:
    """Which runs of a cell diverged, e.g. `diverged: HC 1 of 5, mHC 2 of 5`; empty if none."""
    runs = results.runs
    cell = runs[(runs["corpus"] == corpus) & (runs["model"] == model)]
    parts = []
    for variant in variants or results.variants:
        diverged = cell.loc[cell["variant"] == variant, "status"] == "diverged"
        if diverged.any():
            count = f"{results.label(variant)} {diverged.sum()} of {len(diverged)}"
            parts.append(count.replace(" ", "\u00a0"))  # is not broken over two lines
    return f"diverged: {', '.join(parts)}" if parts else ""


def completed(results: Results) -> list[str]:
    """Runs that reached their last step."""
    runs = results.runs
    return list(runs.loc[runs["status"] == "completed", "run"])


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS` of the steps in the table, the last among them."""
    steps = np.sort(table["step"].unique())
    kept = steps[::-1][:: max(1, -(-len(steps) // POINTS))]
    return table[table["step"].isin(kept)]


def _seeds_and_mean(axes: Axes, results: Results, table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Draw each run thin and each variant's mean over completed runs bold.

    A diverged run ends with a cross; it is left out of the mean, which would otherwise jump where
    the run ends. Returns the means: variant, step, `column`.
    """
    table = table.dropna(subset=[column])
    finished = table[table["run"].isin(completed(results))]
    means = finished.groupby(["variant", "step"], observed=True)[column].mean().reset_index()
    sns.lineplot(
        data=table,
        x="step",
        y=column,
        hue="variant",
        palette={variant: colour(variant) for variant in results.variants},
        units="run",
        estimator=None,
        alpha=0.45,
        linewidth=0.5,
        legend=False,
        ax=axes,
    )
    for variant in results.variants:
        mean = means[means["variant"] == variant]
        axes.plot(mean["step"], mean[column], color=colour(variant), linestyle=line_style(variant))
    for _, line in table[~table["run"].isin(completed(results))].groupby("run"):
        end = line.iloc[-1]
        axes.plot(end["step"], end[column], "x", color=colour(end["variant"]), zorder=4)
    return means


def _reference_lines(axes: Axes, baselines: dict[str, float]) -> None:
    """Losses of counting models, named at the right end of the line."""
    for name, loss in baselines.items():
        axes.axhline(loss, color=FAINT, linewidth=0.8, linestyle=(0, (1, 1.5)))
        axes.annotate(
            f"{name} {loss:.2f}",
            (1, loss),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color="#555555",
        )


def _difference_to(reference: str, cell: pd.DataFrame) -> pd.DataFrame:
    """Validation loss minus the reference variant's of the same seed and step, as `difference`."""
    base = cell[cell["variant"] == reference].set_index(["seed", "step"])["validation_loss"]
    others = cell[cell["variant"] != reference].join(
        base.rename("base"), on=["seed", "step"], how="inner"
    )
    return others.assign(difference=others["validation_loss"] - others["base"])


def validation_loss(results: Results, confidence: float) -> Figure:
    """Validation loss over training; below each, the differences to the plain residual."""
    table = results.curves.dropna(subset=["validation_loss"])
    if table.empty:
        return empty_figure("No run has been evaluated.")
    reference = REFERENCE if REFERENCE in results.variants else results.variants[0]
    figure, axes = grid(2 * len(results.corpora), len(results.models), 2.2)
    for row, corpus in enumerate(results.corpora):
        for column, model in enumerate(results.models):
            loss, difference = axes[2 * row, column], axes[2 * row + 1, column]
            cell = table[(table["corpus"] == corpus) & (table["model"] == model)]
            _seeds_and_mean(loss, results, cell, "validation_loss")
            _reference_lines(loss, results.baselines[corpus])
            plain_log(loss)
            loss.set(
                title=cell_title(results, corpus, model),
                xlabel="training step",
                ylabel="validation loss (nats/token)",
            )
            remark(loss, divergence_note(results, corpus, model))
            compared = _difference_to(reference, cell)
            compared = compared[compared["step"] >= COMPARED_FROM * cell["step"].max()]
            if compared.empty:
                empty_state(difference, "There is nothing to compare with\nat the same seed.")
                continue
            _seeds_and_mean(difference, results, compared, "difference")
            difference.axhline(0, color=colour(reference), linewidth=1)
            # A run on its way to divergence would hide all other differences: it leaves the panel.
            finished = compared.loc[compared["run"].isin(completed(results)), "difference"]
            low, high = min(0, finished.min()), max(0, finished.max())
            if low < high:
                difference.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
            difference.set(
                title=f"difference to {results.label(reference)}",
                xlabel="training step",
                ylabel="difference (nats/token)",
            )
    variant_legend(figure, results.variants, results.labels, extra=[SEED_LINE])
    return figure


def gradient_norm(results: Results, confidence: float) -> Figure:
    """Gradient norm before clipping: mean and standard deviation of the trailing window."""
    window = results.settings["stability"]["fluctuation_window"]
    table = results.curves.dropna(subset=["grad_norm_window_mean"])
    if table.empty:
        return empty_figure(f"No run has the {window} steps over which the mean is taken.")
    figure, axes = grid(len(results.corpora) * len(results.models), 2, 2.2)
    cells = [(corpus, model) for corpus in results.corpora for model in results.models]
    for (left, right), (corpus, model) in zip(axes, cells, strict=True):
        cell = thinned(table[(table["corpus"] == corpus) & (table["model"] == model)])
        title = cell_title(results, corpus, model)
        if cell.empty:
            empty_state(
                left, f"{title}: no run has the {window} steps\nover which the mean is taken."
            )
            right.set_axis_off()
            continue
        means = _seeds_and_mean(left, results, cell, "grad_norm_window_mean")
        spread = _seeds_and_mean(right, results, cell, "grad_norm_window_sd")
        bands = means.merge(spread, on=["variant", "step"])
        for variant in results.variants:
            band = bands[bands["variant"] == variant]
            middle, sd = band["grad_norm_window_mean"], band["grad_norm_window_sd"]
            left.fill_between(
                band["step"],
                middle - sd,
                middle + sd,
                color=colour(variant),
                alpha=0.1,
                linewidth=0,
            )
        # A band that reaches zero would stretch the logarithmic axis without end.
        left.set_yscale("log")
        left.set_ylim(bottom=max(left.get_ylim()[0], cell["grad_norm_window_mean"].min() / 3))
        left.set(title=f"{title}: mean ± sd", ylabel="gradient norm", xlabel="training step")
        right.set(title=f"{title}: sd", ylabel="sd of the gradient norm", xlabel="training step")
        plain_log(left)
        plain_log(right)
        remark(left, divergence_note(results, corpus, model))
    variant_legend(figure, results.variants, results.labels, extra=[SEED_LINE])
    return figure
