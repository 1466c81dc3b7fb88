"""The stress experiment: variants that cease to learn at known rates."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builder import CRITICAL, build_results, make_study, noise

from mhclite.errors import UserError
from mhclite.evidence.critical import (
    all_tries,
    compare,
    compare_times,
    critical_rates,
    read_all,
)
from mhclite.evidence.report_found import found
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.table_format import NONE, markdown
from mhclite.evidence.topics.stress import (
    sensitivity_data,
    sensitivity_table,
    stress_data,
    stress_rates,
    stress_table,
)
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
    return [Try(2.0 ** (k + 1), f, 6.9, None if f else 5.0, 60, None) for k, f in enumerate(failed)]


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


def test_comparisons_know_higher_lower_equal_and_beyond(results: Results) -> None:
    rates = critical_rates(results)
    base = rates[rates["condition"] == "base"]
    found = compare(base, "critical_rate", "residual", 0.95).set_index("variant")
    assert found.loc["hc", "verdict"] == "lower"
    assert found.loc["mhc", "verdict"] == found.loc["mhc_lite", "verdict"] == "higher"
    assert found.loc["jpmhc", "verdict"] == "higher"
    assert found.loc["mhc", "p"] == 2 / 256
    assert found.loc["mhc", "p_holm"] == 4 * 2 / 256
    assert found.loc["mhc", "mean"] == pytest.approx(1.3, abs=0.2)
    same = compare(base, "critical_rate", "mhc", 0.95).set_index("variant")
    assert same.loc["mhc_lite", "mean"] == 0
    assert same.loc["mhc_lite", "verdict"] == "practically equal"


def test_what_lies_beyond_the_rates_is_never_called_equal(results: Results) -> None:
    rates = critical_rates(results)
    twin = rates[(rates["variant"] == "jpmhc") & (rates["condition"] == "base")]
    other = twin.assign(variant="mhc")
    both = pd.concat([twin.astype({"variant": "str"}), other])
    assert compare(both, "critical_rate", "mhc", 0.95)["verdict"].tolist() == ["inconclusive"]


def test_time_to_instability(results: Results) -> None:
    """HC is unstable at x 6, 20, 64, the residual at x 20, 64; in every one of eight seeds."""
    found = compare_times(all_tries(results), "residual").set_index(["condition", "variant"])
    hc = found.loc[("base", "hc")]
    assert hc["statistic"] > 0
    assert hc["p"] == 2 / 256
    assert found.loc[("base", "mhc")]["statistic"] < 0
    assert ("no_clip", "hc") in found.index


def test_sensitivity_by_hand(results: Results) -> None:
    data = sensitivity_data(results).set_index(["condition", "variant"])
    row = data.loc[("base", "residual")]
    of_seed = []
    for seed in SEEDS:
        threshold = 3.0 + 0.2 * noise("critical", seed)
        losses = [5.15 + 0.1 * (np.log2(f) - threshold) for f in FACTORS[:3]]
        of_seed.append((sum(losses) + 6.9) / 4 - losses[0])  # diverged at 64: the initial loss
    assert row["rate_sensitivity"] == pytest.approx(np.mean(of_seed))
    assert (row["unstable_6"], row["unstable_20"], row["unstable_64"]) == (0, 8, 8)
    assert row["median_20"] == 30
    assert pd.isna(row["median_2"])


def test_tables_and_figure(results: Results, tmp_path: Path) -> None:
    stress = stress_table(results)
    text = markdown(stress)
    assert "no clipping" in text
    assert "practically equal" in text
    assert "0, 8 of 8" in text
    jpmhc = stress_data(results).set_index("variant").loc["jpmhc"]
    assert jpmhc["above"] == 8
    assert "8 of 8, step 30" in markdown(sensitivity_table(results))
    with style():
        assert len(save(stress_rates(results), tmp_path / "stress")) == 2


def test_what_was_found_says_the_critical_rates(results: Results) -> None:
    said = dict(found(results, [], "sotu"))["Learning rate"]
    assert said.startswith("At 2 layers runs cease to learn at this multiple of the study's ")
    row = stress_data(results).set_index(["condition", "variant"]).loc[("base", "hc")]
    mean, low, high = (f"{2 ** row[end]:.2f}" for end in ("critical_rate", "low", "high"))
    assert f"{mean} [{low}, {high}] in HC" in said
    assert "mHC's it is lower in " in said


def test_nothing_is_ranked_where_no_run_is_unstable(results: Results, tmp_path: Path) -> None:
    shutil.copytree(results.folder / "critical", tmp_path / "critical")
    for path in (tmp_path / "critical").glob("*.json"):
        search = json.loads(path.read_text())
        for one in search["tries"]:
            one["unstable_step"] = None
        path.write_text(json.dumps(search))
    table = sensitivity_table(dataclasses.replace(results, folder=tmp_path))
    assert set(table.display["Log-rank p"]) == {NONE}
    assert {text[-4:] for text in sensitivity_table(results).display["Log-rank p"]} > {"more"}


def test_a_missing_search_is_named(results: Results) -> None:
    moved = dataclasses.replace(results, folder=results.folder / "elsewhere")
    with pytest.raises(UserError, match="the critical rate of run sotu-d2-residual-s0 is missing"):
        read_all(moved)


def test_the_critical_rate_is_a_metric_of_claims(results: Results) -> None:
    """In octaves, and missing where it lies beyond the rates tried."""
    table = critical_rates(results).set_index("run")
    column = results.all_runs.set_index("run")["critical_rate"]
    inside = table["beyond"] == ""
    assert inside.any()
    assert (column[inside] == table.loc[inside, "critical_rate"]).all()
    assert column[~inside].isna().all()
