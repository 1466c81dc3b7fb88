"""Learning rates that hold and that fail, and what warned before a failure.

A run *fails* if it diverges, or if its final validation loss lies more than
`statistics.failure_margin` nats above that of the run of the same corpus, model, variant and seed
at the study's own rate. A rate *holds* if no seed fails at it. Its *failure step* is where
`failures.failure_step` sees the loss rise, or where the run diverged; a run that only stays high
has none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mhclite.evidence import exhibits
from mhclite.evidence.failures import (
    FLUCTUATION,
    GAIN,
    SMOOTHING,
    failure_step,
    first_fluctuation,
    first_gain,
)
from mhclite.evidence.results import Results, of
from mhclite.evidence.style import (
    FAINT,
    INK,
    colour,
    line_style,
    marker,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.table_format import NONE, Rows, fixed, missing, significant, sparse
from mhclite.files import read_jsonl
from mhclite.measure.files import read_stability
from mhclite.measure.stability import series_of
from mhclite.study.settings import BASE

SIGNALS = {
    "loss_spike": "loss spike",
    "grad_norm_spike": "gradient-norm spike",
    "fluctuation": "fluctuation of the gradient norm",
    "gain": "composite gain",
}


def factors(results: Results) -> dict[str, float]:
    """Condition -> factor of the learning rate, the study's own (1) first, then rising."""
    found = {BASE: 1.0}
    for name, condition in results.settings["conditions"].items():
        if condition["learning_rate_factor"] != 1:
            found[name] = float(condition["learning_rate_factor"])
    return dict(sorted(found.items(), key=lambda entry: entry[1]))


def outcomes(results: Results) -> pd.DataFrame:
    """One row per run at any learning rate.

    corpus, model, n_layer, variant, factor, seed, validation_loss, gap (to the run at the study's
    rate), failed, failure_step, spikes_per_1000_steps, and `first_<signal>`: steps, missing where
    there was none.
    """
    of_condition = factors(results)
    margin = float(results.settings["statistics"]["failure_margin"])
    window = int(results.settings["stability"]["fluctuation_window"])
    spikes = read_stability(results.folder / "stability.json").runs
    runs = results.all_runs[results.all_runs["condition"].isin(list(of_condition))]
    at_base = {
        (row["corpus"], row["model"], row["variant"], row["seed"]): row["validation_loss"]
        for row in runs[runs["condition"] == BASE].to_dict("records")
    }
    rows = []
    for row in runs.to_dict("records"):
        folder = results.folder / "runs" / row["run"]
        metrics = read_jsonl(folder / "metrics.jsonl")
        losses, norms = series_of(metrics, "loss"), series_of(metrics, "grad_norm")
        diverged = row["status"] == "diverged"
        base = at_base[row["corpus"], row["model"], row["variant"], row["seed"]]
        gap = np.nan if diverged else row["validation_loss"] - base
        rose = failure_step(losses[np.isfinite(losses)], margin)
        if diverged and rose is None:
            rose = int(row["diverged_step"])
        mixing = folder / "mixing.jsonl"
        lines = read_jsonl(mixing) if mixing.is_file() else []
        firsts = {
            "loss_spike": min(spikes[row["run"]].loss_spikes, default=None),
            "grad_norm_spike": min(spikes[row["run"]].grad_norm_spikes, default=None),
            "fluctuation": first_fluctuation(norms[np.isfinite(norms)], window),
            "gain": first_gain(lines) if lines else None,
        }
        failed = diverged or bool(gap > margin)
        rows.append(
            {
                **{name: row[name] for name in ("corpus", "model", "n_layer", "variant", "seed")},
                "factor": of_condition[row["condition"]],
                "validation_loss": np.nan if diverged else row["validation_loss"],
                "gap": gap,
                "failed": failed,
                "failure_step": rose if failed else None,
                "spikes_per_1000_steps": row["spikes_per_1000_steps"],
                **{f"first_{name}": step for name, step in firsts.items()},
            }
        )
    steps = ["failure_step", *(f"first_{name}" for name in SIGNALS)]
    return pd.DataFrame(rows).astype(dict.fromkeys(steps, "Int64"))


def stable_rates(results: Results, runs: pd.DataFrame) -> pd.DataFrame:
    """One row per corpus, model and variant.

    `largest_holding`: the largest factor at which no seed fails, and at no smaller one either;
    `smallest_failing`; `failed_<factor>` and `spikes_<factor>`: failing seeds and spikes per 1,000
    steps at each; `seeds`; `failure_step`: median over failing runs that have one.
    """
    rows = []
    tried = list(factors(results).values())
    for (corpus, model, variant), own in runs.groupby(["corpus", "model", "variant"], sort=False):
        failing = {
            factor: int(own.loc[own["factor"] == factor, "failed"].sum()) for factor in tried
        }
        held: float | None = None
        for factor in tried:
            if failing[factor]:
                break
            held = factor
        steps = own["failure_step"].dropna()
        rows.append(
            {
                "corpus": corpus,
                "model": model,
                "variant": variant,
                "seeds": int(own["seed"].nunique()),
                "largest_holding": held,
                "smallest_failing": min((f for f in tried if failing[f]), default=None),
                **{f"failed_{factor:g}": failing[factor] for factor in tried},
                **{
                    f"spikes_{factor:g}": own.loc[
                        own["factor"] == factor, "spikes_per_1000_steps"
                    ].mean()
                    for factor in tried
                },
                "failure_step": float(steps.median()) if len(steps) else None,
            }
        )
    return pd.DataFrame(rows)


def warnings_before_failure(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per signal: how often, and how many steps before, it warned of a failure.

    `failing`: runs that fail at a known step; `warned`: those with the signal before it or at it;
    `lead_*`: steps between; `first`: how often it was the first of all signals; `holding` runs do
    not fail, and `false_alarms` of them have the signal all the same.
    """
    failing = runs[runs["failed"] & runs["failure_step"].notna()]
    holding = runs[~runs["failed"]]
    steps = failing[[f"first_{name}" for name in SIGNALS]].astype("Float64")
    in_time = steps.where(steps.le(failing["failure_step"].astype("Float64"), axis=0))
    earliest = in_time.min(axis=1)
    rows = []
    for name, label in SIGNALS.items():
        warned = in_time[f"first_{name}"]
        lead = (failing["failure_step"] - warned).dropna()
        rows.append(
            {
                "signal": name,
                "label": label,
                "failing": len(failing),
                "warned": int(warned.notna().sum()),
                "lead_median": float(lead.median()) if len(lead) else None,
                "lead_min": float(lead.min()) if len(lead) else None,
                "lead_max": float(lead.max()) if len(lead) else None,
                "first": int((warned.notna() & (warned == earliest)).sum()),
                "holding": len(holding),
                "false_alarms": int(holding[f"first_{name}"].notna().sum()),
            }
        )
    return pd.DataFrame(rows)


@exhibits.table(
    "stress",
    title="Learning rates that hold and that fail",
    caption=(
        "For each variant and depth the largest multiple of the learning rate that holds over "
        "{seeds}, failures and spikes at each, and when runs fail. Source: runs.csv and the "
        "files metrics.jsonl of the runs."
    ),
    heading="stability",
    needs="rates",
)
def stress_table(results: Results) -> Rows:
    """Largest learning rate that holds, and failures at each."""
    data = stable_rates(results, outcomes(results))
    tried = [f"{factor:g}" for factor in factors(results).values()]
    margin = results.settings["statistics"]["failure_margin"]

    def times(value: float | None) -> str:
        return NONE if missing(value) else f"x {value:g}"

    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Variant": results.label(row["variant"]),
            "Largest rate that holds": times(row["largest_holding"]),
            "Smallest that fails": times(row["smallest_failing"]),
            **{f"Failed, x {f}": f"{row[f'failed_{f}']} of {row['seeds']}" for f in tried},
            **{
                f"Spikes per 1,000 steps, x {f}": significant(row[f"spikes_{f}"], 2)
                for f in (tried[0], tried[-1])
            },
            "Median step of failure": fixed(row["failure_step"], 0),
        }
        for row in data.to_dict("records")
    )
    models = results.settings["models"].items()
    rates = ", ".join(f"{name} {settings['learning_rate']:g}" for name, settings in models)
    return Rows(
        notes=(
            f"Learning rates are multiples of the study's own ({rates}). A run fails if it "
            f"diverges or ends more than {margin:g} nats above the run of the same variant and "
            "seed at the study's own rate; a rate holds if no seed fails at it or at a smaller "
            "one. The step of "
            f"failure is where the mean training loss of {SMOOTHING} steps first lies "
            f"{margin:g} nats above its smallest value so far (median over the failing runs that "
            "have one; a run that never comes down has none)."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model"]),
        numeric=tuple(display.columns[3:]),
    )


@exhibits.table(
    "warnings",
    title="What warned before a failure",
    caption=(
        "Signals before the failure of a run: how often, how early, and how often in vain, over"
        " {seeds}. Source: stability.json and the files metrics.jsonl and mixing.jsonl."
    ),
    heading="stability",
    needs="rates",
    row_head="Signal",
)
def warnings_table(results: Results) -> Rows:
    """Which signal warned of a failure, how often and how early."""
    data = warnings_before_failure(outcomes(results))
    stability = results.settings["stability"]
    rows = []
    for row in data.to_dict("records"):
        span = (
            NONE
            if missing(row["lead_median"])
            else f"{row['lead_median']:.0f} ({row['lead_min']:.0f} to {row['lead_max']:.0f})"
        )
        rows.append(
            {
                "Signal": row["label"],
                "Warned of": f"{row['warned']} of {row['failing']}",
                "Steps before failure": span,
                "First to warn": str(row["first"]),
                "False alarms": f"{row['false_alarms']} of {row['holding']}",
            }
        )
    display = pd.DataFrame(rows)
    return Rows(
        notes=(
            "Over all runs that fail at a known step, of all variants, rates and seeds: how many "
            "showed the signal at that step or before, how many steps before (median, smallest to "
            "largest), and how often it was the first of the signals (ties count for each). False "
            "alarms: runs that do not fail and show the signal all the same. Spikes: "
            f"{stability['spike_sigmas']:g} standard deviations above the mean of the last "
            f"{stability['spike_window']} steps. Fluctuation: sd over mean of the gradient norm in "
            f"{stability['fluctuation_window']} steps above {FLUCTUATION:g} times its median so "
            f"far. Composite gain: above {GAIN:g} times its value before training, seen at "
            "evaluations only; the plain residual has none."
        ),
        data=data,
        display=display,
        numeric=tuple(display.columns[1:]),
    )


ABOVE = 0.6  # nats above the unigram baseline at which the axis ends; diverged runs stand there


@exhibits.figure(
    "stress_rates",
    title="Final loss against the learning rate",
    caption=(
        "Final validation loss at multiples of the study's learning rate: lines are means over "
        "{seeds}, points are runs, crosses are runs that failed (they diverged, or ended far "
        "above the run of the same seed at the study's own rate). The dotted line is the "
        "unigram model; runs far above it are drawn at the upper end. Source: runs.csv."
    ),
    alt=(
        "Rising curves over the learning rate, one colour, marker and line style for each variant."
    ),
    heading="stability",
    needs="rates",
)
def stress_rates(results: Results) -> Figure:
    """Final loss against the learning rate: lines are means, points are runs, crosses failed."""
    runs = outcomes(results)
    rates = list(factors(results).values())
    figure, panels = wrapped_grid(len(results.panels()), 2.8)
    offsets = dict(
        zip(results.variants, np.linspace(-0.16, 0.16, len(results.variants)), strict=True)
    )
    for panel, (corpus, model) in zip(panels, results.panels(), strict=True):
        top = results.counting_models[corpus]["unigram"] + ABOVE
        cell = of(runs, corpus, model)
        for variant in results.variants:
            own = cell[cell["variant"] == variant]
            loss = own["validation_loss"].fillna(top).clip(upper=top)
            means = loss.groupby(own["factor"]).mean()
            panel.plot(
                np.log2(means.index) + offsets[variant],
                means,
                color=colour(variant),
                linestyle=line_style(variant),
                linewidth=1,
                marker=marker(variant),
                markersize=3.6,
            )
            for failed, shape in ((False, "."), (True, "x")):
                part = own["failed"] == failed
                panel.plot(
                    np.log2(own.loc[part, "factor"]) + offsets[variant],
                    loss[part],
                    shape,
                    color=colour(variant),
                    markersize=5 if failed else 3,
                    alpha=0.9 if failed else 0.5,
                )
        panel.axhline(
            results.counting_models[corpus]["unigram"], color=FAINT, linewidth=0.8, ls=":"
        )
        panel.xaxis.set_major_locator(FixedLocator(list(np.log2(rates))))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"x {2**value:g}"))
        panel.set(
            title=results.panel_title(corpus, model),
            xlabel=f"learning rate ({results.settings['models'][model]['learning_rate']:g} x)",
            ylabel="final validation loss (nats/token)",
        )
    cross = Line2D([], [], color=INK, linestyle="none", marker="x", label="failed")
    variant_legend(figure, results.variants, results.labels, extra=[cross])
    return figure
