"""What a user pays: loss against training time, and tokens to reach the plain residual's loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mhclite.evidence.figures_training import cell_title, completed
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import REFERENCE, t_interval, tokens_to_reach
from mhclite.evidence.style import (
    FAINT,
    colour,
    empty_figure,
    empty_state,
    line_style,
    marker,
    plain_log,
    variant_legend,
    wrapped_grid,
)


def token_shares(results: Results) -> pd.DataFrame:
    """corpus, model, variant, seed, share: tokens to the final loss of the plain residual of the
    same seed, over the tokens of the whole run; missing where the loss is never reached.
    """
    curves = results.curves.dropna(subset=["validation_loss"])
    curves = curves[curves["run"].isin(completed(results))]
    runs: dict[Any, pd.DataFrame] = dict(
        list(curves.groupby(["corpus", "model", "variant", "seed"], observed=True))
    )
    rows = []
    for (corpus, model, variant, seed), table in runs.items():
        base = runs.get((corpus, model, REFERENCE, seed))
        if variant == REFERENCE or base is None:
            continue
        reached = tokens_to_reach(
            table["tokens"].to_numpy(float),
            table["validation_loss"].to_numpy(float),
            float(base["validation_loss"].iloc[-1]),
        )
        share = np.nan if reached is None else reached / float(base["tokens"].iloc[-1])
        rows.append((corpus, model, variant, seed, share))
    return pd.DataFrame(rows, columns=["corpus", "model", "variant", "seed", "share"])


def loss_against_time(results: Results, confidence: float) -> Figure:
    """Mean validation loss against the time that the tokens take at the measured throughput."""
    table = results.curves.dropna(subset=["validation_loss"])
    table = table[table["run"].isin(completed(results)) & (table["step"] > 0)]
    if table.empty:
        return empty_figure("No run reached its last step.")
    cells = [(corpus, model) for corpus in results.corpora for model in results.models]
    figure, panels = wrapped_grid(len(cells), 2.6)
    for panel, (corpus, model) in zip(panels, cells, strict=True):
        measured = results.throughput[model]["variants"]
        for variant in results.variants:
            own = table[
                (table["corpus"] == corpus)
                & (table["model"] == model)
                & (table["variant"] == variant)
            ]
            if own.empty or variant not in measured:
                continue
            mean = own.groupby("tokens")["validation_loss"].mean()
            seconds = mean.index.to_numpy(float) / measured[variant]["tokens_per_second"]["median"]
            panel.plot(
                seconds, mean, color=colour(variant), linestyle=line_style(variant), linewidth=1.2
            )
            panel.plot(
                seconds[-1], mean.iloc[-1], marker(variant), color=colour(variant), markersize=4.5
            )
        plain_log(panel)
        panel.set(
            title=cell_title(results, corpus, model),
            xlabel=f"training time on {results.throughput[model]['device']} (s)",
            ylabel="validation loss (nats/token)",
        )
    variant_legend(figure, results.variants, results.labels)
    return figure


def token_efficiency(results: Results, confidence: float) -> Figure:
    """Tokens to reach the plain residual's final loss, as a share of those of the whole run."""
    shares = token_shares(results)
    if shares.empty:
        return empty_figure(
            "There is no completed plain residual of the same seed to compare with."
        )
    cells = [(corpus, model) for corpus in results.corpora for model in results.models]
    shown = [variant for variant in results.variants if variant != REFERENCE]
    figure, panels = wrapped_grid(len(cells), 0.7 + 0.26 * len(shown))
    for panel, (corpus, model) in zip(panels, cells, strict=True):
        cell = shares[(shares["corpus"] == corpus) & (shares["model"] == model)]
        if cell.empty:
            empty_state(panel, "There is no completed plain residual\nto compare with.")
            continue
        labels = []
        for place, variant in enumerate(shown):
            values = cell.loc[cell["variant"] == variant, "share"]
            reached = values.dropna().to_numpy()
            missed = len(values) - len(reached)
            labels.append(
                results.label(variant) + (f" ({missed} of {len(values)} never)" if missed else "")
            )
            panel.plot(
                reached,
                np.full(len(reached), place + 0.2),
                "o",
                markersize=2.4,
                markeredgewidth=0,
                color=colour(variant),
                alpha=0.45,
            )
            interval = t_interval(reached, confidence)
            if interval.mean is not None:
                panel.errorbar(
                    interval.mean,
                    place - 0.06,
                    xerr=interval.half_width,
                    marker=marker(variant),
                    markersize=5,
                    markeredgecolor="white",
                    markeredgewidth=0.5,
                    color=colour(variant),
                    elinewidth=1.1,
                    capsize=2,
                )
        panel.axvline(1, color=FAINT, linewidth=0.8)
        panel.set_yticks(range(len(shown)), labels)
        panel.tick_params(axis="y", length=0)
        panel.grid(visible=False, axis="y")
        panel.set_ylim(len(shown) - 0.4, -0.6)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
        panel.set(
            title=cell_title(results, corpus, model),
            xlabel="tokens to the plain residual's final loss",
        )
    return figure
