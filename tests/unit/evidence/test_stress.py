"""The stress experiment: variants that cease to learn at known rates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import CRITICAL, build_results, make_study, noise

from mhclite.errors import UserError
from mhclite.evidence.frame import Cell, values
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import t_interval
from mhclite.evidence.style import save, style
from mhclite.evidence.tables import markdown
from mhclite.evidence.topics.stress import critical_rates, stress_data, stress_rates, stress_table
from mhclite.measure.files import Try, critical_rate

VARIANTS = ("residual", "hc", "mhc", "mhc_lite", "jpmhc")
SEEDS = tuple(range(8))
FACTORS = [2, 6, 20, 64]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    more: dict[str, Any] = {
        "critical_rate": {"factors": FACTORS, "halvings": 3, "below_unigram": 0.1},
        "conditions": {
            "no_clip": {
                "title": "no clipping",
                "variants": ["residual", "hc"],
                "training": {"grad_clip": 0},
            }
        },
    }
    study = make_study(models={"d2": 2}, variants=VARIANTS, seeds=SEEDS, **more)
    folder = build_results(tmp_path_factory.mktemp("stress"), study, diverged=[])
    return load_results(folder)


def tries(*failed: bool) -> list[Try]:
    return [Try(2.0 ** (k + 1), f, None if f else 5.0, 60) for k, f in enumerate(failed)]


def test_critical_rate_by_hand() -> None:
    found = critical_rate(tries(False, True, True))  # holds at 2, fails at 4
    assert (found["low"], found["high"]) == (1, 2)
    assert (found["critical_rate"], found["beyond"]) == (1.5, "")
    assert critical_rate(tries(True, True))["critical_rate"] == 1
    assert critical_rate(tries(True, False))["beyond"] == "below"
    assert critical_rate(tries(False, False))["critical_rate"] == 2
    assert critical_rate(tries(False, False))["beyond"] == "above"


def test_rates_are_found_where_they_are(results: Results) -> None:
    rates = critical_rates(results)
    assert len(rates) == 8 * (5 + 2)
    for row in rates.to_dict("records"):
        threshold = CRITICAL[row["variant"]] + 0.2 * noise("critical", row["seed"])
        if row["variant"] == "jpmhc":
            assert row["beyond"] == "above"
            assert row["critical_rate"] == np.log2(64)
        else:
            assert row["low"] <= threshold < row["high"]
            assert row["high"] - row["low"] <= np.log2(20 / 6) / 8 + 1e-9
        assert not row["holds_above"]


def test_differences_are_paired_by_seed(results: Results) -> None:
    rates = critical_rates(results).set_index(["condition", "variant", "seed"])["critical_rate"]
    data = stress_data(results).set_index(["condition", "variant"])
    own, base = (rates["base", variant] for variant in ("mhc", "residual"))
    expected = t_interval(own - base)
    assert data.loc[("base", "mhc"), "minus_residual"] == pytest.approx(expected.mean)
    assert data.loc[("base", "mhc"), "minus_residual_high"] == pytest.approx(expected.high)
    assert data.loc[("base", "mhc"), "minus_residual"] == pytest.approx(1.3, abs=0.2)
    assert data.loc[("base", "mhc_lite"), "minus_mhc"] == 0
    assert np.isnan(data.loc[("base", "mhc"), "minus_mhc"])  # no difference to itself
    assert np.isnan(data.loc[("no_clip", "hc"), "minus_mhc"])  # which is not there


def test_tables_and_figure(results: Results, tmp_path: Path) -> None:
    stress = stress_table(results)
    text = markdown(stress)
    assert "no clipping" in text
    assert "0, 8 of 8" in text
    jpmhc = stress_data(results).set_index("variant").loc["jpmhc"]
    assert jpmhc["above"] == 8
    with style():
        assert len(save(stress_rates(results), tmp_path / "stress")) == 2


def test_a_missing_search_is_named(results: Results) -> None:
    moved = dataclasses.replace(results, folder=results.folder / "elsewhere")
    with pytest.raises(UserError, match="the critical rate of run sotu-d2-residual-s0 is missing"):
        critical_rates(moved)


def test_the_critical_rate_is_a_metric_of_claims(results: Results) -> None:
    """In octaves, and missing where it lies beyond the rates tried."""
    table = critical_rates(results)
    table = table[table["condition"] == "base"].set_index(["variant", "seed"])
    for variant in VARIANTS:
        inside = table.loc[variant][table.loc[variant]["beyond"] == ""]["critical_rate"]
        found = values(results, Cell("sotu", "d2", variant), "critical_rate")
        assert found == inside.to_dict()
        assert bool(found) == (variant != "jpmhc")
