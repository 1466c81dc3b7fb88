"""Every variant in one row, the final losses of every cell and seed, and the way to them: losses
and norms of the gradient over training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.frame import (
    FAIR,
    LOSS,
    Cell,
    apart,
    cells,
    columns,
    condition_of,
    deepest_first,
    keeps_sums,
    row,
    values,
)
from mhclite.evidence.results import Results, evenly_spaced
from mhclite.evidence.statistics import BASELINE
from mhclite.evidence.style import (
    FAINT,
    SEED_LINE,
    empty_state,
    grid,
    plain_log,
    runs_and_means,
    variant_legend,
)
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Table,
    counted,
    mean_and_half,
    metric,
    number,
    places,
    rows_of,
)
from mhclite.study.sections import BASE

POINTS = 200  # of a curve; a panel is 3 inches wide


# --- every variant at the deepest model -----------------------------------------------------

MEANS = (LOSS, "gain_forward_peak", "product_max_deviation")


def overview_data(results: Results) -> pd.DataFrame:
    """One row per corpus and variant, at the deepest model.

    The means of `MEANS`; differences of the loss, paired by seed: `minus_residual`, `minus_fair`
    (the same where the streams are summed before the final norm); `step_time` in the plain
    residual's.
    """
    model = deepest_first(results)[0]
    rows = []
    for corpus in results.corpora:
        for variant in results.variants_of(model):
            own, fair = Cell(corpus, model, variant), condition_of(results, variant, FAIR)
            under = None if fair in (None, BASE) else own._replace(condition=str(fair))
            timed = results.throughput[model].variants.get(variant)
            base = None if variant == BASELINE else own._replace(variant=BASELINE)
            rows.append(
                row(results, own, MEANS)
                | {"step_time": timed.ratio_quartiles.median if timed else math.nan}
                | columns("minus_residual", apart(results, own, base))
                | columns("minus_fair", apart(results, under or own, base if under else None))
            )
    return pd.DataFrame(rows)


@exhibits.table(
    "overview",
    title="Every variant at a glance",
    caption="Every variant at the deepest model, over {seeds}. Source: runs.csv, throughput/.",
    heading="claims",
)
def overview_table(results: Results) -> Table:
    """Losses of several sizes have a table of their own: the gain stands there in their place."""
    minus, several = f"Minus {results.labels.get(BASELINE, BASELINE)}", len(results.models) > 1
    *corpus, _, variant = places(results)
    return rows_of(
        overview_data(results),
        [*corpus, variant],
        [
            *([] if several else [Col("Loss", _loss)]),
            Col(minus, mean_and_half("minus_residual", 3)),
            Col(f"{minus}, one final norm", mean_and_half("minus_fair", 3)),
            metric("product_max_deviation", of=keeps_sums),
            Col("Step time", number("step_time", 2)),
            *([metric("gain_forward_peak")] if several else []),
        ],
        f"{results.model_label(deepest_first(results)[0])}, over "
        f"{counted(len(results.seeds), 'seed')}: mean ± half-width, or [ends], of the "
        f"95 % interval. Losses in nats per token, differences paired "
        "by seed, below 0 is better. Sums off: deviation from 1. Step time: the plain residual's "
        "is 1.",
    )


# --- every cell -----------------------------------------------------------------------------


def results_data(results: Results) -> pd.DataFrame:
    """One row per cell: the mean loss; `difference`: minus the plain residual's, paired by seed;
    `seed_<s>`: the loss of that seed, empty if its run diverged.
    """
    rows = []
    for cell in cells(results):
        base = None if cell.variant == BASELINE else cell._replace(variant=BASELINE)
        seeds = values(results, cell)
        rows.append(
            row(results, cell, [LOSS])
            | columns("difference", apart(results, cell, base))
            | {f"seed_{seed}": seeds.get(seed) for seed in results.seeds}
        )
    return pd.DataFrame(rows)


@exhibits.table(
    "results",
    title="Validation loss at the end of training",
    caption="Final loss with 95 % intervals over {seeds}. Source: runs.csv.",
    heading="loss",
    printed="several cells",
)
def results_table(results: Results) -> Table:
    """Final validation loss: a row for each variant, columns for each model size."""
    data = results_data(results)
    beside = f", minus {results.labels[BASELINE]}" if BASELINE in results.variants else ""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for record in data.to_dict("records"):
        corpus, variant = record["corpus"], results.labels[record["variant"]]
        line = lines.setdefault((corpus, variant), {"Corpus": corpus, "Variant": variant})
        heading = results.model_label(record["model"])
        line[heading + beside] = mean_and_half("difference", 3)(record)
        beaten = record[LOSS] >= results.counting_models[corpus]["bigram"]
        line[heading] = _loss(record) + " *" * beaten
    order = [h + b for h in map(results.model_label, results.models) for b in {"": 0, beside: 0}]
    display = pd.DataFrame(lines.values())[["Corpus", "Variant", *order]].fillna(NONE)
    known = ", ".join(
        f"{corpus} {one['bigram']:.3f}" for corpus, one in results.counting_models.items()
    )
    return Table(
        notes=(
            "Nats per token: mean over the completed runs ± half-width of the "
            f"95 % interval; differences are paired by seed, below 0 "
            f"is better. *: not below a table of bigrams ({known})."
        ),
        data=data,
        display=display.drop(columns=["Corpus"] if len(results.corpora) == 1 else []),
        numeric=order,
    )


def _loss(row: Record) -> str:
    text = mean_and_half(LOSS, 3)(row)
    return text + f" ({row['n_diverged']} diverged)" * bool(row["n_diverged"])


# --- over training --------------------------------------------------------------------------


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


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most `POINTS` of the steps in the table, the first and the last among them."""
    steps = table["step"].drop_duplicates().sort_values().to_numpy()
    return table[table["step"].isin(steps[evenly_spaced(len(steps), POINTS)])]


def over_training(results: Results, column: str, label: str) -> Figure:
    """A column of curves.csv over training: every run, every variant's mean."""
    table = results.curves.dropna(subset=[column])
    figure, axes = grid(len(results.corpora), len(results.models), 2.0, sharey="row")
    for panels, corpus in zip(axes, results.corpora, strict=True):
        for panel, model in zip(panels, results.models, strict=True):
            panel.set(title=results.panel_title(corpus, model), xlabel="training step")
            own = table[(table["corpus"] == corpus) & (table["model"] == model)]
            if own.empty:
                empty_state(panel, "The runs are too short.")
                continue
            runs_and_means(panel, results, thinned(own), column)
            plain_log(panel)
        panels[0].set_ylabel(label)
        if column == LOSS:
            _counting_lines(list(panels), results.counting_models[corpus])
    variant_legend(figure, results.variants, results.labels, extra=[SEED_LINE])
    return figure


@exhibits.figure(
    "validation_loss",
    title="Validation loss over training",
    caption=(
        "Loss on held-out text. Dotted: models that count single tokens (unigram) and pairs "
        "(bigram). Bold: mean over the completed runs of {seeds}; thin: each seed, up to a cross "
        "where it diverged. "
        "Source: curves.csv."
    ),
    alt="Falling curves, one colour and line style for each variant.",
    heading="loss",
)
def validation_loss(results: Results) -> Figure:
    """Validation loss over training, beside the counting models."""
    return over_training(results, LOSS, "validation loss (nats/token)")


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


TOTALS = ("loss_spikes", "grad_norm_spikes", "judged_steps")


@exhibits.table(
    "stability",
    title="Instabilities of training",
    caption="Spikes, diverged runs and gradient norms, over {seeds}. Source: runs.csv.",
    heading="stability",
    printed="never",
)
def stability_table(results: Results) -> Table:
    """Totals of spikes over all runs, diverged ones too, and means of the gradient norm."""
    norms = ("grad_norm_mean", "grad_norm_fluctuation")
    data = pd.DataFrame(
        row(results, cell, norms)
        | {name: int(sum(values(results, cell, name).values())) for name in TOTALS}
        for cell in cells(results)
    )
    counts = {"Loss spikes": "loss_spikes", "Gradient-norm spikes": "grad_norm_spikes"}
    return rows_of(
        data,
        places(results),
        [
            Col("Diverged runs", lambda row: f"{row['n_diverged']} of {row['runs']}"),
            *(Col(heading, number(name, 0)) for heading, name in counts.items()),
            Col("Steps judged", number("judged_steps", 0)),
            *map(metric, norms),
        ],
        "Gradient norms before clipping, at the end: geometric means with [ends] of the 95 % "
        "interval over the completed runs.",
    )
