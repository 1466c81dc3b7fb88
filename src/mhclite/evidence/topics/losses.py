"""Final losses of every cell and seed, against depth, and the way to them over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.frame import LOSS, Cell, apart, cells, columns, row, values
from mhclite.evidence.results import Results, evenly_spaced, of
from mhclite.evidence.statistics import BASELINE, far_off
from mhclite.evidence.style import (
    FAINT,
    SEED_LINE,
    empty_state,
    grid,
    plain_log,
    remark,
    runs_and_means,
    variant_legend,
)
from mhclite.evidence.tables import NONE, Record, Rows, fixed, listed, percent_of, plus_minus

POINTS = 200  # of a curve; a panel is 3 inches wide


def results_data(results: Results) -> pd.DataFrame:
    """For each corpus its counting models, of `kind` baseline, then one row per cell.

    The mean loss; `difference`: loss minus the plain residual's, paired by
    seed; `seed_<s>`: the loss of that seed, empty if its run diverged.
    """
    rows: list[dict[str, Any]] = []
    for corpus in results.corpora:
        for name, loss in results.counting_models[corpus].items():
            rows.append(
                {
                    "corpus": corpus,
                    "kind": "baseline",
                    "variant": name,
                    "label": f"{name.capitalize()} model",
                    LOSS: loss,
                }
            )
        for cell in cells(results):
            if cell.corpus == corpus:
                seeds = values(results, cell)
                base = None if cell.variant == BASELINE else cell._replace(variant=BASELINE)
                rows.append(
                    {"kind": "variant", "label": results.label(cell.variant)}
                    | row(results, cell, [LOSS])
                    | columns("difference", apart(results, cell, base))
                    | {f"seed_{seed}": seeds.get(seed) for seed in results.seeds}
                )
    first = ["corpus", "kind", "model", "n_layer", "variant", "label", "condition", LOSS]
    data = pd.DataFrame(rows)
    return data[[*first, *(name for name in data if name not in first)]].astype(
        dict.fromkeys(("n_layer", "runs", "n_diverged"), "Int64")
    )


@exhibits.table(
    "results",
    title="Validation loss at the end of training",
    caption="Final loss with {level} % intervals over {seeds}. Source: runs.csv.",
    heading="loss",
    printed="several cells",
)
def results_table(results: Results) -> Rows:
    """Final validation loss: a row for each variant, columns for each model size."""
    data = results_data(results)
    beside = f", minus {results.label(BASELINE)}" if BASELINE in results.variants else ""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for record in data.to_dict("records"):
        label, corpus = record["label"], record["corpus"]
        line = lines.setdefault((corpus, label), {"Corpus": corpus, "Variant": label})
        sizes = results.models if record["kind"] == "baseline" else [record["model"]]
        for heading in map(results.model_label, sizes):
            line[heading] = _loss(record)
            if beside and record["kind"] == "variant":
                line[heading + beside] = plus_minus(
                    record["difference"], record["difference_half_width"], 3
                )
    order = [h + b for h in map(results.model_label, results.models) for b in {"": 0, beside: 0}]
    names = ["Corpus", "Variant", *order]
    display = pd.DataFrame(lines.values()).reindex(columns=names, fill_value=NONE).fillna(NONE)
    return Rows(
        notes=(
            "Nats per token: mean over the completed runs ± half-width of the "
            f"{percent_of(results.confidence)} interval; differences are paired by seed, below 0 "
            f"is better; nothing is corrected for their number.{_far(results)}"
        ),
        data=data,
        display=display.drop(columns=["Corpus"] if len(results.corpora) == 1 else []),
        numeric=order,
    )


def _loss(record: Record) -> str:
    if record["kind"] == "baseline":
        return fixed(record[LOSS], 3)
    text = plus_minus(record[LOSS], record[f"{LOSS}_half_width"], 3)
    return text + (f" ({record['n_diverged']} diverged)" if record["n_diverged"] else "")


def _far(results: Results) -> str:
    """The runs that hide in a mean: those that end far from all others of their cell."""
    found = [
        f"{results.label(cell.variant)} at {results.panel_title(cell.corpus, cell.model)} "
        f"({losses[far]:.3f})"
        for cell in cells(results)
        if (far := far_off(losses := values(results, cell))) is not None
    ]
    return f" One seed ends far from all others: {listed(found)}." if found else ""


# --- over training --------------------------------------------------------------------------


def divergence_note(results: Results, corpus: str, model: str) -> str:
    """Which runs diverged, e.g. `diverged: HC 1 of 5, mHC 2 of 5`; empty if none."""
    found = [row(results, Cell(corpus, model, variant)) for variant in results.variants]
    parts = [
        f"{results.label(one['variant'])} {one['n_diverged']} of {one['runs']}"
        for one in found
        if one["n_diverged"]
    ]
    return f"diverged: {', '.join(parts)}" if parts else ""


def _counting_lines(panels: Sequence[Axes], losses: dict[str, float]) -> None:
    """Losses of counting models, named right of the last panel, where no curve is."""
    for name, loss in losses.items():
        for axes in panels:
            axes.axhline(loss, color=FAINT, linewidth=0.8, linestyle=(0, (1, 1.5)))
        panels[-1].annotate(
            f"{name}\n{loss:.2f}",
            (1, loss),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            fontsize=7,
            color="#555555",
        )


def over_training(
    results: Results, column: str, label: str
) -> tuple[Figure, np.ndarray[tuple[int, int], np.dtype[np.object_]]]:
    """A column of curves.csv over training: each run, each variant's mean; a panel for each size.

    Returns the figure and its axes, (corpora, models).
    """
    table = results.curves.dropna(subset=[column])
    figure, axes = grid(len(results.corpora), len(results.models), 2.0, sharey="row")
    for panels, corpus in zip(axes, results.corpora, strict=True):
        for panel, model in zip(panels, results.models, strict=True):
            panel.set(title=results.panel_title(corpus, model), xlabel="training step")
            part = of(table, corpus, model)
            if part.empty:
                empty_state(panel, "The runs are too short.")
                continue
            runs_and_means(panel, results, thinned(part), column)
            plain_log(panel)
            remark(panel, divergence_note(results, corpus, model))
        panels[0].set_ylabel(label)
    variant_legend(figure, results.variants, results.labels, extra=[SEED_LINE])
    return figure, axes


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS` of the steps in the table, the first and the last among them."""
    steps = table["step"].drop_duplicates().sort_values().to_numpy()
    return table[table["step"].isin(steps[evenly_spaced(len(steps), POINTS)])]


@exhibits.figure(
    "validation_loss",
    title="Validation loss over training",
    caption=(
        "Loss on held-out text. Dotted: models that count single tokens (unigram) and pairs "
        "(bigram). Bold: mean over the completed runs of {seeds}; thin: each seed. "
        "Source: curves.csv."
    ),
    alt="Falling curves, one colour and line style for each variant.",
    heading="loss",
)
def validation_loss(results: Results) -> Figure:
    """Validation loss over training, beside the counting models."""
    figure, axes = over_training(results, LOSS, "validation loss (nats/token)")
    for panels, corpus in zip(axes, results.corpora, strict=True):
        _counting_lines(list(panels), results.counting_models[corpus])
    return figure
