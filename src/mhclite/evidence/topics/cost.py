"""What a user pays: time, memory and parameters."""

from __future__ import annotations

import math

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.tables import (
    MIB,
    Col,
    Record,
    Table,
    changed,
    counted,
    number,
    places,
    quartiles,
    rows_of,
)
from mhclite.measure.measured import Quartiles
from mhclite.study.sections import BASE


def _quartiles(name: str, found: Quartiles | None) -> dict[str, float]:
    return {f"{name}_{q}": getattr(found, q, math.nan) for q in ("median", "q1", "q3")}


def parameters_data(results: Results) -> pd.DataFrame:
    """One row per model and variant, and per condition that changes the number of streams.

    `tokens_per_second_*` and `ratio_*` are median and quartiles over the timed rounds; the ratio is
    the step time over the plain residual's in the same round. `<name>_ratio_*` are those of another
    implementation than the study's. What did not fit in the device's memory has no speed and no
    `peak_memory_bytes`.
    """
    rows: list[Record] = []
    for model in results.models:
        measured = results.throughput[model]
        for variant in results.variants_of(model):
            for condition in (BASE, *results.settings["conditions"]):
                name = variant if condition == BASE else f"{variant}-{condition}"
                known, timed = measured.counted(name), measured.variants.get(name)
                if known is None:
                    continue
                extra = known.extra_parameters
                row = {
                    "model": model,
                    "n_layer": results.n_layer(model),
                    "variant": variant,
                    "condition": condition,
                    "parameters": known.parameters,
                    "extra_parameters": extra,
                    "extra_percent": 100 * extra / (known.parameters - extra),
                    "flops_per_token": known.flops_per_token,
                    **_quartiles("tokens_per_second", timed.tokens_per_second if timed else None),
                    **_quartiles("ratio", timed.ratio_quartiles if timed else None),
                    "peak_memory_bytes": timed.peak_memory_bytes if timed else math.nan,
                }
                for other, by_name in measured.others.items():
                    if name in by_name:
                        row |= _quartiles(f"{other}_ratio", by_name[name].ratio_quartiles)
                rows.append(row)
    return pd.DataFrame(rows)


def how_measured(results: Results) -> str:
    """Device and settings of the throughput measurement, said once where all models agree."""
    found: dict[str, str] = {}
    for model in results.models:
        measured = results.throughput[model]
        where = measured.device
        if where == "cpu":
            where = f"{measured.hardware['cpu']}, {counted(measured.threads, 'thread')}"
        found[model] = (
            f"{where}, {measured.precision}{', compiled' * measured.compile}"
            f"{', deterministic algorithms' * measured.deterministic}, "
            f"batch {measured.batch_size} × context {measured.block_size}, "
            f"{measured.rounds} rounds"
        )
    if len(set(found.values())) == 1:
        return found[results.models[0]]
    return "; ".join(f"{model}: {how}" for model, how in found.items())


@exhibits.table(
    "parameters",
    title="Parameters, arithmetic and speed",
    caption="What a step costs: medians over {rounds} timed rounds. Source: throughput/.",
    heading="cost",
)
def parameters_table(results: Results) -> Table:
    """Parameters, FLOPs, throughput and memory of every model and variant."""
    data = parameters_data(results)
    files = [results.throughput[model] for model in results.models]
    others = dict.fromkeys(other for file in files for other in file.others)
    own = {file.implementation for file in files if file.implementation}
    by = f", by the implementation {' or '.join(sorted(own))}" if own else ""
    # As throughput times them.
    eager = " (eager)" * any(file.compile and file.device == "cpu" for file in files)

    def memory(row: Record) -> str:
        held = row["peak_memory_bytes"]
        return "did not fit" if math.isnan(held) else f"{held / MIB:,.1f}"

    several = (data["condition"] != BASE).any()
    return rows_of(
        data,
        [*places(results)[-2:], *([changed(results)] if several else [])],
        [
            Col("Parameters", number("parameters", 0)),
            Col("Extra (%)", number("extra_percent")),
            Col("FLOPs per token (millions)", number("flops_per_token", 2, 1e-6)),
            Col("Throughput (tokens/s)", quartiles("tokens_per_second", 0)),
            Col("Step time (residual = 1)", quartiles("ratio", 2)),
            *(Col(f"Step time, {name}{eager}", quartiles(f"{name}_ratio", 2)) for name in others),
            Col("Peak memory (MiB)", memory),
        ],
        "Median [quartiles] over the timed rounds. Step time: over the plain residual's in the "
        f"same round{by}. FLOPs: of the matrix products. Memory: the most that a training step "
        "holds.",
    )
