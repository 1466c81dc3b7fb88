"""The Sinkhorn-Knopp experiment."""

from __future__ import annotations

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.style import FAINT, grid
from mhclite.evidence.table_format import Rows, significant, sparse

FLOOR = 1e-8  # below it float32's rounding is all there is; the axis ends there


METHODS = {
    ("fp32", "log"): "fp32, log domain",
    ("fp32", "exp"): "fp32, exp domain",
    ("bf16", "log"): "bf16, log domain",
    ("bf16", "exp"): "bf16, exp domain",
}


PAPER_ITERATIONS = 20


def _rows(results: Results) -> list[dict[str, Any]]:
    assert results.sinkhorn is not None
    return list(results.sinkhorn["rows"])


def _trained_limit(results: Results) -> float | None:
    """Largest log(1/nu) of the inputs of this study's trained runs, no setting changed."""
    probes = [results.probes[run] for run in results.runs["run"] if run in results.probes]
    values = [
        probe.mixing.sinkhorn_input.max
        for probe in probes
        if probe.mixing is not None and probe.mixing.sinkhorn_input is not None
    ]
    return max(values, default=None)


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
    row_head="Logit range",
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
    by_place = {(r["logit_range"], r["iterations"], r["precision"], r["domain"]): r for r in rows}
    display = []
    for spread in sorted({row["logit_range"] for row in rows}):
        for count in sorted({row["iterations"] for row in rows}):
            cells = {"Logit range": f"{spread:g}", "Iterations": str(count)}
            for (precision, domain), label in METHODS.items():
                one = by_place[spread, count, precision, domain]
                cells[f"{label}, one matrix"] = (
                    f"{significant(one['single']['median'], 2)} / "
                    f"{significant(one['single']['max'], 2)}"
                )
                if (precision, domain) == ("fp32", "log"):
                    product = one["product"][str(deepest)]
                    cells[f"{label}, {deepest} multiplied"] = (
                        f"{significant(product['median'], 2)} / {significant(product['max'], 2)}"
                    )
            display.append(cells)
    table = pd.DataFrame(display)
    assert results.sinkhorn is not None
    limit = _trained_limit(results)
    trained = (
        ""
        if limit is None
        else f" The inputs of this study's trained runs reach log(1/ν) = {limit:.1f}."
    )
    return Rows(
        notes=(
            f"Median / largest |sum - 1| on the side that the last half-step does not normalise, "
            f"over {results.sinkhorn['settings']['matrices']:,} x {deepest} random 4 × 4 matrices "
            "with logits uniform over the range (log(1/ν) is nearly the range). Products multiply "
            f"{deepest} of them in float64.{trained}"
        ),
        data=data,
        display=sparse(table, ["Logit range"]),
        numeric=tuple(table.columns[1:]),
    )


@exhibits.table(
    "sinkhorn_example",
    title="The paper's 3 × 3 example",
    caption=(
        "Column sums of the example of arXiv 2601.05732 after so many iterations. Source: "
        "sinkhorn.json."
    ),
    heading="mixing",
    needs="sinkhorn",
    row_head="Iterations",
)
def example_table(results: Results) -> Rows:
    """The paper's 3 x 3 example."""
    assert results.sinkhorn is not None
    rows = results.sinkhorn["example"]
    data = pd.DataFrame(
        {
            "iterations": row["iterations"],
            **{f"column_{at}": value for at, value in enumerate(row["column_sums"], start=1)},
            **{f"row_{at}": value for at, value in enumerate(row["row_sums"], start=1)},
        }
        for row in rows
    )
    display = pd.DataFrame(
        {
            "Iterations": str(row["iterations"]),
            "Column sums": " / ".join(f"{value:.3f}" for value in row["column_sums"]),
            "Sum of all entries": f"{sum(row['column_sums']):.3f}",
            "Largest |row sum - 1|": significant(
                max(abs(value - 1) for value in row["row_sums"]), 2
            ),
        }
        for row in rows
    )
    return Rows(
        notes=(
            "[[1/2, α, α], [1/2, α, α], [α, 1, 1]] with α = 1e-13, columns normalised, then rows, "
            "in float64. After 20 iterations the paper is quoted with column sums 1.92 / 0.59 / "
            "0.59. They add up to 3.10; the rows are exact after the last half-step, so the sums "
            "must add up to 3."
        ),
        data=data,
        display=display,
        numeric=tuple(display.columns[1:]),
    )
