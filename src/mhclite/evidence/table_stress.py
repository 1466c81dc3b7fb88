"""Tables of the stress experiment: rates that hold, and what warned before a failure."""

from __future__ import annotations

import pandas as pd

from mhclite.evidence.results import Results
from mhclite.evidence.stress import (
    FLUCTUATION,
    GAIN,
    SMOOTHING,
    factors,
    outcomes,
    stable_rates,
    warnings_before_failure,
)
from mhclite.evidence.table_format import NONE, Table, fixed, missing, significant, sparse


def stress_table(results: Results) -> Table:
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
    return Table(
        name="stress",
        title="Learning rates that hold and that fail",
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


def warnings_table(results: Results) -> Table:
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
    return Table(
        name="warnings",
        title="What warned before a failure",
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
