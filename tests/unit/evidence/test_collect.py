"""`collect` and `load_results`: what goes in comes out, and what does not fit is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from builder import (
    BIGRAM,
    DIVERGED,
    DIVERGED_STEP,
    STEPS,
    UNIGRAM,
    bits_per_byte,
    build_results,
    final_loss,
    gain,
    knockout,
    make_study,
    metrics_of,
    resolved_of,
    row_sum_deviation,
    run_stability,
)
from tiny import run_record, run_summary

from mhclite.errors import UserError
from mhclite.evidence.collect import CURVE_POINTS, collect, curve
from mhclite.evidence.metrics import (
    CURVE_COLUMNS,
    METRICS,
    OF_RUNS,
    RUN_COLUMNS,
    VALUE_COLUMNS,
)
from mhclite.evidence.results import Results, load_results
from mhclite.files import read_jsonl
from mhclite.runs.folder import FinishedRun

NAME, OTHER = "sotu-d2-mhc-s0", "sotu-d2-mhc-s1"
SMALL: dict[str, Any] = {"models": {"d2": 2}, "variants": ["residual", "mhc"], "seeds": [0, 1]}


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four runs, judged and not collected."""
    study = make_study(**SMALL)
    folder = build_results(tmp_path_factory.mktemp("four"), study, diverged=(), collected=False)
    run_stability(study, folder)
    return folder.parent


@pytest.fixture
def small(four: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(four, tmp_path / "results")) / "synthetic"


def recollect(folder: Path, **changes: Any) -> Results:
    """The real step over `small`, with keys of the description replaced."""
    collect(replace(resolved_of(make_study(**SMALL), folder.parent), **changes), folder)
    return load_results(folder)


def row_of(folder: Path, run: str = NAME) -> Any:
    """A row of runs.csv."""
    return recollect(folder).runs.set_index("run").loc[run]


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# --- what goes in comes out -----------------------------------------------------------------


def test_every_run_has_its_numbers(results: Results) -> None:
    runs = results.runs.set_index("run")
    assert list(results.runs.columns) == list(RUN_COLUMNS)
    assert list(runs.index) == list(results.study["runs"])  # the study's order
    assert len(runs) == 2 * 7 * 3
    for name, row in runs.drop(index=DIVERGED).iterrows():
        loss = final_loss(row["corpus"], row["n_layer"], row["variant"], row["seed"])
        assert row["validation_loss"] == loss, name  # to the last digit
        assert row["validation_bits_per_byte"] == pytest.approx(bits_per_byte(loss))
        assert row["status"] == "completed"
        assert row["steps"] == STEPS
        assert row["tokens"] == STEPS * 16 * 64
        assert pd.isna(row["diverged_step"])
        assert (row["unigram"], row["bigram"]) == (UNIGRAM, BIGRAM)
        assert row["loss_spikes"] == 0
        assert row["grad_norm_spikes"] == (row["variant"] == "hc")
        assert row["n_streams"] == (1 if row["variant"] == "residual" else 4)


def test_mixing_columns_come_from_the_probe(results: Results) -> None:
    runs = results.runs.set_index("run")
    row, moved = runs.loc["sotu-d4-hc-s0"], np.mean(range(1, 9))
    expected = {
        "single_max_deviation": row_sum_deviation("hc", False),
        "product_max_deviation": row_sum_deviation("hc", True),
        "product_deviation_99": row_sum_deviation("hc", True) / 2,
        "gain_forward": gain("hc", 8),  # after the last of 8 sub-layers
        "gain_backward": 1.1 * gain("hc", 8),
        "identity_distance": 0.1 * moved,
        "start_distance": 0.05 * moved,
        "knockout_identity": knockout("hc", "sotu-d4-hc-s0"),
        "knockout_mean": knockout("hc", "sotu-d4-hc-s0") / 10,
        "knockout_identity_error": 0.0004,
    }
    assert row[[*expected]].tolist() == pytest.approx([*expected.values()])
    assert runs.loc["sotu-d2-mhc-s0", "sinkhorn_share_above_30"] == 50 / 700
    assert pd.isna(row["sinkhorn_share_above_30"])
    assert runs.loc["sotu-d2-residual-s0", [*expected]].isna().all()


def test_a_row_says_what_the_probe_says(small: Path) -> None:
    path = small / "probes" / f"{NAME}.json"
    change_json(path, lambda probe: probe["evaluation"].update(loss=3.25))
    # What was taken out of a published probe is a gap.
    change_json(path, lambda probe: probe.update(use=None))
    row = row_of(small)
    assert row["validation_loss"] == 3.25
    assert row["validation_bits_per_byte"] == pytest.approx(bits_per_byte(3.25))
    assert row["validation_loss_windows"] == final_loss("sotu", 2, "mhc", 0)
    assert row[["knockout_identity", "knockout_mean"]].isna().all()
    assert row[["single_max_deviation", "product_max_deviation"]].notna().all()


def test_peak_of_the_gain_is_over_training(small: Path) -> None:
    path = small / "runs" / NAME / "mixing.jsonl"
    lines = read_jsonl(path)
    lines[1]["gain_forward"] = 508.0
    lines[2]["gain_forward"] = None  # was not finite
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = row_of(small)
    assert row["gain_forward_peak"] == 508
    assert row["gain_forward"] == pytest.approx(gain("mhc", 4))
    assert pd.isna(row_of(small, "sotu-d2-residual-s0")["gain_forward_peak"])


def test_the_tidy_table_has_each_number_of_a_run_once(results: Results) -> None:
    """And of a run that diverged, those alone that any run has."""
    keys = list(VALUE_COLUMNS)[:-1]
    assert list(results.values.columns) == [*keys, "value"]
    found = results.values.set_index(keys)["value"]
    assert found.index.is_unique
    for row in results.all_runs.to_dict("records"):
        for name in OF_RUNS:
            key = (*(row[part] for part in keys[:-1]), name)
            has = pd.notna(row[name]) and (row["status"] == "completed" or METRICS[name].always)
            assert found.get(key) == (row[name] if has else None)


def test_diverged_run_is_a_row_with_gaps(results: Results) -> None:
    row = results.runs.set_index("run").loc[DIVERGED]
    assert row["status"] == "diverged"
    assert row["diverged_step"] == row["steps"] == DIVERGED_STEP
    assert row[["train_loss", "validation_loss", "gain_forward"]].isna().all()
    # Its spike, at a step that the other seeds have too, is known; the rate is out of the steps
    # with a verdict: 45, less a warm-up of 10 and a window of 16, less the one that is not finite.
    assert row["grad_norm_spikes"] == 1
    assert row["spikes_per_1000_steps"] == pytest.approx(1000 / (DIVERGED_STEP - 10 - 16 - 1))
    assert results.probes[DIVERGED].skipped
    assert list(results.mixing("sotu", "d4", "hc")) == [0, 2]


def test_curves_hold_every_step_of_a_short_run(results: Results) -> None:
    curves = results.curves
    assert list(curves.columns) == list(CURVE_COLUMNS)
    name = "sotu-d2-hc-s1"
    part = curves[curves["run"] == name]
    lines = metrics_of(results.study["runs"][name], diverged=False)
    assert part["step"].tolist() == list(range(STEPS + 1))
    for column in ("loss", "grad_norm", "validation_loss"):
        expected = [line.get(column, np.nan) for line in lines]
        np.testing.assert_array_equal(part[column], expected)
    grad_norm = part["grad_norm"].to_numpy()
    window = part.set_index("step")["grad_norm_window_mean"]
    assert window.loc[:19].isna().all()
    assert window.loc[20] == pytest.approx(grad_norm[1:21].mean())

    diverged = curves[curves["run"] == DIVERGED]
    assert diverged["step"].max() == DIVERGED_STEP
    assert diverged.iloc[-1][["loss", "grad_norm", "grad_norm_window_mean"]].isna().all()


def test_long_runs_are_thinned_after_the_windows_are_computed() -> None:
    study = make_study(models={"d2": 2}, variants=["hc"], seeds=[0], steps=5010)
    (run,) = study.runs().values()
    metrics = metrics_of(run.to_json(), diverged=False)
    finished = FinishedRun(run.run, run_record(run, "k"), run_summary(run, "k"), metrics)
    table = curve(finished, run, window=20)
    evaluated = [line["step"] for line in metrics if "validation_loss" in line]
    assert set(evaluated) <= set(table["step"])
    assert CURVE_POINTS <= len(table) <= CURVE_POINTS + len(evaluated)
    assert table["step"].iloc[[0, 1, -1]].tolist() == [0, 1, 5010]
    gaps = np.diff(table["step"])
    assert 1 <= gaps.min() <= gaps.max() <= 3
    last = np.mean([line["grad_norm"] for line in metrics[-20:]])  # of all steps, kept or not
    assert table["grad_norm_window_mean"].iloc[-1] == pytest.approx(last)


def test_orders_and_names_follow_the_study(tmp_path: Path) -> None:
    """Also those that pandas takes for missing values, and of models of one depth."""
    study = make_study(
        corpora=["null", "apple"], models={"nan": 4, "none": 4}, variants=["mhc_lite"], seeds=[1, 0]
    )
    results = load_results(build_results(tmp_path, study, diverged=()))
    assert list(results.runs["corpus"].cat.categories) == results.corpora == ["null", "apple"]
    assert list(results.runs["model"].cat.categories) == results.models == ["nan", "none"]
    assert results.runs["corpus"].unique().tolist() == ["null", "apple"]
    assert results.curves["model"].unique().tolist() == ["nan", "none"]
    assert results.seeds == [1, 0]
    assert results.counting_models["apple"] == {"unigram": UNIGRAM, "bigram": BIGRAM}
    assert results.model_label("nan") == "4 layers, 64 wide"


# --- what does not fit is refused -----------------------------------------------------------

RUN = f"runs/{OTHER}"
# What is done to a file -> what the one line says.
REFUSED: list[tuple[str, Callable[[dict[str, Any]], Any] | None, tuple[str, ...]]] = [
    (f"{RUN}/summary.json", None, (f"run {OTHER} is not finished", "`snakemake --cores all`")),
    (
        f"{RUN}/run.json",
        lambda old: old["config"]["training"].update(steps=100),
        ("other settings", "training.steps is 60 in the study and 100 in the run"),
    ),
    (
        f"{RUN}/run.json",
        lambda old: old["corpus"].update(digest="0" * 64),
        (OTHER, "trained on other data: corpus sotu"),
    ),
    (f"probes/{OTHER}.json", None, (f"the probe of run {OTHER} is missing",)),
    (
        f"probes/{OTHER}.json",
        lambda old: old.update(key="0" * 64),
        (f"another training of run {OTHER}", "probes.json and run `snakemake --cores all`"),
    ),
    ("stability.json", lambda old: old["runs"].pop(OTHER), (f"has no run {OTHER}",)),
]


@pytest.mark.parametrize(("file", "change", "said"), REFUSED)
def test_what_does_not_fit_is_one_line(
    small: Path, file: str, change: Callable[[dict[str, Any]], Any] | None, said: tuple[str, ...]
) -> None:
    if change is None:
        (small / file).unlink()
    else:
        change_json(small / file, change)
    with pytest.raises(UserError) as caught:
        recollect(small)
    assert "\n" not in str(caught.value)
    assert all(words in str(caught.value) for words in said), caught.value
    assert not (small / "study.json").exists()


def test_what_else_collect_is_given(small: Path) -> None:
    with pytest.raises(UserError, match="is not a prepared corpus"):
        recollect(small, corpora={"sotu": str(small / "nowhere")})
    path = small / RUN / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"metrics\.jsonl is not what training wrote.*delete"):
        recollect(small)


# --- reading the collected tables -----------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("key", "kay", 1), "lacks the column 'key'"),
        (lambda text: text.replace(",mhc,", ",mhd,"), "its variant 'mhd'"),
        (lambda text: text.replace(",completed,", ",completed,x", 1), "cannot be read as a table"),
    ],
)
def test_table_that_does_not_fit_is_refused(
    small: Path, change: Callable[[str], str], message: str
) -> None:
    recollect(small)
    path = small / "runs.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match=re.escape(str(path))) as caught:
        load_results(small)
    assert message in str(caught.value)


def test_a_missing_file_is_named(small: Path) -> None:
    with pytest.raises(UserError, match=r"study's description is missing.*snakemake --cores all"):
        load_results(small)
    recollect(small)
    (small / "throughput" / "d2.json").unlink()
    with pytest.raises(UserError, match="the throughput of model d2 is missing"):
        load_results(small)


@pytest.mark.parametrize(
    ("file", "columns"),
    [("runs.csv", RUN_COLUMNS), ("values.csv", VALUE_COLUMNS), ("curves.csv", CURVE_COLUMNS)],
)
def test_every_column_is_named_in_the_docs(file: str, columns: dict[str, str]) -> None:
    """Each once, with what it means, and no other."""
    page = (Path(__file__).parents[3] / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.split(f"**{file}**", 1)[1].split("|---|---|---|\n", 1)[1].split("\n\n")[0]
    rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in section.splitlines()]
    assert all(len(row) == 3 and row[2].strip() for row in rows)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted(columns)
