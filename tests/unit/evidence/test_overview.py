"""The table of all variants: each number is traced back to the synthetic study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builder import (
    ALL_VARIANTS,
    build_results,
    condition_effect,
    final_loss,
    make_study,
    parameters_of,
)
from scipy import stats

from mhclite.evidence.results import Results, load_results
from mhclite.evidence.table_format import NONE, Table
from mhclite.evidence.topics.overview import overview_data, overview_table

SEEDS = (0, 1, 2)
FAIR = {
    "fair": {
        "title": "final norm after the sum",
        "variants": ["mhc", "mhc_lite"],
        "seeds": [0, 1],
        "connections": {"final_norm": "after_sum"},
    }
}


def losses(variant: str, condition: str = "base", seeds: tuple[int, ...] = SEEDS) -> np.ndarray:
    """Final losses of the deeper model, by seed."""
    return np.array(
        [
            final_loss("sotu", 4, variant, seed) + condition_effect(condition, variant, seed)
            for seed in seeds
        ]
    )


def half_width(values: np.ndarray) -> float:
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("overview")
    return load_results(build_results(folder, make_study(conditions=FAIR), diverged=()))


@pytest.fixture(scope="module")
def data(seen: Results) -> pd.DataFrame:
    return overview_data(seen).set_index("variant")


def cells(table: Table) -> dict[str, dict[str, str]]:
    """Variant -> heading -> text."""
    return {row["Variant"]: row for row in table.display.to_dict("records")}


def test_rows_are_all_variants_at_the_deepest_model(data: pd.DataFrame) -> None:
    assert tuple(data.index) == tuple(ALL_VARIANTS)
    assert set(data["model"]) == {"d4"}
    assert set(data["validation_loss_n"]) == {3}


@pytest.mark.parametrize("variant", ["hc", "mhc", "mhc_lite"])
def test_differences_are_paired_by_seed(data: pd.DataFrame, variant: str) -> None:
    row = data.loc[variant]
    for name, other in (("minus_residual", "residual"), ("minus_control", "identity")):
        difference = losses(variant) - losses(other)
        assert row[f"{name}_mean"] == pytest.approx(difference.mean())
        assert row[f"{name}_half_width"] == pytest.approx(half_width(difference))
    if variant == "hc":  # which the condition leaves out
        assert row["minus_fair_n"] == 0
        return
    fair = losses(variant, "fair", (0, 1)) - losses("residual", seeds=(0, 1))
    assert row["minus_fair_n"] == 2
    assert row["minus_fair_mean"] == pytest.approx(fair.mean())


def test_matrices_and_costs_are_those_of_the_run(seen: Results, data: pd.DataFrame) -> None:
    runs = seen.runs[(seen.runs["model"] == "d4") & (seen.runs["variant"] == "hc")]
    for column in ("gain_forward_peak", "product_max_deviation"):
        logs = np.log(runs[column].to_numpy(dtype=float))
        assert data.loc["hc", f"{column}_mean"] == pytest.approx(np.exp(logs.mean()))
        assert data.loc["hc", f"{column}_high"] == pytest.approx(
            np.exp(logs.mean() + half_width(logs))
        )
    lost = runs["knockout_identity"].to_numpy(dtype=float)
    assert data.loc["hc", "knockout_identity_mean"] == pytest.approx(lost.mean())
    timed = seen.throughput["d4"].variants["hc"].ratio_quartiles.median
    assert data.loc["hc", "step_time"] == timed
    counted = parameters_of(4, "hc")
    own = counted["total"] - counted["connection"]
    assert data.loc["hc", "extra_percent"] == pytest.approx(100 * counted["connection"] / own)


def test_for_readers(seen: Results, data: pd.DataFrame) -> None:
    table = overview_table(seen)
    rows = cells(table)
    hc = data.loc["hc"]
    wanted = f"{hc['minus_residual_mean']:.3f} ± {hc['minus_residual_half_width']:.3f}"
    assert rows["HC"]["Minus Residual"] == wanted
    assert rows["Residual"]["Minus Residual"] == rows["Residual"]["Minus Identity HC"] == NONE
    assert rows["HC"]["Minus Residual, one final norm"] == NONE
    assert rows["mHC"]["Minus Residual, one final norm"] != NONE
    assert "(n = 2)" in table.notes
    assert "over the completed of 3 seeds" in table.notes
    assert table.display["Model"].tolist() == ["4 layers"] + [""] * (len(ALL_VARIANTS) - 1)
    # Bold is an interval without 0, of a difference and of nothing else.
    assert {name for _, name in table.bold} <= {name for name in table.display if "Minus" in name}
    for at, row in enumerate(data.itertuples()):
        excludes = abs(row.minus_residual_mean) > row.minus_residual_half_width
        assert ((at, "Minus Residual") in table.bold) == excludes


def test_seeds_are_counted_where_one_diverged(seen: Results) -> None:
    runs = seen.all_runs.copy()
    runs.loc[runs["run"].str.contains("d4-hc-s1"), "status"] = "diverged"
    base = runs[runs["condition"] == "base"].reset_index(drop=True)
    rows = cells(overview_table(replace(seen, all_runs=runs, runs=base)))
    assert (rows["HC"]["Seeds (n)"], rows["mHC"]["Seeds (n)"]) == ("2", "3")
    # Where all have as many, the notes say so once.
    assert "Seeds (n)" not in cells(overview_table(seen))["HC"]


def test_a_variant_that_never_mixes_loses_nothing(seen: Results) -> None:
    runs = seen.all_runs.copy()
    never = runs["variant"] == "identity"
    runs.loc[never, "knockout_identity"] = [1e-9 * seed for seed in runs.loc[never, "seed"]]
    runs.loc[never, "knockout_identity_error"] = 0.0
    rows = cells(overview_table(replace(seen, all_runs=runs)))
    assert rows["Identity HC"]["Lost, H_res = I"] == "0"
    assert "±" in rows["mHC"]["Lost, H_res = I"]


def test_sums_that_are_exact_are_0(seen: Results) -> None:
    runs = seen.all_runs.copy()
    runs.loc[runs["variant"] == "identity", "product_max_deviation"] = 0.0
    rows = cells(overview_table(replace(seen, all_runs=runs)))
    assert rows["Identity HC"]["Sums off, product"] == "0"
    assert rows["Residual"]["Sums off, product"] == NONE
    assert rows["HC"]["Sums off, product"] == rows["JPmHC"]["Sums off, product"] == NONE
    assert rows["mHC"]["Sums off, product"] != NONE


@pytest.mark.parametrize("variants", [("mhc",), ("residual", "mhc"), ("residual",)])
def test_columns_without_a_value_are_left_out(tmp_path: Path, variants: tuple[str, ...]) -> None:
    study = make_study(variants=variants)
    table = overview_table(load_results(build_results(tmp_path, study, diverged=())))
    names = set(table.display.columns)
    assert ("Minus Residual" in names) == (variants == ("residual", "mhc"))
    assert not {"Minus Identity HC", "Minus Residual, one final norm"} & names
    assert ("Largest gain" in names) == ("mhc" in variants)
