"""Losses over training: the curves, and the tokens to the plain residual's final loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import BASELINE, t_interval, tokens_to_reach
from mhclite.evidence.style import (
    FAINT,
    SEED_LINE,
    colour,
    empty_figure,
    empty_state,
    grid,
    outer_labels,
    plain_log,
    remark,
    runs_and_means,
    seeds_and_interval,
    variant_legend,
    wrapped_grid,
)

COMPARED_FROM = 0.25  # differences are drawn from this part of training on; before, they are huge


def _counting_lines(row: Sequence[Axes], losses: dict[str, float]) -> None:
    """Losses of counting models, named right of the last panel, where no curve is."""
    for name, loss in losses.items():
        for axes in row:
            axes.axhline(loss, color=FAINT, linewidth=0.8, linestyle=(0, (1, 1.5)))
        row[-1].annotate(
            f"{name}\n{loss:.2f}",
            (1, loss),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            fontsize=7,
            color="#555555",
        )


def _difference_to(baseline: str, cell: pd.DataFrame) -> pd.DataFrame:
    """Validation loss minus the baseline's of the same seed and step, as `difference`."""
    base = cell[cell["variant"] == baseline].set_index(["seed", "step"])["validation_loss"]
    others = cell[cell["variant"] != baseline].join(
        base.rename("base"), on=["seed", "step"], how="inner"
    )
    return others.assign(difference=others["validation_loss"] - others["base"])


@exhibits.figure(
    "validation_loss",
    title="Validation loss over training",
    caption=(
        "Top: loss on held-out text; the dotted lines are counting models of the same text. "
        "Bottom: the loss minus that of {baseline} of the same seed at the same step, from "
        "a quarter of training on. Bold: mean over the completed runs of {seeds}; thin: each "
        "seed{diverged:; a cross is the last evaluation before a run diverged}. No interval is "
        "drawn: that of the last step is in the figure of final loss against depth. Source: "
        "curves.csv."
    ),
    alt=(
        "Falling curves that almost coincide; below them the differences to one of the variants, "
        "one colour and line style for each variant."
    ),
    heading="loss",
)
def validation_loss(results: Results) -> Figure:
    """Validation loss over training; below each, the differences to the plain residual."""
    evaluated = results.curves.dropna(subset=["validation_loss"])
    if evaluated.empty:
        return empty_figure("No run has been evaluated.")
    baseline = BASELINE if BASELINE in results.variants else results.variants[0]
    figure, axes = grid(2 * len(results.corpora), len(results.models), 1.8, sharey="row")
    for row, corpus in enumerate(results.corpora):
        span = [0.0]  # of the differences of completed runs
        _counting_lines(axes[2 * row], results.counting_models[corpus])
        for column, model in enumerate(results.models):
            loss, difference = axes[2 * row, column], axes[2 * row + 1, column]
            cell = of(evaluated, corpus, model)
            runs_and_means(loss, results, cell, "validation_loss")
            plain_log(loss)
            loss.set(
                title=results.panel_title(corpus, model),
                xlabel="training step",
                ylabel="validation loss (nats/token)",
            )
            remark(loss, results.divergence_note(corpus, model))
            compared = _difference_to(baseline, cell)
            compared = compared[compared["step"] >= COMPARED_FROM * cell["step"].max()]
            if compared.empty:
                empty_state(difference, "There is nothing to compare with\nat the same seed.")
                continue
            runs_and_means(difference, results, compared, "difference")
            difference.axhline(0, color=colour(baseline), linewidth=1)
            # A run on its way to divergence would hide all other differences: it leaves the panel.
            finished = compared.loc[compared["run"].isin(results.completed), "difference"]
            span += finished.dropna().tolist()
            difference.set(
                xlabel="training step", ylabel=f"minus {results.label(baseline)} (nats/token)"
            )
        low, high = min(span), max(span)
        if low < high:
            axes[2 * row + 1, 0].set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
    outer_labels(figure)
    variant_legend(figure, results.variants, results.labels, extra=[SEED_LINE])
    return figure


def token_shares(results: Results) -> pd.DataFrame:
    """corpus, model, variant, seed, share: tokens to the final loss of the plain residual of the
    same seed, over the tokens of the whole run; missing where the loss is never reached.
    """
    curves = results.curves.dropna(subset=["validation_loss"])
    curves = curves[curves["run"].isin(results.completed)]
    runs: dict[Any, pd.DataFrame] = dict(
        list(curves.groupby(["corpus", "model", "variant", "seed"], observed=True))
    )
    rows = []
    for (corpus, model, variant, seed), table in runs.items():
        base = runs.get((corpus, model, BASELINE, seed))
        if variant == BASELINE or base is None:
            continue
        reached = tokens_to_reach(
            table["tokens"].to_numpy(float),
            table["validation_loss"].to_numpy(float),
            float(base["validation_loss"].iloc[-1]),
        )
        share = np.nan if reached is None else reached / float(base["tokens"].iloc[-1])
        rows.append((corpus, model, variant, seed, share))
    return pd.DataFrame(rows, columns=["corpus", "model", "variant", "seed", "share"])


@exhibits.figure(
    "token_efficiency",
    title="Tokens to reach the plain residual's final loss",
    caption=(
        "Share of the training tokens after which a run's validation loss is first as low as "
        "that of the plain residual of the same seed at the end, interpolated between "
        "evaluations. Marker and bar: mean with its {level} % Student t interval over {seeds}; "
        "faint points: each seed. The learning rate falls to its minimum only at the end, so a "
        "run that had been planned shorter would need fewer. Source: curves.csv."
    ),
    alt=("Points with horizontal error bars, a row for each variant, and a line at 100 percent."),
    heading="loss",
    needs="residual",
)
def token_efficiency(results: Results) -> Figure:
    """Tokens to reach the plain residual's final loss, as a share of those of the whole run."""
    shares = token_shares(results)
    if shares.empty:
        return empty_figure(
            "There is no completed plain residual of the same seed to compare with."
        )
    shown = [variant for variant in results.variants if variant != BASELINE]
    figure, panels = wrapped_grid(len(results.panels()), 0.7 + 0.26 * len(shown))
    for panel, (corpus, model) in zip(panels, results.panels(), strict=True):
        cell = of(shares, corpus, model)
        if cell.empty:
            empty_state(panel, "There is no completed plain residual\nto compare with.")
            continue
        labels = []
        for place, variant in enumerate(shown):
            values = cell.loc[cell["variant"] == variant, "share"]
            reached = values.dropna().tolist()
            missed = len(values) - len(reached)
            labels.append(
                results.label(variant) + (f" ({missed} of {len(values)} never)" if missed else "")
            )
            interval = t_interval(reached, results.confidence)
            seeds_and_interval(panel, variant, place, reached, interval.mean, interval.half_width)
        panel.axvline(1, color=FAINT, linewidth=0.8)
        panel.set_yticks(range(len(shown)), labels)
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False, axis="y")
        panel.set_ylim(len(shown) - 0.4, -0.6)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        panel.set(
            title=results.panel_title(corpus, model),
            xlabel="tokens to the plain residual's final loss",
        )
    return figure
