"""What a user pays: time, memory and parameters."""

from __future__ import annotations

import math

import pandas as pd

from mhclite.errors import UserError
from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.tables import (
    MIB,
    Col,
    Record,
    Rows,
    counted,
    number,
    places,
    quartiles,
    rows_of,
)
from mhclite.measure.files import Quartiles, Throughput

# How it was measured: the same for all variants of a model.
SETTINGS = (
    *("device", "threads", "precision", "compile", "implementation", "batch_size", "block_size"),
    *("rounds", "warmup_rounds"),
)


def _quartiles(name: str, found: Quartiles | None) -> dict[str, float]:
    return {f"{name}_{q}": getattr(found, q, math.nan) for q in ("median", "q1", "q3")}


def timing_columns(measured: Throughput, connection: str) -> Record:
    """What was counted of a connection, its speed and memory: NaN where it did not fit."""
    counted, timed = measured.counted(connection), measured.variants.get(connection)
    assert counted is not None
    extra = counted.extra_parameters
    return {
        "parameters": counted.parameters,
        "extra_parameters": extra,
        "extra_percent": 100 * extra / (counted.parameters - extra),
        "flops_per_token": counted.flops_per_token,
        **_quartiles("tokens_per_second", timed.tokens_per_second if timed else None),
        **_quartiles("ratio", timed.ratio_quartiles if timed else None),
        "peak_memory_bytes": timed.peak_memory_bytes if timed else math.nan,
    }


def parameters_data(results: Results) -> pd.DataFrame:
    """One row per model and variant.

    `tokens_per_second_*` and `ratio_*` are median and quartiles over the timed rounds; the ratio is
    the step time over the plain residual's in the same round. `<name>_ratio_*` are those of another
    implementation than the study's. What did not fit in the device's memory has no speed and no
    `peak_memory_bytes`.
    """
    rows: list[Record] = []
    for model in results.models:
        measured = results.throughput[model]
        for variant in results.variants_of(model):
            if measured.counted(variant) is None:
                raise UserError(
                    f"the throughput of model {model} was measured without variant {variant}: "
                    f"delete {results.folder / 'throughput' / model}.json and run "
                    "`snakemake --cores all`"
                )
            row = {"model": model, "n_layer": results.n_layer(model), "variant": variant}
            row |= timing_columns(measured, variant)
            for other, by_variant in measured.others.items():
                if variant in by_variant:
                    row |= _quartiles(f"{other}_ratio", by_variant[variant].ratio_quartiles)
            rows.append(row | {name: getattr(measured, name) for name in SETTINGS})
    return pd.DataFrame(rows)


def how_measured(results: Results) -> str:
    """Device and settings of the throughput measurement, said once where all models agree."""
    models_of: dict[str, list[str]] = {}
    for model in results.models:
        measured = results.throughput[model]
        where = measured.device
        if where == "cpu":
            where = f"{measured.hardware['cpu']}, {counted(measured.threads, 'thread')}"
        how = (
            f"{where}, {measured.precision}{', compiled' * measured.compile}"
            f"{', deterministic algorithms' * measured.deterministic}, "
            f"batch {measured.batch_size} × context {measured.block_size}, "
            f"{measured.rounds} rounds"
        )
        models_of.setdefault(how, []).append(model)
    if len(models_of) == 1:
        return next(iter(models_of))
    return "; ".join(f"{', '.join(models)}: {how}" for how, models in models_of.items())


@exhibits.table(
    "parameters",
    title="Parameters, arithmetic and speed",
    caption="What a step costs: medians over {rounds} timed rounds. Source: throughput/.",
    heading="cost",
)
def parameters_table(results: Results) -> Rows:
    """Parameters, FLOPs, throughput and memory of every model and variant."""
    files = [results.throughput[model] for model in results.models]
    others = {other: f"Step time, {other}" for file in files for other in file.others}
    own = {file.implementation for file in files} - {None}

    def spread(name: str, heading: str, decimals: int) -> Col:
        return Col(heading, lambda row: quartiles(row, name, decimals))

    def memory(row: Record) -> str:
        held = row["peak_memory_bytes"]
        return "did not fit" if math.isnan(held) else f"{held / MIB:,.1f}"

    return rows_of(
        parameters_data(results),
        places(results)[-2:],
        [
            Col("Parameters", number("parameters", 0)),
            Col("Extra (%)", number("extra_percent")),
            Col("FLOPs per token (millions)", number("flops_per_token", 2, 1e-6)),
            spread("tokens_per_second", "Throughput (tokens/s)", 0),
            spread("ratio", "Step time (residual = 1)", 2),
            *(spread(f"{name}_ratio", heading, 2) for name, heading in others.items()),
            Col("Peak memory (MiB)", memory),
        ],
        "Median [quartiles] over the timed rounds. Step time: over the plain residual's in the "
        f"same round{'; that of the ' * bool(own)}{' and '.join(sorted(map(str, own)))}"
        f"{' implementation' * bool(own)}. FLOPs: of the matrix products. Memory: the most that a "
        "training step holds.",
    )
