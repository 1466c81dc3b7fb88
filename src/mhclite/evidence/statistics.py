"""Means over seeds with Student t intervals, and differences paired by seed.

With five seeds a bootstrap interval is little more than the range of the values, so intervals come
from the t distribution. Variants of one seed share data order and initial backbone, so variants
are compared by their differences seed by seed: what a seed does to all variants cancels.

A diverged run has no final loss: it is counted, and part of no mean that is shown here. Verdicts
take it for the worst outcome (`values`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

BASELINE = "residual"  # the variant that the others are compared with
CONTROL = "identity"  # the one whose streams are never mixed
INTERVAL_COLUMNS = ("n", "mean", "sd", "half_width", "low", "high")
FAR = 3.0  # times the range of the other seeds
FEWEST_SEEDS = 4  # of which one can be said to be far off, or one sign in all says something
CELL = ("corpus", "model", "variant")  # a cell of the grid: runs that differ in their seed only


@dataclass(frozen=True)
class Interval:
    """A mean over n values and its two-sided Student t interval, mean +- half_width."""

    n: int
    mean: float | None  # None for n = 0
    sd: float | None  # sample standard deviation (n - 1); None for n < 2
    half_width: float | None  # None for n < 2: one value says nothing about its spread

    @property
    def low(self) -> float | None:
        """Lower end."""
        return None if self.mean is None or self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """Upper end."""
        return None if self.mean is None or self.half_width is None else self.mean + self.half_width

    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside it."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Mean of finite values (one per seed) and the interval that covers the true mean with
    probability `confidence` if the values are independent and normal.
    """
    sample = np.fromiter(values, dtype=np.float64)
    assert np.isfinite(sample).all(), sample
    assert 0 < confidence < 1, confidence
    n = sample.size
    if n == 0:
        return Interval(0, None, None, None)
    mean = float(sample.mean())
    if n == 1:
        return Interval(1, mean, None, None)
    half_width = student(n, confidence) * float(stats.sem(sample))
    return Interval(n, mean, float(sample.std(ddof=1)), half_width)


def knockout_interval(
    costs: Sequence[float], errors: Sequence[float], confidence: float
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
    return replace(interval, half_width=math.hypot(interval.half_width, windows))


def student(n: int, confidence: float) -> float:
    """Standard errors in the half-width of the t interval of a mean of n > 1 values."""
    return float(stats.t.ppf((1 + confidence) / 2, df=n - 1))


def difference(
    minuend: Mapping[int, float], subtrahend: Mapping[int, float], confidence: float
) -> Interval:
    """Mean of minuend - subtrahend over the seeds that both have, and its t interval."""
    shared = minuend.keys() & subtrahend.keys()
    return t_interval([minuend[seed] - subtrahend[seed] for seed in sorted(shared)], confidence)


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


def geometric_interval(values: Iterable[float], confidence: float = 0.95) -> dict[str, float]:
    """Geometric mean of positive values and the ends of its interval, that of their logarithms.

    `mean`, `low`, `high`; NaN where there is none.
    """
    logs = t_interval(map(math.log, values), confidence)
    ends = {"mean": logs.mean, "low": logs.low, "high": logs.high}
    return {name: math.nan if end is None else math.exp(end) for name, end in ends.items()}


def binomial_interval(k: int, n: int, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson bounds of a proportion of which k of n were seen."""
    outside = (1 - confidence) / 2
    low = float(stats.beta.ppf(outside, k, n - k + 1)) if k else 0.0
    high = float(stats.beta.isf(outside, k + 1, n - k)) if k < n else 1.0
    return low, high


def crossed_interval(
    differences: npt.NDArray[np.float64],
    tokens: npt.NDArray[np.float64],
    confidence: float = 0.95,
    draws: int = 4000,
) -> tuple[float, float] | None:
    """Interval of a mean difference over other seeds and other documents: a crossed bootstrap.

    The interval over seeds knows nothing of the text: all seeds are evaluated on the same
    documents. Here seeds and documents are drawn anew, each by itself, with the same draws every
    time.

    Args:
        differences: (seeds, documents), differences of summed losses in nats.
        tokens: (documents,), tokens of each.

    Returns:
        Ends of the interval in nats per token; None with fewer than two seeds or documents.
    """
    seeds, documents = differences.shape
    if seeds < 2 or documents < 2:
        return None
    generator = np.random.default_rng(0)
    of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds
    of_documents = generator.multinomial(documents, np.full(documents, 1 / documents), draws)
    means = ((of_seeds @ differences) * of_documents).sum(1) / (of_documents @ tokens)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def interval_columns(interval: Interval) -> dict[str, float | int]:
    """An interval as `INTERVAL_COLUMNS` of a table; NaN for None."""
    values = {name: getattr(interval, name) for name in INTERVAL_COLUMNS}
    return {name: math.nan if value is None else value for name, value in values.items()}


def summarise(
    runs: pd.DataFrame,
    by: Sequence[str] = CELL,
    value: str = "validation_loss",
    confidence: float = 0.95,
    include_diverged: bool = False,
) -> pd.DataFrame:
    """One row per group of runs: the columns of `by`, `INTERVAL_COLUMNS`, n_diverged.

    n counts the runs in the mean: those completed, with a finite value. Groups come in the order
    of the categories; combinations without a run are left out. `include_diverged` is for what is
    measured over all steps of a run, such as spikes, and so exists for a diverged run too.
    """
    rows: list[dict[str, Any]] = []
    for key, group in runs.groupby(list(by), observed=True, sort=True):
        diverged = group["status"] == "diverged"
        values = (group if include_diverged else group[~diverged])[value]
        interval = t_interval(values[np.isfinite(values)], confidence)
        rows.append(
            dict(zip(by, key, strict=True))
            | interval_columns(interval)
            | {"n_diverged": int(diverged.sum())}
        )
    return _typed(rows, runs, by, [*INTERVAL_COLUMNS, "n_diverged"])


def differences_by_seed(
    runs: pd.DataFrame,
    value: str = "validation_loss",
    baseline: str = BASELINE,
    within: Sequence[str] = ("corpus", "model"),
) -> pd.DataFrame:
    """`value` minus the baseline's of the same seed: within, variant, seed, difference.

    Only pairs of completed runs with finite values; the baseline itself has no rows.
    """
    finished = runs[(runs["status"] == "completed") & np.isfinite(runs[value])]
    keys = [*within, "seed"]
    columns = [*within, "variant", "seed", value]
    pairs = finished[finished["variant"] != baseline][columns].merge(
        finished[finished["variant"] == baseline][[*keys, value]],
        on=keys,
        how="inner",
        suffixes=("", "_baseline"),
        validate="many_to_one",
    )
    pairs["difference"] = pairs[value] - pairs[f"{value}_baseline"]
    return pd.DataFrame(pairs[[*within, "variant", "seed", "difference"]])


def paired_differences(
    runs: pd.DataFrame,
    value: str = "validation_loss",
    baseline: str = BASELINE,
    within: Sequence[str] = ("corpus", "model"),
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Mean difference to the baseline, paired by seed, with its t interval.

    One row per group and variant that has at least one pair: within, variant, n (pairs), mean, sd,
    half_width, low, high. Below zero means a lower value than the baseline's.
    """
    by = [*within, "variant"]
    pairs = differences_by_seed(runs, value, baseline, within)
    rows: list[dict[str, Any]] = [
        dict(zip(by, key, strict=True))
        | interval_columns(t_interval(group["difference"], confidence))
        for key, group in pairs.groupby(by, observed=True, sort=True)
    ]
    return _typed(rows, runs, by, list(INTERVAL_COLUMNS))


def tokens_to_reach(
    tokens: npt.NDArray[np.float64], losses: npt.NDArray[np.float64], target: float
) -> float | None:
    """Tokens at which a run's validation loss first is at most `target`, interpolated linearly
    between evaluations; None if it never is.
    """
    below = np.flatnonzero(losses <= target)
    if not len(below):
        return None
    at = int(below[0])
    if at == 0:
        return float(tokens[0])
    share = (losses[at - 1] - target) / (losses[at - 1] - losses[at])
    return float(tokens[at - 1] + share * (tokens[at] - tokens[at - 1]))


def by_cell(table: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(corpus, model, variant) -> the row of a summary with one row per cell."""
    rows = table.to_dict("records")
    cells = {(row["corpus"], row["model"], row["variant"]): dict(row) for row in rows}
    assert len(cells) == len(rows), "more than one row per cell"
    return cells  # type: ignore[return-value]


def _typed(
    rows: list[dict[str, Any]], runs: pd.DataFrame, by: Sequence[str], rest: list[str]
) -> pd.DataFrame:
    """The rows as a table; key columns have the types (categories) of `runs`, even if empty."""
    types: dict[str, Any] = {name: runs[name].dtype for name in by}
    types |= {name: "int64" if name in ("n", "n_diverged") else "float64" for name in rest}
    return pd.DataFrame(rows, columns=list(types)).astype(types)
