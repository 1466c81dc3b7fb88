"""Spikes, fluctuation and divergence of finished runs, from their metrics.

The spike rule is that of OLMo-core's stability monitor: a value is a spike if it lies above the
mean of the `window` values before it by more than `sigmas` standard deviations (population form,
divided by `window`). What the rule leaves open is decided here:

- Nothing is judged before `window` steps after the warm-up: while the learning rate rises, loss and
  gradient norm change by design.
- No verdict before `window` values exist. The window never shrinks: a deviation over few values
  is too noisy for a threshold in deviations. A run without a single verdict has no spike rate.
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

from mhclite.arguments import add_run_arguments, file_path, required, run_arguments
from mhclite.files import write_json
from mhclite.measure.measured import (
    STABILITY_SCHEMA,
    RunStability,
    Stability,
    StabilitySettings,
    settings_argument,
)
from mhclite.records import to_json
from mhclite.runs.folder import FinishedRun, RunFolder

FloatArray = npt.NDArray[np.float64]

FLAT = 1e-10  # a window's deviation over the size of its mean, below which it is flat


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
    """One metric over the optimizer steps; null, or not recorded, becomes NaN. Step 0 has no step's
    metrics."""
    values = [line.get(name) for line in metrics if line["step"] > 0]
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def running_median(values: FloatArray, width: int) -> FloatArray:
    """Median of the `width` (odd) values around each; at the ends of those that there are."""
    assert width % 2 == 1, width
    padded = np.pad(values, width // 2, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    medians: FloatArray = np.nanmedian(windows, axis=1)
    return medians


def last_window(norms: FloatArray, warmup: int, window: int) -> tuple[float | None, float | None]:
    """(mean, fluctuation) of the last `window` finite gradient norms after the warm-up.

    The fluctuation is the standard deviation of log(norm) about its running median, over a quarter
    of the window: of what changes from step to step, whatever the level of the norm and however it
    falls with the rate. 0.1 is about 10 % up and down.

    Args:
        norms: one per step.
        warmup: how many of them are of the warm-up, which do not count.
        window: how many.

    Returns:
        None for both where there are fewer; None for the fluctuation of a norm that is 0.
    """
    after = norms[warmup:]
    after = after[np.isfinite(after)]
    if len(after) < window:
        return None, None
    mean = float(after[-window:].mean())
    if not (after > 0).all():
        return mean, None
    logs = np.log(after)
    rest = logs - running_median(logs, max(3, window // 4 | 1))
    return mean, float(rest[-window:].std())


def judge(run: FinishedRun, settings: StabilitySettings) -> RunStability:
    """The entry of one run in stability.json.

    `spikes_per_1000_steps` counts the steps at which the loss or the gradient norm spiked, out of
    the `judged_steps`, which have a full window after the warm-up before them; None where there are
    none. `clipped_share` is that of the steps after the warm-up whose gradient is longer than
    `grad_clip`. Mean and fluctuation of the gradient norm, of all parameters and of the backbone's,
    are those of `last_window` with `fluctuation_window`; for a diverged run that is the stretch
    before its end.
    """
    window, sigmas = settings.spike_window, settings.spike_sigmas
    steps = [int(line["step"]) for line in run.metrics if line["step"] > 0]
    loss, grad_norm = series_of(run.metrics, "loss"), series_of(run.metrics, "grad_norm")
    # Lines of the warm-up: what goes on from an import begins after some of them, or all.
    warm = sum(step <= run.record.config.training.warmup_steps for step in steps)
    loss_spikes = [steps[warm + at] for at in spikes(loss[warm:], window, sigmas)]
    grad_norm_spikes = [steps[warm + at] for at in spikes(grad_norm[warm:], window, sigmas)]
    finite = np.isfinite(loss) & np.isfinite(grad_norm)
    judged = int(np.count_nonzero(finite[warm + window :]))
    spiked = len(set(loss_spikes) | set(grad_norm_spikes))

    clip, norms = run.record.config.training.grad_clip, grad_norm[warm:][finite[warm:]]

    backbone = series_of(run.metrics, "backbone_grad_norm")
    norm, own = (
        last_window(series, warm, settings.fluctuation_window) for series in (grad_norm, backbone)
    )
    return RunStability(
        steps=len(steps),
        judged_steps=judged,
        loss_spikes=loss_spikes,
        grad_norm_spikes=grad_norm_spikes,
        spikes_per_1000_steps=1000 * spiked / judged if judged else None,
        grad_norm_mean=norm[0],
        grad_norm_fluctuation=norm[1],
        backbone_grad_norm_mean=own[0],
        backbone_grad_norm_fluctuation=own[1],
        clipped_share=float(np.mean(norms > clip)) if clip and len(norms) else None,
        diverged=run.summary.status == "diverged",
    )


def judge_all(runs: Path, names: Sequence[str], settings: StabilitySettings, out: Path) -> None:
    """Judge the named run folders under `runs` and write stability.json."""
    entries = {name: judge(RunFolder(runs / name).finished(), settings) for name in names}
    write_json(out, to_json(Stability(STABILITY_SCHEMA, settings, entries)))


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite stability`."""
    what = "JSON object with spike_window, spike_sigmas and fluctuation_window"
    required(parser, settings=(None, what))
    add_run_arguments(parser)
    required(parser, out=(file_path, "stability.json"))


def run(args: argparse.Namespace) -> None:
    """Judge every run and write stability.json."""
    settings = settings_argument(StabilitySettings, args.settings, "--settings")
    judge_all(args.runs, run_arguments(args.run), settings, args.out)
