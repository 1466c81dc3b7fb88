"""The figure of the stress experiment."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mhclite.evidence.figures_training import cell_title
from mhclite.evidence.results import Results
from mhclite.evidence.stress import factors, outcomes
from mhclite.evidence.style import (
    FAINT,
    INK,
    colour,
    line_style,
    marker,
    variant_legend,
    wrapped_grid,
)

ABOVE = 0.6  # nats above the unigram baseline at which the axis ends; diverged runs stand there


def stress(results: Results, confidence: float) -> Figure:
    """Final loss against the learning rate: means, each run a point, failures crosses."""
    runs = outcomes(results)
    rates = list(factors(results).values())
    cells = [(corpus, model) for corpus in results.corpora for model in results.models]
    figure, panels = wrapped_grid(len(cells), 2.8)
    offsets = dict(
        zip(results.variants, np.linspace(-0.16, 0.16, len(results.variants)), strict=True)
    )
    for panel, (corpus, model) in zip(panels, cells, strict=True):
        top = results.baselines[corpus]["unigram"] + ABOVE
        cell = runs[(runs["corpus"] == corpus) & (runs["model"] == model)]
        for variant in results.variants:
            own = cell[cell["variant"] == variant]
            loss = own["validation_loss"].fillna(top).clip(upper=top)
            means = loss.groupby(own["factor"]).mean()
            panel.plot(
                np.log2(means.index) + offsets[variant],
                means,
                color=colour(variant),
                linestyle=line_style(variant),
                linewidth=1,
                marker=marker(variant),
                markersize=3.6,
            )
            for failed, shape in ((False, "."), (True, "x")):
                part = own["failed"] == failed
                panel.plot(
                    np.log2(own.loc[part, "factor"]) + offsets[variant],
                    loss[part],
                    shape,
                    color=colour(variant),
                    markersize=5 if failed else 3,
                    alpha=0.9 if failed else 0.5,
                )
        panel.axhline(results.baselines[corpus]["unigram"], color=FAINT, linewidth=0.8, ls=":")
        panel.xaxis.set_major_locator(FixedLocator(list(np.log2(rates))))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"x {2**value:g}"))
        panel.set(
            title=cell_title(results, corpus, model),
            xlabel=f"learning rate ({results.settings['models'][model]['learning_rate']:g} x)",
            ylabel="final validation loss (nats/token)",
        )
    cross = Line2D([], [], color=INK, linestyle="none", marker="x", label="failed")
    variant_legend(figure, results.variants, results.labels, extra=[cross])
    return figure
