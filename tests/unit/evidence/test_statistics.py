"""Intervals and paired differences against hand-made numbers, scipy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mhclite.evidence.statistics import (
    by_cell,
    differences_by_seed,
    knockout_interval,
    paired_differences,
    summarise,
    t_interval,
)

T_95_DF2 = 4.302652729911275  # two-sided 95 % quantile for 3 values, from any table


def grid(rows: list[tuple[str, str, int, str, float]]) -> pd.DataFrame:
    """Runs from (model, variant, seed, status, validation loss), as collected."""
    runs = pd.DataFrame(rows, columns=["model", "variant", "seed", "status", "validation_loss"])
    runs["corpus"] = pd.Categorical(["sotu"] * len(runs), categories=["sotu"], ordered=True)
    runs["model"] = pd.Categorical(runs["model"], categories=["d9", "d2"], ordered=True)
    runs["variant"] = pd.Categorical(
        runs["variant"], categories=["residual", "mhc", "hc"], ordered=True
    )
    return runs


def test_the_interval_of_a_cost_by_hand() -> None:
    seeds = t_interval([1.0, 2.0, 3.0])
    both = knockout_interval([1.0, 2.0, 3.0], [0.5, 1.0, 1.5], 0.95)
    assert (both.mean, both.n) == (2.0, 3)
    assert seeds.half_width is not None
    assert both.half_width == pytest.approx(math.sqrt(seeds.half_width**2 + 1.959964**2))
    assert knockout_interval([1.0, 2.0, 3.0], [], 0.95) == seeds  # one window has no error
    assert knockout_interval([1.0], [0.5], 0.95).half_width is None
    assert knockout_interval([0.0, 0.0], [0.0, 0.0], 0.95).half_width == 0  # never mixes


def test_interval_by_hand() -> None:
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.n == 3
    assert interval.mean == pytest.approx(2.0)
    assert interval.sd == pytest.approx(1.0)
    assert interval.half_width == pytest.approx(T_95_DF2 / math.sqrt(3))
    assert interval.low == pytest.approx(2 - T_95_DF2 / math.sqrt(3))
    assert interval.high == pytest.approx(2 + T_95_DF2 / math.sqrt(3))


@given(
    values=st.lists(st.floats(-100, 100), min_size=2, max_size=12).filter(
        lambda values: np.std(values) > 1e-3
    ),
    confidence=st.floats(0.51, 0.999),
)
def test_interval_is_that_of_the_t_test(values: list[float], confidence: float) -> None:
    interval = t_interval(values, confidence)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert interval.low == pytest.approx(expected.low, rel=1e-6, abs=1e-9)
    assert interval.high == pytest.approx(expected.high, rel=1e-6, abs=1e-9)


def test_interval_of_one_none_and_equal_values() -> None:
    one = t_interval([3.5])
    assert (one.n, one.mean, one.sd, one.half_width, one.low) == (1, 3.5, None, None, None)
    none = t_interval([])
    assert (none.n, none.mean, none.half_width, none.high) == (0, None, None, None)
    equal = t_interval([2.0, 2.0, 2.0])
    assert (equal.mean, equal.sd, equal.half_width) == (2.0, 0.0, 0.0)


def test_excludes_zero() -> None:
    assert t_interval([-3.0, -3.1, -2.9]).excludes_zero()
    assert t_interval([3.0, 3.1, 2.9]).excludes_zero()
    assert not t_interval([-1.0, 1.0, 0.5]).excludes_zero()
    assert not t_interval([5.0]).excludes_zero()  # no interval, no claim


@pytest.mark.parametrize(("n", "confidence"), [(3, 0.95), (5, 0.95), (5, 0.8)])
def test_interval_covers_as_often_as_it_says(n: int, confidence: float) -> None:
    samples = np.random.default_rng(0).normal(1.5, 0.3, size=(1000, n))
    covered = 0
    for sample in samples:
        interval = t_interval(sample, confidence)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 1.5 <= interval.high
    # Five standard errors of the count.
    spread = 5 * math.sqrt(confidence * (1 - confidence) / len(samples))
    assert covered / len(samples) == pytest.approx(confidence, abs=spread)


def test_a_value_that_is_not_finite_is_refused() -> None:
    with pytest.raises(AssertionError):
        t_interval([1.0, math.nan])


def test_summary_counts_diverged_runs_apart() -> None:
    runs = grid(
        [
            ("d2", "hc", 0, "completed", 1.0),
            ("d2", "hc", 1, "completed", 3.0),
            ("d2", "hc", 2, "diverged", 99.0),  # even if it has a value
            ("d2", "mhc", 0, "completed", 4.0),
            ("d9", "residual", 0, "diverged", math.nan),
        ]
    )
    table = summarise(runs)
    # In the order of the categories, combinations without runs left out.
    assert list(zip(table["model"], table["variant"], strict=True)) == [
        ("d9", "residual"),
        ("d2", "mhc"),
        ("d2", "hc"),
    ]
    assert list(table["n"]) == [0, 1, 2]
    assert list(table["n_diverged"]) == [1, 0, 1]
    assert table["mean"].tolist()[1:] == [4.0, 2.0]
    assert math.isnan(table["mean"][0])
    assert math.isnan(table["half_width"][1])
    assert table["variant"].cat.ordered
    assert by_cell(table)["sotu", "d2", "hc"]["mean"] == 2.0
    with_diverged = by_cell(summarise(runs, include_diverged=True))["sotu", "d2", "hc"]
    assert with_diverged["n"] == 3
    assert with_diverged["n_diverged"] == 1
    assert with_diverged["mean"] == pytest.approx(103 / 3)


def test_summary_over_other_groups() -> None:
    runs = grid([("d2", "hc", 0, "completed", 1.0), ("d9", "hc", 0, "completed", 2.0)])
    table = summarise(runs, by=["variant"], confidence=0.8)
    assert len(table) == 1
    assert table["mean"][0] == 1.5
    assert table["half_width"][0] == pytest.approx(stats.t.ppf(0.9, 1) * math.sqrt(0.5 / 2))


def test_differences_are_paired_by_seed() -> None:
    base = {0: 3.0, 1: 4.0, 2: 5.0}
    change = {0: -0.19, 1: -0.2, 2: -0.21}
    rows = [("d2", "residual", seed, "completed", loss) for seed, loss in base.items()]
    # Another order of seeds: pairs are found by seed, not by position.
    rows += [("d2", "mhc", s, "completed", base[s] + change[s]) for s in (2, 0, 1)]
    table = paired_differences(grid(rows))
    assert len(table) == 1
    row = by_cell(table)["sotu", "d2", "mhc"]
    assert row["n"] == 3
    assert row["mean"] == pytest.approx(-0.2)
    assert row["half_width"] == pytest.approx(T_95_DF2 * 0.01 / math.sqrt(3))
    assert row["high"] < 0  # though the losses themselves spread over 2 nats
    by_seed = differences_by_seed(grid(rows)).set_index("seed")["difference"]
    assert by_seed.to_dict() == pytest.approx(change)


def test_only_pairs_of_completed_runs_count() -> None:
    runs = grid(
        [
            ("d2", "residual", 0, "completed", 3.0),
            ("d2", "residual", 1, "diverged", 9.0),
            ("d2", "residual", 2, "completed", 3.0),
            ("d2", "mhc", 0, "completed", 2.5),
            ("d2", "mhc", 1, "completed", 2.5),  # its residual diverged
            ("d2", "mhc", 2, "diverged", 2.5),
            ("d2", "mhc", 3, "completed", 2.5),  # has no residual
            ("d9", "mhc", 0, "completed", 2.5),  # of another size
        ]
    )
    assert differences_by_seed(runs)["difference"].tolist() == [-0.5]
    row = by_cell(paired_differences(runs))["sotu", "d2", "mhc"]
    assert (row["n"], row["mean"]) == (1, -0.5)
    assert math.isnan(row["half_width"])


def test_without_the_reference_there_is_no_difference() -> None:
    table = paired_differences(grid([("d2", "mhc", 0, "completed", 2.5)]))
    assert table.empty
    assert table["mean"].dtype == "float64"
    assert table["variant"].cat.ordered


def test_another_baseline() -> None:
    runs = grid([("d2", "mhc", 0, "completed", 2.5), ("d2", "hc", 0, "completed", 2.75)])
    assert by_cell(paired_differences(runs, baseline="mhc"))["sotu", "d2", "hc"]["mean"] == 0.25
