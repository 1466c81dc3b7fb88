"""Learning rates that hold and that fail, and what warned before a failure.

A run *fails* if it diverges, or if its final validation loss lies more than
`statistics.failure_margin` nats above that of the run of the same corpus, model, variant and seed
at the study's own rate. A rate *holds* if no seed fails at it. The *failure step* is the first at
which the mean training loss of the last 16 steps lies more than the margin above its smallest value
so far, or where the run diverged; a run that only stays high has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mhclite.evidence.results import Results
from mhclite.files import read_json, read_jsonl
from mhclite.measure.stability import trailing
from mhclite.study.settings import BASE

SMOOTHING = 16  # steps of the mean training loss
FLUCTUATION = 3.0  # times its own median: the gradient norm's relative fluctuation warns
GAIN = 1.5  # times its value before training: the composite gain warns
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


def failure_step(losses: npt.NDArray[np.float64], margin: float) -> int | None:
    """First step (from 1) at which the smoothed loss is `margin` above its smallest so far."""
    if len(losses) < SMOOTHING:
        return None
    smooth = np.convolve(losses, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
    above = np.flatnonzero(smooth > np.minimum.accumulate(smooth) + margin)
    return int(above[0]) + SMOOTHING if len(above) else None


def first_fluctuation(grad_norm: npt.NDArray[np.float64], window: int) -> int | None:
    """First step at which sd over mean of the last `window` gradient norms exceeds its median over
    the steps before by `FLUCTUATION` times; judged once as many windows have been seen.
    """
    mean, deviation = trailing(grad_norm, window)
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = deviation / mean
    for at in range(2 * window - 1, len(relative)):
        before = relative[window - 1 : at]
        if relative[at] > FLUCTUATION * np.median(before):
            return at + 1
    return None


def first_gain(lines: list[dict[str, Any]]) -> int | None:
    """First evaluation at which a composite gain exceeds its first value by `GAIN` times."""
    for line in lines[1:]:
        for name in ("gain_forward", "gain_backward"):
            first, now = lines[0][name], line[name]
            if now is None or (first is not None and now > GAIN * first):
                return int(line["step"])
    return None


def outcomes(results: Results) -> pd.DataFrame:
    """One row a run at any learning rate.

    corpus, model, n_layer, variant, factor, seed, validation_loss, gap (to the run at the study's
    rate), failed, failure_step, spikes_per_1000_steps, and `first_<signal>`: steps, missing where
    there was none.
    """
    of_condition = factors(results)
    margin = float(results.settings["statistics"]["failure_margin"])
    window = int(results.settings["stability"]["fluctuation_window"])
    spikes = read_json(results.folder / "stability.json", "stability")["runs"]
    runs = results.all_runs[results.all_runs["condition"].isin(list(of_condition))]
    at_base = {
        (row["corpus"], row["model"], row["variant"], row["seed"]): row["validation_loss"]
        for row in runs[runs["condition"] == BASE].to_dict("records")
    }
    rows = []
    for row in runs.to_dict("records"):
        folder = results.folder / "runs" / row["run"]
        metrics = [line for line in read_jsonl(folder / "metrics.jsonl") if line["step"] > 0]
        losses = np.array([np.nan if m["loss"] is None else m["loss"] for m in metrics], float)
        norms = np.array(
            [np.nan if m["grad_norm"] is None else m["grad_norm"] for m in metrics], float
        )
        diverged = row["status"] == "diverged"
        base = at_base[row["corpus"], row["model"], row["variant"], row["seed"]]
        gap = np.nan if diverged else row["validation_loss"] - base
        rose = failure_step(losses[np.isfinite(losses)], margin)
        if diverged and rose is None:
            rose = int(row["diverged_step"])
        mixing = folder / "mixing.jsonl"
        lines = read_jsonl(mixing) if mixing.is_file() else []
        firsts = {
            "loss_spike": min(spikes[row["run"]]["loss_spikes"], default=None),
            "grad_norm_spike": min(spikes[row["run"]]["grad_norm_spikes"], default=None),
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
    """One row a corpus, model and variant.

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
    """One row a signal: how often, and how many steps before, it warned of a failure.

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
