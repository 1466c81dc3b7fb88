"""Tables say what was put in: their numbers are traced back to the synthetic study."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builder import (
    ALL_VARIANTS,
    build_results,
    condition_effect,
    final_loss,
    make_study,
    with_columns,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mhclite import cli
from mhclite.evidence.evidence import terminal_table, write_tables
from mhclite.evidence.exhibits import TABLES, shown
from mhclite.evidence.frame import Cell, columns, mean
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.tables import (
    NONE,
    Table,
    markdown,
    plus_minus,
    rounded,
    significant,
    with_interval,
)
from mhclite.evidence.topics.cost import how_measured
from mhclite.study.sections import BASE

SEEDS = (0, 1, 2)
FORMATS = ("csv", "md", "html")
DIVERGED = "sotu-d2-mhc_lite-rate-s1"
CONDITIONS: dict[str, Any] = {
    "norm": {
        "title": "norm after the sum",
        "variants": ["mhc", "mhc_lite"],
        "connections": {"final_norm": "after_sum"},
    },
    "rate": {
        "title": "twice the rate",
        "variants": ["residual", "mhc_lite"],
        "learning_rate_factor": 2.0,
    },
    "ten": {
        "title": "10 times as fast",
        "variants": ["mhc", "mhc_lite"],
        "connections": {"mixing_rate_factor": 10},
    },
    "three": {
        "title": "3 times as fast",
        "variants": ["mhc"],
        "connections": {"mixing_rate_factor": 3},
    },
    "n2": {"title": "2 streams", "variants": ["mhc"], "connections": {"n_streams": 2}},
    "n8": {"title": "8 streams", "variants": ["mhc"], "connections": {"n_streams": 8}},
}


def table_of(results: Results, name: str) -> Table:
    """One of a study's tables."""
    return TABLES[name][1](results)


def records(results: Results, name: str, *keys: str) -> dict[Any, dict[str, Any]]:
    """The numbers of a table, by some of their columns."""
    rows = table_of(results, name).data.to_dict("records")
    return {tuple(row[key] for key in keys): row for row in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tables/ of the synthetic study, with intervals of 90 %."""
    study = make_study(statistics={"confidence": 0.9})
    folder = build_results(tmp_path_factory.mktemp("tables"), study)
    write_tables(load_results(folder))
    return folder / "tables"


@pytest.fixture(scope="module")
def nineties(folder: Path) -> Results:
    return load_results(folder.parent)


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Results:
    variants = ("residual", "mhc", "mhc_lite")
    study = make_study(models={"d2": 2}, variants=variants, conditions=CONDITIONS)
    return load_results(build_results(tmp_path_factory.mktemp("c"), study, diverged=[DIVERGED]))


def losses(n_layer: int, variant: str, seeds: tuple[int, ...] = SEEDS) -> np.ndarray:
    """Final losses of one cell, by seed."""
    return np.array([final_loss("sotu", n_layer, variant, seed) for seed in seeds])


def half_width(values: np.ndarray, confidence: float) -> float:
    """Half-width of the t interval, by scipy's own interval."""
    interval = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
    return float(interval[1] - values.mean())


# --- every table ----------------------------------------------------------------------------


def test_every_mean_is_that_of_its_cell(results: Results, conditions: Results) -> None:
    """Over the seeds that completed, as the registry says; differences are paired by seed."""
    seen = set()
    for study in (results, conditions):
        for exhibit, make in shown(TABLES, study.settings):
            table = make(study)
            assert len(table.notes.split()) <= 40, exhibit.name
            for row in table.data.to_dict("records"):
                for name in METRICS.keys() & row.keys():
                    if f"{name}_n" in row:
                        cell = Cell(*(row[key] for key in Cell._fields))
                        for column, value in columns(name, mean(study, cell, name)).items():
                            assert row[column] == pytest.approx(value, nan_ok=True), exhibit.name
                        seen.add((exhibit.name, name))
    assert len(seen) > 15, seen


def test_every_table_in_every_format(folder: Path, nineties: Results) -> None:
    names = [exhibit.name for exhibit, _ in shown(TABLES, nineties.settings)]
    assert {path.name for path in folder.iterdir()} == {f"{n}.{f}" for n in names for f in FORMATS}
    for name in names:
        notes = (folder / f"{name}.md").read_text().splitlines()[-1]
        assert "95 %" not in notes, "the study's level is 90 %"
    assert "log(1/ν) &gt; 30 (%)" in (folder / "mixing.html").read_text()
    assert re.search(r'class="[^"]*bold[^"]*"\s*>supported<', (folder / "claims.html").read_text())


def test_tables_of_a_study_all_of_whose_runs_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.DIVERGED_STEP", 12)
    study = make_study(models={"d4": 4}, variants=["hc", "mhc"], seeds=[0, 1], steps=30)
    built = load_results(build_results(tmp_path, study, diverged=list(study.runs())))
    for _, make in shown(TABLES, built.settings):
        assert "nan" not in markdown(make(built)).lower()
    assert f"{NONE} (2 diverged)" in terminal_table(built)


# --- one by one -----------------------------------------------------------------------------


def test_results_trace_to_every_seed(nineties: Results) -> None:
    row = records(nineties, "results", "n_layer", "variant")[4, "hc"]  # seed 1 diverged
    assert (row["validation_loss_n"], row["n_diverged"]) == (2, 1)
    assert [row[f"seed_{s}"] for s in (0, 2)] == [final_loss("sotu", 4, "hc", s) for s in (0, 2)]
    difference = losses(4, "hc", (0, 2)) - losses(4, "residual", (0, 2))
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["difference_half_width"] == pytest.approx(half_width(difference, 0.9))
    rows = table_of(nineties, "results").display.set_index("Variant")
    expected = losses(4, "hc", (0, 2))
    shown_mean = f"{expected.mean():.3f} ± {half_width(expected, 0.9):.3f}"
    assert rows.loc["HC", "4 layers"] == f"{shown_mean} (1 diverged)"
    assert rows.loc["Residual", "2 layers, minus Residual"] == NONE


def test_two_corpora_and_no_residual(tmp_path: Path) -> None:
    study = make_study(corpora=["b", "a"], models={"d2": 2}, variants=["mhc"], seeds=[0])
    display = table_of(load_results(build_results(tmp_path, study, diverged=())), "results").display
    assert list(display.columns) == ["Corpus", "Variant", "2 layers"]
    assert display["Corpus"].tolist() == ["b", "a"]
    assert display.iloc[-1]["2 layers"] == f"{final_loss('a', 2, 'mhc', 0):.3f}"  # no interval


def test_one_run_far_off_is_named(results: Results) -> None:
    seen = with_columns(results)
    seen.by_seed["sotu", "d2", "mhc", "base", "validation_loss"] = {
        0: 3.0,
        1: 3.01,
        2: 3.02,
        3: 4.5,
    }
    assert "mHC at 2 layers (4.500)" in table_of(seen, "results").notes


def test_the_overview_is_of_the_deepest_model(results: Results, conditions: Results) -> None:
    rows = records(results, "overview", "variant")
    assert [key[0] for key in rows] == list(ALL_VARIANTS)
    mhc = rows["mhc",]
    difference = losses(4, "mhc") - losses(4, "residual")
    assert mhc["minus_residual"] == pytest.approx(difference.mean())
    assert mhc["minus_residual_half_width"] == pytest.approx(half_width(difference, 0.95))
    assert mhc["step_time"] == results.throughput["d4"].variants["mhc"].ratio_quartiles.median
    display = table_of(results, "overview").display.set_index("Variant")
    assert "Minus Residual, one final norm" not in display  # of no variant
    assert display.loc["HC", "Sums off, product"] == NONE  # not meant to be 1
    exact = with_columns(results, product_max_deviation=0.0)
    display = table_of(exact, "overview").display.set_index("Variant")
    assert display.loc[["mHC", "mHC-lite"], "Sums off, product"].tolist() == ["0", "0"]
    fair = records(conditions, "overview", "variant")["mhc",]
    after = [loss("mhc", "norm", s) - loss("residual", "base", s) for s in SEEDS]
    assert fair["minus_fair"] == pytest.approx(np.mean(after))
    for study in (results, conditions):
        assert len(table_of(study, "overview").display.columns) <= 6


def loss(variant: str, condition: str, seed: int) -> float:
    return final_loss("sotu", 2, variant, seed) + condition_effect(condition, variant, seed)


def test_changes_are_paired_by_seed(conditions: Results) -> None:
    rows = records(conditions, "conditions", "condition", "variant")
    assert {key[0] for key in rows} == {"norm", "rate", "n2", "n8"}  # none that mixes faster
    for (condition, variant), row in rows.items():
        seeds = [s for s in SEEDS if f"sotu-d2-{variant}-{condition}-s{s}" != DIVERGED]
        change = [condition_effect(condition, variant, s) for s in seeds]
        assert row["change_n"] == len(seeds)
        assert row["change"] == pytest.approx(np.mean(change))
    # The reference has the change too where the condition names it.
    both, one = rows["rate", "mhc_lite"], rows["norm", "mhc_lite"]
    gap = [loss("mhc_lite", "rate", s) - loss("residual", "rate", s) for s in (0, 2)]
    assert both["minus_residual"] == pytest.approx(np.mean(gap))
    gap = [loss("mhc_lite", "norm", s) - loss("residual", "base", s) for s in SEEDS]
    assert one["minus_residual"] == pytest.approx(np.mean(gap))
    assert rows["norm", "mhc"]["minus_mhc_n"] == 0  # no gap to itself
    # A rate concerns every variant: mHC, which has not that one, is no comparison.
    assert both["minus_mhc_n"] == 0
    assert markdown(table_of(conditions, "conditions")).count("norm after the sum") == 1
    # The study's own results do not see them.
    own = records(conditions, "results", "variant")["mhc",]
    assert own["validation_loss"] == pytest.approx(losses(2, "mhc").mean())
    assert set(conditions.curves["run"]) == set(conditions.runs["run"])


def test_what_learns_faster_stands_beside_the_same_without(conditions: Results) -> None:
    rows = records(conditions, "faster_mixing", "factor", "variant")
    assert list(rows) == [(1, "mhc"), (1, "mhc_lite"), (3, "mhc"), (10, "mhc"), (10, "mhc_lite")]
    change = [condition_effect("three", "mhc", seed) for seed in SEEDS]
    assert rows[3, "mhc"]["change"] == pytest.approx(np.mean(change))
    assert rows[1, "mhc"]["change_n"] == 0


def test_columns_of_the_mixing(results: Results, tmp_path: Path) -> None:
    """The norm of a one-sided product has a bound; a column that nobody has is left out."""
    study = make_study(models={"d2": 2}, variants=["hc", "oshc"], seeds=[0])
    built = load_results(build_results(tmp_path, study, diverged=()))
    hc, oshc = table_of(built, "mixing").display["Largest singular value"]
    assert "√n" not in hc
    assert oshc.endswith("at most √n = 2")
    assert "Lost, H_res = I" in table_of(results, "mixing").display
    gone = with_columns(results, knockout_identity=math.nan)
    assert "Lost, H_res = I" not in table_of(gone, "mixing").display


def test_parameters_trace_to_the_throughput_files(results: Results, conditions: Results) -> None:
    for study in (results, conditions):
        rows = records(study, "parameters", "model", "variant", "condition")
        named = {
            (model, variant if condition == BASE else f"{variant}-{condition}"): row
            for (model, variant, condition), row in rows.items()
        }
        timed = {(m, name): one for m, file in study.throughput.items()
                 for name, one in file.variants.items()}  # fmt: skip
        assert named.keys() == timed.keys()
        for key, one in timed.items():
            for name in ("parameters", "extra_parameters", "peak_memory_bytes"):
                assert named[key][name] == getattr(one, name)
            for q in ("median", "q1", "q3"):
                assert named[key][f"tokens_per_second_{q}"] == getattr(one.tokens_per_second, q)
                assert named[key][f"ratio_{q}"] == getattr(one.ratio_quartiles, q)
    display = table_of(results, "parameters").display.set_index("Variant")
    assert display.loc["KromHC", "Step time (residual = 1)"].iloc[0] == "2.25 [2.21, 2.29]"
    assert "Step time, reference" in display
    assert "8 streams" in table_of(conditions, "parameters").display["Changed"].tolist()


def test_throughput_without_a_variant_or_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = build_results(tmp_path, make_study(variants=["residual", "mhc"], seeds=[0]), ())
    path = built / "throughput" / "d4.json"
    whole = path.read_text()
    path.write_text(whole.replace('"device": "cpu"', '"device": "Some GPU"'))
    said = how_measured(load_results(built))
    assert "d2: Synthetic CPU, 1 thread, fp32, batch 16 × context 64, 9 rounds" in said
    assert "; d4: Some GPU, fp32" in said
    path.write_text(whole.replace('"mhc"', '"other"'))
    assert cli.main(["evidence", "--results", str(built)]) == 2
    message = capsys.readouterr().err
    assert "the throughput of model d4 was measured without variant mhc" in message
    assert f"delete {path} and run" in message


# --- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (9.996, "10.0"), (0.9996, "1.00"), (0.0009994, "9.99e-04"), (0.0009996, "0.00100"),
     (1234.5, "1,234"), (999_600, "1.00e+06"), (-2.345, "-2.35"), (math.nan, NONE), (None, NONE),
     (pd.NA, NONE)],
)  # fmt: skip
def test_significant(value: float | None, expected: str) -> None:
    assert significant(value) == expected


@given(st.floats(1e-9, 1e9))
def test_significant_is_within_half_a_unit(value: float) -> None:
    assert float(significant(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


def test_means_with_their_intervals() -> None:
    assert plus_minus(3.14159, 0.01) == "3.1416 ± 0.0100"
    assert plus_minus(3.14159, math.nan) == "3.1416"
    assert plus_minus(math.nan, math.nan) == rounded(math.nan, math.nan) == NONE
    assert rounded(-0.61907, 0.2506) == "-0.62 ± 0.25"
    assert rounded(512.3, 12.0) == "512 ± 12"
    assert rounded(3.14159, math.nan) == "3.14"
    assert rounded(2.0, 0.0) == "2.00 ± 0"
    assert with_interval(4.0, math.nan, math.nan) == "4.00"
    assert with_interval(1.0, 0.9999999, 1.0000001) == "1.00"
    assert with_interval(1.5, 1.25, 1.75) == "1.50 [1.25, 1.75]"
    assert with_interval(3e-6, 1e-6, 9e-6) == "3e-06"  # rounding
    assert with_interval(None, None, None) == NONE


# --- the terminal ---------------------------------------------------------------------------


def test_the_terminal_shows_the_study_and_changes_no_file(
    results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = results.folder
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert cli.main(["evidence", "--results", str(folder), "--show"]) == 0
    text = capsys.readouterr().out
    # A look changes no file: nothing is rerun because of it.
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert f"{losses(2, 'mhc_lite').mean():.3f}" in text
    found, _, rest = text.strip().partition("\n\n")
    assert 2 <= len(found.splitlines()) <= 6
    assert str(folder / "report.html") in rest


@pytest.mark.parametrize("bigram", [0.0, 3.5, 99.0])
def test_losses_that_a_table_of_bigrams_beats_are_marked(
    bigram: float, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {corpus: {"unigram": 99.0, "bigram": bigram} for corpus in results.corpora}
    monkeypatch.setitem(results.__dict__, "counting_models", known)
    data = table_of(results, "results").data
    cell = r"(\d\.\d{3}) ± \d\.\d{3}(?: \(\d diverged\))? \*"
    marked = re.findall(cell, terminal_table(results))
    beaten = data[data["validation_loss"] >= bigram]["validation_loss"]
    assert sorted(map(float, marked)) == pytest.approx(sorted(beaten), abs=5e-4)
