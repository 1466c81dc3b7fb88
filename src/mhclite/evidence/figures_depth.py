"""Figures of H_res along the depth of the network, from the mixing probe of the trained models.

H_res is in operator orientation: row t holds the weights that enter output stream t.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mhclite.evidence.figures_mixing import H_RES, NO_PROBES, FloatArray, probed
from mhclite.evidence.figures_training import SEED_LINE, cell_title, divergence_note
from mhclite.evidence.results import Results
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
    wrapped_grid,
)

AT_ONE = 0.005  # gains this close to 1 lie on top of each other in the figure


def _along_depth(
    axes: Axes, results: Results, corpus: str, model: str, *path: str
) -> dict[str, FloatArray]:
    """Draw a probe's series over sub-layers: seeds thin, their mean bold.

    Returns variant -> values (seeds, sub-layers). Zeros, which a logarithmic axis cannot show, are
    left out of the drawing.
    """
    found = {}
    for variant in results.variants:
        series = []
        for probe in results.mixing_probes(corpus, model, variant).values():
            value: Any = probe
            for key in path:
                value = value[key]
            series.append(value)
        if not series:
            continue
        values = found[variant] = np.array(series, dtype=np.float64)
        if not values.any():
            continue
        places = np.arange(1, values.shape[1] + 1)
        for line in values:
            axes.plot(places, line, color=colour(variant), linewidth=0.5, alpha=0.45)
        axes.plot(
            places,
            values.mean(axis=0),
            color=colour(variant),
            linestyle=line_style(variant),
        )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return found


def _names(results: Results, variants: list[str]) -> str:
    return ", ".join(results.label(variant) for variant in variants)


def composite_gain(results: Results, confidence: float) -> Figure:
    """Composite gain of the product of the first l sub-layers' H_res."""
    cells = probed(results)
    if not cells:
        return empty_figure(NO_PROBES)
    figure, axes = grid(len(cells), 2, 2.5, sharey="row")
    for row, (corpus, model) in enumerate(cells):
        gains = [1 - AT_ONE, 1 + AT_ONE]  # the least that the axis shows
        for panel, direction, what in zip(
            axes[row], ("forward", "backward"), ("row", "column"), strict=True
        ):
            found = _along_depth(panel, results, corpus, model, "product", f"gain_{direction}")
            gains += [gain for values in found.values() for gain in (values.min(), values.max())]
            panel.axhline(1, color=FAINT, linewidth=0.8, zorder=1)
            panel.set(
                title=f"{cell_title(results, corpus, model)}: {direction}",
                xlabel=f"number of {H_RES} multiplied (two a layer)",
                ylabel=f"largest absolute {what} sum",
            )
            at_one = [v for v, values in found.items() if np.abs(values - 1).max() < AT_ONE]
            remark(panel, f"within {AT_ONE} of 1: {_names(results, at_one)}" if at_one else "")
        margin = (max(gains) / min(gains)) ** 0.05
        axes[row, 0].set_ylim(min(gains) / margin, max(gains) * margin)
        for panel in axes[row]:
            plain_log(panel)
        remark(axes[row, 0], divergence_note(results, corpus, model))
    shown = [variant for variant in results.variants if variant != "residual"]
    variant_legend(figure, shown, results.labels, extra=[SEED_LINE])
    return figure


def identity_distance(results: Results, confidence: float) -> Figure:
    """Distance of H_res from the identity, sub-layer by sub-layer."""
    cells = probed(results)
    if not cells:
        return empty_figure(NO_PROBES)
    figure, panels = wrapped_grid(len(cells), 2.5)
    for panel, (corpus, model) in zip(panels, cells, strict=True):
        found = _along_depth(panel, results, corpus, model, "identity_distance")
        zero = [variant for variant, values in found.items() if not values.any()]
        if len(zero) == len(found):
            empty_state(panel, f"H_res is the identity everywhere: {_names(results, zero)}.")
            continue
        plain_log(panel)
        panel.set(
            title=cell_title(results, corpus, model),
            xlabel="sub-layer (two a layer)",
            ylabel=f"distance of {H_RES} from identity",
        )
        remark(panel, f"0 everywhere: {_names(results, zero)}" if zero else "")
        remark(panel, divergence_note(results, corpus, model))
    shown = [variant for variant in results.variants if variant != "residual"]
    variant_legend(figure, shown, results.labels, extra=[SEED_LINE])
    return figure
