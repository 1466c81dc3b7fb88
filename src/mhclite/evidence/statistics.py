"""Means over seeds with Student t intervals, differences paired by seed, and verdicts on them.

With five seeds a bootstrap interval is little more than the range of the values, so intervals come
from the t distribution. Variants of one seed share data order and initial backbone, so variants
are compared by their differences seed by seed: what a seed does to all variants cancels.

A comparison asks whether the true mean of the differences d lies below a margin m, by Student's t
test. A diverged run makes d infinite: then signed ranks are tested, in which infinity is the last
rank. Two one-sided t tests ask whether the mean lies within the smallest effect of interest. What
each test assumes, and how p values are corrected, is in docs/evidence.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

BASELINE = "residual"  # the variant that the others are compared with
CONTROL = "identity"  # the one whose streams are never mixed

Verdict = Literal[
    "supported",
    "contradicted",
    "practically equal",
    "inconclusive",
    "not reached",
    "by construction",
    "counted",
    "not tested",
]
DECIDED: tuple[Verdict, ...] = ("supported", "contradicted", "practically equal")
CONFIDENCE = 0.95  # of every interval
ERROR = 0.05  # chance of even one wrong verdict of a study
MOST_FLIPS = 16  # values up to which all 2^n sign flips are tried

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over n values and its two-sided Student t interval."""

    n: int
    mean: float | None = None  # None for n = 0
    sd: float | None = None  # sample standard deviation (n - 1); None for n < 2
    half_width: float | None = None  # None for n < 2: one value says nothing about its spread
    low: float | None = None
    high: float | None = None


def t_interval(values: Iterable[float]) -> Interval:
    """Mean of finite values (one per seed) and the interval that covers the true mean with
    probability `CONFIDENCE` if the values are independent and normal.
    """
    sample = np.fromiter(values, dtype=np.float64)
    assert np.isfinite(sample).all(), sample
    n = sample.size
    if n == 0:
        return Interval(0)
    mean = float(sample.mean())
    if n == 1:
        return Interval(1, mean)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=n - 1))
    half_width = quantile * float(stats.sem(sample))
    return _around(Interval(n, mean, float(sample.std(ddof=1))), half_width)


def _around(interval: Interval, half_width: float) -> Interval:
    assert interval.mean is not None
    low, high = interval.mean - half_width, interval.mean + half_width
    return replace(interval, half_width=half_width, low=low, high=high)


def knockout_interval(costs: Iterable[float], errors: Collection[float]) -> Interval:
    """Mean cost of a knock-out, one per seed, with its interval over seeds and windows of text.

    All seeds lose on the same windows, whose error does not shrink with their number: the mean of
    the seeds' standard errors (of one window there is none) counts beside the t interval's
    half-width, added in squares.
    """
    interval = t_interval(costs)
    if interval.half_width is None or not errors:
        return interval
    windows = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * sum(errors) / len(errors)
    return _around(interval, math.hypot(interval.half_width, windows))


def geometric_interval(values: Collection[float]) -> Interval:
    """Geometric mean of the positive values and the ends of its interval, that of their logarithms.

    0 where all values are: exact, by construction.
    """
    logs = t_interval(math.log(value) for value in values if value > 0)
    if not logs.n:
        return Interval(len(values), 0.0 if values else None)
    mean, low, high = (
        None if end is None else math.exp(end) for end in (logs.mean, logs.low, logs.high)
    )
    return Interval(logs.n, mean, low=low, high=high)


def minus(own: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """seed -> own - other, over the seeds that both have."""
    return {seed: own[seed] - other[seed] for seed in sorted(own.keys() & other.keys())}


# --- one comparison ----------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """Differences d, one per seed, against a margin."""

    interval: Interval  # of the mean of d; without a mean if a d is infinite
    margin: float
    side: int  # -1 if d lies below the margin on the whole, 1 above, 0 neither
    p: float | None = None  # two-sided; None where nothing can be decided
    p_equal: float | None = None  # two one-sided tests; None without a smallest effect


def compare(
    differences: Sequence[float],
    margin: float,
    equal: float | None = None,
    resolution: float = 0.0,
) -> Comparison:
    """Interval and p values of differences, one per seed.

    Args:
        differences: may be infinite; see `worst_case`.
        equal: smallest effect of interest. Only a claim without a margin asks for equality.
        resolution: standard deviation over seeds below which they are no evidence for a
            difference: values that do not vary do not depend on the seed. Equality may still be
            found, with the spread taken to be this.
    """
    d = np.asarray(differences, dtype=np.float64)
    shifted = d - margin
    n = d.size
    if not np.isfinite(d).all():
        ranks = signed_ranks(shifted)
        if n <= MOST_FLIPS:
            p = sign_flip(ranks)
        else:  # Wilcoxon's normal approximation, two-sided
            p = float(2 * stats.norm.sf(abs(ranks.sum()) / np.sqrt(np.square(ranks).sum())))
        interval = Interval(n, None, None, None)
        return Comparison(interval, margin, int(np.sign(ranks.sum())), p)
    interval = t_interval(d)
    side = int(np.sign(shifted.mean())) if n else 0
    found = Comparison(interval, margin, side)
    if n < 2:
        return found
    spread = float(d.std(ddof=1))
    if spread > resolution:
        found = replace(found, p=2 * _tail(abs(float(shifted.mean())), spread, n))
    if equal is not None and margin == 0:
        room = equal - abs(float(d.mean()))  # to the nearer end
        at_least = max(spread, resolution)
        found = replace(found, p_equal=_tail(room, at_least, n) if at_least else None)
    return found


def _tail(distance: float, spread: float, n: int) -> float:
    return float(stats.t.sf(distance / (spread / math.sqrt(n)), df=n - 1))


def worst_case(own: float, other: float) -> float:
    """own - other where either may be infinite, for a run that diverged; 0 if both are."""
    return 0.0 if math.isinf(own) and math.isinf(other) else own - other


def signed_ranks(values: Array) -> Array:
    """Ranks of |value| with the value's sign: ties share their mean rank, zeros count as 0."""
    return np.asarray(stats.rankdata(np.abs(values)) * np.sign(values), dtype=np.float64)


def sign_flip(values: Array) -> float:
    """Share of all sign flips of the values whose mean is at least as far from 0 as theirs."""
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=values.size)))
    means = np.abs(signs @ values)
    # A little room: the sum of the same numbers in another order is not the same float.
    return float(np.mean(means >= abs(values.sum()) * (1 - 1e-12)))


def compare_preserved(absolute: Comparison, preserved: Comparison) -> Comparison:
    """No worse than an absolute margin, and a share of the reference's own lead kept as well.

    Both must be shown, so the larger p value counts; against the claim the absolute margin alone.
    """
    if absolute.side >= 0 or absolute.p is None:
        return absolute
    if preserved.side >= 0 or preserved.p is None:
        return replace(absolute, p=1.0)
    return replace(absolute, p=max(absolute.p, preserved.p))


def compare_equal(differences: Sequence[float], margin: float, resolution: float) -> Comparison:
    """Whether the mean lies within a margin, or beyond it on either side."""
    within = compare(differences, 0.0, margin, resolution)
    mean = within.interval.mean or 0.0
    if abs(mean) < margin:
        return replace(within, p=None if within.p is None else 1.0)
    beyond = compare(differences, math.copysign(margin, mean), resolution=resolution)
    return replace(beyond, p_equal=within.p_equal)


def compare_share(holds: Sequence[bool]) -> tuple[Comparison, str]:
    """Whether a statement holds in most seeds, and that in words: exact binomial against 1/2."""
    n, k = len(holds), sum(holds)
    test = stats.binomtest(k, n, 0.5)
    low, high = test.proportion_ci(CONFIDENCE, "exact")
    found = Comparison(
        Interval(n, None, None, None), 0.0, int(np.sign(n - 2 * k)), float(test.pvalue)
    )
    return found, f"in {k} of {n} seeds [{100 * low:.0f} %, {100 * high:.0f} % of seeds]"


def compare_counts(differences: Sequence[float]) -> Comparison:
    """Events per exposure, paired by seed: sign flips decide.

    Events come in clusters within a run, so they are not tested as if each were independent.
    """
    found = compare(differences, 0.0)
    d = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(d).all():
        return found  # of ranks, by sign flips as well
    return replace(found, p=sign_flip(d) if 0 < d.size <= MOST_FLIPS else None)


# --- many comparisons -----------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p values in the order given."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def gatekeep(first: Sequence[float], second: Sequence[float]) -> tuple[list[float], list[float]]:
    """Adjusted p values of a confirmatory family and of a secondary one behind it.

    Parallel gatekeeping: the first family is corrected by Bonferroni, and what it decides hands its
    part of the error on to the second, which Holm's method corrects. The chance of even one wrong
    verdict over both is at most `ERROR`. Without a first family the second has all of it.
    """
    confirmatory = [min(1.0, len(first) * p) for p in first]
    decided = sum(p <= ERROR for p in confirmatory)
    share = decided / len(first) if first else 1.0
    secondary = [min(1.0, p / share) if share else 1.0 for p in holm(second)]
    return confirmatory, secondary


def verdict(comparison: Comparison, p: float | None, p_equal: float | None) -> Verdict:
    """The verdict by corrected p values. Equality comes first: a difference may be real and still
    be too small to matter.
    """
    if p_equal is not None and p_equal <= ERROR:
        return "practically equal"
    if p is None or p > ERROR or comparison.side == 0:
        return "inconclusive"
    return "supported" if comparison.side < 0 else "contradicted"
