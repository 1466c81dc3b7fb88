"""The search for the critical learning rate: on known thresholds, and a tiny one for real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import MODEL, configuration, write_corpus

from mhclite import cli
from mhclite.measure.critical import search
from mhclite.measure.measured import (
    CriticalSettings,
    Try,
    critical_interval,
    read_critical,
)
from mhclite.records import to_json

SETTINGS = CriticalSettings(factors=[2.0, 8.0, 32.0], halvings=2, below_unigram=0.1)


def one(factor: float, failed: bool) -> Try:
    return Try(factor, failed, None if failed else 3.0, 6)


def test_the_stretch_is_halved_in_logarithms() -> None:
    """Fails from 12 on: 8 holds, 32 fails; 16 fails; sqrt(8 * 16) = 11.3 holds."""
    tries = search(SETTINGS, lambda factor: one(factor, failed=factor >= 12))
    assert [t.factor for t in tries] == pytest.approx([2, 8, 32, 16, 128**0.5])
    assert critical_interval(tries) == pytest.approx((128**0.5, 16))


@pytest.mark.parametrize(("threshold", "ends"), [(1, (None, 2)), (99, (32, None))])
def test_beyond_the_ends_nothing_is_halved(
    threshold: float, ends: tuple[float | None, float | None]
) -> None:
    tries = search(SETTINGS, lambda factor: one(factor, failed=factor >= threshold))
    assert len(tries) == 3
    assert critical_interval(tries) == ends


def test_the_first_failure_counts_where_a_larger_rate_holds_again() -> None:
    tries = search(SETTINGS, lambda factor: one(factor, failed=factor == 8))
    assert critical_interval(tries)[1] == 8


def call(folder: Path, factors: list[float]) -> int:
    config = replace(
        configuration("hc", steps=40, warmup_steps=1, grad_clip=0.0),
        model=replace(MODEL, learning_rate=1e-2),
    )
    settings = replace(SETTINGS, factors=factors, halvings=1, below_unigram=0.0)
    return cli.main(
        [
            *("critical", "--config", json.dumps(config.to_json())),
            *("--corpus", str(folder / "corpus"), "--out", str(folder / "critical" / "a.json")),
            *("--settings", json.dumps(to_json(settings))),
        ]
    )


@pytest.mark.slow
def test_a_tiny_search(tmp_path: Path) -> None:
    """A sane rate learns, an absurd one does not. That it goes on: test_sweep.py."""
    write_corpus(tmp_path / "corpus")
    out = tmp_path / "critical" / "a.json"
    assert call(tmp_path, [1.0, 1e12]) == 0
    found = read_critical(out, "a")
    assert [t.failed for t in found.tries[:2]] == [False, True]
    assert found.tries[2].factor == pytest.approx(1e6)
    assert found.bar == 3.4
    assert found.tries[0].steps == 40
    assert found.tries[0].validation_loss is not None
    assert found.tries[0].validation_loss < 3.4
    assert not list(out.parent.rglob("weights.pt"))
