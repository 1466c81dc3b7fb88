"""Final losses of every cell and seed, against depth, and the way to them over training."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import (
    BASELINE,
    CELL,
    INTERVAL_COLUMNS,
    by_cell,
    differences_by_seed,
    paired_differences,
    summarise,
)
from mhclite.evidence.style import (
    colour,
    empty_figure,
    empty_state,
    grid,
    remark,
    seeds_and_interval,
    variant_legend,
)
from mhclite.evidence.table_format import NONE, Rows, fixed, percent_of, plus_minus, sparse

DIFFERENCE = "Difference to residual (nats/token)"
COUNTS = ("n_layer", "n", "n_diverged", "difference_n")


def results_data(results: Results) -> pd.DataFrame:
    """The results table's numbers: for each corpus its baselines, then one row per cell.

    `validation_loss` is a mean over seeds in nats per token, with sd and interval; bits per byte
    beside it. `difference_*` is the loss minus the plain residual's, paired by seed. `seed_<s>` is
    the loss of that seed, empty if its run diverged. Baselines have only the loss.
    """
    runs, confidence = results.runs, results.confidence
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
        for baseline, value in results.counting_models[corpus].items():
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
        for cell in results.cells():
            if cell[0] != corpus:
                continue
            _, model, variant = cell
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


def best_rows(data: pd.DataFrame) -> list[int]:
    """Rows of `results_data` with the lowest mean of their corpus and model.

    A variant with a diverged run takes no part: the mean of the runs that survived, over other
    seeds, is not comparable.
    """
    fair = data[(data["kind"] == "variant") & (data["n"] > 0) & (data["n_diverged"] == 0)]
    best = fair.groupby(["corpus", "model"], sort=False)["validation_loss"].idxmin()
    return [int(row) for row in best]


@exhibits.table(
    "results",
    title="Validation loss at the end of training",
    caption=(
        "Final validation loss and bits per byte by corpus, depth and variant: mean over the "
        "completed runs of {seeds} with the half-width of the {level} % Student t interval"
        "{residual:, and the difference to the plain residual paired by seed}. Unigram and "
        "bigram are counting models of the same text. Source: runs.csv."
    ),
    heading="loss",
)
def results_table(results: Results) -> Rows:
    """Final validation loss: corpus x model x variant, baselines on top of each corpus."""
    data = results_data(results)
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
            **({DIFFERENCE: difference(row)} if BASELINE in results.variants else {}),
        }
        for row in data.to_dict("records")
    ]
    display = pd.DataFrame(rows)
    level = percent_of(results.confidence)
    paired = (
        "The difference to the plain residual is paired by seed (same batches, same initial "
        f"backbone), with its own {level} t interval; below 0 is better. "
    ) * (DIFFERENCE in display)
    return Rows(
        notes=(
            f"Mean over the n seeds that completed ± half-width of the {level} Student t interval "
            f"over seeds. {paired}Each "
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


def seeds_data(results: Results) -> pd.DataFrame:
    """The raw values behind the results table: one row per run. Diverged runs are in no mean."""
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


@exhibits.table(
    "results_seeds",
    title="Final validation loss of every run",
    caption=(
        "Final validation loss of each of {seeds}, in nats per token: the values that the means "
        "and intervals of the results are made of. Source: runs.csv."
    ),
    heading="loss",
)
def seeds_table(results: Results) -> Rows:
    """Final validation loss of every run: one row per cell of the grid, one column per seed."""
    data = seeds_data(results)
    cells = {
        (row["corpus"], row["model"], row["variant"], row["seed"]): row
        for row in data.to_dict("records")
    }

    def text(row: dict[Any, Any]) -> str:
        return "diverged" if row["status"] == "diverged" else fixed(row["validation_loss"])

    display = pd.DataFrame(
        {
            "Corpus": corpus,
            "Model": model,
            "Layers": fixed(results.n_layer(model), 0),
            "Variant": results.label(variant),
            **{f"Seed {seed}": text(cells[corpus, model, variant, seed]) for seed in results.seeds},
        }
        for corpus, model, variant in results.cells()
    )
    diverged = data[data["status"] == "diverged"]
    steps = [
        f"{run} at step {step:,}"
        for run, step in zip(diverged["run"], diverged["diverged_step"], strict=True)
    ]
    return Rows(
        notes="Nats per token. These are the values that the means and intervals above are made of."
        + (f" Diverged: {', '.join(steps)}." if steps else ""),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Layers"]),
        numeric=tuple(display.columns[4:]),
    )


DODGE = 0.78  # width that the variants of one depth share, of the 1 between two depths


ROOM = 1.0  # shown of intervals beyond the values, as a multiple of the values' range


APART = (-0.012, 0.012)  # seeds stand left of their place, the mean right of it


def _against_depth(
    axes: Axes,
    results: Results,
    variants: list[str],
    values: pd.DataFrame,
    intervals: pd.DataFrame,
    column: str,
) -> None:
    """The variants beside each other at each depth: seeds from `values`, means of `intervals`."""
    for depth, model in enumerate(results.models):
        for at, variant in enumerate(variants):
            seeds, interval = (
                table[(table["model"] == model) & (table["variant"] == variant)]
                for table in (values, intervals)
            )
            if interval.empty:
                continue
            seeds_and_interval(
                axes,
                variant,
                depth + (at - (len(variants) - 1) / 2) * DODGE / len(variants),
                seeds[column].tolist(),
                interval["mean"].item(),
                interval["half_width"].item(),
                upright=True,
                apart=APART,
            )
    axes.set_xticks(range(len(results.models)), [results.model_label(m) for m in results.models])
    axes.set_xlim(-0.5, len(results.models) - 0.5)
    axes.grid(visible=False, axis="x")
    for boundary in range(1, len(results.models)):
        axes.axvline(boundary - 0.5, color="#e4e4e4", linewidth=0.8)


def _cut_long_intervals(axes: Axes, values: list[float]) -> None:
    """Keep the values apart where an interval is many times as long as their range.

    With two seeds it often is.
    """
    low, high = axes.get_ylim()
    room = ROOM * (max(values) - min(values))
    if room > 0 and (low < min(values) - room or high > max(values) + room):
        axes.set_ylim(max(low, min(values) - room), min(high, max(values) + room))
        remark(axes, "intervals without an end go on beyond the panel")


@exhibits.figure(
    "loss_vs_depth",
    title="Final validation loss against depth",
    caption=(
        "Validation loss at the end of training, by depth. Left: the loss itself, with one "
        "faint point per seed ({seeds}), their mean, and the {level} % Student t interval of that"
        " mean. {residual:Right: the loss minus that of the plain residual of the same seed (same "
        "batches, same initial backbone), with the t interval of the paired difference; below 0"
        " is better. }Runs that diverged have no final loss and are left out. Source: runs.csv."
    ),
    alt=(
        "Points with error bars, a group for each depth, a colour and marker for each variant; "
        "on the right differences around a line at zero."
    ),
    heading="loss",
)
def loss_vs_depth(results: Results) -> Figure:
    """Final validation loss against depth, and its paired difference to the plain residual."""
    runs, confidence = results.runs, results.confidence
    completed = runs[runs["status"] == "completed"]
    if completed.empty:
        return empty_figure("No run reached its last step, so there is no final loss.")
    losses, pairs = summarise(runs, confidence=confidence), differences_by_seed(runs)
    differences = paired_differences(runs, confidence=confidence)
    compared = [variant for variant in results.variants if variant != BASELINE]
    figure, axes = grid(len(results.corpora), 2, 3.0)
    for (left, right), corpus in zip(axes, results.corpora, strict=True):
        own, other = of(completed, corpus), of(pairs, corpus)
        _against_depth(left, results, results.variants, own, of(losses, corpus), "validation_loss")
        left.set(title=corpus, ylabel="final validation loss (nats/token)", xlabel="depth")
        _cut_long_intervals(left, list(own["validation_loss"]))
        for model in results.models:
            if diverged := results.divergence_note(corpus, model):
                remark(left, f"{results.model_label(model)}, {diverged}")
        if other.empty:
            reason = "The plain residual is not in this study."
            if BASELINE in results.variants:
                reason = "There is no completed plain residual\nof the same seed to compare with."
            empty_state(right, reason)
            continue
        _against_depth(right, results, compared, other, of(differences, corpus), "difference")
        right.axhline(0, color=colour(BASELINE), linewidth=1)
        right.set(
            title=f"{corpus}: difference to {results.label(BASELINE)}",
            ylabel="difference (nats/token)",
            xlabel="depth",
        )
        _cut_long_intervals(right, [0.0, *other["difference"]])
    variant_legend(figure, results.variants, results.labels, markers=True)
    return figure
