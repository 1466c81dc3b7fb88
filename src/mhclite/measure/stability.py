"""Spikes, fluctuation and divergence of finished runs, from their metrics.

The spike rule is that of OLMo-core's stability monitor: a value is a spike if it lies above the
mean of the `window` values before it by more than `sigmas` standard deviations (population form,
divided by `window`). What the rule leaves open is decided here:

- No verdict before `window` values exist. The window never shrinks: a deviation over few values
  is too noisy for a threshold in deviations. A run without a single verdict is marked
  `too_few_steps` and has no spike rate.
- A spike enters the windows after it like any other value, so the second of two equal jumps is
  judged against a window that knows the first. A new level counts until the window knows it, a
  few times, not at every step.
- A value after a flat window (deviation below 1e-10 of its mean's size) is no spike: with no
  fluctuation there is no scale to judge by.
- A value that is not finite is divergence, never a spike, and nothing is judged against a window
  that holds one. Training ends at the first, so only the last value of a run can be one.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mhclite.arguments import json_argument, run_arguments
from mhclite.errors import UserError
from mhclite.files import write_json
from mhclite.runs.folder import SCHEMA, FinishedRun, finished_run

FloatArray = npt.NDArray[np.float64]

FLAT = 1e-10  # a window's deviation over the size of its mean, below which it is flat

SETTINGS = ("spike_window", "spike_sigmas", "fluctuation_window")  # those of study.Stability


def trailing(values: Sequence[float] | FloatArray, window: int) -> tuple[FloatArray, FloatArray]:
    """Mean and population standard deviation of the `window` values that end at each position.

    Returns two arrays of the length of `values`: NaN where fewer than `window` values exist so far
    and where the window holds a value that is not finite.
    """
    assert window >= 1, window
    series = np.array(values, dtype=np.float64)
    mean = np.full(series.shape, np.nan)
    deviation = np.full(series.shape, np.nan)
    if series.size >= window:
        series[~np.isfinite(series)] = np.nan
        windows = np.lib.stride_tricks.sliding_window_view(series, window)
        with np.errstate(over="ignore", invalid="ignore"):  # 1e300 squared: no verdict
            mean[window - 1 :] = windows.mean(axis=1)
            deviation[window - 1 :] = windows.std(axis=1)
    return mean, deviation


def spikes(values: Sequence[float] | FloatArray, window: int, sigmas: float) -> list[int]:
    """Positions (from 0) of the values that are spikes by the rule of this module."""
    assert sigmas > 0, sigmas
    series = np.array(values, dtype=np.float64)
    series[~np.isfinite(series)] = np.nan
    mean, deviation = trailing(series[:-1], window)
    judged = deviation > FLAT * np.abs(mean)  # False for NaN
    above = np.zeros(series.shape, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        above[1:] = judged & (series[1:] > mean + sigmas * deviation)
    return [int(position) for position in np.flatnonzero(above)]


def series_of(metrics: Sequence[dict[str, Any]], name: str) -> FloatArray:
    """One metric over the optimizer steps; null becomes NaN. Step 0 has no step's metrics."""
    return np.array(
        [math.nan if line[name] is None else line[name] for line in metrics if line["step"] > 0],
        dtype=np.float64,
    )


def judge(run: FinishedRun, settings: dict[str, Any]) -> dict[str, Any]:
    """The entry of one run in stability.json.

    `spikes_per_1000_steps` counts the steps at which the loss or the gradient norm spiked, out of
    the `judged_steps` that have a full window before them; None where there are none.
    `grad_norm_mean` and `grad_norm_fluctuation` (population standard deviation) are over the last
    `fluctuation_window` finite gradient norms; None where there are fewer. For a diverged run that
    is the stretch before its end.
    """
    window, sigmas = int(settings["spike_window"]), float(settings["spike_sigmas"])
    steps = [int(line["step"]) for line in run.metrics if line["step"] > 0]
    loss, grad_norm = series_of(run.metrics, "loss"), series_of(run.metrics, "grad_norm")
    loss_spikes = [steps[position] for position in spikes(loss, window, sigmas)]
    grad_norm_spikes = [steps[position] for position in spikes(grad_norm, window, sigmas)]
    finite = np.isfinite(loss) & np.isfinite(grad_norm)
    judged = int(np.count_nonzero(finite[window:]))
    spiked = len(set(loss_spikes) | set(grad_norm_spikes))

    last = grad_norm[np.isfinite(grad_norm)][-int(settings["fluctuation_window"]) :]
    full = len(last) == int(settings["fluctuation_window"])
    return {
        "steps": len(steps),
        "judged_steps": judged,
        "too_few_steps": judged == 0,
        "loss_spikes": loss_spikes,
        "grad_norm_spikes": grad_norm_spikes,
        "spikes_per_1000_steps": 1000 * spiked / judged if judged else None,
        "grad_norm_mean": float(last.mean()) if full else None,
        "grad_norm_fluctuation": float(last.std()) if full else None,
        "diverged": run.summary["status"] == "diverged",
        "diverged_step": run.summary["diverged_step"],
    }


def _checked(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, or a `UserError` for the first that is unknown, missing or impossible."""
    for name in settings.keys() - set(SETTINGS):
        raise UserError(f"--settings: unknown key {name!r}; known are {', '.join(SETTINGS)}")
    for name in SETTINGS:
        value: Any = settings.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "spike_sigmas" and not (number and 0 < value < math.inf):
            raise UserError(f"--settings: {name} = {value!r} must be a number above 0")
        if name != "spike_sigmas" and not (number and isinstance(value, int) and value >= 2):
            raise UserError(f"--settings: {name} = {value!r} must be a whole number, at least 2")
    return settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite stability`."""
    parser.add_argument(
        "--settings", required=True, metavar="JSON", help=f"object with {', '.join(SETTINGS)}"
    )
    parser.add_argument(
        "--runs", required=True, type=Path, metavar="DIR", help="folder of the run folders"
    )
    parser.add_argument(
        "--run", required=True, nargs="+", metavar="ID", help="runs, or @FILE with one a line"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="stability.json")


def run(args: argparse.Namespace) -> None:
    """Judge every run and write stability.json."""
    settings = _checked(json_argument(args.settings, "--settings"))
    verdicts = {
        name: judge(finished_run(args.runs, name), settings) for name in run_arguments(args.run)
    }
    write_json(args.out, {"schema": SCHEMA, "settings": settings, "runs": verdicts})
