"""Statistics of failures: critical rates paired by seed, time to failure, rare events.

Variants of one seed share data and backbone, so everything here that compares two of them exchanges
their labels seed by seed: if the two compute the same function, each such exchange is as likely as
what was seen, and the p value holds whatever the distribution.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from mhclite.evidence.statistics import Interval, t_interval

Verdict = Literal["higher", "lower", "practically equal", "inconclusive"]
Floats = npt.NDArray[np.float64]

MOST_EXCHANGES = 4096  # all of 12 seeds; of more, so many are drawn
FEWEST_EVENTS = 5  # from fewer no rate is stated, only its interval


# --- paired by seed -------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Differences of two variants, one per seed."""

    interval: Interval  # Student t, of their mean
    p: float | None  # exact, by exchange of the two within each seed; None without a pair
    equal: bool  # the mean lies within the margin, by two one-sided t tests


def exchanges(seeds: int) -> Floats:
    """Signs (exchanges, seeds) of 1 and -1, what was seen first: all 2^seeds, or some drawn."""
    if 2**seeds <= MOST_EXCHANGES:
        return np.array(list(itertools.product((1.0, -1.0), repeat=seeds)))
    drawn = np.random.default_rng(0).choice((1.0, -1.0), (MOST_EXCHANGES, seeds))
    drawn[0] = 1.0
    return drawn


def _p(statistics: Floats) -> float:
    """Share of the exchanges that are as far from 0 as the first, which is what was seen."""
    # A little room: the sum of the same numbers in another order is not the same float.
    return float(np.mean(np.abs(statistics) >= abs(statistics[0]) * (1 - 1e-12)))


def paired(
    differences: Sequence[float],
    margin: float,
    confidence: float,
    resolution: float = 0.0,
    unknown: bool = False,
) -> Paired:
    """Compare two variants by their differences.

    Args:
        differences: one per seed, finite.
        margin: the smallest mean difference that matters.
        confidence: of the interval; both tests have the level 1 - confidence.
        resolution: how far each difference may be off. The mean is called equal only if it is
            with all of them off to the same side, so equal readings of a coarse scale decide
            nothing.
        unknown: whether some difference is only bounded from one side: never equal.
    """
    values = np.asarray(differences, dtype=np.float64)
    interval = t_interval(values, confidence)
    if not values.size:
        return Paired(interval, None, equal=False)
    p = _p(exchanges(values.size) @ values)
    both = t_interval(values, 2 * confidence - 1)  # two one-sided tests
    equal = (
        not unknown
        and both.mean is not None
        and both.half_width is not None
        and abs(both.mean) + both.half_width + resolution < margin
    )
    return Paired(interval, p, equal)


def verdict(found: Paired, p_adjusted: float | None, confidence: float) -> Verdict:
    """What the differences say; `p_adjusted` is p corrected for the number of comparisons."""
    if found.equal:
        return "practically equal"
    if p_adjusted is None or p_adjusted > 1 - confidence:
        return "inconclusive"
    assert found.interval.mean is not None
    return "higher" if found.interval.mean > 0 else "lower"


# --- learning rates -------------------------------------------------------------------------


def rate_sensitivity(losses: Sequence[float | None], initial: float) -> float | None:
    """Mean over learning rates of min(loss, initial loss), minus the best: arXiv 2309.14322.

    A diverged run (None) counts with the initial loss. None if every one diverged: there is no
    best then.

    Args:
        losses: final loss at each rate of a grid that is the same for all who are compared.
        initial: loss before training.
    """
    finite = [loss for loss in losses if loss is not None]
    if not finite:
        return None
    capped = [initial if loss is None else min(loss, initial) for loss in losses]
    return sum(capped) / len(capped) - min(finite)


# --- time to failure ------------------------------------------------------------------------


def median_time(times: Sequence[float], failed: Sequence[bool]) -> float | None:
    """Median time to failure after Kaplan and Meier; None if half of them outlast the study.

    Args:
        times: of failure, or of the end of observation.
        failed: whether it was a failure.
    """
    time, event = np.asarray(times, dtype=np.float64), np.asarray(failed, dtype=bool)
    if not event.any():
        return None
    observed = stats.CensoredData(uncensored=time[event], right=time[~event])
    survival = stats.ecdf(observed).sf
    reached = survival.quantiles[survival.probabilities <= 0.5 + 1e-12]
    return float(reached[0]) if len(reached) else None


def logrank(time: Floats, failed: npt.NDArray[np.bool_], stratum: npt.NDArray[np.intp]) -> float:
    """Standard normal statistic of the log-rank test of two groups, summed over strata.

    Sum of (observed - expected) failures of the first group over the root of the sum of their
    hypergeometric variances (Mantel 1966); 0 where nothing can be compared. Above 0: the first
    fails more.

    Args:
        time: (2, n) of failure or censoring; the group comes first.
        failed: (2, n).
        stratum: (n,), the same of both groups: only within one are times compared.
    """
    surplus = variance = 0.0
    for one in np.unique(stratum):
        t, event = time[:, stratum == one], failed[:, stratum == one]
        for moment in np.unique(t[event]):
            at_risk = (t >= moment).sum(axis=1)
            failures = ((t == moment) & event).sum(axis=1)
            n, d = int(at_risk.sum()), int(failures.sum())
            surplus += failures[0] - d * at_risk[0] / n
            if n > 1:
                share = at_risk[0] / n
                variance += d * share * (1 - share) * (n - d) / (n - 1)
    return float(surplus / math.sqrt(variance)) if variance > 0 else 0.0


def paired_logrank(time: Floats, failed: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(statistic, p) of the log-rank test of two variants, stratified by learning rate.

    The runs of a seed at several rates are not independent, so p comes from exchanging the two
    variants within each seed, at all its rates together.

    Args:
        time: (2, seeds, rates) of failure or censoring.
        failed: (2, seeds, rates).
    """
    _, seeds, rates = time.shape
    stratum = np.tile(np.arange(rates), seeds)
    found = []
    for signs in exchanges(seeds):
        order = np.where(signs[:, None] > 0, [[0, 1]], [[1, 0]]).T  # (2, seeds)
        times = np.take_along_axis(time, order[:, :, None], axis=0).reshape(2, -1)
        events = np.take_along_axis(failed, order[:, :, None], axis=0).reshape(2, -1)
        found.append(logrank(times, events, stratum))
    return found[0], _p(np.array(found))


# --- rare events ----------------------------------------------------------------------------


def poisson_interval(events: int, exposure: float, confidence: float) -> tuple[float, float]:
    """Exact interval (Garwood 1936) of the rate of events per unit of exposure."""
    assert exposure > 0, exposure
    tail = (1 - confidence) / 2
    low = stats.chi2.ppf(tail, 2 * events) / 2 if events else 0.0
    high = stats.chi2.isf(tail, 2 * events + 2) / 2
    return float(low / exposure), float(high / exposure)


def event_rate(events: int, exposure: float) -> float | None:
    """Events per unit of exposure; None for too few to state a rate."""
    return events / exposure if events >= FEWEST_EVENTS and exposure > 0 else None
