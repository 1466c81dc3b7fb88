"""Verdicts: small cases by hand, properties, and error rates over simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mhclite.evidence.verdicts import (
    MOST_SEEDS,
    POWER,
    compare,
    holm,
    seeds_to_decide,
    sign_flip,
    verdict,
)

CONFIDENCE = 0.95
VALUES = st.lists(st.floats(-10, 10).map(lambda x: round(x, 6)), min_size=2, max_size=8)
STUDIES = 2000


def decide(differences: np.ndarray, margin: float = 0.0) -> str:
    comparison = compare(differences, margin, CONFIDENCE)
    return verdict(comparison, comparison.p, CONFIDENCE)


# --- by hand ----------------------------------------------------------------------------------


def test_by_hand() -> None:
    comparison = compare([-0.03, -0.01, -0.02], 0.0, CONFIDENCE)
    t = -0.02 / (0.01 / math.sqrt(3))
    assert comparison.p == pytest.approx(2 * stats.t.cdf(t, df=2))
    assert comparison.p_flip == 2 / 8  # all signs equal: only it and its mirror are as far out
    assert comparison.flip_floor == 0.25
    assert verdict(comparison, 0.01, CONFIDENCE) == "supported"
    assert verdict(comparison, 0.06, CONFIDENCE) == "inconclusive"
    assert verdict(compare([0.03, 0.01], 0.0, CONFIDENCE), 0.01, CONFIDENCE) == "contradicted"


def test_a_margin_allows_a_little_worse() -> None:
    worse = [0.004, 0.005, 0.006, 0.005, 0.0051]
    assert decide(np.array(worse)) == "contradicted"
    assert decide(np.array(worse), margin=0.01) == "supported"


def test_few_values() -> None:
    nothing, one = compare([], 0.0, CONFIDENCE), compare([0.5], 0.0, CONFIDENCE)
    assert verdict(nothing, None, CONFIDENCE) == "not tested"
    assert (one.p, verdict(one, one.p, CONFIDENCE)) == (None, "inconclusive")
    assert compare([0.25] * 3, 0.0, CONFIDENCE).p == 0  # 0.25 is exact
    assert compare([0.0] * 3, 0.0, CONFIDENCE).p == 1
    assert compare([0.1] * 20, 0.0, CONFIDENCE).p_flip is None


def test_sign_flip_by_hand() -> None:
    # means of flips of (1, 2): +-3, +-1 over 2: |3| twice of four
    assert sign_flip(np.array([1.0, 2.0])) == 0.5
    assert sign_flip(np.array([1.0, -2.0])) == 1.0
    assert sign_flip(np.array([0.1, 0.2, 0.3])) == 0.25


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_seeds_to_decide_have_the_power() -> None:
    generator = np.random.default_rng(0)
    d = 0.5 + generator.standard_normal(5)
    comparison = compare(d, 0.0, CONFIDENCE)
    n = seeds_to_decide(comparison, CONFIDENCE)
    assert n is not None
    assert comparison.interval.sd is not None
    effect = abs(float(d.mean())) / comparison.interval.sd

    def power(seeds: int) -> float:
        critical = stats.t.ppf(0.975, df=seeds - 1)
        return float(stats.nct.sf(critical, df=seeds - 1, nc=effect * math.sqrt(seeds)))

    assert power(n) >= POWER > power(n - 1)
    assert seeds_to_decide(compare([1e-9, -1e-9, 1.0, -1.0], 0.0, CONFIDENCE), 0.95) is None
    tiny = compare([0.021 + x for x in (-1.0, 1.0, -1.0, 1.0)], 0.0, CONFIDENCE)
    needed = seeds_to_decide(tiny, CONFIDENCE)
    assert needed is None or needed <= MOST_SEEDS


# --- properties -------------------------------------------------------------------------------


@settings(deadline=None, database=None, max_examples=50)
@given(values=VALUES)
def test_mirrored_values_give_the_mirrored_verdict(values: list[float]) -> None:
    there, back = (compare([s * v for v in values], 0.0, CONFIDENCE) for s in (1, -1))
    assert there.p == pytest.approx(back.p)
    assert there.p_flip == back.p_flip
    assert there.flip_floor is not None
    assert there.p_flip is not None
    assert there.p_flip >= there.flip_floor
    opposite = {"supported": "contradicted", "contradicted": "supported"}
    first, second = (verdict(c, c.p, CONFIDENCE) for c in (there, back))
    assert second == opposite.get(first, first)


@settings(deadline=None, database=None, max_examples=50)
@given(p=st.lists(st.floats(0, 1), max_size=20))
def test_holm_is_never_bolder_than_no_correction(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a >= raw for a, raw in zip(adjusted, p, strict=True))
    assert all(a <= 1 for a in adjusted)
    in_order = sorted(zip(p, adjusted, strict=True))
    assert [a for _, a in in_order] == sorted(a for _, a in in_order)


# --- error rates ------------------------------------------------------------------------------


def error_room(rate: float) -> float:
    """Three standard errors of a rate over the simulated studies."""
    return 3 * math.sqrt(rate * (1 - rate) / STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_effect_is_rarely_called_one(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    wrong = sum(
        decide(generator.standard_normal(seeds)) in ("supported", "contradicted")
        for _ in range(STUDIES)
    )
    print(f"{seeds} seeds, no effect: {100 * wrong / STUDIES:.2f} % wrong verdicts")
    assert wrong / STUDIES <= 0.05 + error_room(0.05)


@pytest.mark.slow
def test_an_effect_of_two_deviations_is_found_as_theory_says() -> None:
    seeds, effect = 5, 2.0
    generator = np.random.default_rng(7)
    verdicts = [decide(generator.standard_normal(seeds) - effect) for _ in range(STUDIES)]
    found = verdicts.count("supported") / STUDIES
    critical = stats.t.ppf(0.975, df=seeds - 1)
    theory = float(stats.nct.sf(critical, df=seeds - 1, nc=effect * math.sqrt(seeds)))
    print(f"effect of 2 sd, 5 seeds: found {100 * found:.1f} %, theory {100 * theory:.1f} %")
    assert found >= theory - error_room(theory)
    assert verdicts.count("contradicted") == 0


@pytest.mark.slow
def test_a_family_without_effects_has_rarely_one_wrong_verdict() -> None:
    generator = np.random.default_rng(3)
    family, wrong = 20, 0
    for _ in range(STUDIES // 4):
        comparisons = [
            compare(generator.standard_normal(5), 0.0, CONFIDENCE) for _ in range(family)
        ]
        adjusted = holm([c.p for c in comparisons if c.p is not None])
        wrong += min(adjusted) <= 0.05
    rate = wrong / (STUDIES // 4)
    print(f"20 claims without effect: {100 * rate:.2f} % of studies with a wrong verdict")
    assert rate <= 0.05 + 2 * error_room(0.05)
