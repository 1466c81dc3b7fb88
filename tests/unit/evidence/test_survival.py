"""Statistics of failures, on numbers computed by hand and in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mhclite.evidence.survival import (
    MOST_EXCHANGES,
    event_rate,
    exchanges,
    logrank,
    median_time,
    paired,
    paired_logrank,
    poisson_interval,
    rate_sensitivity,
    verdict,
)
from mhclite.evidence.verdicts import holm
from mhclite.measure.critical import search
from mhclite.measure.files import CriticalSettings, Try, critical_rate

SETTINGS = CriticalSettings(factors=[2.0, 6.0, 20.0, 64.0], halvings=3, below_unigram=0.1)


def test_exchange_by_hand() -> None:
    """Three differences of one sign: only all three or none exchanged are as far from 0."""
    found = paired([1.0, 2.0, 4.0], margin=0.5, confidence=0.95)
    assert found.p == 2 / 8
    assert found.interval.mean == pytest.approx(7 / 3)
    # -1 + 2 + 4 = 5: as far as 5 or 7 are 2 of 8 each.
    assert paired([-1.0, 2.0, 4.0], 0.5, 0.95).p == 4 / 8
    assert paired([0.0, 0.0], 0.5, 0.95).p == 1.0
    assert paired([], 0.5, 0.95).p is None


def test_more_seeds_than_can_all_be_exchanged() -> None:
    assert len(exchanges(12)) == 2**12
    assert len(exchanges(13)) == MOST_EXCHANGES
    assert (exchanges(13)[0] == 1).all()


def test_equal_by_hand() -> None:
    """Mean 0, sd 0.1 (n - 1), n = 4: the 90 % interval is +- 2.3534 * 0.05 = 0.1177."""
    d = [0.1, -0.1, 0.1, -0.1]
    sd = math.sqrt(0.04 / 3)
    half = 2.3533634348 * sd / 2
    assert paired(d, margin=half + 1e-6, confidence=0.95).equal
    assert not paired(d, margin=half - 1e-6, confidence=0.95).equal
    assert not paired(d, margin=half + 0.1, confidence=0.95, resolution=0.1001).equal
    assert paired(d, margin=half + 0.1, confidence=0.95, resolution=0.0999).equal
    assert not paired(d, margin=1.0, confidence=0.95, unknown=True).equal


def test_equal_readings_of_a_coarse_scale_decide_nothing() -> None:
    found = paired([0.0] * 8, margin=0.2, confidence=0.95, resolution=0.25)
    assert verdict(found, found.p, 0.95) == "inconclusive"
    fine = paired([0.0] * 8, margin=0.2, confidence=0.95, resolution=0.1)
    assert verdict(fine, fine.p, 0.95) == "practically equal"


def test_one_seed_decides_nothing() -> None:
    found = paired([3.0], margin=5.0, confidence=0.95)
    assert not found.equal
    assert verdict(found, found.p, 0.95) == "inconclusive"


def test_verdicts_of_eight_seeds() -> None:
    up = paired([1.0 + 0.1 * k for k in range(8)], 0.5, 0.95)
    assert up.p == 2 / 256
    assert verdict(up, up.p, 0.95) == "higher"
    assert verdict(up, 6 * (up.p or 0), 0.95) == "higher"  # 0.047 after Holm over six
    assert verdict(up, 7 * (up.p or 0), 0.95) == "inconclusive"
    down = paired([-1.0 - 0.1 * k for k in range(8)], 0.5, 0.95)
    assert verdict(down, down.p, 0.95) == "lower"


def test_rate_sensitivity_by_hand() -> None:
    """min(loss, 6) is 4, 3, 6, 6: mean 4.75, best 3."""
    assert rate_sensitivity([4.0, 3.0, 7.0, None], initial=6.0) == pytest.approx(1.75)
    assert rate_sensitivity([3.0, 3.0], initial=6.0) == 0
    assert rate_sensitivity([None, None], initial=6.0) is None


def test_kaplan_meier_by_hand() -> None:
    """Failures at 2 and 6, censored at 4 and 9: survival 3/4 after 2, 3/4 * 1/2 after 6."""
    assert median_time([2, 4, 6, 9], [True, False, True, False]) == 6
    assert median_time([2, 4, 4, 9], [True, False, False, False]) is None
    assert median_time([3, 3, 9, 9], [True, True, False, False]) == 3
    assert median_time([9, 9], [False, False]) is None


def test_logrank_by_hand() -> None:
    """First group fails at 1 and 3, second at 2 and is censored at 4.

    At 1: 2 of 4 at risk, expected 1/2, variance 1/4. At 2: 1 of 3, expected 1/3, variance 2/9.
    At 3: 1 of 2, expected 1/2, variance 1/4. Observed 2, expected 4/3, variance 13/18.
    """
    time = np.array([[1.0, 3.0], [2.0, 4.0]])
    failed = np.array([[True, True], [True, False]])
    one = np.zeros(2, dtype=np.intp)
    expected = (2 - 4 / 3) / math.sqrt(13 / 18)
    assert logrank(time, failed, one) == pytest.approx(expected)
    # Two such strata: twice the surplus, twice the variance.
    twice = logrank(np.tile(time, 2), np.tile(failed, 2), np.repeat([0, 1], 2))
    assert twice == pytest.approx(expected * math.sqrt(2))
    assert logrank(time, np.zeros((2, 2), dtype=bool), one) == 0
    # Tied: both groups fail at 5, 2 at risk, variance 2 * 1/4 * 0.
    tied = np.array([[5.0], [5.0]])
    assert logrank(tied, np.ones((2, 1), dtype=bool), one[:1]) == 0


def test_paired_logrank_exchanges_whole_seeds() -> None:
    """Three seeds, all of the first variant fail first at both rates: p is 2 / 8."""
    time = np.array([np.full((3, 2), 10.0) + np.arange(3)[:, None], np.full((3, 2), 50.0)])
    failed = np.array([np.ones((3, 2), dtype=bool), np.zeros((3, 2), dtype=bool)])
    statistic, p = paired_logrank(time, failed)
    assert statistic > 0
    assert p == 2 / 8
    assert paired_logrank(time[::-1], failed[::-1])[0] == pytest.approx(-statistic)


def test_poisson_interval_by_hand() -> None:
    """No event: -ln(0.025) = 3.689. One: 0.0253 to 5.572, as tables of Garwood's interval have."""
    assert poisson_interval(0, 1.0, 0.95) == pytest.approx((0, 3.6889), abs=1e-4)
    assert poisson_interval(1, 1.0, 0.95) == pytest.approx((0.0253, 5.5716), abs=1e-4)
    assert poisson_interval(1, 0.128, 0.95) == pytest.approx((0.198, 43.53), abs=1e-2)
    assert event_rate(4, 100.0) is None
    assert event_rate(5, 100.0) == 0.05


# --- simulated studies ----------------------------------------------------------------------


def simulated(generator: np.random.Generator, shift: float, sd: float) -> list[float]:
    """Critical rates (log2) of eight seeds as the step finds them.

    Each run has a threshold; near it, failing is a matter of chance, and larger rates may hold.
    The share of the seed is that of both variants, and cancels in their difference.
    """
    found = []
    for threshold in 3.5 + shift + sd * generator.standard_normal(8):

        def make(factor: float, threshold: float = threshold) -> Try:
            chance = 1 / (1 + math.exp(-6 * (math.log2(factor) - threshold)))
            return Try(factor, bool(generator.random() < chance), 6.2, 5.0, 320, None)

        found.append(critical_rate(search(SETTINGS, make))["critical_rate"])
    return found


def share_of(verdict_wanted: tuple[str, ...], shift: float, sd: float, studies: int) -> float:
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(studies):
        first, second = simulated(generator, 0.0, sd), simulated(generator, shift, sd)
        found = paired(np.subtract(second, first), margin=0.5, confidence=0.95, resolution=0.22)
        hits += verdict(found, found.p, 0.95) in verdict_wanted
    return hits / studies


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.0, 0.5, 1.5])
def test_the_same_function_comes_out_as_different_in_five_percent_at_most(sd: float) -> None:
    """A thousand; 0.064 is two standard errors above 0.05. The largest spread leaves the grid."""
    share = share_of(("higher", "lower"), 0.0, sd, 1000)
    print(f"sd {sd}: different in {share:.3f}")
    assert share <= 0.064


@pytest.mark.slow
def test_six_pairs_of_one_study_are_corrected_together() -> None:
    """One of six identical variants comes out as different in 5 % of studies at most."""
    generator = np.random.default_rng(3)
    wrong = 0
    for _ in range(400):
        reference = simulated(generator, 0.0, 0.5)
        found = [
            paired(np.subtract(simulated(generator, 0.0, 0.5), reference), 0.5, 0.95, 0.22)
            for _ in range(6)
        ]
        adjusted = holm([one.p or 1.0 for one in found])
        words = {verdict(one, p, 0.95) for one, p in zip(found, adjusted, strict=True)}
        wrong += bool(words & {"higher", "lower"})
    print(f"any of six different: {wrong / 400:.3f}")
    assert wrong / 400 <= 0.072


@pytest.mark.slow
def test_a_real_difference_is_found_and_never_called_equal() -> None:
    assert share_of(("higher",), 1.5, 0.5, 200) >= 0.9
    assert share_of(("practically equal",), 1.5, 0.5, 200) == 0


@pytest.mark.slow
def test_equal_failure_times_come_out_as_different_in_five_percent_at_most() -> None:
    """Three rates; the runs of a seed are alike, over rates and over variants. 2 se above 0.05."""
    generator = np.random.default_rng(5)
    wrong = 0
    for _ in range(100):
        alike = generator.standard_normal((1, 6, 1)) + generator.standard_normal((2, 6, 1))
        time = np.exp(5 + alike + 0.3 * generator.standard_normal((2, 6, 3)))
        wrong += paired_logrank(np.minimum(time, 320), time < 320)[1] <= 0.05
    assert wrong <= 9
