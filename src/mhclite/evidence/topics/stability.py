"""Spikes and divergence in training, the gradient norm, and what H_res does over depth."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, evenly_spaced, of
from mhclite.evidence.statistics import CELL, by_cell, summarise
from mhclite.evidence.style import (
    SEED_LINE,
    colour,
    empty_figure,
    empty_state,
    outer_labels,
    paired_grid,
    plain_log,
    remark,
    runs_and_means,
    variant_legend,
)
from mhclite.evidence.survival import FEWEST_EVENTS, event_rate, poisson_interval
from mhclite.evidence.table_format import (
    NONE,
    Rows,
    fixed,
    missing,
    percent_of,
    scaled_plus_minus,
    significant,
    sparse,
)
from mhclite.evidence.values import keeps_sums

# Means over completed runs; those of the gains come with the half-width of their interval.
MEANS = (
    *("grad_norm_mean", "grad_norm_fluctuation", "gain_forward", "gain_backward"),
    *("sinkhorn_share_above_30", "identity_distance"),
)


LARGEST = ("single_max_deviation", "product_max_deviation")


COUNTS = ("loss_spikes", "grad_norm_spikes", "judged_steps")


def stability_data(results: Results) -> pd.DataFrame:
    """One row per cell of the grid.

    Spikes are those of all runs, with the steps judged, and for the loss the rate per 1,000 steps
    (none from fewer than five spikes) with its Poisson interval. Everything else is over completed
    runs: means over seeds, and the largest deviation of a row or column sum of H_res from 1.
    """
    runs, confidence = results.runs, results.confidence
    means = {name: by_cell(summarise(runs, CELL, name, confidence)) for name in MEANS}
    grouped = runs.groupby(list(CELL), observed=True)
    # Of all runs together, diverged ones too: their steps count.
    spikes = by_cell(grouped[list(COUNTS)].sum().reset_index())
    largest = by_cell(grouped[list(LARGEST)].max().reset_index())
    sizes = by_cell(grouped.size().rename("n_runs").reset_index())

    rows: list[dict[str, Any]] = []
    for cell in results.cells():
        corpus, model, variant = cell
        events = {name: int(spikes[cell][name]) for name in COUNTS}
        thousands = events["judged_steps"] / 1000
        low, high = (
            poisson_interval(events["loss_spikes"], thousands, confidence)
            if thousands
            else (None, None)
        )
        row: dict[str, Any] = {
            "corpus": corpus,
            "model": model,
            "n_layer": results.n_layer(model),
            "variant": variant,
            "label": results.label(variant),
            "n_runs": sizes[cell]["n_runs"],
            "n_diverged": means["gain_forward"][cell]["n_diverged"],
            **events,
            "loss_spikes_per_1000_steps": event_rate(events["loss_spikes"], thousands),
            "loss_spikes_low": low,
            "loss_spikes_high": high,
            **{name: largest[cell][name] for name in LARGEST},
        }
        for name in MEANS:
            row[name] = means[name][cell]["mean"]
            if name.startswith("gain"):
                row[f"{name}_half_width"] = means[name][cell]["half_width"]
        rows.append(row)
    return pd.DataFrame(rows)


def spike_rate(row: dict[Any, Any]) -> str:
    """`rate (low to high)`; `low to high` where there are too few spikes for a rate."""
    if missing(row["loss_spikes_high"]):
        return NONE
    span = f"{significant(row['loss_spikes_low'], 2)} to {significant(row['loss_spikes_high'], 2)}"
    rate = row["loss_spikes_per_1000_steps"]
    return span if missing(rate) else f"{significant(rate, 2)} ({span})"


@exhibits.table(
    "stability",
    title="Stability of training and of the mixing over depth",
    caption=(
        "Spikes of loss and gradient norm, diverged runs, the gradient norm over the last "
        "{window} steps, and what H_res (operator orientation) does on held-out text, over "
        "{seeds}. Source: runs.csv and stability.json."
    ),
    heading="stability",
)
def stability_table(results: Results) -> Rows:
    """Spikes, gradient norm, divergence, and what H_res does on held-out text."""
    data = stability_data(results)
    settings = results.settings["stability"]
    last = f"last {settings['fluctuation_window']} steps"

    def off(row: dict[Any, Any], what: str) -> str:
        return significant(row[f"{what}_max_deviation"]) if keeps_sums(row["variant"]) else NONE

    def gain(row: dict[Any, Any], way: str) -> str:
        return scaled_plus_minus(row[f"gain_{way}"], row[f"gain_{way}_half_width"])

    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Layers": fixed(row["n_layer"], 0),
            "Variant": row["label"],
            "Diverged runs": f"{row['n_diverged']} of {row['n_runs']}",
            "Loss spikes, of steps judged": f"{row['loss_spikes']} of {row['judged_steps']:,}",
            "Loss spikes per 1,000 judged": spike_rate(row),
            "Gradient-norm spikes": str(row["grad_norm_spikes"]),
            f"Gradient norm, {last}": significant(row["grad_norm_mean"]),
            f"Gradient fluctuation, {last}": significant(row["grad_norm_fluctuation"]),
            "Sums off, single": off(row, "single"),
            "Sums off, product": off(row, "product"),
            "Final gain, forward (arithmetic mean)": gain(row, "forward"),
            "Final gain, backward (arithmetic mean)": gain(row, "backward"),
            "log(1/ν) > 30 (%)": significant(100 * row["sinkhorn_share_above_30"]),
        }
        for row in data.to_dict("records")
    )
    return Rows(
        notes=(
            "A spike is a step whose loss or gradient norm lies more than "
            f"{settings['spike_sigmas']:g} standard deviations above the mean of the "
            f"{settings['spike_window']} steps before it. Spikes are those of all runs together, "
            "diverged ones included, out of the steps after warm-up that have such a window. The "
            f"rate comes with its exact {percent_of(results.confidence)} Poisson interval; for "
            f"fewer than {FEWEST_EVENTS} spikes the interval stands alone. Gradient norms are "
            "skewed: healthy runs have such spikes too, so they have no rate. All other columns "
            "are over the completed runs, one per seed: means (of the gains ± half-width of the "
            f"{percent_of(results.confidence)} Student t interval over seeds), and for the sums "
            "the largest deviation of a row or column sum of H_res from 1 over held-out tokens and "
            "seeds, in any single sub-layer and in the product over the whole depth, of variants "
            "whose sums are meant to be 1. Gradient "
            "fluctuation: standard deviation of the logarithm of the gradient norm about its "
            "running median, after the warm-up; 0.1 is about 10 % up and down. Final gain: largest "
            "absolute row sum (forward) or column sum (backward) of that product at the end of "
            "training, 1 where signals keep their size; claims and the figure over depth have the "
            "largest gain in training, and its geometric mean. log(1/ν) > 30: share of Sinkhorn "
            "inputs whose smallest entry ν is so far below the largest that a fixed number of "
            f"iterations may not balance them. {NONE}: does not apply, or too few steps."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Layers"]),
        numeric=tuple(display.columns[4:]),
    )


POINTS = 200  # drawn of a window's curve, which is smooth; a panel is 3 inches wide


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
        "each seed{diverged:; a cross is where a run diverged}. Source: curves.csv."
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
    figure, axes = paired_grid(len(results.panels()), 1.9)
    for (left, right), (corpus, model) in zip(axes, results.panels(), strict=True):
        cell = thinned(of(curves, corpus, model))
        title = results.panel_title(corpus, model)
        if cell.empty:
            empty_state(
                left, f"{title}: no run has the {window} steps\nover which the mean is taken."
            )
            right.set_axis_off()
            continue
        means = runs_and_means(left, results, cell, "grad_norm_window_mean")
        spread = runs_and_means(right, results, cell, "grad_norm_window_sd")
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
        remark(left, results.divergence_note(corpus, model))
    outer_labels(figure)
    variant_legend(figure, results.variants, results.labels, extra=[SEED_LINE])
    return figure
