"""Spikes and divergence in training, and the gradient norm."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.frame import cells, row, values
from mhclite.evidence.results import Results
from mhclite.evidence.tables import Col, Table, metric, number, percent_of, places, rows_of
from mhclite.evidence.topics.losses import over_training

MEANS = (
    *("clipped_share", "grad_norm_mean", "grad_norm_fluctuation", "gain_forward", "gain_backward"),
)
TOTALS = ("loss_spikes", "grad_norm_spikes", "judged_steps")


def stability_data(results: Results) -> pd.DataFrame:
    """One row per cell of the grid: the means of `MEANS`, and `TOTALS` of all runs together,
    diverged ones too.
    """
    return pd.DataFrame(
        row(results, cell, MEANS)
        | {name: int(sum(values(results, cell, name).values())) for name in TOTALS}
        for cell in cells(results)
    )


@exhibits.table(
    "stability",
    title="Stability of training",
    caption="Spikes, gradient norms and gains, over {seeds}. Source: runs.csv.",
    heading="stability",
    printed="never",
)
def stability_table(results: Results) -> Table:
    """Divergence, spikes, gradient norm, and the gain at the end."""
    return rows_of(
        stability_data(results),
        places(results),
        [
            Col("Diverged runs", lambda row: f"{row['n_diverged']} of {row['runs']}"),
            Col(
                "Loss spikes, of steps judged",
                lambda row: f"{row['loss_spikes']} of {row['judged_steps']:,}",
            ),
            Col("Gradient-norm spikes", number("grad_norm_spikes", 0)),
            metric("clipped_share"),
            metric("grad_norm_mean"),
            metric("grad_norm_fluctuation"),
            metric("gain_forward"),
            metric("gain_backward"),
        ],
        "Spikes are those of all runs, diverged ones too; the rest is over the completed "
        f"runs: geometric means with [ends] of the {percent_of(results.confidence)} interval. "
        f"Gradient norms are of the last {results.settings['stability']['fluctuation_window']} "
        "steps, before clipping.",
    )


@exhibits.figure(
    "gradient_norm",
    title="Gradient norm over training",
    caption=(
        "Gradient norm before clipping, mean over the steps before the one shown; the paper's "
        "Figure 2. Bold: mean over the completed runs of {seeds}; thin: each seed. "
        "Source: curves.csv."
    ),
    alt="Curves on a logarithmic axis, one colour and line style for each variant.",
    heading="stability",
    printed="never",
)
def gradient_norm(results: Results) -> Figure:
    """Gradient norm before clipping: mean of the trailing window."""
    return over_training(results, "grad_norm_window_mean", "gradient norm")
