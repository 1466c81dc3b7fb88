"""What depth does to every variant: the study in one figure, and the gain along the sub-layers.

H_res is in operator orientation: row t holds the weights that enter output stream t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    NullLocator,
)

from mhclite.evidence import exhibits
from mhclite.evidence.frame import (
    FAIR,
    Cell,
    apart,
    conditions_that_change,
    keeps_sums,
    mean,
    values,
)
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, Interval, minus
from mhclite.evidence.style import (
    FAINT,
    SEED_LINE,
    colour,
    empty_figure,
    empty_state,
    grid,
    line_style,
    marker,
    plain_log,
    remark,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.topics.losses import divergence_note
from mhclite.evidence.topics.mixing import H_RES, NO_PROBES, deepest_probed
from mhclite.study.sections import BASE

SHARED = 0.66  # of the way to the next depth is shared by the variants of one
LINEAR = 1e-3  # nats per token up to which the axis of costs is linear
SMALLEST = 1e-8  # what a logarithmic axis shows of an exact zero
AT_ONE = 0.005  # gains this close to 1 lie on top of each other in the figure
Found = Callable[[Cell], tuple[dict[int, float], Interval]]  # seeds, and their mean


# --- over the number of layers --------------------------------------------------------------


def over_depth(axes: Axes, results: Results, cells: Iterable[Cell], found: Found) -> list[float]:
    """A variant over depth: each seed faint, mean and interval joined by a line.

    Hollow and dotted under a condition. Returns the values drawn.
    """
    cells = sorted(cells, key=lambda cell: results.n_layer(cell.model))
    variant, hollow = cells[0].variant, cells[0].condition != BASE
    # Beside each other at a depth, and not over each other: intervals are long with few seeds.
    place = (results.variants.index(variant) + 0.5) / len(results.variants) - 0.5
    shift = least_step(map(results.n_layer, results.models)) ** (SHARED * place)
    at, middles = [], []
    drawn: list[float] = []
    for cell in cells:
        seeds, interval = found(cell)
        if interval.mean is not None:
            at.append(results.n_layer(cell.model) * shift)
            middles.append(interval)
            drawn += seeds.values()
            axes.plot(
                [at[-1]] * len(seeds),
                list(seeds.values()),
                ".",
                color=colour(variant),
                markersize=2.5,
                alpha=0.5,
                markeredgewidth=0,
            )
    means = [interval.mean or 0.0 for interval in middles]
    ends = [
        [m if end is None else end for m, end in zip(means, side, strict=True)]
        for side in ([i.low for i in middles], [i.high for i in middles])
    ]
    axes.errorbar(
        at,
        means,
        yerr=np.abs(np.array(ends) - np.array(means)),
        color=colour(variant),
        linestyle=(0, (1, 1.5)) if hollow else line_style(variant),
        linewidth=0.7,
        marker=marker(variant),
        markersize=3.2,
        markerfacecolor="white" if hollow else colour(variant),
        elinewidth=0.8,
        zorder=3,
    )
    return drawn


def frame(axes: Axes, drawn: Iterable[float]) -> None:
    """Limits of the y axis that hold these values, on its scale, and some room.

    An interval of few seeds can be many times as long as they are apart: it is cut where the panel
    ends, and the others can be seen.
    """
    scale = axes.yaxis.get_transform()
    ends = scale.transform(np.array([min(drawn), max(drawn)]))
    spread = float(np.ptp(ends))
    alike = spread <= 1e-9 * max(1.0, float(np.abs(ends).max()))  # up to rounding
    room = 0.05 if alike else 0.08 * spread
    axes.set_ylim(*scale.inverted().transform(ends + np.array([-room, room])))


def least_step(depths: Iterable[int]) -> float:
    """The factor between the two depths that are closest."""
    return min(deep / shallow for shallow, deep in pairwise(sorted(set(depths))))


def depth_axis(axes: Axes, depths: Iterable[int]) -> None:
    """The study's depths, logarithmic; every second has a band behind what belongs to it."""
    depths = sorted(set(depths))
    half = least_step(depths) ** 0.5
    for depth in depths[::2]:
        axes.axvspan(depth / half, depth * half, color="#f4f4f2", zorder=0, linewidth=0)
    axes.grid(visible=False, axis="x")
    axes.set_xscale("log")
    axes.set_xlim(depths[0] / half, depths[-1] * half)
    axes.xaxis.set_major_locator(FixedLocator(depths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("layers")


def _draw(
    axes: Axes,
    results: Results,
    corpus: str,
    found: Found,
    conditions: Iterable[str] = (),
    shown: Callable[[str], bool] = lambda variant: True,
) -> list[float]:
    """All variants over depth, under the study's own settings and under conditions."""
    drawn: list[float] = []
    for variant in filter(shown, results.variants):
        for condition in (BASE, *conditions):
            cells = [Cell(corpus, model, variant, condition) for model in results.models]
            if any(found(cell)[0] for cell in cells):
                drawn += over_depth(axes, results, cells, found)
    return drawn


def _metric(results: Results, metric: str) -> Found:
    return lambda cell: (values(results, cell, metric), mean(results, cell, metric))


def _losses(axes: Axes, results: Results, corpus: str) -> None:
    def against(cell: Cell) -> tuple[dict[int, float], Interval]:
        base = Cell(corpus, cell.model, BASELINE)
        return minus(values(results, cell), values(results, base)), apart(results, cell, base)

    if BASELINE not in results.variants:
        empty_state(axes, "The plain residual is not in this study.")
        return
    axes.axhline(0, color=FAINT, linewidth=0.8)
    norms = conditions_that_change(results, "final_norm")
    fair = [name for name, norm in norms.items() if norm == FAIR["final_norm"]]
    drawn = _draw(axes, results, corpus, against, fair, lambda variant: variant != BASELINE)
    frame(axes, [*drawn, 0.0])
    axes.set_ylabel("nats per token")


def _logarithmic(
    metric: str, label: str, shown: Callable[[str], bool] = lambda variant: True
) -> Callable[[Axes, Results, str], None]:
    """A panel of a metric, of the variants `shown`."""

    def panel(axes: Axes, results: Results, corpus: str) -> None:
        def positive(cell: Cell) -> tuple[dict[int, float], Interval]:
            seeds, interval = _metric(results, metric)(cell)
            if interval.mean == 0:
                interval = Interval(interval.n, SMALLEST)
            return {seed: max(value, SMALLEST) for seed, value in seeds.items()}, interval

        drawn = _draw(axes, results, corpus, positive, shown=shown)
        if not drawn:
            empty_state(axes, "Not measured.")
            return
        axes.set_yscale("log")
        frame(axes, drawn)
        plain_log(axes)
        axes.set_ylabel(label)

    return panel


def _knockouts(axes: Axes, results: Results, corpus: str) -> None:
    drawn = _draw(axes, results, corpus, _metric(results, "knockout_identity"))
    if not drawn:
        empty_state(axes, "Not measured.")
        return
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=LINEAR)
    frame(axes, drawn)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("nats per token")


PANELS: dict[str, Callable[[Axes, Results, str], None]] = {
    "Loss minus the plain residual's": _losses,
    "Largest composite gain": _logarithmic("gain_forward_peak", "gain"),
    "Product's sums off": _logarithmic("product_max_deviation", "largest |sum - 1|", keeps_sums),
    f"Lost where {H_RES} is set to I": _knockouts,
}


@exhibits.figure(
    "depth",
    title="What depth does to every variant",
    caption=(
        "Mean (geometric on logarithmic axes) with its {level} % interval over up to {seeds}, each "
        "a point; long intervals are cut. Hollow: one final norm. 1e-08 stands for 0. Source: "
        "runs.csv."
    ),
    alt="Four panels of curves over the number of layers, one colour and marker for each variant.",
    heading="loss",
    needs="depths",
    printed="several depths",
)
def depth(results: Results) -> Figure:
    """Four quantities over depth, of the study's first corpus."""
    figure, panels = wrapped_grid(len(PANELS), 2.35)
    for panel, (title, fill) in zip(panels, PANELS.items(), strict=True):
        panel.set_autoscaley_on(False)  # by `frame`
        fill(panel, results, results.corpora[0])
        if panel.axison:
            panel.set_title(title)
            depth_axis(panel, map(results.n_layer, results.models))
    variant_legend(figure, results.variants, results.labels)
    return figure


# --- along the sub-layers -------------------------------------------------------------------


@exhibits.figure(
    "composite_gain",
    title="Composite gain over depth",
    caption=(
        "Largest absolute row sum (forward) and column sum (backward) of the product of the first "
        "H_res, two per layer, mean over tokens. 1 keeps the size of a signal. Bold: mean over "
        "{seeds}; thin: each seed. Source: probes/."
    ),
    alt=(
        "Curves over the number of matrices multiplied on a logarithmic axis, with a line at one."
    ),
    heading="stability",
)
def composite_gain(results: Results) -> Figure:
    """Composite gain of the product of the first l sub-layers' H_res."""
    shown = deepest_probed(results)
    if not shown:
        return empty_figure(NO_PROBES)
    figure, axes = grid(len(shown), 2, 2.3, sharex="row", sharey=True)
    gains = [1 - AT_ONE, 1 + AT_ONE]  # the least that the axis shows
    for pair, (corpus, model) in zip(axes, shown, strict=True):
        for panel, way, what in zip(pair, ("forward", "backward"), ("row", "column"), strict=True):
            level = []  # variants whose lines lie on top of each other
            for variant in results.streams:
                probes = results.mixing(corpus, model, variant).values()
                series = np.array([getattr(probe.product, f"gain_{way}") for probe in probes])
                if not len(series):
                    continue
                places, tint = np.arange(1, series.shape[1] + 1), colour(variant)
                panel.plot(places, series.T, color=tint, linewidth=0.5, alpha=0.45)
                panel.plot(places, series.mean(0), color=tint, linestyle=line_style(variant))
                gains += series.ravel().tolist()
                if np.abs(series - 1).max() < AT_ONE:
                    level.append(results.label(variant))
            panel.axhline(1, color=FAINT, linewidth=0.8, zorder=1)
            panel.set(
                title=f"{results.panel_title(corpus, model)}\n{way}",
                xlabel="matrices multiplied",
                ylabel=f"largest |{what} sum|",
            )
            remark(panel, f"within {AT_ONE} of 1: {', '.join(level)}" if level else "")
        remark(pair[0], divergence_note(results, corpus, model))
    margin = (max(gains) / min(gains)) ** 0.05
    for panel in figure.axes:
        panel.set_ylim(min(gains) / margin, max(gains) * margin)
        plain_log(panel)
    variant_legend(figure, results.streams, results.labels, extra=[SEED_LINE])
    return figure
