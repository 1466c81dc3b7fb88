"""The spike rule against a direct reading of its definition, and the step around it."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import configuration, run_record, run_summary

from mhclite.measure.measured import StabilitySettings
from mhclite.measure.stability import judge, last_window, spikes
from mhclite.runs.folder import FinishedRun

SETTINGS = StabilitySettings(spike_window=4, spike_sigmas=3.0, fluctuation_window=5)
WAVE = [0.0, 1.0]  # mean 1/2, standard deviation 1/2 over every even window


# --- the rule -------------------------------------------------------------------------------


def margin(values: list[float], at: int, window: int, sigmas: int) -> Fraction | None:
    """How far value `at` lies above the threshold, in squared units with a sign; exact.

    None where the rule gives no entry.
    """
    before = values[max(0, at - window) : at]
    if len(before) < window or not all(map(math.isfinite, [*before, values[at]])):
        return None
    exact = [Fraction(value) for value in before]
    mean = sum(exact) / window
    variance = sum((value - mean) ** 2 for value in exact) / window
    above = Fraction(values[at]) - mean
    if variance == 0:
        return None
    return above * abs(above) - sigmas**2 * variance


@given(
    values=st.lists(
        st.one_of(
            st.integers(-20, 20).map(float),
            st.sampled_from([500.0, 1e6, math.nan, math.inf, -math.inf]),
        ),
        max_size=40,
    ),
    window=st.integers(2, 8),
    sigmas=st.integers(1, 6),
)
def test_spikes_are_those_of_the_definition(values: list[float], window: int, sigmas: int) -> None:
    found = spikes(values, window, sigmas)
    for at in range(len(values)):
        exact = margin(values, at, window, sigmas)
        if exact is None:
            assert at not in found
        elif abs(exact) > 1e-6:  # closer than rounding, either answer is right
            assert (at in found) == (exact > 0)
    assert found == sorted(found)


def test_flat_window_has_no_spike() -> None:
    assert spikes([0.1] * 8 + [5.0], window=8, sigmas=6) == []
    assert spikes([0.0] * 8 + [5.0], window=8, sigmas=6) == []
    # Rounding noise is flat, whatever the scale; a real fluctuation of a small series is not.
    noise = [1e6 * (1 + 1e-15 * (at % 3)) for at in range(8)]
    assert spikes([*noise, 2e6], window=8, sigmas=6) == []
    assert spikes([1e-9 * value for value in [*WAVE * 4, 9.0]], window=8, sigmas=6) == [8]


# --- one run --------------------------------------------------------------------------------


def finished(
    loss: list[float | None],
    grad_norm: list[float | None],
    diverged: bool = False,
    warmup_steps: int = 0,
) -> FinishedRun:
    """A run with these metrics, evaluated before training as every run is."""
    metrics: list[dict[str, Any]] = [{"step": 0, "tokens": 0, "validation_loss": 7.0}]
    for step, (one, other) in enumerate(zip(loss, grad_norm, strict=True), start=1):
        metrics.append({"step": step, "loss": one, "grad_norm": other})
    config = configuration("hc", warmup_steps=warmup_steps)
    summary = run_summary(
        config,
        "k",
        status="diverged" if diverged else "completed",
        steps=len(loss),
        diverged_step=len(loss) if diverged else None,
    )
    return FinishedRun("a", run_record(config, "k"), summary, metrics)


def test_judge_names_steps_and_counts_a_step_once() -> None:
    calm: list[float | None] = [*WAVE * 8]
    # Both spike at step 11, the loss alone at step 16: two steps out of 12 with a full window.
    loss = [*calm[:10], 60.0, *calm[11:15], 900.0]
    grad_norm = [*calm[:10], 70.0, *calm[11:]]
    entry = judge(finished(loss, grad_norm), SETTINGS)
    assert entry.loss_spikes == [11, 16]
    assert entry.grad_norm_spikes == [11]
    assert entry.steps == 16
    assert entry.judged_steps == 12
    assert entry.spikes_per_1000_steps == pytest.approx(1000 * 2 / 12)
    assert not entry.diverged
    assert entry.grad_norm_mean == pytest.approx(3 / 5)  # 1 0 1 0 1
    assert entry.grad_norm_fluctuation is None  # a norm of 0 has no logarithm
    assert entry.backbone_grad_norm_mean is None  # not recorded


def test_judge_leaves_out_the_warm_up() -> None:
    """A spike at step 11 is judged from a window of four after six steps, not after seven."""
    loss: list[float | None] = [*WAVE * 5, 60.0, *WAVE * 3]
    six = judge(finished(loss, loss, warmup_steps=6), SETTINGS)
    assert (six.loss_spikes, six.grad_norm_spikes, six.judged_steps) == ([11], [11], 7)
    assert judge(finished(loss, loss, warmup_steps=7), SETTINGS).loss_spikes == []


def test_judge_a_diverged_run_up_to_its_end() -> None:
    grad_norm: list[float | None] = [1.0, 9.0, 2.0, 4.0, 2.0, 4.0, 3.0, None]
    loss: list[float | None] = [*WAVE * 3, 0.0, None]
    entry = judge(finished(loss, grad_norm, diverged=True, warmup_steps=2), SETTINGS)
    assert entry.diverged
    assert entry.judged_steps == 1  # step 7: the last has no value to judge
    assert entry.grad_norm_spikes == []
    assert entry.grad_norm_mean == pytest.approx(3.0)  # 2 4 2 4 3
    # Steps 3 to 7, after two of warm-up, each over the median of itself and those beside it.
    rest = np.log([math.sqrt(1 / 2), 2, 1 / 2, 4 / 3, math.sqrt(3 / 4)])
    assert entry.grad_norm_fluctuation == pytest.approx(rest.std())


def test_fluctuation_knows_neither_level_nor_trend_nor_warmup() -> None:
    generator = np.random.default_rng(0)
    wobble = np.exp(0.1 * generator.standard_normal(1000))
    fall = np.exp(-np.arange(1000) / 100)
    mean, flat = last_window(wobble, 0, 200)
    assert mean == pytest.approx(wobble[-200:].mean())
    assert flat == pytest.approx(0.1, rel=0.15)
    _, falling = last_window(50 * fall * wobble, 0, 200)
    assert falling == pytest.approx(flat, rel=0.05)
    assert (fall * wobble)[-200:].std() / (fall * wobble)[-200:].mean() > 0.5  # the raw one
    assert last_window(wobble, 801, 200) == (None, None)
    assert last_window(np.append(wobble, np.nan), 800, 200)[0] == mean
