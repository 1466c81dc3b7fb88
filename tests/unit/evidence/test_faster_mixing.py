"""The table of runs whose mixing learns faster than the rest."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builder import build_results, make_study

from mhclite.evidence.exhibits import TABLES, shown
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import geometric_interval
from mhclite.evidence.table_format import NONE, with_interval
from mhclite.evidence.topics.faster_mixing import faster_data, faster_mixing_table

FASTER: dict[str, Any] = {
    "ten": {
        "title": "10 times as fast",
        "variants": ["mhc", "jpmhc"],
        "models": ["d4"],
        "connections": {"mixing_rate_factor": 10},
    },
    "three": {
        "title": "3 times as fast",
        "variants": ["mhc"],
        "models": ["d4"],
        "connections": {"mixing_rate_factor": 3},
    },
    "norm": {
        "title": "norm after the sum",
        "variants": ["hc"],
        "connections": {"final_norm": "after_sum"},
    },
}


@pytest.fixture(scope="module")
def faster(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(variants=["residual", "hc", "mhc", "jpmhc"], conditions=FASTER)
    failed = [run for run in study.runs() if "d4-jpmhc" in run and "ten" in run]
    assert len(failed) == 3
    results = load_results(build_results(tmp_path_factory.mktemp("f"), study, diverged=failed))
    runs = results.all_runs.copy()
    runs["single_max_deviation"] = [
        0.1 * 2.0 ** row["seed"] if row["condition"] == "three" else row["single_max_deviation"]
        for row in runs.to_dict("records")
    ]
    runs["sinkhorn_share_above_30"] = [
        0.1 * row["seed"] if row["condition"] == "three" else row["sinkhorn_share_above_30"]
        for row in runs.to_dict("records")
    ]
    return replace(results, all_runs=runs)


def test_rows_are_what_learns_faster_beside_the_same_without(faster: Results) -> None:
    data = faster_data(faster)
    rows = list(data[["model", "factor", "variant"]].itertuples(index=False, name=None))
    assert rows == [
        ("d4", 1.0, "mhc"),
        ("d4", 1.0, "jpmhc"),
        ("d4", 3.0, "mhc"),
        ("d4", 10.0, "mhc"),
        ("d4", 10.0, "jpmhc"),
    ]


def test_means_are_geometric_and_shares_have_their_range(faster: Results) -> None:
    row = faster_data(faster).set_index(["factor", "variant"]).loc[(3.0, "mhc")]
    # 0.1, 0.2, 0.4: mean of the logarithms log 0.2, sd log 2, t(0.975, 2) = 4.3027
    half = 4.302653 * math.log(2) / math.sqrt(3)
    assert row["single_max_deviation_mean"] == pytest.approx(0.2)
    assert row["single_max_deviation_low"] == pytest.approx(0.2 * math.exp(-half), rel=1e-5)
    assert row["single_max_deviation_high"] == pytest.approx(0.2 * math.exp(half), rel=1e-5)
    assert tuple(row[f"share_{name}"] for name in ("mean", "min", "max")) == pytest.approx(
        (0.1, 0.0, 0.2)
    )
    display = faster_mixing_table(faster).display
    assert display.iloc[2]["log(1/ν) > 30 (%)"] == "10.0 (0.0 to 20.0)"
    assert display.iloc[2]["Sums off, single"] == "0.200 [0.0357, 1.12]"
    assert list(display["Mixing learns"]) == [
        *("as fast as the rest", "", "3 times as fast", "10 times as fast", "")
    ]


def test_what_diverged_is_counted_and_has_no_numbers(faster: Results) -> None:
    row = faster_mixing_table(faster).display.iloc[4]
    assert row["Diverged runs"] == "3 of 3"
    assert (row.iloc[5:] == NONE).all()


def test_only_a_study_with_such_runs_has_the_table(faster: Results, tmp_path: Path) -> None:
    assert "faster_mixing" in {exhibit.name for exhibit, _ in shown(TABLES, faster.settings)}
    study = make_study(variants=["residual", "hc"], conditions={"norm": FASTER["norm"]})
    settings = load_results(build_results(tmp_path, study, diverged=())).settings
    assert "faster_mixing" not in {exhibit.name for exhibit, _ in shown(TABLES, settings)}


def test_geometric_interval_and_its_text() -> None:
    assert np.isnan(list(geometric_interval([]).values())).all()
    alone = geometric_interval([4.0])
    assert alone["mean"] == pytest.approx(4)
    assert math.isnan(alone["low"])
    assert with_interval(*alone.values()) == "4.00"
    assert with_interval(1.0, 0.9999999, 1.0000001) == "1.00"
    assert with_interval(1.5, 1.25, 1.75, 2) == "1.5 [1.2, 1.8]"
    assert with_interval(None, None, None) == NONE
