"""What the trained models use their mixing matrices for: the cost of taking them away."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.frame import Cell, cells, row
from mhclite.evidence.results import Results, of
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Rows,
    metric,
    number,
    percent_of,
    places,
    rows_of,
    significant,
)
from mhclite.measure.files import Use

KNOCKOUTS = ("knockout_identity", "knockout_mean")


def uses_of(results: Results, cell: Cell) -> list[Use]:
    """What the runs of one cell make of their H_res; empty where it was not measured."""
    runs = of(results.runs, cell.corpus, cell.model, cell.variant)["run"]
    found = (results.probes[run].use for run in runs)
    return [use for use in found if use is not None]


def use_data(results: Results) -> pd.DataFrame:
    """One row per cell: what all H_res at once cost, and means over seeds of what single sub-layers
    and streams cost, in nats per token."""
    rows: list[Record] = []
    for cell in cells(results):
        found, uses = row(results, cell, KNOCKOUTS), uses_of(results, cell)
        if uses:
            by_sublayer = [[cost.mean for cost in use.identity_by_sublayer] for use in uses]
            by_stream = [[cost.mean for cost in use.stream_dropped] for use in uses]
            costs = np.mean(by_sublayer, axis=0)
            found["sublayer"], found["sublayer_cost"] = int(np.argmax(costs)) + 1, costs.max()
            # Which stream it is differs between seeds.
            found["stream_most"] = float(np.mean([max(costs) for costs in by_stream]))
            found["stream_least"] = float(np.mean([min(costs) for costs in by_stream]))
        rows.append(found)
    return pd.DataFrame(rows)


@exhibits.table(
    "mixing_use",
    title="What the mixing is used for",
    caption="Rise of the loss without parts of a trained model, over {seeds}. Source: probes/.",
    heading="mixing",
)
def mixing_use_table(results: Results) -> Rows:
    """What each variant loses without its mixing."""

    def streams(row: Record) -> str:
        texts = [significant(row.get(f"stream_{which}")) for which in ("most", "least")]
        return NONE if NONE in texts else " : ".join(texts)

    return rows_of(
        use_data(results),
        places(results),
        [
            metric("knockout_identity", "Lost with H_res = I"),
            metric("knockout_mean", "Lost with H_res = its mean"),
            Col("Most in one sub-layer", number("sublayer_cost")),
            Col("Lost without a stream, most : least", streams),
        ],
        "Nats per token, on held-out windows; means over the completed runs, of the first two ± "
        f"half-width of the {percent_of(results.confidence)} interval over seeds and windows of "
        "text. H_res = I: every mixing matrix is the identity; its mean: every H_res is the mean "
        "over tokens of that sub-layer. One sub-layer: H_res = I in the sub-layer where that costs "
        "most. Without a stream: it is zero after the last sub-layer. "
        f"{NONE}: does not apply, or was not measured.",
    )
