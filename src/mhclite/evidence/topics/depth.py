"""H_res along the depth of the trained networks, from the mixing probe.

H_res is in operator orientation: row t holds the weights that enter output stream t.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE
from mhclite.evidence.style import (
    FAINT,
    SEED_LINE,
    colour,
    empty_figure,
    empty_state,
    line_style,
    outer_labels,
    paired_grid,
    plain_log,
    remark,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.topics.mixing import NO_PROBES, FloatArray, probed
from mhclite.measure.files import Mixing

AT_ONE = 0.005  # gains this close to 1 lie on top of each other in the figure


def _along_depth(
    axes: Axes,
    results: Results,
    corpus: str,
    model: str,
    series_of: Callable[[Mixing], list[float]],
) -> dict[str, FloatArray]:
    """Draw a probe's series over sub-layers: seeds thin, their mean bold.

    Returns variant -> values (seeds, sub-layers). Zeros, which a logarithmic axis cannot show, are
    left out of the drawing.
    """
    found = {}
    for variant in results.variants:
        series = [series_of(mixing) for mixing in results.mixing(corpus, model, variant).values()]
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


@exhibits.figure(
    "composite_gain",
    title="Composite gain over depth",
    caption=(
        "Gain of the product of the first H_res matrices, two per layer: the largest absolute row "
        "sum (forward, of signals) and column sum (backward, of gradients) of the product, "
        "mean over the tokens of held-out text. Operator orientation. 1 keeps the size of a "
        "signal. Bold: mean over {seeds}; thin: each seed. Source: the files in probes/."
    ),
    alt=(
        "Curves over the number of matrices multiplied on a logarithmic axis, with a line at one."
    ),
    heading="stability",
)
def composite_gain(results: Results) -> Figure:
    """Composite gain of the product of the first l sub-layers' H_res."""
    cells = probed(results)
    if not cells:
        return empty_figure(NO_PROBES)
    figure, axes = paired_grid(len(cells), 1.85, sharey=True)
    gains = [1 - AT_ONE, 1 + AT_ONE]  # the least that the axis shows
    for row, (corpus, model) in enumerate(cells):
        for panel, direction, what in zip(
            axes[row], ("forward", "backward"), ("row", "column"), strict=True
        ):
            series = attrgetter(f"product.gain_{direction}")
            found = _along_depth(panel, results, corpus, model, series)
            gains += [gain for values in found.values() for gain in (values.min(), values.max())]
            panel.axhline(1, color=FAINT, linewidth=0.8, zorder=1)
            panel.set(
                title=f"{results.panel_title(corpus, model)}\n{direction}",
                xlabel="matrices multiplied",
                ylabel=f"largest absolute {what} sum",
            )
            at_one = [v for v, values in found.items() if np.abs(values - 1).max() < AT_ONE]
            remark(panel, f"within {AT_ONE} of 1: {_names(results, at_one)}" if at_one else "")
        remark(axes[row, 0], results.divergence_note(corpus, model))
    margin = (max(gains) / min(gains)) ** 0.05
    for panel in figure.axes:
        panel.set_ylim(min(gains) / margin, max(gains) * margin)
        plain_log(panel)
    outer_labels(figure)
    shown = [variant for variant in results.variants if variant != BASELINE]
    variant_legend(figure, shown, results.labels, extra=[SEED_LINE])
    return figure


@exhibits.figure(
    "identity_distance",
    title="Distance of the mixing matrices from identity",
    caption=(
        "Frobenius norm of H_res minus the identity in each sub-layer of the trained models, "
        "mean over the tokens of held-out text; 0 means that the streams are not mixed. "
        "Sub-layers alternate between attention and MLP, from the input to the output. Bold: "
        "mean over {seeds}; thin: each seed. Source: the files in probes/."
    ),
    alt=(
        "Curves over the sub-layers on a logarithmic axis, one colour and line style for each "
        "variant."
    ),
    heading="mixing",
)
def identity_distance(results: Results) -> Figure:
    """Distance of H_res from the identity, sub-layer by sub-layer."""
    cells = probed(results)
    if not cells:
        return empty_figure(NO_PROBES)
    figure, panels = wrapped_grid(len(cells), 1.85)
    for panel, (corpus, model) in zip(panels, cells, strict=True):
        found = _along_depth(panel, results, corpus, model, lambda mixing: mixing.identity_distance)
        zero = [variant for variant, values in found.items() if not values.any()]
        if len(zero) == len(found):
            empty_state(panel, f"H_res is the identity everywhere: {_names(results, zero)}.")
            continue
        plain_log(panel)
        panel.set(
            title=results.panel_title(corpus, model),
            xlabel="sub-layer (two per layer)",
            ylabel="distance from identity",
        )
        remark(panel, f"0 everywhere: {_names(results, zero)}" if zero else "")
        remark(panel, results.divergence_note(corpus, model))
    shown = [variant for variant in results.variants if variant != BASELINE]
    variant_legend(figure, shown, results.labels, extra=[SEED_LINE])
    return figure
