"""When a run failed, and when a signal first warned, from the series of one run.

The *failure step* is the first at which the mean training loss of the last 16 steps lies more than
a margin above its smallest value so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from mhclite.measure.stability import trailing

SMOOTHING = 16  # steps of the mean training loss


FLUCTUATION = 3.0  # times its own median: the gradient norm's relative fluctuation warns


GAIN = 1.5  # times its value before training: the composite gain warns


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
