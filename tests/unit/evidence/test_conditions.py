"""Conditions: runs with a changed setting, kept apart from the study's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builder import build_results, condition_effect, final_loss, make_study

from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.report_methods import conditions_text, introduction
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.table_format import markdown
from mhclite.evidence.topics.conditions import (
    changes,
    conditions_data,
    conditions_table,
    streams_data,
)
from mhclite.evidence.topics.losses import results_data

SEEDS = (0, 1, 2)
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
}
DIVERGED = "sotu-d2-mhc_lite-rate-s1"
VARIANTS = ("residual", "mhc", "mhc_lite")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(
        models={"d2": 2}, variants=VARIANTS, seeds=SEEDS, conditions=CONDITIONS, sinkhorn=None
    )
    return load_results(build_results(tmp_path_factory.mktemp("r"), study, diverged=[DIVERGED]))


def names(results: Results) -> list[str]:
    """The study's tables."""
    return [exhibit.name for exhibit, _ in shown(TABLES, results.settings)]


def loss(variant: str, condition: str, seed: int) -> float:
    return final_loss("sotu", 2, variant, seed) + condition_effect(condition, variant, seed)


def test_the_studys_own_results_do_not_see_conditions(results: Results, tmp_path: Path) -> None:
    plain = make_study(models={"d2": 2}, variants=VARIANTS, seeds=SEEDS)
    without = load_results(build_results(tmp_path, plain, diverged=()))
    pd.testing.assert_frame_equal(results_data(results), results_data(without))
    assert len(results.all_runs) == len(results.runs) + 4 * len(SEEDS)
    assert set(results.curves["run"]) == set(results.runs["run"])


def test_changes_are_paired_by_seed(results: Results) -> None:
    rows = {(r["condition"], r["variant"]): r for r in conditions_data(results).to_dict("records")}
    assert list(rows) == [
        ("norm", "mhc"),
        ("norm", "mhc_lite"),
        ("rate", "residual"),
        ("rate", "mhc_lite"),
    ]
    for (condition, variant), row in rows.items():
        seeds = [s for s in SEEDS if f"sotu-d2-{variant}-{condition}-s{s}" != DIVERGED]
        assert row["change_n"] == len(seeds)
        change = [condition_effect(condition, variant, s) for s in seeds]
        assert row["change_mean"] == pytest.approx(np.mean(change))
        assert row["change_sd"] == pytest.approx(np.std(change, ddof=1))
    # The reference has the change too where the condition names it.
    both = rows["rate", "mhc_lite"]
    after = [loss("mhc_lite", "rate", s) - loss("residual", "rate", s) for s in (0, 2)]
    before = [loss("mhc_lite", "base", s) - loss("residual", "base", s) for s in (0, 2)]
    assert both["gap_residual_after_mean"] == pytest.approx(np.mean(after))
    assert both["gap_residual_before_mean"] == pytest.approx(np.mean(before))
    one = rows["norm", "mhc_lite"]
    after = [loss("mhc_lite", "norm", s) - loss("residual", "base", s) for s in SEEDS]
    assert one["gap_residual_after_mean"] == pytest.approx(np.mean(after))
    against = [loss("mhc_lite", "norm", s) - loss("mhc", "norm", s) for s in SEEDS]
    assert one["gap_mhc_after_mean"] == pytest.approx(np.mean(against))
    assert rows["norm", "mhc"]["gap_mhc_before_n"] == 0  # no gap to itself
    # A rate concerns every variant: mHC, which has not that one, is no comparison.
    assert both["gap_mhc_before_n"] == both["gap_mhc_after_n"] == 0


def test_table_and_figure_say_so(results: Results, tmp_path: Path) -> None:
    table = conditions_table(results)
    text = markdown(table)
    assert text.count("norm after the sum") == 1  # named once, in its first row
    row = conditions_data(results).iloc[0]
    assert f"{row['change_mean']:.4f}" in text
    with style():
        figure = changes(results)
        assert len(save(figure, tmp_path / "changes")) == 2
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["norm after the sum", "twice the rate"]
    assert names(results).count("conditions") == 1


def test_numbers_of_streams(tmp_path: Path) -> None:
    conditions = {
        f"n{n}": {"title": f"{n} streams", "variants": v, "connections": {"n_streams": n}}
        for n, v in ((2, ["mhc", "mhc_lite"]), (3, ["mhc_lite"]), (8, ["mhc"]))
    }
    study = make_study(models={"d2": 2}, variants=VARIANTS, seeds=SEEDS, conditions=conditions)
    found = load_results(build_results(tmp_path, study, diverged=()))
    measured = found.throughput["d2"].variants
    assert {"mhc-n2", "mhc_lite-n2", "mhc_lite-n3", "mhc-n8"} <= measured.keys()
    rows = streams_data(found).to_dict("records")
    places = [(row["variant"], row["n_streams"]) for row in rows]
    assert places == [
        *(("mhc", n) for n in (2, 4, 8)),
        *(("mhc_lite", n) for n in (2, 3, 4)),
    ]
    three = rows[places.index(("mhc_lite", 3))]
    change = [condition_effect("n3", "mhc_lite", seed) for seed in SEEDS]
    assert three["change_mean"] == pytest.approx(np.mean(change))
    assert three["ratio_median"] == measured["mhc_lite-n3"].ratio_quartiles.median
    assert rows[places.index(("mhc", 4))]["change_n"] == 0
    assert "streams" in names(found)


def test_words(results: Results) -> None:
    text = conditions_text(results)
    assert "connections.final_norm = after_sum" in text
    assert "learning rate times 2" in text
    assert "; none diverged. 12 further runs with changed settings; 1 of these diverged." in (
        introduction(results)
    )


def test_nothing_is_shown_without_them() -> None:
    settings = make_study().model_dump()
    assert "changes" not in [exhibit.name for exhibit, _ in shown(FIGURES, settings)]
    assert "sinkhorn" not in [exhibit.name for exhibit, _ in shown(TABLES, settings)]


def test_all_diverged_is_an_empty_figure(tmp_path: Path) -> None:
    one = {"norm": {**CONDITIONS["norm"], "variants": ["mhc"]}}
    study = make_study(models={"d2": 2}, variants=VARIANTS, seeds=(0,), conditions=one)
    folder = build_results(tmp_path, study, diverged=["sotu-d2-mhc-norm-s0"])
    with style():
        figure = changes(load_results(folder))
    assert "No condition has a completed run" in figure.axes[0].texts[0].get_text()


def test_aged_runs_are_in_no_table_of_losses_and_some_models_in_their_own(tmp_path: Path) -> None:
    aged = {"title": "aged", "variants": ["mhc"], "connections": {"mixing_rate_factor": 3}}
    some = CONDITIONS["norm"] | {"models": ["d4"]}
    conditions = {"aged": aged, "norm": some}
    models = {"d2": 2, "d4": 4}
    study = make_study(models=models, variants=VARIANTS, seeds=SEEDS, conditions=conditions)
    data = conditions_data(load_results(build_results(tmp_path, study, diverged=())))
    assert set(zip(data["model"], data["condition"], strict=True)) == {("d4", "norm")}
    only = make_study(models=models, variants=VARIANTS, conditions={"aged": aged}).model_dump()
    assert "conditions" not in [exhibit.name for exhibit, _ in shown(TABLES, only)]
