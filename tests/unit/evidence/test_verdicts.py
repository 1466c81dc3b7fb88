"""Intervals and verdicts: cases by hand, properties, and error rates over simulated studies."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mhclite.evidence.statistics import (
    compare,
    compare_counts,
    compare_preserved,
    compare_share,
    gatekeep,
    geometric_interval,
    holm,
    knockout_interval,
    sign_flip,
    signed_ranks,
    t_interval,
    verdict,
    worst_case,
)

EQUAL = 0.5
VALUES = st.lists(st.floats(-10, 10).map(lambda x: round(x, 6)), min_size=2, max_size=8)
STUDIES = 2000 if "EXHAUSTIVE" in os.environ else 500
INFINITY = math.inf
REAL = ("supported", "contradicted")


def decide(differences: np.ndarray, margin: float = 0.0, equal: float | None = None) -> str:
    comparison = compare(list(differences), margin, equal)
    return verdict(comparison, comparison.p, comparison.p_equal)


# --- intervals --------------------------------------------------------------------------------


def test_the_interval_of_a_cost_by_hand() -> None:
    seeds = t_interval([1.0, 2.0, 3.0])
    both = knockout_interval([1.0, 2.0, 3.0], [0.5, 1.0, 1.5])
    assert seeds.half_width is not None
    assert both.half_width == pytest.approx(math.sqrt(seeds.half_width**2 + 1.959964**2))
    assert knockout_interval([1.0, 2.0, 3.0], []) == seeds  # one window has no error
    assert knockout_interval([1.0], [0.5]).half_width is None


@given(values=VALUES.filter(lambda values: np.std(values) > 1e-3))
def test_interval_is_that_of_the_t_test(values: list[float]) -> None:
    interval = t_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_intervals_of_few_and_equal_values() -> None:
    assert t_interval([]).mean is None
    assert (t_interval([2.5]).mean, t_interval([2.5]).half_width) == (2.5, None)
    assert t_interval([2.0, 2.0]).half_width == 0
    assert geometric_interval([0.0, 0.0]).mean == 0  # exact, by construction
    assert geometric_interval([1.0, 0.0, 4.0]).mean == pytest.approx(2)  # where the logarithm is
    logs, low = t_interval([0.0, math.log(4)]), geometric_interval([1.0, 4.0]).low
    assert low == pytest.approx(math.exp(logs.low or 0))


# --- by hand ----------------------------------------------------------------------------------


def test_by_hand() -> None:
    comparison = compare([-0.03, -0.01, -0.02], 0.0)
    t = -0.02 / (0.01 / math.sqrt(3))
    assert comparison.p == pytest.approx(2 * stats.t.cdf(t, df=2))
    assert comparison.p_equal is None
    assert verdict(comparison, 0.01, None) == "supported"
    assert verdict(comparison, 0.06, None) == "inconclusive"
    worse = np.array([0.004, 0.005, 0.006, 0.005, 0.0051])
    assert decide(worse) == "contradicted"
    assert decide(worse, margin=0.01) == "supported"  # which allows a little worse


def test_equality_by_hand() -> None:
    """Mean 0.001, sd 0.001, n 4: 0.004 to the nearer end are 8 standard errors."""
    d = [0.0, 0.002, 0.0, 0.002]
    sd = math.sqrt(4 / 3) * 0.001
    comparison = compare(d, 0.0, equal=0.005)
    assert comparison.p_equal == pytest.approx(stats.t.sf(0.004 / (sd / 2), df=3))
    assert decide(np.array(d), equal=0.005) == "practically equal"
    assert decide(np.array(d), equal=0.001) == "inconclusive"
    # A difference can be real and too small to matter: then it is that.
    real = np.array([0.0010, 0.0011, 0.0009, 0.0010])
    assert decide(real) == "contradicted"
    assert decide(real, equal=0.005) == "practically equal"
    assert compare(d, 0.01, equal=0.005).p_equal is None  # no worse, not equal


def test_few_values_and_no_spread_decide_nothing() -> None:
    nothing, one = compare([], 0.0), compare([0.5], 0.0)
    assert verdict(nothing, nothing.p, None) == "inconclusive"
    assert (one.p, verdict(one, one.p, None)) == (None, "inconclusive")
    assert compare([0.25] * 3, 0.0).p is None
    # Below the resolution they are no evidence of a difference, but equal to it.
    rounding = [1e-7, 2e-7, 3e-7]
    found = compare(rounding, 0.0, equal=0.005, resolution=1e-6)
    assert found.p is None
    assert found.p_equal is not None
    assert found.p_equal < 1e-6


def test_a_diverged_run_is_the_last_rank() -> None:
    assert signed_ranks(np.array([-0.1, 0.3, INFINITY, -0.2, 0.0])).tolist() == [-2, 4, 5, -3, 0]
    assert (worst_case(INFINITY, 1.0), worst_case(1.0, INFINITY)) == (INFINITY, -INFINITY)
    assert worst_case(INFINITY, INFINITY) == 0
    # Of the 32 sums of ranks +-1 .. +-5 those as far out as |-1 -2 -3 -4 +5| = 5, by hand.
    found = compare([-0.1, -0.2, -0.3, -0.4, INFINITY], 0.0)
    assert (found.p, found.side, found.interval.mean) == (20 / 32, -1, None)
    many = compare([*np.linspace(-2, -1, 20), -INFINITY], 0.0)
    assert many.p is not None
    assert many.p < 0.001


def test_shares_counts_and_sign_flips() -> None:
    comparison, words = compare_share([True] * 5)
    assert (comparison.p, comparison.side) == (pytest.approx(2 / 32), -1)
    assert words == "in 5 of 5 seeds [48 %, 100 % of seeds]"
    counts = compare_counts([-1.0, -2.0, 0.0, -1.0])
    assert counts.p == 4 / 16  # the zero counts twice
    # means of flips of (1, 2): +-3, +-1 over 2: |3| twice of four
    assert sign_flip(np.array([1.0, 2.0])) == 0.5
    assert sign_flip(np.array([1.0, -2.0])) == 1.0


def test_holm_and_the_gate_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    # One of two is decided, so half of the level goes on: the second family's p values double.
    first, second = gatekeep([0.01, 0.2], [0.01, 0.02])
    assert first == pytest.approx([0.02, 0.4])
    assert second == pytest.approx([0.04, 0.04])
    assert gatekeep([0.2, 0.3], [1e-9])[1] == [1.0]
    assert gatekeep([], [0.01])[1] == [0.01]


@settings(deadline=None, database=None, max_examples=50)
@given(values=VALUES, infinite=st.integers(-1, 1))
def test_mirrored_values_give_the_mirrored_verdict(values: list[float], infinite: int) -> None:
    values = [*values[1:], infinite * INFINITY] if infinite else values
    there, back = (compare([s * v for v in values], 0.0, 0.01) for s in (1, -1))
    assert there.p == pytest.approx(back.p)
    assert there.p_equal == pytest.approx(back.p_equal)
    opposite = {"supported": "contradicted", "contradicted": "supported"}
    first, second = (verdict(c, c.p, c.p_equal) for c in (there, back))
    assert second == opposite.get(first, first)


@settings(deadline=None, database=None, max_examples=50)
@given(p=st.lists(st.floats(0, 1), max_size=20), first=st.lists(st.floats(0, 1), max_size=8))
def test_corrections_are_never_bolder_than_none(p: list[float], first: list[float]) -> None:
    adjusted = holm(p)
    assert all(raw <= a <= 1 for a, raw in zip(adjusted, p, strict=True))
    confirmatory, secondary = gatekeep(first, p)
    assert all(a >= raw for a, raw in zip(confirmatory, first, strict=True))
    assert all(a >= raw for a, raw in zip(secondary, adjusted, strict=True))


# --- error rates ------------------------------------------------------------------------------


def error_room(rate: float, studies: int = STUDIES) -> float:
    """Three standard errors of a rate over the simulated studies."""
    return 3 * math.sqrt(rate * (1 - rate) / studies)


def wrong_at_most(promised: float, what: str, wrong: Iterable[bool]) -> None:
    """Over simulated studies; docs/evidence.md quotes what is printed."""
    seen = list(wrong)
    share = sum(seen) / len(seen)
    print(f"{what}: {100 * share:.2f} % wrong, promised {100 * promised:.3g} %")
    assert share <= promised + error_room(promised, len(seen))


@pytest.mark.slow
def test_an_effect_at_the_limit_is_rarely_called_equal() -> None:
    draw = np.random.default_rng(2).standard_normal
    verdicts = (decide(EQUAL + 0.1 * draw(5), equal=EQUAL) for _ in range(STUDIES))
    equal = (one == "practically equal" for one in verdicts)
    wrong_at_most(0.05, "effect at the limit of interest, called equal", equal)


@pytest.mark.slow
def test_an_effect_of_two_deviations_is_found_as_theory_says() -> None:
    seeds, effect = 5, 2.0
    draw = np.random.default_rng(7).standard_normal
    verdicts = [decide(draw(seeds) - effect) for _ in range(STUDIES)]
    found = verdicts.count("supported") / STUDIES
    critical = stats.t.ppf(0.975, df=seeds - 1)
    theory = float(stats.nct.sf(critical, df=seeds - 1, nc=effect * math.sqrt(seeds)))
    print(f"effect of 2 sd, 5 seeds: found {100 * found:.1f} %, theory {100 * theory:.1f} %")
    assert found >= theory - error_room(theory)
    assert verdicts.count("contradicted") == 0


@pytest.mark.slow
def test_runs_that_diverge_by_chance_are_rarely_called_different() -> None:
    """Two variants that are the same, each run of which diverges with a chance of 0.3."""
    generator = np.random.default_rng(5)

    def study(seeds: int) -> bool:
        own, other = (
            np.where(generator.random(seeds) < 0.3, INFINITY, generator.standard_normal(seeds))
            for _ in range(2)
        )
        return decide(np.array([*map(worst_case, own, other)])) in REAL

    for seeds in (5, 8):
        wrong_at_most(0.05, f"{seeds} seeds, 30 % diverged", (study(seeds) for _ in range(STUDIES)))


@pytest.mark.slow
def test_no_worse_is_rarely_said_of_one_that_keeps_less_than_half() -> None:
    """The reference leads by 0.02; the variant keeps exactly half, within the absolute margin."""
    draw = np.random.default_rng(6).standard_normal

    def study() -> bool:
        reference, variant, control = (mean + 0.004 * draw(5) for mean in (-0.02, -0.01, 0.0))
        d = variant - reference
        kept = compare(list(d - 0.5 * (control - reference)), 0.0)
        found = compare_preserved(compare(list(d), 0.02), kept)
        return verdict(found, found.p, None) == "supported"

    wrong_at_most(
        0.025, "half of the lead kept, called no worse", (study() for _ in range(STUDIES))
    )


@pytest.mark.slow
@pytest.mark.parametrize("true", [0, 4])
def test_both_families_have_rarely_one_wrong_verdict(true: int) -> None:
    """8 main and 20 secondary claims, some of the first with an effect."""
    draw = np.random.default_rng(3 + bool(true)).standard_normal
    effects = np.array([9.0] * true + [0.0] * (28 - true))[:, None]

    def study() -> bool:
        p = stats.ttest_1samp(effects + draw((28, 5)), 0, axis=1).pvalue
        first, second = gatekeep(list(p[:8]), list(p[8:]))
        return min(*first[true:], *second) <= 0.05

    what = f"{true} true, {28 - true} null claims, studies with one wrong"
    wrong_at_most(0.05, what, (study() for _ in range(STUDIES // 4)))


@pytest.mark.slow
def test_an_interval_of_a_cost_counts_the_windows() -> None:
    """Windows that all seeds share: the truth is outside the interval over seeds alone."""
    draw = np.random.default_rng(10).standard_normal
    outside: dict[str, list[bool]] = {"seeds": [], "seeds and windows": []}
    for _ in range(STUDIES):
        windows = 0.01 * draw()  # their error, the same for all seeds
        costs = [windows + 0.005 * x for x in draw(5)]
        found = t_interval(costs), knockout_interval(costs, [0.01] * 5)
        for missed, interval in zip(outside.values(), found, strict=True):
            missed.append(not (interval.low or 0) <= 0 <= (interval.high or 0))
    wrong_at_most(0.05, "cost outside its interval", outside["seeds and windows"])
    assert sum(outside["seeds"]) / STUDIES > 0.2
