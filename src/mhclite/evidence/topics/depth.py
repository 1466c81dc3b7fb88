"""What depth does to every variant: the study in one figure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mhclite.evidence import exhibits
from mhclite.evidence.frame import (
    FAIR,
    LOSS,
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
    colour,
    empty_state,
    line_style,
    marker,
    plain_log,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.topics.h_res import H_RES
from mhclite.study.sections import BASE

SHARED = 0.66  # of the way to the next depth is shared by the variants of one
LINEAR = 1e-3  # nats per token up to which the axis of costs is linear
SMALLEST = 1e-8  # what a logarithmic axis shows of an exact zero


class Panel(NamedTuple):
    """A metric over the number of layers; of the loss, its difference to the plain residual."""

    metric: str
    label: str
    scale: str = "log"


PANELS = {
    "Loss minus the plain residual's": Panel(LOSS, "nats per token", "linear"),
    "Largest composite gain": Panel("gain_forward_peak", "gain"),
    "Product's sums off": Panel("product_max_deviation", "largest |sum - 1|"),
    f"Lost where {H_RES} is set to I": Panel("knockout_identity", "nats per token", "symlog"),
}


def found_of(results: Results, cell: Cell, panel: Panel) -> tuple[dict[int, float], Interval]:
    """What a panel shows of a cell: the values of its seeds, and their mean with its interval."""
    if panel.metric == LOSS:
        base = Cell(cell.corpus, cell.model, BASELINE)
        return minus(values(results, cell), values(results, base)), apart(results, cell, base)
    seeds, interval = values(results, cell, panel.metric), mean(results, cell, panel.metric)
    if panel.scale == "log":
        seeds = {seed: max(value, SMALLEST) for seed, value in seeds.items()}
        interval = Interval(interval.n, SMALLEST) if interval.mean == 0 else interval
    return seeds, interval


def over_depth(
    axes: Axes, results: Results, panel: Panel, corpus: str, variant: str, condition: str
) -> list[float]:
    """A variant over depth: each seed faint, mean and interval joined by a line.

    Hollow and dotted under a condition. Returns the values drawn.
    """
    hollow = condition != BASE
    # Beside each other at a depth, and not over each other: intervals are long with few seeds.
    place = (results.variants.index(variant) + 0.5) / len(results.variants) - 0.5
    shift = least_step(map(results.n_layer, results.models)) ** (SHARED * place)
    at, middles = [], []
    drawn: list[float] = []
    for model in sorted(results.models, key=results.n_layer):
        seeds, interval = found_of(results, Cell(corpus, model, variant, condition), panel)
        if interval.mean is not None:
            at.append(results.n_layer(model) * shift)
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
    if not drawn:
        return drawn
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


def draw(axes: Axes, results: Results, panel: Panel, corpus: str) -> bool:
    """All variants in a panel; whether there is any to draw."""
    norms = conditions_that_change(results, "final_norm")
    fair = [name for name, norm in norms.items() if norm == FAIR["final_norm"]]
    zero: dict[str, Any] = {"color": FAINT, "linewidth": 0.8}
    drawn: list[float] = []
    if panel.scale == "linear":
        axes.axhline(0, **zero)
    for variant in results.variants:
        if panel.metric == "product_max_deviation" and not keeps_sums(variant):
            continue
        if panel.metric == LOSS and variant == BASELINE:
            continue
        for condition in (BASE, *(fair if panel.metric == LOSS else ())):
            drawn += over_depth(axes, results, panel, corpus, variant, condition)
    if not drawn:
        empty_state(axes, "Not measured, or nothing to compare with.")
        return False
    if panel.scale == "log":
        axes.set_yscale("log")
    elif panel.scale == "symlog":
        axes.axhline(0, **zero)
        axes.set_yscale("symlog", linthresh=LINEAR)
    frame(axes, [*drawn, 0.0] if panel.scale == "linear" else drawn)
    if panel.scale == "log":
        plain_log(axes)
    elif panel.scale == "symlog":
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel(panel.label)
    return True


@exhibits.figure(
    "depth",
    title="What depth does to every variant",
    caption=(
        "Mean (geometric on logarithmic axes) with its 95 % interval over up to {seeds}, each "
        "a point; long intervals are cut. Hollow: one final norm. 1e-08 stands for 0. Source: "
        "runs.csv."
    ),
    alt="Four panels of curves over the number of layers, one colour and marker for each variant.",
    heading="loss",
    needs="depths",
)
def depth(results: Results) -> Figure:
    """Four quantities over depth, of the study's first corpus."""
    figure, axes = wrapped_grid(len(PANELS), 2.35)
    for one, (title, panel) in zip(axes, PANELS.items(), strict=True):
        one.set_autoscaley_on(False)  # by `frame`
        if draw(one, results, panel, results.corpora[0]):
            one.set_title(title)
            depth_axis(one, map(results.n_layer, results.models))
    variant_legend(figure, results.variants, results.labels)
    return figure
