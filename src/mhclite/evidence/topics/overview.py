"""Every variant in one row: what it learns, what its mixing does, what it costs.

The deepest model speaks, as it does for the claims.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.frame import (
    FAIR,
    LOSS,
    Cell,
    apart,
    columns,
    condition_of,
    deepest_first,
    keeps_sums,
    row,
)
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE
from mhclite.evidence.tables import (
    Col,
    Record,
    Rows,
    counted,
    mean_and_half,
    metric,
    number,
    percent_of,
    places,
    rows_of,
)
from mhclite.study.sections import BASE

MEANS = (LOSS, "gain_forward_peak", "product_max_deviation")
MOST = 6  # columns


def overview_data(results: Results) -> pd.DataFrame:
    """One row per corpus and variant, at the deepest model.

    The means of `MEANS`; differences of the loss, paired by seed: `minus_residual`, `minus_fair`
    (the same where the streams are summed before the final norm); `step_time` in the plain
    residual's.
    """
    model = deepest_first(results)[0]
    rows = []
    for corpus in results.corpora:
        baseline = Cell(corpus, model, BASELINE)
        for variant in results.variants_of(model):
            own, fair = Cell(corpus, model, variant), condition_of(results, variant, FAIR)
            under = None if fair in (None, BASE) else own._replace(condition=str(fair))
            timed = results.throughput[model].variants.get(variant)
            found = row(results, own, MEANS)
            found["step_time"] = timed.ratio_quartiles.median if timed else math.nan
            for name, first in (("minus_residual", own), ("minus_fair", under)):
                is_pair = first is not None and variant != BASELINE
                difference = apart(results, first or own, baseline if is_pair else None)
                found |= columns(name, difference)
            rows.append(found)
    return pd.DataFrame(rows)


@exhibits.table(
    "overview",
    title="Every variant at a glance",
    caption="Every variant at the deepest model, over {seeds}. Source: runs.csv, throughput/.",
    heading="claims",
)
def overview_table(results: Results) -> Rows:
    """At most `MOST` columns: what no variant has is left out, then the last ones."""
    minus = f"Minus {results.labels.get(BASELINE, BASELINE)}"
    loss = Col("Loss", _loss)
    *corpus, _, variant = places(results)
    whole = rows_of(
        overview_data(results),
        [*corpus, variant],
        [
            loss,
            Col(minus, mean_and_half("minus_residual", 3)),
            Col(f"{minus}, one final norm", mean_and_half("minus_fair", 3)),
            metric("product_max_deviation", of=keeps_sums),
            Col("Step time", number("step_time", 2)),
            metric("gain_forward_peak"),
        ],
        f"{results.model_label(deepest_first(results)[0])}, over "
        f"{counted(len(results.seeds), 'seed')}: mean ± half-width, or [ends], of the "
        f"{percent_of(results.confidence)} interval. Losses in nats per token, differences paired "
        "by seed, below 0 is better. Sums off: deviation from 1. Step time: the plain residual's "
        "is 1.",
    )
    names = list(whole.display.columns)
    # Losses of several sizes have a table of their own.
    if len(names) > MOST and len(results.models) > 1:
        names.remove(loss.heading)
    numeric = [name for name in names[:MOST] if name in whole.numeric]
    return replace(whole, display=whole.display[names[:MOST]], numeric=numeric)


def _loss(row: Record) -> str:
    text = mean_and_half(LOSS, 3)(row)
    return text + f" ({row['n_diverged']} diverged)" * bool(row["n_diverged"])
