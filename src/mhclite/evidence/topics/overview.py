"""Every variant in one row: what it learns, what its mixing does, what it costs.

The deepest model speaks, as it does for the claims. This table stands under what was found.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import (
    BASELINE,
    CONTROL,
    INTERVAL_COLUMNS,
    Interval,
    geometric_interval,
    interval_columns,
    knockout_interval,
    t_interval,
)
from mhclite.evidence.table_format import (
    NONE,
    Rows,
    fixed,
    percent_of,
    plus_minus,
    row_sums,
    sparse,
)
from mhclite.evidence.values import (
    FAIR,
    completed_by_seed,
    condition_of,
    deepest_first,
    keeps_sums,
    loss_difference,
)
from mhclite.study.sections import BASE

PLACES = (3, 3, 4)  # of the differences: those to Identity HC are the smallest
NOTHING = 1e-6  # nats: the rounding of a variant that never mixes
FACTORS = ("gain_forward_peak", "product_max_deviation")


def overview_data(results: Results) -> pd.DataFrame:
    """One row per corpus and variant, at the deepest model; of completed runs.

    `validation_loss_*`; differences paired by seed: `minus_residual_*`, `minus_fair_*` (the same
    where the streams are summed before the final norm), `minus_control_*` (Identity HC); geometric
    means of `FACTORS` with the ends of their intervals; `knockout_identity_*`; `step_time` in
    the plain residual's; `extra_percent` of parameters.
    """
    model = deepest_first(results)[0]
    return pd.DataFrame(
        {"corpus": corpus, "model": model, "variant": variant}
        | _measured(results, corpus, model, variant)
        | _cost(results, model, variant)
        for corpus in results.corpora
        for variant in results.variants_of(model)
    )


def _measured(results: Results, corpus: str, model: str, variant: str) -> dict[str, Any]:
    """What the runs of a variant came to."""

    def values(column: str) -> list[float]:
        return list(completed_by_seed(results, corpus, model, variant, column).values())

    def minus(other: str, condition: str | None) -> Interval:
        if variant in (other, BASELINE) or condition is None:
            return Interval(0, None, None, None)
        return loss_difference(results, corpus, model, variant, other, condition)

    fair = condition_of(results, variant, FAIR)
    intervals = {
        "validation_loss": t_interval(values("validation_loss"), results.confidence),
        "minus_residual": minus(BASELINE, BASE),
        "minus_fair": minus(BASELINE, None if fair == BASE else fair),
        "minus_control": minus(CONTROL, BASE),
        "knockout_identity": knockout_interval(
            values("knockout_identity"), values("knockout_identity_error"), results.confidence
        ),
    }
    found: dict[str, Any] = {}
    for name, interval in intervals.items():
        found |= {f"{name}_{key}": value for key, value in interval_columns(interval).items()}
    for column in FACTORS:
        found_values = values(column)
        positive = [value for value in found_values if value > 0]
        ends = geometric_interval(positive, results.confidence)
        if found_values and not positive:  # exact, by construction
            ends["mean"] = 0.0
        found |= {f"{column}_{end}": value for end, value in ends.items()}
    return found


def _cost(results: Results, model: str, variant: str) -> dict[str, Any]:
    """Step time and parameters beside the plain residual's; NaN where not measured."""
    throughput = results.throughput[model]
    timed, counted = throughput.variants.get(variant), throughput.counted(variant)
    found = {"step_time": math.nan, "extra_percent": math.nan}
    if timed:
        found["step_time"] = timed.ratio_quartiles.median
    if counted:
        own = counted.parameters - counted.extra_parameters
        found["extra_percent"] = 100 * counted.extra_parameters / own
    return found


@exhibits.table(
    "overview",
    title="Every variant at a glance",
    caption=(
        "Loss, differences paired by seed, what the mixing matrices do and what a step costs, at "
        "the study's deepest model, over up to {seeds}. Source: runs.csv and throughput/."
    ),
    heading="claims",
)
def overview_table(results: Results) -> Rows:
    """The table for readers; columns of which no variant has a value are left out."""
    data = overview_data(results)
    beside = {name: results.labels.get(name, name) for name in (BASELINE, CONTROL)}
    names = {
        "residual": f"Minus {beside[BASELINE]}",
        "fair": f"Minus {beside[BASELINE]}, one final norm",
        "control": f"Minus {beside[CONTROL]}",
    }
    records = data.to_dict("records")

    def factor(row: dict[Any, Any], column: str) -> str:
        return row_sums(*(row[f"{column}_{end}"] for end in ("mean", "low", "high")))

    def lost(row: dict[Any, Any]) -> str:
        mean, half_width = (row[f"knockout_identity_{end}"] for end in ("mean", "half_width"))
        return "0" if max(abs(mean), half_width) < NOTHING else plus_minus(mean, half_width)

    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": results.model_label(row["model"]),
            "Variant": results.label(row["variant"]),
            "Seeds (n)": fixed(row["validation_loss_n"], 0),
            "Loss": plus_minus(row["validation_loss_mean"], row["validation_loss_half_width"], 3),
            **{
                name: plus_minus(row[f"minus_{key}_mean"], row[f"minus_{key}_half_width"], places)
                for (key, name), places in zip(names.items(), PLACES, strict=True)
            },
            "Largest gain": factor(row, "gain_forward_peak"),
            "Sums off, product": (
                factor(row, "product_max_deviation") if keeps_sums(row["variant"]) else NONE
            ),
            "Lost, H_res = I": lost(row),
            "Step time": fixed(row["step_time"], 2),
            "Extra (%)": fixed(row["extra_percent"], 0),
        }
        for row in records
    )
    seeds = len(results.seeds)
    empty = [name for name in display.columns[3:] if (display[name] == NONE).all()]
    if (display["Seeds (n)"] == str(seeds)).all():  # which is said below
        empty.append("Seeds (n)")
    bold = frozenset(
        (at, name)
        for at, row in enumerate(records)
        for key, name in names.items()
        if name not in empty
        and Interval(*(row[f"minus_{key}_{end}"] for end in INTERVAL_COLUMNS[:4])).excludes_zero()
    )
    display = display.drop(columns=empty)
    level = percent_of(results.confidence)
    fewer = sorted({int(row["minus_fair_n"]) for row in records if row["minus_fair_n"]})
    fair = f" One final norm: after the sum of the streams (n = {fewer[-1]})." if fewer else ""
    return Rows(
        notes=(
            f"At the deepest model, over the completed of {seeds} seed{'s' * (seeds != 1)}. "
            "Loss: final validation loss, nats per token, mean ± half-width of the "
            f"{level} Student t interval; differences are paired by seed, below 0 is better, bold "
            "where the interval excludes 0 (each alone: nothing is corrected for their number)."
            f"{fair} Largest gain: largest absolute row sum of the product of all H_res, mean over "
            "tokens, largest over training; sums off: largest deviation of its row and column sums "
            "from 1 at the end, over tokens, of variants whose sums are meant to be 1; both "
            "geometric means with intervals. Lost: what the trained model's loss rises by where "
            "every H_res is set to I, its interval over seeds and windows of text. Step time: the "
            "plain residual's in the same timed round is "
            "1; median. Extra: parameters beyond the plain residual's. "
            f"{NONE}: does not apply, or not measured."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model"]),
        numeric=tuple(display.columns[3:]),
        bold=bold,
    )
