"""Means over seeds with Student t intervals, and differences paired by seed.

With five seeds a bootstrap interval is little more than the range of the values, so intervals come
from the t distribution. Variants of one seed share data order and initial backbone, so variants
are compared by their differences seed by seed: what a seed does to all variants cancels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

BASELINE = "residual"  # the variant that the others are compared with
CONTROL = "identity"  # the one whose streams are never mixed
FAR = 3.0  # times the range of the other seeds
FEWEST_SEEDS = 4  # of which one can be said to be far off, or one sign in all says something


@dataclass(frozen=True)
class Interval:
    """A mean over n values and its two-sided Student t interval."""

    n: int
    mean: float | None = None  # None for n = 0
    sd: float | None = None  # sample standard deviation (n - 1); None for n < 2
    half_width: float | None = None  # None for n < 2: one value says nothing about its spread
    low: float | None = None
    high: float | None = None


def t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of finite values (one per seed) and the interval that covers the true mean with
    probability `confidence` if the values are independent and normal.
    """
    sample = np.fromiter(values, dtype=np.float64)
    assert np.isfinite(sample).all(), sample
    assert 0 < confidence < 1, confidence
    n = sample.size
    if n == 0:
        return Interval(0)
    mean = float(sample.mean())
    if n == 1:
        return Interval(1, mean)
    quantile = float(stats.t.ppf((1 + confidence) / 2, df=n - 1))
    half_width = quantile * float(stats.sem(sample))
    return _around(Interval(n, mean, float(sample.std(ddof=1))), half_width)


def _around(interval: Interval, half_width: float) -> Interval:
    assert interval.mean is not None
    low, high = interval.mean - half_width, interval.mean + half_width
    return replace(interval, half_width=half_width, low=low, high=high)


def knockout_interval(
    costs: Iterable[float], errors: Collection[float], confidence: float
) -> Interval:
    """Mean cost of a knock-out, one per seed, with its interval over seeds and windows of text.

    All seeds lose on the same windows, whose error does not shrink with their number: the mean of
    the seeds' standard errors (of one window there is none) counts beside the t interval's
    half-width, added in squares.
    """
    interval = t_interval(costs, confidence)
    if interval.half_width is None or not errors:
        return interval
    windows = float(stats.norm.ppf((1 + confidence) / 2)) * sum(errors) / len(errors)
    return _around(interval, math.hypot(interval.half_width, windows))


def geometric_interval(values: Collection[float], confidence: float = 0.95) -> Interval:
    """Geometric mean of the positive values and the ends of its interval, that of their logarithms.

    0 where all values are: exact, by construction.
    """
    logs = t_interval((math.log(value) for value in values if value > 0), confidence)
    if not logs.n:
        return Interval(len(values), 0.0 if values else None)
    mean, low, high = (
        None if end is None else math.exp(end) for end in (logs.mean, logs.low, logs.high)
    )
    return Interval(logs.n, mean, low=low, high=high)


def minus(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """seed -> own - other, over the seeds that both have."""
    return {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}


def far_off(losses: Mapping[int, float]) -> int | None:
    """The seed that ends far from all others, if they are enough and close to each other."""
    if len(losses) < FEWEST_SEEDS:
        return None
    ordered = sorted(losses, key=losses.__getitem__)
    for far, others in ((ordered[0], ordered[1:]), (ordered[-1], ordered[:-1])):
        spread = losses[others[-1]] - losses[others[0]]
        if min(abs(losses[far] - losses[seed]) for seed in others) > FAR * spread:
            return far
    return None
