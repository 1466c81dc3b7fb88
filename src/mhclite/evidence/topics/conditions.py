"""Changed settings: what each does to the loss, and mixing that learns faster."""

from __future__ import annotations

from operator import itemgetter

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.frame import LOSS, Cell, apart, columns, conditions_that_change, row, values
from mhclite.evidence.results import Results
from mhclite.evidence.tables import (
    Col,
    Record,
    Table,
    changed,
    mean_and_half,
    places,
    rows_of,
)
from mhclite.evidence.topics.h_res import MEANS, NOTES, mixing_columns
from mhclite.study.sections import BASE

AGED = "mixing_rate_factor"
OTHERS = ("residual", "mhc")  # whom a variant is compared with


def conditions_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, condition and variant: nats per token, paired by seed.

    `change`: loss under the condition minus that of the same variant under the study's own
    settings. `minus_<other>`: loss minus the other variant's, which has the condition too if it is
    one of its variants. There is none with a variant that lacks a change of training, which
    concerns every variant.
    """
    rows: list[Record] = []
    for corpus, model in results.panels():
        for condition, settings in results.settings["conditions"].items():
            if AGED in settings["connections"]:  # has a table of its own
                continue
            if model not in (settings.get("models") or results.models):
                continue
            # A change of training concerns every variant: one without it is no comparison.
            of_all = settings["training"] or settings["learning_rate_factor"] != 1
            for variant in settings["variants"]:
                base, own = (Cell(corpus, model, variant, c) for c in (BASE, condition))
                found = row(results, own) | columns("change", apart(results, own, base))
                for against in OTHERS:
                    touched = against in settings["variants"]
                    other = (own if touched else base)._replace(variant=against)
                    no_pair = against == variant or (of_all and not touched)
                    difference = apart(results, own, None if no_pair else other)
                    found |= columns(f"minus_{against}", difference)
                rows.append(found)
    return pd.DataFrame(rows)


@exhibits.table(
    "conditions",
    title="What each change of settings does",
    caption="Losses with one setting changed, over up to {seeds}. Source: runs.csv.",
    heading="changes",
    needs="conditions",
)
def conditions_table(results: Results) -> Table:
    """The table for readers."""
    *place, variant = places(results)
    return rows_of(
        conditions_data(results),
        [*place, changed(results), variant],
        [
            Col("Change of loss", mean_and_half("change", 3)),
            *(
                Col(f"Minus {results.labels[other]}", mean_and_half(f"minus_{other}", 3))
                for other in OTHERS
                if other in results.variants
            ),
        ],
        "Change of loss: with the change minus without it. Other columns: minus another variant, "
        "which has the change too if it touches it. Nats per token, paired by seed, ± half-width "
        "of the 95 % interval.",
    )


def faster_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, factor (1: the study's own setting) and variant, of those that
    have another factor: the means of `mixing.MEANS`, and `change`, the loss minus that at factor 1.
    """
    factors = {name: float(x) for name, x in conditions_that_change(results, AGED).items()}
    rows: list[Record] = []
    for corpus, model in results.panels():
        for name, factor in {BASE: 1.0, **dict(sorted(factors.items(), key=itemgetter(1)))}.items():
            for variant in results.variants:
                base = Cell(corpus, model, variant)
                own = base._replace(condition=name)
                ran = [values(results, base._replace(condition=c), "diverged") for c in factors]
                if any(ran) and values(results, own, "diverged"):
                    difference = apart(results, own, None if name == BASE else base)
                    found = row(results, own, [LOSS, *MEANS]) | {"factor": factor}
                    rows.append(found | columns("change", difference))
    return pd.DataFrame(rows)


@exhibits.table(
    "faster_mixing",
    title="Where the mixing learns faster",
    caption="Loss and H_res where it learns several times as fast, over up to {seeds}. "
    "Source: runs.csv.",
    heading="mixing",
    needs="faster_mixing",
)
def faster_mixing_table(results: Results) -> Table:
    """Loss, sums, gain and use of H_res by how fast it learns: from its distance to its effect."""
    *place, variant = places(results)
    return rows_of(
        faster_data(results),
        [*place, Col("Mixing learns", lambda row: f"x {row['factor']:g}"), variant],
        [
            Col("Diverged runs", lambda row: f"{row['n_diverged']} of {row['runs']}"),
            Col("Change of loss", mean_and_half("change", 3)),
            *mixing_columns(),
        ],
        NOTES,
    )
