"""The table of costs: parameters, FLOPs, measured speed and memory of every variant."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from mhclite.errors import UserError
from mhclite.evidence.results import Results
from mhclite.evidence.table_format import Table, fixed, quartiles, significant, sparse

MIB = 2**20
QUARTILES = ("median", "q1", "q3")
# How it was measured: the same for all variants of a model.
SETTINGS = (
    "device",
    "threads",
    "precision",
    "compile",
    "implementation",
    "batch_size",
    "block_size",
    "rounds",
    "warmup_rounds",
)


def parameters_data(results: Results) -> pd.DataFrame:
    """One row a model and variant.

    `tokens_per_second_*` and `ratio_*` are median and quartiles over the timed rounds; the ratio is
    the step time over the plain residual's in the same round. `<name>_ratio_*` are those of another
    implementation than the study's.
    """
    rows: list[dict[str, Any]] = []
    for model in results.models:
        measured = results.throughput[model]
        for variant in results.variants:
            if variant not in measured["variants"]:
                raise UserError(
                    f"the throughput of model {model} was measured without variant {variant}: "
                    f"delete {results.folder / 'throughput' / model}.json and run "
                    "`snakemake --cores all`"
                )
            values = measured["variants"][variant]
            extra = values["extra_parameters"]
            rows.append(
                {
                    "model": model,
                    "n_layer": results.n_layer(model),
                    "variant": variant,
                    "label": results.label(variant),
                    "parameters": values["parameters"],
                    "extra_parameters": extra,
                    "extra_percent": 100 * extra / (values["parameters"] - extra),
                    "flops_per_token": values["flops_per_token"],
                    **{f"tokens_per_second_{q}": values["tokens_per_second"][q] for q in QUARTILES},
                    **{f"ratio_{q}": values["ratio_quartiles"][q] for q in QUARTILES},
                    **{
                        f"{other}_ratio_{q}": by_variant[variant]["ratio_quartiles"][q]
                        for other, by_variant in measured["others"].items()
                        if variant in by_variant
                        for q in QUARTILES
                    },
                    "peak_memory_bytes": values["peak_memory_bytes"],
                    **{name: measured[name] for name in SETTINGS},
                }
            )
    return pd.DataFrame(rows)


def how_measured(results: Results) -> str:
    """Device and settings of the throughput measurement, said once where all models agree."""
    models_of: dict[str, list[str]] = {}
    for model in results.models:
        measured = results.throughput[model]
        where = measured["device"]
        if where == "cpu":
            threads = measured["threads"]
            where = f"{measured['hardware']['cpu']}, {threads} thread" + "s" * (threads != 1)
        how = (
            f"{where}, {measured['precision']}{', compiled' * measured['compile']}, "
            f"batch {measured['batch_size']} × context {measured['block_size']}, "
            f"{measured['rounds']} rounds"
        )
        models_of.setdefault(how, []).append(model)
    if len(models_of) == 1:
        return next(iter(models_of))
    return "; ".join(f"{', '.join(models)}: {how}" for how, models in models_of.items())


def _implementations(results: Results, others: list[str]) -> str:
    """Which implementation the columns are of."""
    own = results.throughput[results.models[0]]["implementation"]
    if not own or not others:
        return ""
    return f"it is that of the {own} implementation, and beside it of {' and '.join(others)}. "


def parameters_table(results: Results) -> Table:
    """Parameters, FLOPs, throughput and memory of every model and variant."""
    data = parameters_data(results)

    def spread(row: dict[Any, Any], name: str, decimals: int) -> str:
        values = {q: row.get(f"{name}_{q}", math.nan) for q in QUARTILES}
        return "" if math.isnan(values["median"]) else quartiles(values, decimals)

    others = list(dict.fromkeys(o for m in results.models for o in results.throughput[m]["others"]))

    display = pd.DataFrame(
        {
            "Model": row["model"],
            "Layers": fixed(row["n_layer"], 0),
            "Variant": row["label"],
            "Parameters": fixed(row["parameters"], 0),
            "Extra over residual": fixed(row["extra_parameters"], 0),
            "Extra (%)": significant(row["extra_percent"]),
            "FLOPs per token (millions)": fixed(row["flops_per_token"] / 1e6, 2),
            "Throughput (tokens/s)": spread(row, "tokens_per_second", 0),
            "Step time (residual = 1)": spread(row, "ratio", 2),
            **{f"Step time, {other}": spread(row, f"{other}_ratio", 2) for other in others},
            "Peak memory (MiB)": fixed(row["peak_memory_bytes"] / MIB, 1),
        }
        for row in data.to_dict("records")
    )
    return Table(
        name="parameters",
        title="Parameters, arithmetic and speed",
        notes=(
            "Throughput and step time are median [first, third quartile] over the timed rounds. "
            "Each round takes one training step of every variant; the step time is relative to the "
            "plain residual's in the same round, above 1 is slower; "
            f"{_implementations(results, others)}FLOPs are those of the matrix "
            "products of a forward and backward pass. Peak memory is what a training step holds "
            "at its worst: parameters, optimizer state, gradients, activations. Measured on "
            f"{how_measured(results)}."
        ),
        data=data,
        display=sparse(display, ["Model", "Layers"]),
        numeric=tuple(display.columns[3:]),
    )
