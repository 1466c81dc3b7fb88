"""Tables say what was put in: their numbers are traced back to the synthetic study."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace
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
)

from mhclite.evidence import frame
from mhclite.evidence.evidence import found_text, write_tables
from mhclite.evidence.exhibits import TABLES, shown
from mhclite.evidence.frame import Cell, apart, columns, mean, values
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import t_interval
from mhclite.evidence.tables import (
    NONE,
    Table,
    escaped,
    html_page,
    markdown,
    plus_minus,
    rounded,
    significant,
    with_interval,
)
from mhclite.evidence.topics.cost import how_measured
from mhclite.study.sections import BASE

SEEDS = (0, 1, 2)
HALF = Cell("sotu", "d4", "hc")  # one of three seeds diverged
FORMATS = ("csv", "md", "html")
DIVERGED = "sotu-d2-mhc_lite-rate-s1"
FASTER = {"variants": ["mhc"], "connections": {"mixing_rate_factor": 3}}
NORM = {"variants": ["mhc", "mhc_lite"], "connections": {"final_norm": "after_sum"}}
CONDITIONS: dict[str, Any] = {
    "norm": {"title": "norm after the sum", **NORM},
    "rate": {"title": "2 x", "variants": ["residual", "mhc_lite"], "learning_rate_factor": 2.0},
    "three": {"title": "3 times as fast", **FASTER},
    "n2": {"title": "2 streams", "variants": ["mhc"], "connections": {"n_streams": 2}},
}


def table_of(results: Results, name: str) -> Table:
    """One of a study's tables."""
    return TABLES[name][1](results)


def records(results: Results, name: str, *keys: str) -> dict[Any, dict[str, Any]]:
    """The numbers of a table, by some of their columns."""
    rows = table_of(results, name).data.to_dict("records")
    return {tuple(row[key] for key in keys): row for row in rows}


@pytest.fixture(scope="module")
def written(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The synthetic study with its tables."""
    study = replace(results, folder=tmp_path_factory.mktemp("tables"))
    write_tables(study)
    return study


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Results:
    variants = ("residual", "mhc", "mhc_lite")
    study = make_study(models={"d2": 2}, variants=variants, conditions=CONDITIONS)
    return load_results(build_results(tmp_path_factory.mktemp("c"), study, diverged=[DIVERGED]))


def losses(n_layer: int, variant: str, seeds: tuple[int, ...] = SEEDS) -> np.ndarray:
    """Final losses of one cell, by seed."""
    return np.array([final_loss("sotu", n_layer, variant, seed) for seed in seeds])


# --- the tidy table -------------------------------------------------------------------------


def test_diverged_runs_are_counted_and_differences_paired(results: Results) -> None:
    found = frame.row(results, HALF, ["validation_loss"])
    assert (found["runs"], found["n_diverged"], found["validation_loss_n"]) == (3, 1, 2)
    assert sorted(values(results, HALF, "grad_norm_spikes")) == [0, 1, 2]  # of all runs
    other = HALF._replace(variant="mhc")
    own, base = values(results, HALF), values(results, other)
    assert apart(results, HALF, other) == t_interval([own[s] - base[s] for s in (0, 2)])
    assert apart(results, HALF, None).n == 0


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


def test_every_table_in_every_format(written: Results) -> None:
    folder = written.folder / "tables"
    names = [exhibit.name for exhibit, _ in shown(TABLES, written.settings)]
    assert {path.name for path in folder.iterdir()} == {f"{n}.{f}" for n in names for f in FORMATS}
    assert "log(1/ν) &gt; 30 (%)" in (folder / "mixing.html").read_text()
    assert re.search(r'class="bold [^"]*">supported<', (folder / "claims.html").read_text())


# --- one by one -----------------------------------------------------------------------------


def test_results_trace_to_every_seed(written: Results) -> None:
    row = records(written, "results", "n_layer", "variant")[4, "hc"]  # seed 1 diverged
    assert (row["validation_loss_n"], row["n_diverged"]) == (2, 1)
    assert [row[f"seed_{s}"] for s in (0, 2)] == [final_loss("sotu", 4, "hc", s) for s in (0, 2)]
    difference = losses(4, "hc", (0, 2)) - losses(4, "residual", (0, 2))
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["difference_half_width"] == pytest.approx(t_interval(difference).half_width)
    rows = table_of(written, "results").display.set_index("Variant")
    expected = t_interval(losses(4, "hc", (0, 2)))
    shown_mean = f"{expected.mean:.3f} ± {expected.half_width:.3f}"
    assert rows.loc["HC", "4 layers"] == f"{shown_mean} (1 diverged)"
    assert rows.loc["Residual", "2 layers, minus Residual"] == NONE


def test_the_overview_is_of_the_deepest_model(results: Results, conditions: Results) -> None:
    rows = records(results, "overview", "variant")
    mhc = rows["mhc",]
    difference = losses(4, "mhc") - losses(4, "residual")
    expected = t_interval(difference)
    found = mhc["minus_residual"], mhc["minus_residual_half_width"]
    assert found == pytest.approx((expected.mean, expected.half_width))
    assert mhc["step_time"] == results.throughput["d4"].variants["mhc"].ratio_quartiles.median
    display = table_of(results, "overview").display.set_index("Variant")
    assert "Minus Residual, one final norm" not in display  # of no variant
    assert display.loc["HC", "Sums off, product"] == NONE  # not meant to be 1
    fair = records(conditions, "overview", "variant")["mhc",]
    after = [loss("mhc", "norm", s) - loss("residual", "base", s) for s in SEEDS]
    assert fair["minus_fair"] == pytest.approx(np.mean(after))


def loss(variant: str, condition: str, seed: int) -> float:
    return final_loss("sotu", 2, variant, seed) + condition_effect(condition, variant, seed)


def test_changes_are_paired_by_seed(conditions: Results) -> None:
    rows = records(conditions, "conditions", "condition", "variant")
    assert {key[0] for key in rows} == {"norm", "rate", "n2"}  # none that mixes faster
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


def test_what_learns_faster_stands_beside_the_same_without(conditions: Results) -> None:
    rows = records(conditions, "faster_mixing", "factor", "variant")
    assert list(rows) == [(1, "mhc"), (3, "mhc")]
    change = [condition_effect("three", "mhc", seed) for seed in SEEDS]
    assert rows[3, "mhc"]["change"] == pytest.approx(np.mean(change))
    assert rows[1, "mhc"]["change_n"] == 0


def test_parameters_trace_to_the_throughput_files(results: Results, conditions: Results) -> None:
    seen = 0
    for study in (results, conditions):
        for key, row in records(study, "parameters", "model", "variant", "condition").items():
            model, variant, condition = key
            name = variant if condition == BASE else f"{variant}-{condition}"
            timed, seen = study.throughput[model].variants[name], seen + 1
            for column in ("parameters", "extra_parameters", "peak_memory_bytes"):
                assert row[column] == getattr(timed, column)
            for q in ("median", "q1", "q3"):
                assert row[f"tokens_per_second_{q}"] == getattr(timed.tokens_per_second, q)
                assert row[f"ratio_{q}"] == getattr(timed.ratio_quartiles, q)
    assert seen == 2 * len(ALL_VARIANTS) + 3 + 1  # what has another number of streams as well
    display = table_of(results, "parameters").display.set_index("Variant")
    assert display.loc["KromHC", "Step time (residual = 1)"].iloc[0] == "2.25 [2.21, 2.29]"
    assert "Step time, reference" in display


def test_where_step_times_were_measured(results: Results) -> None:
    """Said once where all sizes agree."""
    cpu = "Synthetic CPU, 1 thread, fp32, batch 16 × context 64, 9 rounds"
    assert how_measured(results) == cpu
    elsewhere = replace(results.throughput["d4"], device="Some GPU")
    said = how_measured(replace(results, throughput={**results.throughput, "d4": elsewhere}))
    assert said.startswith(f"d2: {cpu}; d4: Some GPU, fp32")


# --- text of users -----------------------------------------------------------------------

TITLES = (
    "costs $5_{x",  # half a formula: matplotlib reads from one dollar to the next
    r"$\frac$ of 100 % & more \\ #1 ~ ^",
    "*a* `b` [c](d) | <b>e</b> &amp; _f_ {g} {{h}}",
)


def test_titles_that_users_write_are_text_in_markdown_and_html() -> None:
    table = Table(notes="", data=pd.DataFrame(), display=pd.DataFrame({"Changed": TITLES}))
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line) for line in lines]
    assert len({len(row) for row in rows}) == 1, "a bar in a cell begins a column"
    cells = [cell.strip() for row in rows for cell in row]
    # As they are shown, if nothing in them is markup.
    assert set(TITLES) <= {re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell) for cell in cells}
    for markup in (r"(?<!\\)\$", r"(?<!\\)`", r"(?<!\\)\*a", r"(?<!\\)\]\(", r"(?<!\\)<b>"):
        assert not any(re.search(markup, cell) for cell in cells), markup
    assert escaped("mhc_lite [1.0, 2.0] < 3 & 4 - 5") == "mhc_lite [1.0, 2.0] < 3 & 4 - 5"
    text = html_page(title="", only=table)
    assert all(title in html.unescape(text) for title in TITLES)
    assert "<b>e</b>" not in text


# --- numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (9.996, "10.0"), (0.0009996, "0.00100"), (999_600, "1.00e+06"), (pd.NA, NONE)],
)
def test_significant(value: float | None, expected: str) -> None:
    assert significant(value) == expected


def test_means_with_their_intervals() -> None:
    assert plus_minus(3.14159, 0.01) == "3.1416 ± 0.0100"
    assert rounded(math.nan, math.nan) == NONE
    assert rounded(-0.61907, 0.2506) == "-0.62 ± 0.25"
    assert rounded(512.3, 12.0) == "512 ± 12"
    assert rounded(3.14159, math.nan) == "3.14"
    assert with_interval(1.0, 0.9999999, 1.0000001) == "1.00"
    assert with_interval(1.5, 1.25, 1.75) == "1.50 [1.25, 1.75]"
    assert with_interval(3e-6, 1e-6, 9e-6) == "3e-06"  # rounding


# --- the terminal ---------------------------------------------------------------------------


def test_the_terminal_shows_the_study(results: Results) -> None:
    text = found_text(results)
    assert f"{losses(2, 'mhc_lite').mean():.3f}" in text
    found, _, rest = text.partition("\n\n")
    assert 2 <= len(found.splitlines()) <= 6
    assert str(results.folder / "report.html") in rest


def test_losses_that_a_table_of_bigrams_beats_are_marked(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {corpus: {"unigram": 99.0, "bigram": 3.5} for corpus in results.corpora}
    monkeypatch.setitem(results.__dict__, "counting_models", known)
    data = table_of(results, "results").data
    cell = r"(\d\.\d{3}) ± \d\.\d{3}(?: \(\d diverged\))? \*"
    marked = re.findall(cell, found_text(results))
    beaten = data[data["validation_loss"] >= 3.5]["validation_loss"]
    assert sorted(map(float, marked)) == pytest.approx(sorted(beaten), abs=5e-4)
