"""Changed settings: what each does to the loss, numbers of streams, mixing that learns faster."""

from __future__ import annotations

import math

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.frame import (
    LOSS,
    Cell,
    apart,
    columns,
    conditions_that_change,
    keeps_sums,
    row,
    values,
)
from mhclite.evidence.results import Results
from mhclite.evidence.tables import (
    MIB,
    NONE,
    Col,
    Record,
    Rows,
    fixed,
    mean_and_half,
    metric,
    missing,
    number,
    percent_of,
    places,
    quartiles,
    rows_of,
)
from mhclite.evidence.topics.cost import timing_columns
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
                base, changed = (Cell(corpus, model, variant, c) for c in (BASE, condition))
                found = row(results, changed) | {"title": settings["title"]}
                found |= columns("change", apart(results, changed, base))
                for against in OTHERS:
                    touched = against in settings["variants"]
                    no_pair = against == variant or (of_all and not touched)
                    after = changed._replace(variant=against)
                    after = after if touched else after._replace(condition=BASE)
                    difference = apart(results, changed, None if no_pair else after)
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
def conditions_table(results: Results) -> Rows:
    """The table for readers."""
    *place, variant = places(results)
    return rows_of(
        conditions_data(results),
        [*place, Col("Changed", lambda row: row["title"]), variant],
        [
            Col("Change of loss", mean_and_half("change", 3)),
            *(
                Col(f"Minus {results.label(other)}", mean_and_half(f"minus_{other}", 3))
                for other in OTHERS
                if other in results.variants
            ),
        ],
        "Change of loss: with the change minus without it. Other columns: minus another variant, "
        "which has the change too if it touches it. Nats per token, paired by seed, ± half-width "
        f"of the {percent_of(results.confidence)} interval.",
    )


# --- numbers of streams ---------------------------------------------------------------------


def streams_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, variant and number of streams, fewest first.

    The final loss; `change`: minus that with the study's own number, paired by seed. Costs are from
    the throughput file: step time over the plain residual's, peak memory, parameters over the plain
    residual.
    """
    usual = int(results.settings["connections"]["n_streams"])
    about = results.settings["conditions"]
    numbers = {
        name: int(one["connections"]["n_streams"])
        for name, one in about.items()
        if "n_streams" in one["connections"]
    }
    rows: list[Record] = []
    for corpus, model in results.panels():
        for variant in results.variants:
            tried = [(n, name) for name, n in numbers.items() if variant in about[name]["variants"]]
            for n, name in sorted([(usual, BASE), *tried]) if tried else ():
                cell = Cell(corpus, model, variant, name)
                base = None if name == BASE else cell._replace(condition=BASE)
                connection = variant if name == BASE else f"{variant}-{name}"
                rows.append(
                    row(results, cell, [LOSS])
                    | {"n_streams": n}
                    | columns("change", apart(results, cell, base))
                    | timing_columns(results.throughput[model], connection)
                )
    return pd.DataFrame(rows)


@exhibits.table(
    "streams",
    title="Numbers of streams",
    caption="Loss and cost by number of streams, over {seeds}. Source: runs.csv, throughput/.",
    heading="changes",
    needs="streams",
)
def streams_table(results: Results) -> Rows:
    """The table for readers."""
    usual = int(results.settings["connections"]["n_streams"])
    return rows_of(
        streams_data(results),
        [*places(results), Col("Streams", lambda row: str(row["n_streams"]))],
        [
            Col("Seeds (n)", number(f"{LOSS}_n", 0)),
            metric(LOSS, "Validation loss"),
            Col(f"Minus {usual} streams", mean_and_half("change")),
            Col("Extra parameters", number("extra_parameters", 0)),
            Col("Step time (residual = 1)", lambda row: quartiles(row, "ratio", 2)),
            Col("Peak memory (MiB)", number("peak_memory_bytes", scale=1 / MIB)),
        ],
        f"Losses in nats per token ± half-width of the {percent_of(results.confidence)} interval; "
        f"the difference to {usual} streams is paired by seed. Step time: over the plain "
        "residual's in the same round, median [quartiles].",
    )


# --- mixing that learns faster --------------------------------------------------------------

FASTER = (
    *("single_max_deviation", "product_max_deviation", "gain_forward_peak", "start_distance"),
    "knockout_identity",
)


def faster_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, factor (1: the study's own setting) and variant.

    `share`, `share_min`, `share_max` of Sinkhorn-Knopp's inputs with log(1/nu) above 30; the
    largest log(1/nu); the means of `FASTER`.
    """
    factors = {name: float(x) for name, x in conditions_that_change(results, AGED).items()}
    ordered = [BASE, *sorted(factors, key=factors.__getitem__)]
    rows: list[Record] = []
    for corpus, model in results.panels():
        for name in ordered:
            for variant in results.variants:
                cell = Cell(corpus, model, variant, name)
                faster = (cell._replace(condition=other) for other in factors)
                if not any(values(results, other, "diverged") for other in faster):
                    continue
                if not values(results, cell, "diverged"):
                    continue
                share = values(results, cell, "sinkhorn_share_above_30").values()
                largest = values(results, cell, "largest_log_inverse_nu").values()
                rows.append(
                    row(results, cell, FASTER)
                    | {
                        "factor": factors.get(name, 1.0),
                        "share": sum(share) / len(share) if share else math.nan,
                        "share_min": min(share, default=math.nan),
                        "share_max": max(share, default=math.nan),
                        "largest_log_inverse_nu": max(largest, default=math.nan),
                    }
                )
    return pd.DataFrame(rows)


@exhibits.table(
    "faster_mixing",
    title="Where the mixing learns faster",
    caption="H_res where it learns several times as fast, over up to {seeds}. Source: runs.csv.",
    heading="mixing",
    needs="faster_mixing",
)
def faster_mixing_table(results: Results) -> Rows:
    """Inputs of Sinkhorn-Knopp, sums, gain and use by how fast the mixing learns."""

    def share(row: Record) -> str:
        if missing(row["share"]):
            return NONE
        mean, least, most = (fixed(100 * row[f"share{end}"], 1) for end in ("", "_min", "_max"))
        return f"{mean} ({least} to {most})"

    def speed(row: Record) -> str:
        return "as fast as the rest" if row["factor"] == 1 else f"{row['factor']:g} times as fast"

    *place, variant = places(results)
    return rows_of(
        faster_data(results),
        [*place, Col("Mixing learns", speed), variant],
        [
            Col("Diverged runs", lambda row: f"{row['n_diverged']} of {row['runs']}"),
            Col("log(1/ν) > 30 (%)", share),
            Col("Largest log(1/ν)", number("largest_log_inverse_nu")),
            metric("single_max_deviation", of=keeps_sums),
            metric("product_max_deviation", of=keeps_sums),
            metric("gain_forward_peak"),
            metric("start_distance"),
            metric("knockout_identity", "Lost, H_res = I"),
        ],
        "log(1/ν) > 30: share of Sinkhorn-Knopp's inputs (least to most over seeds). Sums off: "
        "deviation from 1. Lost: nats per token. [Ends] or ± half-width of the "
        f"{percent_of(results.confidence)} interval. {NONE}: does not apply, or no run completed.",
    )
