"""The results table: final validation loss of every variant, against the plain residual."""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd

from mhclite.evidence.results import Results
from mhclite.evidence.statistics import (
    CELL,
    INTERVAL_COLUMNS,
    by_cell,
    differences_by_seed,
    paired_differences,
    summarise,
)
from mhclite.evidence.table_format import NONE, Table, fixed, percent_of, plus_minus, sparse

COUNTS = ("n_layer", "n", "n_diverged", "difference_n")


def results_data(results: Results, confidence: float) -> pd.DataFrame:
    """The results table's numbers: for each corpus its baselines, then one row a cell of the grid.

    `validation_loss` is a mean over seeds in nats per token, with sd and interval; bits per byte
    beside it. `difference_*` is the loss minus the plain residual's, paired by seed. `seed_<s>` is
    the loss of that seed, empty if its run diverged. Baselines have only the loss.
    """
    runs = results.runs
    loss = by_cell(summarise(runs, CELL, "validation_loss", confidence))
    bits = by_cell(summarise(runs, CELL, "validation_bits_per_byte", confidence))
    differences = by_cell(paired_differences(runs, confidence=confidence))
    completed = runs[runs["status"] == "completed"]
    seeds: dict[tuple[Any, ...], float] = {
        (row["corpus"], row["model"], row["variant"], row["seed"]): row["validation_loss"]
        for row in completed.to_dict("records")
    }
    rows: list[dict[str, Any]] = []
    for corpus in results.corpora:
        for baseline, value in results.baselines[corpus].items():
            rows.append(
                {
                    "corpus": corpus,
                    "kind": "baseline",
                    "variant": baseline,
                    "label": f"{baseline.capitalize()} baseline",
                    "validation_loss": value,
                    "bits_per_byte": results.bits_per_byte(corpus, value),
                }
            )
        for model, variant in product(results.models, results.variants):
            cell = (corpus, model, variant)
            difference = differences.get(cell, {})
            rows.append(
                {
                    "corpus": corpus,
                    "kind": "variant",
                    "model": model,
                    "n_layer": results.n_layer(model),
                    "variant": variant,
                    "label": results.label(variant),
                    "confidence": confidence,
                    "n": loss[cell]["n"],
                    "n_diverged": loss[cell]["n_diverged"],
                    "validation_loss": loss[cell]["mean"],
                    **{
                        f"validation_loss_{name}": loss[cell][name] for name in INTERVAL_COLUMNS[2:]
                    },
                    "bits_per_byte": bits[cell]["mean"],
                    "bits_per_byte_half_width": bits[cell]["half_width"],
                    **{f"difference_{name}": difference.get(name) for name in INTERVAL_COLUMNS},
                    **{f"seed_{seed}": seeds.get((*cell, seed)) for seed in results.seeds},
                }
            )
    columns = list(rows[-1])  # of a variant: baselines have a part of them
    numbers = columns[columns.index("confidence") :]
    types = {name: "Int64" if name in COUNTS else "float64" for name in ("n_layer", *numbers)}
    return pd.DataFrame(rows, columns=columns).astype(types)


def seeds_data(results: Results) -> pd.DataFrame:
    """The raw values behind the results table: one row a run. Diverged runs are in no mean."""
    differences = differences_by_seed(results.runs).rename(
        columns={"difference": "difference_to_residual"}
    )
    columns = [
        *("run", *CELL, "seed", "status", "diverged_step"),
        *("validation_loss", "validation_bits_per_byte"),
    ]
    return results.runs[columns].merge(
        differences, on=[*CELL, "seed"], how="left", validate="one_to_one"
    )


def best_rows(data: pd.DataFrame) -> list[int]:
    """Rows of `results_data` with the lowest mean of their corpus and model.

    A variant with a diverged run takes no part: the mean of the runs that survived, over other
    seeds, is not comparable.
    """
    fair = data[(data["kind"] == "variant") & (data["n"] > 0) & (data["n_diverged"] == 0)]
    best = fair.groupby(["corpus", "model"], sort=False)["validation_loss"].idxmin()
    return [int(row) for row in best]


def results_table(results: Results, confidence: float) -> Table:
    """Final validation loss: corpus x model x variant, baselines on top of each corpus."""
    data = results_data(results, confidence)
    loss, bits = "Validation loss (nats/token)", "Bits per byte"

    def difference(row: dict[Any, Any]) -> str:
        text = plus_minus(row["difference_mean"], row["difference_half_width"])
        # Only pairs whose two runs completed count.
        fewer = text != NONE and row["difference_n"] < row["n"]
        return text + f" (n = {row['difference_n']})" * fewer

    rows = [
        {
            "Corpus": row["corpus"],
            "Model": row["model"] if row["kind"] == "variant" else NONE,
            "Layers": fixed(row["n_layer"], 0),
            "Variant": row["label"],
            loss: plus_minus(row["validation_loss"], row["validation_loss_half_width"]),
            bits: plus_minus(row["bits_per_byte"], row["bits_per_byte_half_width"]),
            "Seeds (n)": fixed(row["n"], 0),
            "Diverged": fixed(row["n_diverged"], 0),
            "Difference to residual (nats/token)": difference(row),
        }
        for row in data.to_dict("records")
    ]
    display = pd.DataFrame(rows)
    level = percent_of(confidence)
    return Table(
        name="results",
        title="Validation loss at the end of training",
        notes=(
            f"Mean over the n seeds that completed ± half-width of the {level} Student t interval "
            "over seeds. The difference to the plain residual is paired by seed (same batches, "
            f"same initial backbone), with its own {level} t interval; below 0 is better. Each "
            "interval stands for one comparison alone: nothing is corrected for their number. "
            "Bold: lowest mean of the variants without a diverged run. Baselines are counting "
            "models of the training text, scored on the validation text. The loss of every seed "
            "is in results.csv and results_seeds.csv."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Layers"]),
        numeric=tuple(display.columns[4:]),
        bold=frozenset((at, loss) for at in best_rows(data)),
    )
