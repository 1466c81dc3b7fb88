"""The stability table: spikes and divergence in training, and what H_res does over depth."""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd

from mhclite.evidence.results import Results
from mhclite.evidence.statistics import CELL, by_cell, summarise
from mhclite.evidence.table_format import (
    NONE,
    Table,
    fixed,
    percent_of,
    scaled_plus_minus,
    significant,
    sparse,
)

# Means over completed runs; those of the gains come with the half-width of their interval.
MEANS = (
    *("grad_norm_mean", "grad_norm_fluctuation", "gain_forward", "gain_backward"),
    *("sinkhorn_share_above_30", "identity_distance"),
)
LARGEST = ("single_max_deviation", "product_max_deviation")
SUMS = ("loss_spikes", "grad_norm_spikes")


def stability_data(results: Results, confidence: float) -> pd.DataFrame:
    """One row a cell of the grid.

    Spikes are those of all runs, diverged ones too: their steps count. The rate is the mean over
    the runs with a verdict. Everything else is over completed runs: means over seeds, and the
    largest value for the deviations of the row sums of H_res from 1.
    """
    runs = results.runs
    rate = by_cell(
        summarise(runs, CELL, "spikes_per_1000_steps", confidence, include_diverged=True)
    )
    means = {name: by_cell(summarise(runs, CELL, name, confidence)) for name in MEANS}
    grouped = runs.groupby(list(CELL), observed=True)
    largest = by_cell(grouped[list(LARGEST)].max().reset_index())
    sums = by_cell(grouped[list(SUMS)].sum().reset_index())
    sizes = by_cell(grouped.size().rename("n_runs").reset_index())

    rows: list[dict[str, Any]] = []
    for cell in product(results.corpora, results.models, results.variants):
        corpus, model, variant = cell
        row: dict[str, Any] = {
            "corpus": corpus,
            "model": model,
            "n_layer": results.n_layer(model),
            "variant": variant,
            "label": results.label(variant),
            "n_runs": sizes[cell]["n_runs"],
            "n_diverged": rate[cell]["n_diverged"],
            **{name: sums[cell][name] for name in SUMS},
            "spikes_per_1000_steps": rate[cell]["mean"],
            **{name: largest[cell][name] for name in LARGEST},
        }
        for name in MEANS:
            row[name] = means[name][cell]["mean"]
            if name.startswith("gain"):
                row[f"{name}_half_width"] = means[name][cell]["half_width"]
        rows.append(row)
    return pd.DataFrame(rows)


def stability_table(results: Results, confidence: float) -> Table:
    """Spikes, gradient norm, divergence, and what H_res does on held-out text."""
    data = stability_data(results, confidence)
    settings = results.settings["stability"]
    last = f"last {settings['fluctuation_window']} steps"

    def gain(row: dict[Any, Any], way: str) -> str:
        return scaled_plus_minus(row[f"gain_{way}"], row[f"gain_{way}_half_width"])

    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Layers": fixed(row["n_layer"], 0),
            "Variant": row["label"],
            "Diverged runs": f"{row['n_diverged']} of {row['n_runs']}",
            "Spikes per 1,000 steps": significant(row["spikes_per_1000_steps"]),
            f"Gradient norm, {last}": significant(row["grad_norm_mean"]),
            f"Gradient norm sd, {last}": significant(row["grad_norm_fluctuation"]),
            "Row-sum error, one sub-layer": significant(row["single_max_deviation"]),
            "Row-sum error, whole depth": significant(row["product_max_deviation"]),
            "Composite gain, forward": gain(row, "forward"),
            "Composite gain, backward": gain(row, "backward"),
            "log(1/ν) > 30 (%)": significant(100 * row["sinkhorn_share_above_30"]),
        }
        for row in data.to_dict("records")
    )
    return Table(
        name="stability",
        title="Stability of training and of the mixing over depth",
        notes=(
            "A spike is a step whose loss or gradient norm lies more than "
            f"{settings['spike_sigmas']:g} standard deviations above the mean of the "
            f"{settings['spike_window']} steps before it. The rate is out of the steps that have "
            "such a window, and a mean over all runs, diverged ones included. All other columns "
            "are over the completed runs, one a seed: means (of the gains ± half-width of the "
            f"{percent_of(confidence)} Student t interval over seeds), and for the row-sum error "
            "the largest deviation of a row sum of H_res from 1 over held-out tokens and seeds, "
            "in any single sub-layer and in the product over the whole depth. Composite gain: "
            "largest absolute row sum (forward) or column sum (backward) of that product, 1 where "
            "signals keep their size. log(1/ν) > 30: share of Sinkhorn inputs whose smallest entry "
            "ν is so far below the largest that a fixed number of iterations may not balance them "
            f"(mHC only). {NONE}: does not apply, or too few steps."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Layers"]),
        numeric=tuple(display.columns[4:]),
    )
