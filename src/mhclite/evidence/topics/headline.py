"""The study in one figure: what depth does to every variant.

Six panels over the same logarithmic axis of depth. H_res is in operator orientation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import BASELINE, t_interval
from mhclite.evidence.style import (
    FAINT,
    INK,
    colour,
    empty_state,
    line_style,
    marker,
    plain_log,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.topics.mixing import H_RES
from mhclite.evidence.topics.use import LINEAR
from mhclite.evidence.values import conditions_that_change, keeps_sums
from mhclite.study.sections import BASE

APART = 0.66  # of the way to the next depth is shared by the variants of one
SMALLEST = 1e-8  # what a logarithmic axis shows of an exact zero


def by_depth(
    results: Results, corpus: str, variant: str, condition: str, value: str
) -> dict[int, dict[int, float]]:
    """Layers -> seed -> value of a column of runs.csv, of completed runs where it is finite."""
    rows = of(results.all_runs, corpus, variant=variant)
    rows = rows[(rows["condition"] == condition) & (rows["status"] == "completed")]
    found: dict[int, dict[int, float]] = {}
    for row in rows.dropna(subset=[value]).to_dict("records"):
        found.setdefault(results.n_layer(row["model"]), {})[int(row["seed"])] = row[value]
    return found


def minus(
    own: dict[int, dict[int, float]], other: dict[int, dict[int, float]]
) -> dict[int, dict[int, float]]:
    """Differences at the depths and seeds that both have."""
    return {
        depth: {seed: values[seed] - other[depth][seed] for seed in values.keys() & other[depth]}
        for depth, values in own.items()
        if depth in other
    }


def draw(
    axes: Axes,
    results: Results,
    variant: str,
    values: dict[int, dict[int, float]],
    *,
    hollow: bool = False,
    logarithmic: bool = False,
    possible: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """A variant over depth: each seed faint, mean and interval joined by a line.

    On a logarithmic axis they are those of the logarithms: geometric mean, uneven interval. An
    interval ends where values end that are possible.
    """
    # Beside each other at a depth, and not over each other: intervals are long with few seeds.
    nearest = least_step(results.n_layer(model) for model in results.models)
    place = (results.variants.index(variant) + 0.5) / len(results.variants) - 0.5
    shift = nearest ** (APART * place)
    depths = sorted(depth for depth, seeds in values.items() if seeds)
    if not depths:
        return
    to, back = (math.log, math.exp) if logarithmic else (float, float)
    intervals = [
        t_interval(map(to, values[depth].values()), results.confidence) for depth in depths
    ]
    means = [back(interval.mean or 0.0) for interval in intervals]
    least, most = possible
    lows = [
        max(back(i.low), least) if i.low is not None else mean
        for i, mean in zip(intervals, means, strict=True)
    ]
    highs = [
        min(back(i.high), most) if i.high is not None else mean
        for i, mean in zip(intervals, means, strict=True)
    ]
    at = [depth * shift for depth in depths]
    for x, depth in zip(at, depths, strict=True):
        seeds = list(values[depth].values())
        axes.plot(
            [x] * len(seeds), seeds, ".", color=colour(variant), markersize=2.5, alpha=0.5,
            markeredgewidth=0,
        )  # fmt: skip
    axes.errorbar(
        at,
        means,
        yerr=[
            [mean - low for mean, low in zip(means, lows, strict=True)],
            [high - mean for mean, high in zip(means, highs, strict=True)],
        ],
        color=colour(variant),
        linestyle=(0, (1, 1.5)) if hollow else line_style(variant),
        linewidth=0.7,
        marker=marker(variant),
        markersize=3.2,
        markerfacecolor="white" if hollow else colour(variant),
        elinewidth=0.8,
        zorder=3,
    )


def paper_mark(axes: Axes, depth: float, value: float, text: str) -> None:
    """A figure of the papers, where it was found."""
    axes.plot([depth], [value], "*", color=INK, markersize=7, zorder=4)
    axes.annotate(
        text, (depth, value), xytext=(-4, 4), textcoords="offset points", ha="right", fontsize=6,
        color=INK,
    )  # fmt: skip


def frame(axes: Axes, values: Iterable[float]) -> None:
    """Limits of the y axis that hold these values, on its scale, and some room.

    An interval of few seeds can be many times as long as they are apart: it is cut where the panel
    ends, and the others can be seen.
    """
    scale = axes.yaxis.get_transform()
    ends = scale.transform(np.array([min(values), max(values)]))
    apart = float(np.ptp(ends))
    alike = apart <= 1e-9 * max(1.0, float(np.abs(ends).max()))  # up to rounding
    room = 0.05 if alike else 0.08 * apart
    axes.set_ylim(*scale.inverted().transform(ends + np.array([-room, room])))


def every(values: dict[int, dict[int, float]]) -> list[float]:
    """The values of all depths and seeds."""
    return [value for seeds in values.values() for value in seeds.values()]


def least_step(depths: Iterable[int]) -> float:
    """The factor between the two depths that are closest."""
    return min(deep / shallow for shallow, deep in pairwise(sorted(set(depths))))


def depth_axis(axes: Axes, depths: Iterable[int]) -> None:
    """The study's depths, logarithmic; every second has a band behind what belongs to it."""
    depths = sorted(depths)
    half = least_step(depths) ** 0.5
    for depth in depths[::2]:
        axes.axvspan(depth / half, depth * half, color="#f4f4f2", zorder=0, linewidth=0)
    axes.grid(visible=False, axis="x")
    axes.set_xscale("log")
    axes.set_xlim(depths[0] / half, depths[-1] * half)
    axes.xaxis.set_major_locator(FixedLocator(sorted(depths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("layers")


def _losses(axes: Axes, results: Results, corpus: str) -> None:
    if BASELINE not in results.variants:
        empty_state(axes, "The plain residual is not in this study.")
        return
    axes.axhline(0, color=FAINT, linewidth=0.8)
    base = by_depth(results, corpus, BASELINE, BASE, "validation_loss")
    after = [
        name
        for name in conditions_that_change(results, "final_norm")
        if results.settings["conditions"][name]["connections"]["final_norm"] == "after_sum"
    ]
    drawn = [0.0]
    for variant in results.variants:
        if variant == BASELINE:
            continue
        for condition in (BASE, *after):
            own = by_depth(results, corpus, variant, condition, "validation_loss")
            values = minus(own, base)
            draw(axes, results, variant, values, hollow=condition != BASE)
            drawn += every(values)
    frame(axes, drawn)
    axes.set_ylabel("nats per token")


def _column(
    columns: tuple[str, ...],
    label: str,
    shown: Callable[[str], bool] = lambda variant: True,
    *,
    linear_to: float = 0.0,
) -> Callable[[Axes, Results, str], None]:
    """A panel of a column of runs.csv, the first that has values, of the variants `shown`.

    Its axis is logarithmic, or linear up to `linear_to` and logarithmic beyond on both sides of 0.
    """

    def panel(axes: Axes, results: Results, corpus: str) -> None:
        drawn: list[float] = []
        column = next((c for c in columns if results.all_runs[c].notna().any()), columns[0])
        for variant in filter(shown, results.variants):
            values = by_depth(results, corpus, variant, BASE, column)
            if not linear_to:
                values = {
                    depth: {seed: max(value, SMALLEST) for seed, value in seeds.items()}
                    for depth, seeds in values.items()
                }
            draw(axes, results, variant, values, logarithmic=not linear_to)
            drawn += every(values)
        if not drawn:
            empty_state(axes, "Not measured.")
            return
        if linear_to:
            axes.axhline(0, color=FAINT, linewidth=0.8)
            axes.set_yscale("symlog", linthresh=linear_to)
            frame(axes, drawn)
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_yscale("log")
            frame(axes, drawn)
            plain_log(axes)
        axes.set_ylabel(label)

    return panel


def _sinkhorn_inputs(axes: Axes, results: Results, corpus: str) -> None:
    column = "sinkhorn_share_above_30"
    drawn: list[float] = []
    for variant in results.variants:
        for condition in [BASE, *conditions_that_change(results, "mixing_rate_factor")]:
            values = by_depth(results, corpus, variant, condition, column)
            draw(axes, results, variant, values, hollow=condition != BASE, possible=(0, 1))
            drawn += every(values)
    if not drawn:
        empty_state(axes, "No variant here is given to Sinkhorn-Knopp.")
        return
    paper_mark(axes, 24, 0.279, "paper, L")
    frame(axes, [*drawn, 0.0, 0.36])  # room for what stands at the mark
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_ylabel("share of inputs")


PANELS: dict[str, Callable[[Axes, Results, str], None]] = {
    "Loss minus the plain residual's": _losses,
    "Largest composite gain": _column(("gain_forward_peak",), "gain"),
    "Product's sums off": _column(("product_max_deviation",), "largest |sum - 1|", keeps_sums),
    "Gradient fluctuation": _column(
        ("backbone_grad_norm_fluctuation", "grad_norm_fluctuation"), "sd of its logarithm"
    ),
    f"Lost where {H_RES} is set to I": _column(
        ("knockout_identity",), "nats per token", linear_to=LINEAR
    ),
    "Hard Sinkhorn inputs": _sinkhorn_inputs,
}


@exhibits.figure(
    "depth",
    title="What depth does to every variant",
    caption=(
        "All variants against the number of layers, on one corpus. {residual:Loss: final "
        "validation loss minus the plain residual's of the same seed}{after_sum:; hollow: with the "
        "final LayerNorm after the sum of the streams}{residual:. }"
        "Largest composite gain: largest absolute row sum of the "
        "product of all H_res, mean over tokens, largest over training. Product's sums off: "
        "largest deviation of a row or column sum from 1 at the end, of variants whose sums are "
        "meant to be 1{exact_sums:; 1e-08 stands for 0}. Gradient fluctuation: sd of the "
        "logarithm of the backbone's gradient norm about its running median. Lost: what the "
        "trained model's loss rises by when every H_res is set to the identity; the axis is linear "
        "up to 0.001 nats, as in the figure of knock-outs. {hard_inputs:Hard Sinkhorn inputs: "
        "those with log(1/ν) above 30}{faster_mixing:; hollow where the mixing learns "
        "faster}{hard_inputs:; star: the paper's figure for its L. }Mean (geometric on logarithmic "
        "axes) and {level} % Student t interval over up to {seeds}, each seed a point; an interval "
        "that leaves its panel is cut. Operator orientation. Source: runs.csv."
    ),
    alt="Six panels of curves over the number of layers, one colour and marker for each variant.",
    heading="claims",
    needs="depths",
)
def depth(results: Results) -> Figure:
    """Six quantities over depth, of the study's first corpus."""
    corpus = results.corpora[0]
    figure, panels = wrapped_grid(len(PANELS), 2.35, beside=3)
    depths = {results.n_layer(model) for model in results.models}
    for panel, (title, fill) in zip(panels, PANELS.items(), strict=True):
        panel.set_autoscaley_on(False)  # by `frame`
        fill(panel, results, corpus)
        if panel.axison:
            panel.set_title(title)
            depth_axis(panel, depths)
    variant_legend(figure, results.variants, results.labels)
    return figure
