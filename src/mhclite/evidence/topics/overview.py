"""Every variant in one row: what it learns, what its mixing does, what it costs.

The deepest model speaks, as it does for the claims.
"""

from __future__ import annotations

import math

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
    excludes_zero,
    keeps_sums,
    row,
)
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, CONTROL
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Rows,
    mean_and_half,
    metric,
    number,
    percent_of,
    places,
    rows_of,
)
from mhclite.study.sections import BASE

MEANS = (LOSS, "gain_forward_peak", "product_max_deviation", "knockout_identity")


def overview_data(results: Results) -> pd.DataFrame:
    """One row per corpus and variant, at the deepest model.

    The means of `MEANS`; differences of the loss, paired by seed: `minus_residual`, `minus_fair`
    (the same where the streams are summed before the final norm), `minus_control` (Identity HC);
    `step_time` in the plain residual's; `extra_percent` of parameters.
    """
    model = deepest_first(results)[0]
    rows = []
    for corpus in results.corpora:
        baseline, control = (Cell(corpus, model, other) for other in (BASELINE, CONTROL))
        for variant in results.variants_of(model):
            own, fair = Cell(corpus, model, variant), condition_of(results, variant, FAIR)
            under = None if fair in (None, BASE) else own._replace(condition=str(fair))
            pairs = {
                "residual": (own, baseline),
                "fair": (under, baseline),
                "control": (own, control),
            }
            found = row(results, own, MEANS) | _cost(results, model, variant)
            for name, (first, other) in pairs.items():
                is_pair = first is not None and variant not in (BASELINE, other.variant)
                difference = apart(results, first or own, other if is_pair else None)
                found |= columns(f"minus_{name}", difference)
            rows.append(found)
    return pd.DataFrame(rows)


def _cost(results: Results, model: str, variant: str) -> Record:
    """Step time and parameters beside the plain residual's; NaN where not measured."""
    throughput = results.throughput[model]
    timed, counted = throughput.variants.get(variant), throughput.counted(variant)
    own = counted.parameters - counted.extra_parameters if counted else 0
    return {
        "step_time": timed.ratio_quartiles.median if timed else math.nan,
        "extra_percent": 100 * counted.extra_parameters / own if counted else math.nan,
    }


@exhibits.table(
    "overview",
    title="Every variant at a glance",
    caption="Every variant at the deepest model, over {seeds}. Source: runs.csv, throughput/.",
    heading="claims",
)
def overview_table(results: Results) -> Rows:
    """The table for readers; columns of which no variant has a value are left out."""
    residual, control = (results.labels.get(name, name) for name in (BASELINE, CONTROL))
    minus = {
        "minus_residual": Col(f"Minus {residual}", mean_and_half("minus_residual", 3)),
        "minus_fair": Col(f"Minus {residual}, one final norm", mean_and_half("minus_fair", 3)),
        "minus_control": Col(f"Minus {control}", mean_and_half("minus_control")),
    }
    seeds, data = len(results.seeds), overview_data(results)
    whole = (data[f"{LOSS}_n"] == seeds).all()  # which is said below
    return rows_of(
        data,
        places(results),
        [
            Col("Seeds (n)", lambda row: "" if whole else f"{row[f'{LOSS}_n']:.0f}"),
            Col("Loss", mean_and_half(LOSS, 3)),
            *minus.values(),
            metric("gain_forward_peak"),
            metric("product_max_deviation", of=keeps_sums),
            metric("knockout_identity", "Lost, H_res = I"),
            Col("Step time", number("step_time", 2)),
            Col("Extra (%)", number("extra_percent", 0)),
        ],
        f"At the deepest model, over the completed of {seeds} seed{'s' * (seeds != 1)}. Loss: "
        f"final validation loss, nats per token, mean ± half-width of the "
        f"{percent_of(results.confidence)} Student t interval; differences are paired by seed, "
        "below 0 is better, bold where the interval excludes 0 (each alone: nothing is corrected "
        "for their number). Largest gain: largest absolute row sum of the product of all H_res, "
        "mean over tokens, largest over training; sums off: largest deviation of its row and "
        "column sums from 1 at the end, over tokens, of variants whose sums are meant to be 1; "
        "both geometric means with intervals. Lost: what the trained model's loss rises by where "
        "every H_res is set to I, its interval over seeds and windows of text. Step time: the "
        "plain residual's in the same timed round is 1; median. Extra: parameters beyond the plain "
        f"residual's. {NONE}: does not apply, or not measured.",
        lambda row: [col.heading for name, col in minus.items() if excludes_zero(row, name)],
    )
