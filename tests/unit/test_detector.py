"""The spike detector on series whose events are known, and on a run that is made to diverge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from mhclite.measure.stability import spikes
from mhclite.study.load import load_study

ROOT = Path(__file__).parents[2]

WINDOW, SIGMAS, STEPS, SERIES = 128, 6.0, 1200, 60
FloatArray = npt.NDArray[np.float64]


def correlated(noise: FloatArray, coefficient: float = 0.5) -> FloatArray:
    """Autoregressive noise of unit deviation."""
    out = np.empty_like(noise)
    last = 0.0
    for at, value in enumerate(noise):
        last = coefficient * last + np.sqrt(1 - coefficient**2) * value
        out[at] = last
    return out


def gaussian(generator: np.random.Generator) -> FloatArray:
    return correlated(generator.standard_normal(STEPS))


def heavy(generator: np.random.Generator) -> FloatArray:
    """Student t with five degrees of freedom, of unit deviation."""
    return correlated(generator.standard_t(5, STEPS) / np.sqrt(5 / 3))


Noise = Callable[[np.random.Generator], FloatArray]
Bounds = tuple[float, float]


def precision_and_recall(noise: Noise, height: float, drop: float) -> tuple[float, float]:
    """Spikes of `height` deviations of the noise, at four known, separate steps.

    `drop`: how far the curve beneath falls, in nats, with a time constant of 400 steps.
    """
    found = right = 0
    for seed in range(SERIES):
        generator = np.random.default_rng(seed)
        series = 3 + drop * np.exp(-np.arange(STEPS) / 400) + 0.05 * noise(generator)
        places = WINDOW + 20 + np.sort(generator.choice(7, 4, replace=False)) * 140
        series[places] += 0.05 * height
        detected = set(spikes(series, WINDOW, SIGMAS))
        found += len(detected)
        right += len(detected & {int(place) for place in places})
    return (right / found if found else 1.0), right / (SERIES * 4)


# Noise, height of the spikes in its deviations, drop of the curve beneath; bounds of precision and
# recall. The trend within the window counts as deviation, and so early in training recall is lower;
# extremes of noise with heavy tails are spikes by the rule.
CALIBRATION = [
    (gaussian, 20.0, 0.0, (0.95, 1), (0.99, 1)),
    (gaussian, 15.0, 0.0, (0.95, 1), (0.99, 1)),
    (gaussian, 10.0, 0.0, (0.95, 1), (0.95, 1)),
    (gaussian, 3.0, 0.0, (0, 1), (0, 0.05)),
    (gaussian, 20.0, 2.0, (0.95, 1), (0.5, 0.99)),
    (heavy, 15.0, 0.0, (0.5, 1), (0.95, 1)),
]


@pytest.mark.parametrize(("noise", "height", "drop", "precision", "recall"), CALIBRATION)
def test_spikes_of_known_height(
    noise: Noise, height: float, drop: float, precision: Bounds, recall: Bounds
) -> None:
    found = precision_and_recall(noise, height, drop)
    print(f"{noise.__name__} noise, {height} sd, drop {drop}: precision, recall {found}")
    for share, (least, most) in zip(found, (precision, recall), strict=True):
        assert least <= share <= most


@pytest.mark.parametrize("window", [32, 64, WINDOW])
def test_noise_alone_is_quiet(window: int) -> None:
    """At the window that every study uses, and at shorter ones."""
    generators = (np.random.default_rng(1000 + seed) for seed in range(SERIES))
    rates = [len(spikes(3 + 0.05 * gaussian(one), window, SIGMAS)) for one in generators]
    print(f"Gaussian noise alone: {sum(rates)} spikes in {SERIES * (STEPS - window)} steps")
    assert sum(rates) <= 2


def test_windows_of_the_studies_are_calibrated() -> None:
    """A study with another window than these, or another threshold, is to be calibrated first."""
    for path in sorted((ROOT / "config").glob("*.yaml")):
        # smoke judges nothing: it has too few steps; tuned has its rates once they are found
        if path.stem not in ("claims", "smoke", "tuned"):
            stability = load_study(path).stability
            assert stability.spike_window == WINDOW, path
            assert stability.spike_sigmas == SIGMAS, path


def test_a_new_level_counts_a_few_times_not_at_every_step() -> None:
    for seed in range(10):
        series = 3 + 0.05 * gaussian(np.random.default_rng(seed))
        series[600:] += 0.05 * 25
        assert 1 <= len(spikes(series, WINDOW, SIGMAS)) <= 6
