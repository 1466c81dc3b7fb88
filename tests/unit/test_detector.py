"""The spike detector on series whose events are known, and on a run that is made to diverge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from tiny import MODEL, configuration, write_corpus

from mhclite.files import read_json
from mhclite.measure.files import StabilitySettings
from mhclite.measure.stability import judge, spikes
from mhclite.runs.folder import RunFolder
from mhclite.study.reading import load_study
from mhclite.training.loop import train

ROOT = Path(__file__).parents[2]

WINDOW, SIGMAS, STEPS, SERIES = 128, 6.0, 1200, 60
SETTINGS = {"spike_window": WINDOW, "spike_sigmas": SIGMAS, "fluctuation_window": 200}
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


def precision_and_recall(
    noise: Callable[[np.random.Generator], FloatArray],
    height: float,
    events: int = 4,
    drop: float = 0.0,
) -> tuple[float, float]:
    """Spikes of `height` deviations of the noise, at known, separate steps.

    `drop`: how far the curve beneath falls, in nats, with a time constant of 400 steps.
    """
    found = right = 0
    for seed in range(SERIES):
        generator = np.random.default_rng(seed)
        series = 3 + drop * np.exp(-np.arange(STEPS) / 400) + 0.05 * noise(generator)
        places = WINDOW + 20 + np.sort(generator.choice(7, events, replace=False)) * 140
        series[places] += 0.05 * height
        detected = set(spikes(series, WINDOW, SIGMAS))
        found += len(detected)
        right += len(detected & {int(place) for place in places})
    return (right / found if found else 1.0), right / (SERIES * events)


@pytest.mark.parametrize(("height", "recall"), [(20, 0.99), (15, 0.99), (10, 0.95)])
def test_high_spikes_are_found_and_little_else(height: float, recall: float) -> None:
    precision, found = precision_and_recall(gaussian, height)
    print(f"Gaussian noise, {height} sd: precision {precision:.3f}, recall {found:.3f}")
    assert precision >= 0.95
    assert found >= recall


def test_a_falling_curve_hides_spikes() -> None:
    """The trend within the window counts as deviation: early in training recall is lower."""
    precision, found = precision_and_recall(gaussian, 20.0, drop=2.0)
    print(
        f"Gaussian noise on a falling curve, 20 sd: precision {precision:.3f}, recall {found:.3f}"
    )
    assert precision >= 0.95
    assert 0.5 <= found <= 0.99


def test_windows_of_the_studies_are_calibrated() -> None:
    """A study with another window than these, or another threshold, is to be calibrated first."""
    for path in sorted((ROOT / "config").glob("*.yaml")):
        # smoke judges nothing: it has too few steps; tuned has its rates once they are found
        if path.stem not in ("claims", "smoke", "tuned"):
            stability = load_study(path).stability
            assert stability.spike_window == WINDOW, path
            assert stability.spike_sigmas == SIGMAS, path


def test_low_spikes_are_below_the_threshold() -> None:
    precision, found = precision_and_recall(gaussian, 3.0)
    print(f"Gaussian noise, 3 sd: precision {precision:.3f}, recall {found:.3f}")
    assert found <= 0.05


def test_heavy_tails_cost_precision() -> None:
    """Extremes of the noise itself are spikes by the rule: reported, with a floor."""
    precision, found = precision_and_recall(heavy, 15.0)
    print(f"heavy-tailed noise, 15 sd: precision {precision:.3f}, recall {found:.3f}")
    assert found >= 0.95
    assert precision >= 0.5


@pytest.mark.parametrize("window", [32, 64, WINDOW])
def test_noise_alone_is_quiet(window: int) -> None:
    """At the window that every study uses, and at shorter ones."""
    rates = []
    for seed in range(SERIES):
        generator = np.random.default_rng(1000 + seed)
        rates.append(len(spikes(3 + 0.05 * gaussian(generator), window, SIGMAS)))
    print(f"Gaussian noise alone: {sum(rates)} spikes in {SERIES * (STEPS - window)} steps")
    assert sum(rates) <= 2


def test_a_new_level_counts_a_few_times_not_at_every_step() -> None:
    for seed in range(10):
        series = 3 + 0.05 * gaussian(np.random.default_rng(seed))
        series[600:] += 0.05 * 25
        assert 1 <= len(spikes(series, WINDOW, SIGMAS)) <= 6


def test_a_run_that_is_made_to_diverge(tmp_path: Path) -> None:
    """An absurd rate without clipping; the same run at a sane rate is quiet."""
    corpus = write_corpus(tmp_path / "corpus")
    settings = StabilitySettings(spike_window=16, spike_sigmas=6.0, fluctuation_window=20)
    found = {}
    for name, rate in (("sane", 1e-3), ("absurd", 1e12)):
        config = configuration("hc", steps=60, evaluation_interval=30, grad_clip=0.0)
        config = replace(config, run=name, model=replace(MODEL, learning_rate=rate))
        train(config, corpus, tmp_path / name)
        found[name] = judge(RunFolder(tmp_path / name).finished(), settings)
    assert found["absurd"].diverged or found["absurd"].loss_spikes
    assert not found["sane"].diverged
    assert found["sane"].loss_spikes == []
    status = read_json(tmp_path / "absurd" / "summary.json")["status"]
    assert (status == "diverged") == found["absurd"].diverged
