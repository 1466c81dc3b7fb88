"""What each condition changes: its loss against the study's own settings, seed by seed.

A difference between two variants is compared before and after: what a condition takes away of it
was the setting, not the variant.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from mhclite.evidence.results import Results
from mhclite.evidence.statistics import INTERVAL_COLUMNS, Interval, interval_columns, t_interval
from mhclite.evidence.table_format import Table, percent_of, plus_minus, sparse
from mhclite.study.settings import BASE

REFERENCES = ("residual", "mhc")  # whom a variant is compared with, before and after

Losses = dict[tuple[str, str, str, str], dict[int, float]]


def losses_by_seed(results: Results) -> Losses:
    """(corpus, model, variant, condition) -> seed -> final validation loss of completed runs."""
    losses: Losses = {}
    for row in results.all_runs.to_dict("records"):
        if row["status"] == "completed":
            cell = (row["corpus"], row["model"], row["variant"], row["condition"])
            losses.setdefault(cell, {})[int(row["seed"])] = row["validation_loss"]
    return losses


def difference(
    minuend: dict[int, float], subtrahend: dict[int, float], confidence: float
) -> Interval:
    """Mean of minuend - subtrahend over the seeds that both have."""
    shared = minuend.keys() & subtrahend.keys()
    return t_interval([minuend[seed] - subtrahend[seed] for seed in sorted(shared)], confidence)


def conditions_data(results: Results, confidence: float) -> pd.DataFrame:
    """One row a corpus, model, condition and variant: nats per token, paired by seed.

    `change_*`: loss under the condition minus that of the same variant under the study's own
    settings. `gap_<reference>_before_*`: loss minus the reference variant's under the study's own
    settings; `..._after_*`: the same with the condition applied to whichever of the two has it.
    """
    losses = losses_by_seed(results)
    rows: list[dict[str, Any]] = []
    for corpus in results.corpora:
        for model in results.models:
            for condition, settings in results.settings["conditions"].items():

                def under(variant: str, condition: str) -> dict[int, float]:
                    return losses.get((corpus, model, variant, condition), {})  # noqa: B023

                touched = settings["variants"]
                for variant in touched:
                    changed = under(variant, condition)
                    row: dict[str, Any] = {
                        "corpus": corpus,
                        "model": model,
                        "condition": condition,
                        "title": settings["title"],
                        "variant": variant,
                    }
                    change = difference(changed, under(variant, BASE), confidence)
                    row |= _named("change", change)
                    for reference in REFERENCES:
                        other = condition if reference in touched else BASE
                        before = difference(
                            under(variant, BASE), under(reference, BASE), confidence
                        )
                        after = difference(changed, under(reference, other), confidence)
                        if reference == variant:
                            before = after = Interval(0, None, None, None)
                        row |= _named(f"gap_{reference}_before", before)
                        row |= _named(f"gap_{reference}_after", after)
                    rows.append(row)
    return pd.DataFrame(rows)


def _named(prefix: str, interval: Interval) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in interval_columns(interval).items()}


def conditions_table(results: Results, confidence: float) -> Table:
    """The table for readers."""
    data = conditions_data(results, confidence)

    def text(row: dict[Any, Any], prefix: str) -> str:
        return plus_minus(row[f"{prefix}_mean"], row[f"{prefix}_half_width"])

    rows = []
    for row in data.to_dict("records"):
        cells = {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Changed": row["title"],
            "Variant": results.label(row["variant"]),
            "Seeds (n)": f"{row['change_n']:.0f}",
            "Change of loss": text(row, "change"),
        }
        for reference in REFERENCES:
            if reference in results.variants:
                label = results.label(reference)
                cells[f"Minus {label}, before"] = text(row, f"gap_{reference}_before")
                cells[f"Minus {label}, after"] = text(row, f"gap_{reference}_after")
        rows.append(cells)
    display = pd.DataFrame(rows)
    change = "Change of loss"
    clear = frozenset(
        (at, change)
        for at, row in enumerate(data.to_dict("records"))
        if Interval(*(row[f"change_{name}"] for name in INTERVAL_COLUMNS[:4])).excludes_zero()
    )
    return Table(
        name="conditions",
        title="What each change of settings does",
        notes=(
            "Final validation loss in nats per token, differences paired by seed: mean ± "
            f"half-width of the {percent_of(confidence)} Student t interval over the n seeds. "
            "Change of loss: with the change minus without it, same variant; bold where the "
            "interval excludes 0 (each row stands alone: nothing is corrected for their number). "
            "The other columns compare the variant with another, before the change and after it; "
            "the change applies to both where it touches both."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Changed"]),
        numeric=tuple(display.columns[4:]),
        bold=clear,
    )
