"""Spikes and divergence in training, the gradient norm, and what H_res does over depth."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from mhclite.connections.registry import VARIANTS
from mhclite.evidence import exhibits
from mhclite.evidence.frame import cells, keeps_sums, row, values
from mhclite.evidence.results import Results, evenly_spaced, of
from mhclite.evidence.rows import FEWEST_EVENTS
from mhclite.evidence.style import (
    SEED_LINE,
    colour,
    empty_figure,
    empty_state,
    grid,
    plain_log,
    remark,
    runs_and_means,
    variant_legend,
)
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Rows,
    mean_and_ends,
    metric,
    number,
    percent_of,
    places,
    rows_of,
)
from mhclite.evidence.topics.losses import divergence_note

MEANS = (
    *("jumps_per_10000_steps", "clipped_share", "grad_norm_mean", "grad_norm_fluctuation"),
    *("single_max_deviation", "product_max_deviation", "gain_forward", "gain_backward"),
    *("singular_largest", "singular_smallest", "sinkhorn_share_above_30", "identity_distance"),
)
TOTALS = ("loss_spikes", "grad_norm_spikes", "judged_steps")
POINTS = 200  # drawn of a window's curve, which is smooth; a panel is 3 inches wide


def stability_data(results: Results) -> pd.DataFrame:
    """One row per cell of the grid.

    `TOTALS` are those of all runs together, diverged ones too, with the rate per 1,000 steps
    judged (none from fewer than five spikes); the means of `MEANS`; `norm_bound`: what the norm of
    a product of matrices that are stochastic on one side cannot pass.
    """
    streams = results.settings["connections"]["n_streams"]
    rows: list[Record] = []
    for cell in cells(results):
        found = row(results, cell, MEANS)
        found |= {name: int(sum(values(results, cell, name).values())) for name in TOTALS}
        enough = found["loss_spikes"] >= FEWEST_EVENTS
        found["loss_spikes_per_1000_steps"] = (
            1000 * found["loss_spikes"] / found["judged_steps"] if enough else math.nan
        )
        bounded = VARIANTS[cell.variant].mixes == "one_sided"
        found["norm_bound"] = math.sqrt(streams) if bounded else math.nan
        rows.append(found)
    return pd.DataFrame(rows)


@exhibits.table(
    "stability",
    title="Stability of training and of the mixing over depth",
    caption="Spikes, gradient norms, and what H_res does, over {seeds}. Source: runs.csv.",
    heading="stability",
)
def stability_table(results: Results) -> Rows:
    """Spikes, gradient norm, divergence, and what H_res does on held-out text."""
    settings = results.settings["stability"]

    def norm(row: Record) -> str:
        text, bound = mean_and_ends("singular_largest")(row), row["norm_bound"]
        return text if math.isnan(bound) or text == NONE else f"{text}, at most √n = {bound:.3g}"

    return rows_of(
        stability_data(results),
        places(results),
        [
            Col("Diverged runs", lambda row: f"{row['n_diverged']} of {row['runs']}"),
            Col(
                "Loss spikes, of steps judged",
                lambda row: f"{row['loss_spikes']} of {row['judged_steps']:,}",
            ),
            Col("Loss spikes per 1,000 judged", number("loss_spikes_per_1000_steps")),
            Col("Gradient-norm spikes", number("grad_norm_spikes", 0)),
            Col("Jumps per 10,000 steps", number("jumps_per_10000_steps")),
            metric("clipped_share"),
            metric("grad_norm_mean"),
            metric("grad_norm_fluctuation"),
            metric("single_max_deviation", of=keeps_sums),
            metric("product_max_deviation", of=keeps_sums),
            metric("gain_forward"),
            metric("gain_backward"),
            Col("Largest singular value", norm),
            Col("Smallest singular value", mean_and_ends("singular_smallest")),
            metric("sinkhorn_share_above_30"),
        ],
        "A spike is a step whose loss or gradient norm lies more than "
        f"{settings['spike_sigmas']:g} standard deviations above the mean of the "
        f"{settings['spike_window']} steps before it; spikes are those of all runs together, "
        "diverged ones included, out of the steps after warm-up that have such a window. Gradient "
        "norms are skewed: healthy runs have such spikes too. Jumps: of the loss, after the rule "
        "of stability.json. Clipped: of the steps after the warm-up. Gradient norm and its "
        "fluctuation (standard deviation of its logarithm about its running median) are of the "
        f"last {settings['fluctuation_window']} steps. All but spikes and jumps are over the "
        "completed runs, one per seed: geometric means with the "
        f"{percent_of(results.confidence)} Student t interval of the logarithm, shares as "
        "arithmetic means. Sums off: largest deviation of a row or column sum of H_res from 1 over "
        "held-out tokens, in any single sub-layer and in the product over the whole depth, of "
        "variants whose sums are meant to be 1. Final gain: largest absolute row sum (forward) or "
        "column sum (backward) of that product at the end of training, 1 where signals keep their "
        "size. Singular values: of that product, mean over tokens. log(1/ν) > 30: share of "
        "Sinkhorn inputs whose smallest entry ν is so far below the largest that a fixed number of "
        f"iterations may not balance them. {NONE}: does not apply, or too few steps.",
    )


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS` of the steps in the table, the first and the last among them."""
    steps = table["step"].drop_duplicates().sort_values().to_numpy()
    return table[table["step"].isin(steps[evenly_spaced(len(steps), POINTS)])]


@exhibits.figure(
    "gradient_norm",
    title="Gradient norm and its spread",
    caption=(
        "Gradient norm before clipping, in a window of {window} steps that slides along training "
        "and ends at the step shown. Its mean in the window with a band of one standard deviation "
        "within the window, as in the paper's Figure 2 (the band is not an interval over seeds), "
        "and that standard deviation alone. Bold: mean over the completed runs of {seeds}; thin: "
        "each seed; a cross is where a run diverged. Source: curves.csv."
    ),
    alt=(
        "Curves with bands on a logarithmic axis, one colour and line style for each variant; "
        "beside them the width of the bands as curves of their own."
    ),
    heading="stability",
)
def gradient_norm(results: Results) -> Figure:
    """Gradient norm before clipping: mean and standard deviation of the trailing window."""
    window = results.settings["stability"]["fluctuation_window"]
    curves = results.curves.dropna(subset=["grad_norm_window_mean"])
    if curves.empty:
        return empty_figure(f"No run has the {window} steps over which the mean is taken.")
    lowest = curves["grad_norm_window_mean"].min()
    figure, axes = grid(len(results.panels()), 2, 1.9)
    for (left, right), (corpus, model) in zip(axes, results.panels(), strict=True):
        table = thinned(of(curves, corpus, model))
        title = results.panel_title(corpus, model)
        if table.empty:
            empty_state(
                left, f"{title}: no run has the {window} steps\nover which the mean is taken."
            )
            right.set_axis_off()
            continue
        means = runs_and_means(left, results, table, "grad_norm_window_mean")
        spread = runs_and_means(right, results, table, "grad_norm_window_sd")
        bands = means.merge(spread, on=["variant", "step"])
        for variant in results.variants:
            band = bands[bands["variant"] == variant]
            middle, sd = band["grad_norm_window_mean"], band["grad_norm_window_sd"]
            left.fill_between(
                band["step"],
                middle - sd,
                middle + sd,
                color=colour(variant),
                alpha=0.1,
                linewidth=0,
            )
        # A band that reaches zero would stretch the logarithmic axis without end.
        left.set_yscale("log")
        left.set_ylim(bottom=max(left.get_ylim()[0], lowest / 3))
        left.set(title=f"{title}\nmean ± sd", ylabel="gradient norm", xlabel="training step")
        right.set(title=f"{title}\nsd", ylabel="sd of the gradient norm", xlabel="training step")
        plain_log(left)
        plain_log(right)
        remark(left, divergence_note(results, corpus, model))
    variant_legend(figure, results.variants, results.labels, extra=[SEED_LINE])
    return figure
