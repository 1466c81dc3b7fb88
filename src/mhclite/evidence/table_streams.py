"""The table of numbers of streams: what more of them cost, and what they bring."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mhclite.evidence.results import Results
from mhclite.evidence.statistics import Interval, interval_columns, t_interval
from mhclite.evidence.table_conditions import difference, losses_by_seed
from mhclite.evidence.table_format import (
    Table,
    fixed,
    percent_of,
    plus_minus,
    quartiles,
    significant,
    sparse,
)
from mhclite.study.settings import BASE

MIB = 2**20


def streams_data(results: Results, confidence: float) -> pd.DataFrame:
    """One row a corpus, model, variant and number of streams, fewest first.

    `loss_*`: final validation loss; `change_*`: minus that with the study's own number, paired by
    seed. Costs are from the throughput file: step time over the plain residual's, peak memory,
    parameters over the plain residual.
    """
    losses = losses_by_seed(results)
    usual = int(results.settings["connections"]["n_streams"])
    numbers = {
        name: int(condition["connections"]["n_streams"])
        for name, condition in results.settings["conditions"].items()
        if "n_streams" in condition["connections"]
    }
    rows: list[dict[str, Any]] = []
    for corpus in results.corpora:
        for model in results.models:
            measured = results.throughput[model]["variants"]
            for variant in results.variants:
                tried = [
                    (n, name)
                    for name, n in numbers.items()
                    if variant in results.settings["conditions"][name]["variants"]
                ]
                if not tried:
                    continue
                base = losses.get((corpus, model, variant, BASE), {})
                for n, name in sorted([(usual, BASE), *tried]):
                    own = losses.get((corpus, model, variant, name), {})
                    cost = measured[variant if name == BASE else f"{variant}-{name}"]
                    loss = t_interval(own.values(), confidence)
                    change = (
                        Interval(0, None, None, None)
                        if name == BASE
                        else difference(own, base, confidence)
                    )
                    rows.append(
                        {
                            "corpus": corpus,
                            "model": model,
                            "variant": variant,
                            "n_streams": n,
                            **{f"loss_{k}": v for k, v in interval_columns(loss).items()},
                            **{f"change_{k}": v for k, v in interval_columns(change).items()},
                            "extra_parameters": cost["extra_parameters"],
                            "flops_per_token": cost["flops_per_token"],
                            "peak_memory_bytes": cost["peak_memory_bytes"],
                            **{f"ratio_{k}": v for k, v in cost["ratio_quartiles"].items()},
                        }
                    )
    return pd.DataFrame(rows)


def streams_table(results: Results, confidence: float) -> Table:
    """The table for readers."""
    data = streams_data(results, confidence)
    usual = int(results.settings["connections"]["n_streams"])
    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Variant": results.label(row["variant"]),
            "Streams": str(row["n_streams"]),
            "Seeds (n)": f"{row['loss_n']:.0f}",
            "Validation loss": plus_minus(row["loss_mean"], row["loss_half_width"]),
            f"Minus {usual} streams": plus_minus(row["change_mean"], row["change_half_width"]),
            "Extra parameters": fixed(row["extra_parameters"], 0),
            "Step time (residual = 1)": quartiles(
                {name: row[f"ratio_{name}"] for name in ("median", "q1", "q3")}, 2
            ),
            "Peak memory (MiB)": significant(row["peak_memory_bytes"] / MIB),
        }
        for row in data.to_dict("records")
    )
    return Table(
        name="streams",
        title="Numbers of streams",
        notes=(
            "Final validation loss in nats per token: mean over the completed runs ± half-width of "
            f"the {percent_of(confidence)} Student t interval over the n seeds; the difference to "
            f"{usual} streams is paired by seed. Extra parameters over the plain residual. Step "
            "time is relative to the plain residual's in the same round, median [quartiles], "
            "measured alone on the device."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Variant"]),
        numeric=tuple(display.columns[3:]),
    )
