"""H_res of the trained models, from the mixing probe.

H_res is in operator orientation: row t holds the weights that enter output stream t. What the
papers call column sums are the row sums here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from mhclite.connections.registry import VARIANTS
from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.style import (
    FAINT,
    INK,
    colour,
    empty_figure,
    grid,
    remark,
    rows_of_variants,
    wrapped_grid,
)
from mhclite.evidence.topics.losses import divergence_note

ROUNDING = 1e-6  # deviations below this are rounding of 32-bit numbers
SINKHORN_LIMIT = 30  # log(1/nu) above which 20 Sinkhorn iterations leave a gap
H_RES = r"$H_\mathrm{res}$"
NO_PROBES = "No multi-stream run reached its last step, so there is no H_res to show."


def probed(results: Results) -> list[tuple[str, str]]:
    """(corpus, model) of the cells in which at least one run was probed."""
    return [
        place
        for place in results.panels()
        if any(results.mixing(*place, variant) for variant in results.variants)
    ]


def pooled_quantiles(table: np.ndarray[Any, Any], levels: list[float]) -> dict[str, Any]:
    """Statistics of a box (for `Axes.bxp`) from each seed's quantiles (seeds, levels).

    Box, median and whiskers (0.1 % and 99.9 %) are medians over the seeds of each seed's quantile;
    the two single points are the extremes over all seeds.
    """
    middle = dict(zip(levels, np.median(table, axis=0).tolist(), strict=True))
    return {
        "whislo": middle[0.001],
        "q1": middle[0.25],
        "med": middle[0.5],
        "q3": middle[0.75],
        "whishi": middle[0.999],
        "fliers": [table[:, levels.index(0)].min(), table[:, levels.index(1)].max()],
    }


def _deviation_axis(axes: Axes, largest: float) -> None:
    """x axis of `sum - 1`: linear within rounding, logarithmic to both sides beyond."""
    axes.set_xscale("symlog", linthresh=ROUNDING, linscale=0.7)
    top = 10.0 ** max(-3, math.ceil(math.log10(max(largest, ROUNDING))))
    axes.set_xticks([-top, -1e-4, 0.0, 1e-4, top])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(-2 * top, 2 * top)


@exhibits.figure(
    "row_sums",
    title="Row and column sums of the mixing matrices",
    caption=(
        "How far the row sums (upper box) and the column sums (lower, pale) of H_res lie from 1, "
        "per token of held-out text: all single matrices, and their product over the whole depth. "
        "Matrices mixed freely, and orthogonal ones, are not meant to keep them. In operator "
        "orientation a row holds the weights that enter one output stream, so the row sums are the "
        "column sums of"
        " the paper's Figure 3. The axis is logarithmic to both sides, and linear in the grey "
        "band. Box, median and whiskers are medians over {seeds} of each seed's quantiles; the "
        "dots are the extremes over all seeds. Source: the files in probes/."
    ),
    alt="Horizontal box plots around a line at exactly one, a row for each variant.",
    heading="mixing",
)
def row_sums(results: Results) -> Figure:
    """Distribution of both sums of H_res: of single matrices, and of the product over depth."""
    cells = probed(results)
    if not cells:
        return empty_figure(NO_PROBES)
    variants = results.streams
    figure, axes = grid(len(cells), 2, 0.9 + 0.3 * len(variants), sharey=True)
    largest = results.runs[["single_max_deviation", "product_max_deviation"]].max().max()
    for pair, (corpus, model) in zip(axes, cells, strict=True):
        for panel, title in zip(pair, (f"single {H_RES}", "product over depth"), strict=True):
            panel.axvspan(-ROUNDING, ROUNDING, color="#eeeeee", zorder=0)
            panel.axvline(0, color=FAINT, linewidth=0.8)
            rows_of_variants(panel, [results.label(variant) for variant in variants])
            _deviation_axis(panel, float(largest))
            name = results.panel_title(corpus, model)
            panel.set(title=f"{name}\n{title}", xlabel="sum minus 1")
        for place, variant in enumerate(variants):
            probes = list(results.mixing(corpus, model, variant).values())
            for pale, at in ((False, place - 0.2), (True, place + 0.2)) if probes else ():
                side = "column" if pale else "row"
                single = [getattr(p.single, f"{side}_sum_all") for p in probes]
                product = [getattr(p.product, f"{side}_sum")[-1] for p in probes]
                for panel, sums in zip(pair, (single, product), strict=True):
                    box = pooled_quantiles(np.array(sums) - 1, probes[0].quantile_levels)
                    _box(panel, at, variant, pale, box)
        remark(pair[0], divergence_note(results, corpus, model))
    dot = Line2D([], [], color=INK, marker=".", linestyle="none", label="least, largest")
    figure.legend(
        handles=[
            Patch(color="#eeeeee", label="rounding of 32-bit numbers"),
            Patch(facecolor="#888888", edgecolor=INK, label="rows: middle half, median"),
            Patch(facecolor="#dddddd", edgecolor=INK, label="columns"),
            Line2D([], [], color=INK, marker="|", label="0.1 % to 99.9 %"),
            dot,
        ],
        loc="outside upper center",
        ncols=3,
    )
    return figure


def _box(axes: Axes, place: float, variant: str, pale: bool, box: dict[str, Any]) -> None:
    """One horizontal box from its statistics."""
    thin = {"color": INK, "linewidth": 0.7}
    axes.bxp(
        [box],
        positions=[place],
        widths=0.32,
        orientation="horizontal",
        patch_artist=True,
        manage_ticks=False,
        boxprops={
            "facecolor": colour(variant),
            "edgecolor": INK,
            "linewidth": 0.6,
            "alpha": 0.3 if pale else 0.85,
        },
        medianprops=thin,
        whiskerprops=thin,
        capprops=thin,
        flierprops={"marker": ".", "markersize": 3.5, "markerfacecolor": INK, "markeredgewidth": 0},
    )


@exhibits.figure(
    "sinkhorn_inputs",
    title="Inputs of the Sinkhorn-Knopp iterations",
    caption=(
        "log(1/ν) of the matrices that are given to the Sinkhorn-Knopp iterations on held-out "
        "text, where ν is a matrix's smallest entry over its largest: all tokens and sub-layers"
        " of {seeds} together, as in the paper's Figure 4. The dashed line at 30 (1/ν of about "
        "1e13) is the paper's threshold, beyond which 20 iterations leave a gap. Source: the "
        "files in probes/."
    ),
    alt=("Histograms with a dashed line at 30; the share above it is written beside the line."),
    heading="mixing",
    needs="iterated",
)
def sinkhorn_inputs(results: Results) -> Figure:
    """Histograms of log(1/nu) of the inputs of the variants that iterate."""
    iterated = [variant for variant in results.variants if VARIANTS[variant].iterates]
    cells = [
        (corpus, model, variant)
        for variant in iterated
        for corpus, model in probed(results)
        if results.mixing(corpus, model, variant)
    ]
    if not cells:
        names = " or ".join(map(results.label, iterated))
        return empty_figure(f"No run of {names} reached its last step.")
    figure, panels = wrapped_grid(len(cells), 1.9, beside=4 if len(cells) > 4 else 2)
    for panel, (corpus, model, variant) in zip(panels, cells, strict=True):
        probes = results.mixing(corpus, model, variant).values()
        inputs = [probe.sinkhorn_input for probe in probes if probe.sinkhorn_input is not None]
        left = np.array(inputs[0].bin_edges)  # the probe's last bin is open: drawn as wide
        counts = np.sum([entry.counts for entry in inputs], axis=0)
        shares = 100 * counts / counts.sum()
        # Every seed's probe has the same number of inputs.
        above = float(np.mean([entry.share_above_30 for entry in inputs]))
        highest = max(entry.max for entry in inputs)
        panel.bar(left, shares, left[-1] - left[-2], align="edge", color=colour(variant), alpha=0.8)
        panel.axvline(SINKHORN_LIMIT, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        panel.annotate(
            f"{100 * above:.3g} % above {SINKHORN_LIMIT}\nlargest {highest:.1f}",
            (1, 0.98),
            xycoords="axes fraction",
            ha="right",
            va="top",
            fontsize=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
        place = results.panel_title(corpus, model)
        panel.set(
            title=f"{place}, {results.label(variant)}" if len(iterated) > 1 else place,
            xlabel="log(1/ν)",
            ylabel="share of inputs (%)",
            xlim=(0, max(1.4 * SINKHORN_LIMIT, min(highest, 2 * left[-1] - left[-2]) * 1.05)),
            ylim=(0, 1.3 * shares.max()),  # room for the text above the bars
        )
        remark(panel, divergence_note(results, corpus, model))
    return figure
