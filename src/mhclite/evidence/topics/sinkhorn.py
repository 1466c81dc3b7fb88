"""The Sinkhorn-Knopp experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.style import FAINT, grid
from mhclite.evidence.tables import Col, Record, Rows, rows_of, significant

FLOOR = 1e-8  # below it float32's rounding is all there is; the axis ends there


METHODS = [(precision, domain) for precision in ("fp32", "bf16") for domain in ("log", "exp")]
PAPER_ITERATIONS = 20


def _rows(results: Results) -> list[dict[str, Any]]:
    assert results.sinkhorn is not None
    return list(results.sinkhorn["rows"])


@exhibits.figure(
    "sinkhorn_error",
    title="Error of the Sinkhorn-Knopp iterations",
    caption=(
        "How far the sums on the inexact side lie from 1 after Sinkhorn-Knopp in float32 and "
        "the log domain, for {matrices} random 4 by 4 matrices of each depth, whose logits are "
        "uniform over a range. Left: single matrices, against iterations. Right: products of "
        "independent matrices after 20 iterations each. Solid: median, dotted: largest; the "
        "axis ends at float32's rounding. Source: sinkhorn.json."
    ),
    alt=(
        "Falling curves on logarithmic axes, one colour for each logit range; on the right "
        "curves that rise with the number of matrices."
    ),
    heading="mixing",
    needs="sinkhorn",
)
def sinkhorn_error(results: Results) -> Figure:
    """Deviation of the inexact sums against iterations, and against depth."""
    rows = [row for row in _rows(results) if (row["precision"], row["domain"]) == ("fp32", "log")]
    ranges = sorted({row["logit_range"] for row in rows})
    colours = dict(zip(ranges, sns.color_palette("viridis", len(ranges)), strict=True))
    figure, axes = grid(1, 2, 3.0, sharey=True)
    left, right = axes[0]
    depths = sorted(int(depth) for depth in rows[0]["product"])
    counts = sorted({row["iterations"] for row in rows})
    fixed = PAPER_ITERATIONS if PAPER_ITERATIONS in counts else counts[-1]
    for spread in ranges:
        own = sorted(
            (row for row in rows if row["logit_range"] == spread), key=lambda row: row["iterations"]
        )
        for name, style, weight in (("median", "-", 1.3), ("max", ":", 1.0)):
            left.plot(
                counts,
                [max(FLOOR, row["single"][name]) for row in own],
                style,
                marker="o",
                markersize=2.5,
                linewidth=weight,
                color=colours[spread],
            )
        one = next(row for row in own if row["iterations"] == fixed)
        for name, style, weight in (("median", "-", 1.3), ("max", ":", 1.0)):
            values = [one["single"][name], *(one["product"][str(d)][name] for d in depths)]
            right.plot(
                [1, *depths],
                [max(FLOOR, value) for value in values],
                style,
                marker="o",
                markersize=2.5,
                linewidth=weight,
                color=colours[spread],
            )
    for panel in (left, right):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.axhline(1, color=FAINT, linewidth=0.8)
        panel.set_ylim(FLOOR / 1.5, None)
    left.set_xticks(counts, [str(count) for count in counts])
    left.minorticks_off()
    left.set(
        title="single matrix", xlabel="Sinkhorn-Knopp iterations", ylabel="|sum - 1|, inexact side"
    )
    right.set_xticks([1, *depths], ["1", *map(str, depths)])
    right.minorticks_off()
    right.set(title=f"product, {fixed} iterations each", xlabel="matrices multiplied")
    handles = [Line2D([], [], color=colours[r], label=f"range {r:g}") for r in ranges]
    handles += [
        Line2D([], [], color="black", label="median"),
        Line2D([], [], color="black", linestyle=":", label="largest"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


@exhibits.table(
    "sinkhorn",
    title="What Sinkhorn-Knopp leaves after so many iterations",
    caption=(
        "Median and largest deviation of the inexact sums from 1 by logit range, iterations, "
        "precision and domain, single and multiplied. Source: sinkhorn.json."
    ),
    heading="mixing",
    needs="sinkhorn",
)
def sinkhorn_table(results: Results) -> Rows:
    """Median and largest deviation by range, iterations and way of computing."""
    rows = _rows(results)
    deepest = max(int(depth) for depth in rows[0]["product"])
    data = pd.DataFrame(
        {
            **{key: row[key] for key in ("logit_range", "iterations", "precision", "domain")},
            **{f"single_{name}": value for name, value in row["single"].items()},
            **{
                f"product_{depth}_{name}": value
                for depth, values in row["product"].items()
                for name, value in values.items()
            },
        }
        for row in rows
    )
    lines = {
        (spread, count): {
            (row["precision"], row["domain"]): row
            for row in rows
            if (row["logit_range"], row["iterations"]) == (spread, count)
        }
        for spread in sorted({row["logit_range"] for row in rows})
        for count in sorted({row["iterations"] for row in rows})
    }
    text = pd.DataFrame(
        {"logit_range": spread, "iterations": count}
        | {
            f"{precision}, {domain} domain, one matrix": _pair(of[precision, domain]["single"])
            for precision, domain in METHODS
        }
        | {
            f"fp32, log domain, {deepest} multiplied": _pair(
                of[METHODS[0]]["product"][f"{deepest}"]
            )
        }
        for (spread, count), of in lines.items()
    )
    assert results.sinkhorn is not None
    reached = results.values.loc[results.values["metric"] == "largest_log_inverse_nu", "value"]
    trained = f" Those of this study's trained runs reach log(1/ν) = {reached.max():.1f}."
    shown = rows_of(
        text,
        [
            Col("Logit range", lambda row: f"{row['logit_range']:g}"),
            Col("Iterations", lambda row: str(row["iterations"])),
        ],
        [Col(name, _cell(name)) for name in text.columns[2:]],
        "Median / largest |sum - 1| on the side that the last half-step does not normalise, "
        f"over {results.sinkhorn['settings']['matrices']:,} x {deepest} random 4 × 4 matrices "
        "with logits uniform over the range (log(1/ν) is nearly the range). Products multiply "
        f"{deepest} of them in float64.{trained * bool(len(reached))}",
    )
    return replace(shown, data=data)


def _pair(found: dict[str, float]) -> str:
    return f"{significant(found['median'], 2)} / {significant(found['max'], 2)}"


def _cell(name: str) -> Callable[[Record], str]:
    return lambda row: str(row[name])
