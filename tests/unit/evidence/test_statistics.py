"""Intervals and paired differences against hand-made numbers, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mhclite.evidence.frame import Cell, apart, mean, row, values
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import far_off, geometric_interval, knockout_interval, t_interval

DIVERGED = Cell("sotu", "d4", "hc")  # of the builder: one of three seeds


def test_the_interval_of_a_cost_by_hand() -> None:
    seeds = t_interval([1.0, 2.0, 3.0])
    both = knockout_interval([1.0, 2.0, 3.0], [0.5, 1.0, 1.5], 0.95)
    assert (both.mean, both.n) == (2.0, 3)
    assert seeds.half_width is not None
    assert both.half_width == pytest.approx(math.sqrt(seeds.half_width**2 + 1.959964**2))
    assert both.low == pytest.approx(2 - both.half_width)
    assert knockout_interval([1.0, 2.0, 3.0], [], 0.95) == seeds  # one window has no error
    assert knockout_interval([1.0], [0.5], 0.95).half_width is None
    assert knockout_interval([0.0, 0.0], [0.0, 0.0], 0.95).half_width == 0  # never mixes


@given(
    values=st.lists(st.floats(-100, 100), min_size=2, max_size=12).filter(
        lambda values: np.std(values) > 1e-3
    ),
    confidence=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_interval_is_that_of_the_t_test(values: list[float], confidence: float) -> None:
    interval = t_interval(values, confidence)
    expected = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_intervals_of_few_and_equal_values() -> None:
    assert t_interval([]).mean is None
    assert (t_interval([2.5]).mean, t_interval([2.5]).half_width) == (2.5, None)
    assert t_interval([2.0, 2.0]).half_width == 0
    assert geometric_interval([]).mean is None
    assert geometric_interval([0.0, 0.0]).mean == 0  # exact, by construction
    assert geometric_interval([1.0, 0.0, 4.0]).mean == pytest.approx(2)  # where the logarithm is
    logs = t_interval([0.0, math.log(4)])
    assert logs.low is not None
    assert geometric_interval([1.0, 4.0]).low == pytest.approx(math.exp(logs.low))
    with pytest.raises(AssertionError):
        t_interval([1.0, math.nan])
    assert far_off({0: 3.0, 1: 3.01, 2: 3.02, 3: 4.0}) == 3
    assert far_off({0: 3.0, 1: 3.01, 2: 3.02, 3: 3.05}) is None
    assert far_off({0: 3.0, 1: 3.0, 2: 4.0}) is None  # three seeds are too few


# --- the tidy table -------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_the_mean_of_its_column(results: Results, metric: str) -> None:
    """Over the completed runs, or all of them: whatever the registry says of it."""
    about = METRICS[metric]
    for cell in (DIVERGED, Cell("sotu", "d2", "mhc")):
        runs = results.runs.set_index(["model", "variant"]).loc[[(cell.model, cell.variant)]]
        if not about.always:
            runs = runs[runs["status"] == "completed"]
        own = runs.set_index("seed")[metric].dropna() if metric in runs else runs["seed"][:0]
        assert values(results, cell, metric) == dict(zip(own.index, own, strict=True))
        found, geometric = mean(results, cell, metric).mean, about.log or about.geometric
        positive = own[own > 0] if geometric else own
        if len(positive):
            expected = stats.gmean(positive) if geometric else positive.mean()
            assert found == pytest.approx(float(expected))
        else:
            assert found == (0.0 if len(own) else None)


def test_diverged_runs_are_counted_and_in_no_mean(results: Results) -> None:
    found = row(results, DIVERGED, ["validation_loss"])
    assert (found["runs"], found["n_diverged"], found["validation_loss_n"]) == (3, 1, 2)
    assert sorted(values(results, DIVERGED)) == [0, 2]
    assert sorted(values(results, DIVERGED, "grad_norm_spikes")) == [0, 1, 2]  # of all runs


def test_differences_are_paired_by_seed(results: Results) -> None:
    other = DIVERGED._replace(variant="mhc")
    own, base = values(results, DIVERGED), values(results, other)
    d = [own[seed] - base[seed] for seed in (0, 2)]
    assert apart(results, DIVERGED, other) == t_interval(d)
    assert apart(results, DIVERGED, None).n == 0
    assert apart(results, DIVERGED, Cell("sotu", "d4", "mhc", "none")).mean is None
