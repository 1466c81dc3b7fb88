"""The Sinkhorn-Knopp experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.tables import Col, Record, Rows, rows_of, significant

METHODS = [(precision, domain) for precision in ("fp32", "bf16") for domain in ("log", "exp")]


def _rows(results: Results) -> list[dict[str, Any]]:
    assert results.sinkhorn is not None
    return list(results.sinkhorn["rows"])


@exhibits.table(
    "sinkhorn",
    title="What Sinkhorn-Knopp leaves after so many iterations",
    caption="Median and largest deviation of the inexact sums from 1. Source: sinkhorn.json.",
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
