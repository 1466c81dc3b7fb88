"""The Sinkhorn-Knopp experiment."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.tables import Col, Record, Rows, rows_of, significant

KEYS = ("logit_range", "iterations", "precision", "domain")
METHODS = (("fp32", "log"), ("fp32", "exp"), ("bf16", "log"), ("bf16", "exp"))


@exhibits.table(
    "sinkhorn",
    title="What Sinkhorn-Knopp leaves after so many iterations",
    caption="Median and largest deviation of the inexact sums from 1. Source: sinkhorn.json.",
    heading="mixing",
    needs="sinkhorn",
)
def sinkhorn_table(results: Results) -> Rows:
    """Median and largest deviation by range, iterations and way of computing."""
    assert results.sinkhorn is not None
    rows = results.sinkhorn["rows"]
    deepest = max(int(depth) for depth in rows[0]["product"])
    data = pd.DataFrame(
        {
            **{key: row[key] for key in KEYS},
            **{f"single_{name}": value for name, value in row["single"].items()},
            **{
                f"product_{depth}_{name}": value
                for depth, values in row["product"].items()
                for name, value in values.items()
            },
        }
        for row in rows
    )
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
