"""Is a difference real? Verdicts from a few paired differences, one per seed.

A comparison asks whether the true mean of the differences d lies below a margin m. Student's t test
of d against m gives a two-sided p value; the p values of all comparisons of a study are corrected
by Holm's method, so that the chance of even one wrong verdict is at most 1 - confidence. The exact
sign-flip p value stands beside it: it assumes no normality, but with n seeds it cannot fall below
2 / 2^n, which is 0.0625 for five.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import optimize, stats

from mhclite.evidence.statistics import Interval, t_interval

Verdict = Literal["supported", "contradicted", "inconclusive", "not tested"]

POWER = 0.8  # with which `seeds_to_decide` seeds decide
MOST_SEEDS = 10_000
MOST_FLIPS = 16  # values up to which all 2^n sign flips are tried


@dataclass(frozen=True)
class Comparison:
    """Paired differences d against a margin."""

    interval: Interval  # of the mean of d
    margin: float
    p: float | None  # two-sided t test against the margin; None for fewer than two values
    p_flip: float | None  # exact sign-flip test; None for more than `MOST_FLIPS` values
    flip_floor: float | None  # the smallest value that p_flip can take


def compare(differences: Sequence[float], margin: float, confidence: float) -> Comparison:
    """Interval and p values of finite differences, one per seed."""
    d = np.asarray(differences, dtype=np.float64)
    n = d.size
    shifted = d - margin
    p = None
    if n >= 2:
        spread, mean = float(shifted.std(ddof=1)), float(shifted.mean())
        if spread > 0:
            p = float(2 * stats.t.sf(abs(mean) / (spread / math.sqrt(n)), df=n - 1))
        else:
            p = 1.0 if mean == 0 else 0.0
    flip = sign_flip(shifted) if 0 < n <= MOST_FLIPS else None
    floor = 2 / 2**n if 0 < n <= MOST_FLIPS else None
    return Comparison(t_interval(d, confidence), margin, p, flip, floor)


def sign_flip(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """Share of all sign flips of the values whose mean is at least as far from 0 as theirs."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=values.size)))
    means = np.abs(signs @ values)
    # A little room: the sum of the same numbers in another order is not the same float.
    return float(np.mean(means >= abs(values.sum()) * (1 - 1e-12)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def verdict(comparison: Comparison, p_adjusted: float | None, confidence: float) -> Verdict:
    """`supported` if the mean is below the margin beyond doubt, `contradicted` if above."""
    mean = comparison.interval.mean
    if mean is None:
        return "not tested"
    if p_adjusted is None or p_adjusted > 1 - confidence:
        return "inconclusive"
    return "supported" if mean < comparison.margin else "contradicted"


def power(effect: float, n: int, confidence: float) -> float:
    """Power of a two-sided t test at level 1 - confidence with n >= 2 paired differences.

    Args:
        effect: distance of their true mean from the margin in standard deviations, >= 0.
    """
    critical = stats.t.ppf((1 + confidence) / 2, df=n - 1)
    # Far from 0 the other tail has no weight, and scipy's nct loses accuracy: t is normal then.
    if n > 200:
        return float(stats.norm.sf(critical - effect * math.sqrt(n)))
    return float(stats.nct.sf(critical, df=n - 1, nc=effect * math.sqrt(n)))


def detectable_effect(n: int, confidence: float) -> float | None:
    """The smallest effect, in standard deviations, that n paired differences find with 80 % power.

    None for n < 2: one difference says nothing about its spread.
    """
    if n < 2:
        return None
    return float(optimize.brentq(lambda effect: power(effect, n, confidence) - POWER, 1e-6, 100.0))


def seeds_to_decide(comparison: Comparison, confidence: float) -> int | None:
    """Seeds with which a single t test would decide, at the mean and spread observed.

    Two-sided at level 1 - confidence with 80 % power. None where more than 10,000 would be needed,
    or nothing is known of the spread.
    """
    interval = comparison.interval
    if interval.mean is None or not interval.sd:
        return None
    effect = abs(interval.mean - comparison.margin) / interval.sd

    if effect == 0 or power(effect, MOST_SEEDS, confidence) < POWER:
        return None
    low, high = 1, MOST_SEEDS  # power of low < POWER <= power of high
    while high - low > 1:
        middle = (low + high) // 2
        if middle >= 2 and power(effect, middle, confidence) >= POWER:
            high = middle
        else:
            low = middle
    return high
