"""H_res of the trained models, from the mixing probe; and what Sinkhorn-Knopp leaves.

H_res is in operator orientation: row t holds the weights that enter output stream t. What the
papers call column sums are the row sums here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from mhclite.evidence import exhibits
from mhclite.evidence.frame import cells, deepest_first, keeps_sums, row
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE
from mhclite.evidence.style import FAINT, INK, colour, empty_state, grid, wrapped_grid
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Table,
    metric,
    places,
    rows_of,
    significant,
)

ROUNDING = 1e-6  # deviations below this are rounding of 32-bit numbers
MEANS = (
    *("start_distance", "product_max_deviation", "gain_forward_peak"),
    *("singular_largest", "sinkhorn_share_above_30", "knockout_identity", "knockout_mean"),
)
H_RES = r"$H_\mathrm{res}$"


NOTES = (
    "Moved: distance of H_res from its start. Sums off: deviation from 1. Gain and singular value: "
    "of the product over depth. Lost: nats per token. [Ends] or ± half-width of the 95 % "
    f"interval. {NONE}: does not apply."
)


def mixing_columns() -> list[Col]:
    """The columns of `MEANS`."""
    return [
        metric("start_distance", "Moved"),
        metric("product_max_deviation", of=keeps_sums),
        metric("gain_forward_peak"),
        metric("singular_largest", "Largest singular value"),
        metric("sinkhorn_share_above_30"),
        metric("knockout_identity", "Lost, H_res = I"),
        metric("knockout_mean", "Lost, H_res = its mean"),
    ]


@exhibits.table(
    "mixing",
    title="What the mixing does, and what it is used for",
    caption="H_res of the trained models on held-out text, over {seeds}. Source: probes/.",
    heading="mixing",
)
def mixing_table(results: Results) -> Table:
    """Where H_res stands, what its product does, and what the model loses without it."""
    return rows_of(
        pd.DataFrame(
            row(results, cell, MEANS) for cell in cells(results) if cell.variant != BASELINE
        ),
        places(results),
        mixing_columns(),
        NOTES,
    )


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
        "Row sums (upper box) and column sums (pale) of H_res minus 1, per token; the paper's "
        "Figure 3 has row sums as column sums. Boxes and whiskers: medians over {seeds} of each "
        "one's quantiles. Source: probes/."
    ),
    alt="Horizontal box plots around a line at exactly zero, a row for each variant.",
    heading="mixing",
)
def row_sums(results: Results) -> Figure:
    """Distribution of both sums of H_res at the deepest model: of single matrices, and of the
    product over depth.
    """
    model = deepest_first(results)[0]
    shown = [
        corpus
        for corpus in results.corpora
        if any(results.mixing(corpus, model, variant) for variant in results.variants)
    ]
    if not shown:
        figure, (panel,) = wrapped_grid(1, 1.6)
        empty_state(panel, "No multi-stream run reached its last step: there is no H_res to show.")
        return figure
    variants = [variant for variant in results.variants if variant != BASELINE]
    figure, axes = grid(len(shown), 2, 0.9 + 0.3 * len(variants), sharey=True)
    largest = results.runs[["single_max_deviation", "product_max_deviation"]].max().max()
    for pair, corpus in zip(axes, shown, strict=True):
        for panel, title in zip(pair, (f"single {H_RES}", "product over depth"), strict=True):
            panel.axvspan(-ROUNDING, ROUNDING, color="#eeeeee", zorder=0)
            panel.axvline(0, color=FAINT, linewidth=0.8)
            panel.set_yticks(range(len(variants)), [results.labels[one] for one in variants])
            panel.set_ylim(len(variants) - 0.4, -0.6)  # the first above
            panel.tick_params(axis="y", length=0)
            panel.grid(visible=False, axis="y")
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
                    quantiles = zip(probes[0].quantile_levels, np.transpose(sums) - 1, strict=True)
                    _box(panel, at, variant, pale, dict(quantiles))
    figure.legend(
        handles=[
            Patch(color="#eeeeee", label="rounding of 32-bit numbers"),
            Patch(facecolor="#888888", edgecolor=INK, label="rows: middle half, median"),
            Patch(facecolor="#dddddd", edgecolor=INK, label="columns"),
            Line2D([], [], color=INK, linewidth=0.7, label="0.1 % to 99.9 %"),
            Line2D([], [], color=INK, marker=".", linestyle="none", label="least, largest"),
        ],
        loc="outside upper center",
        ncols=3,
    )
    return figure


def _box(axes: Axes, place: float, variant: str, pale: bool, found: dict[float, Any]) -> None:
    """A bar over the middle half with its median, a line from 0.1 % to 99.9 %, the extremes.

    Args:
        found: level -> each seed's quantile. Bar and line are medians over seeds.
    """
    middle = {level: float(np.median(values)) for level, values in found.items()}
    axes.hlines(place, middle[0.001], middle[0.999], color=INK, linewidth=0.7)
    axes.barh(
        place,
        middle[0.75] - middle[0.25],
        0.32,
        middle[0.25],
        color=colour(variant),
        edgecolor=INK,
        linewidth=0.6,
        alpha=0.3 if pale else 0.85,
    )
    axes.vlines(middle[0.5], place - 0.16, place + 0.16, color=INK, linewidth=0.7)
    axes.plot([found[0].min(), found[1].max()], [place] * 2, ".", color=INK, markersize=2.5)


# --- the Sinkhorn-Knopp experiment ------------------------------------------------------------

KEYS = ("logit_range", "iterations", "precision", "domain")
METHODS = (("fp32", "log"), ("fp32", "exp"), ("bf16", "log"), ("bf16", "exp"))


@exhibits.table(
    "sinkhorn",
    title="What Sinkhorn-Knopp leaves after so many iterations",
    caption="Median and largest deviation of the inexact sums from 1. Source: sinkhorn.json.",
    heading="mixing",
    needs="sinkhorn",
)
def sinkhorn_table(results: Results) -> Table:
    """Median and largest deviation by range, iterations and way of computing."""
    assert results.sinkhorn is not None
    rows = results.sinkhorn["rows"]
    deepest = max(int(depth) for depth in rows[0]["product"])
    data = pd.json_normalize(rows, sep="_")  # single_median, product_24_max and the like
    by_method = {tuple(row[name] for name in KEYS): row for row in data.to_dict("records")}

    def column(heading: str, method: tuple[str, str], what: str) -> Col:
        def text(row: Record) -> str:
            found = by_method[row["logit_range"], row["iterations"], *method]
            return " / ".join(significant(found[f"{what}_{end}"], 2) for end in ("median", "max"))

        return Col(heading, text)

    reached = results.values.loc[results.values["metric"] == "largest_log_inverse_nu", "value"]
    trained = f" Trained runs reach log(1/ν) = {reached.max():.1f}."
    shown = rows_of(
        data[["logit_range", "iterations"]].drop_duplicates().sort_values([*KEYS[:2]]),
        [
            Col("Logit range", lambda row: f"{row['logit_range']:g}"),
            Col("Iterations", lambda row: f"{row['iterations']:g}"),
        ],
        [
            *(column(f"{p}, {domain} domain", (p, domain), "single") for p, domain in METHODS),
            column(f"fp32, log domain, {deepest} multiplied", METHODS[0], f"product_{deepest}"),
        ],
        "Median / largest |sum - 1| on the side that the last half-step does not normalise, over "
        f"{results.sinkhorn['settings']['matrices']:,} x {deepest} random matrices; logits are "
        f"uniform over the range.{trained * bool(len(reached))}",
    )
    return replace(shown, data=data)
