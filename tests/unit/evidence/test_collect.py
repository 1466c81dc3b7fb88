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
    GRAD_NORM_SPIKE,
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

from mhclite import cli
from mhclite.errors import UserError
from mhclite.evidence.collect import CURVE_POINTS, collect, curve, mixing_that_counts
from mhclite.evidence.metrics import (
    CURVE_COLUMNS,
    METRICS,
    OF_RUNS,
    RUN_COLUMNS,
    VALUE_COLUMNS,
    value_of,
)
from mhclite.evidence.results import Results, load_results
from mhclite.files import read_jsonl, write_json
from mhclite.records import to_json
from mhclite.runs.folder import FinishedRun, RunFolder
from mhclite.study.reading import read_resolved


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A folder of four runs that a test may change; not collected."""
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1])
    return build_results(tmp_path, study, diverged=(), collected=False)


def recollect(folder: Path, **changes: Any) -> Results:
    """The real steps over `small`, with keys of the description replaced."""
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1])
    if not (folder / "stability.json").exists():
        run_stability(study, folder)
    collect(replace(resolved_of(study, folder.parent), **changes), folder)
    return load_results(folder)


def change_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
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
    columns = ["single_max_deviation", "product_max_deviation", "gain_forward", "gain_backward"]
    row = runs.loc["sotu-d4-hc-s0"]
    expected = [row_sum_deviation("hc", False), row_sum_deviation("hc", True)]
    expected += [gain("hc", 8), 1.1 * gain("hc", 8)]  # after the last of 8 sub-layers
    assert row[columns].tolist() == pytest.approx(expected)
    assert row["identity_distance"] == pytest.approx(0.1 * np.mean(range(1, 9)))
    assert runs.loc["sotu-d2-mhc-s0", "sinkhorn_share_above_30"] == 50 / 700
    assert pd.isna(row["sinkhorn_share_above_30"])
    assert runs.loc["sotu-d2-residual-s0", [*columns, "identity_distance"]].isna().all()
    assert row["product_deviation_99"] == pytest.approx(row_sum_deviation("hc", True) / 2)
    assert row["product_orthogonality_error"] == pytest.approx(row_sum_deviation("hc", True))
    assert row["start_distance"] == pytest.approx(0.05 * np.mean(range(1, 9)))
    assert row["knockout_identity"] == pytest.approx(knockout("hc", "sotu-d4-hc-s0"))
    assert row["knockout_mean"] == pytest.approx(knockout("hc", "sotu-d4-hc-s0") / 10)
    assert row["knockout_identity_error"] == row["knockout_mean_error"] == 0.0004


def test_final_loss_is_the_probes(small: Path) -> None:
    name = "sotu-d2-mhc-s0"
    path = small / "probes" / f"{name}.json"
    change_json(path, lambda probe: probe["evaluation"].update(loss=3.25))
    row = recollect(small).runs.set_index("run").loc[name]
    assert row["validation_loss"] == 3.25
    assert row["validation_bits_per_byte"] == pytest.approx(bits_per_byte(3.25))
    assert row["validation_loss_windows"] == final_loss("sotu", 2, "mhc", 0)


def test_what_was_taken_out_of_a_published_probe_is_a_gap(small: Path) -> None:
    name = "sotu-d2-mhc-s0"
    change_json(small / "probes" / f"{name}.json", lambda probe: probe.update(use=None))
    row = recollect(small).runs.set_index("run").loc[name]
    assert row[["knockout_identity", "knockout_mean"]].isna().all()
    assert row[["validation_loss", "single_max_deviation"]].notna().all()


def test_largest_deviation_is_that_of_both_sums(small: Path) -> None:
    """Whichever of the two is exact."""
    path = small / "probes" / "sotu-d2-mhc-s0.json"

    def swap(probe: dict[str, Any]) -> None:
        for sums in (probe["mixing"]["single"], probe["mixing"]["product"]):
            for name in [name for name in sums if name.startswith("row_sum")]:
                other = name.replace("row", "column")
                sums[name], sums[other] = sums[other], sums[name]

    columns = ["single_max_deviation", "product_max_deviation"]
    before = recollect(small).runs.set_index("run").loc["sotu-d2-mhc-s0", columns]
    change_json(path, swap)
    after = recollect(small).runs.set_index("run").loc["sotu-d2-mhc-s0", columns]
    assert before.tolist() == after.tolist() == pytest.approx([0.03, 0.3])


def test_peak_of_the_gain_is_over_training(small: Path) -> None:
    path = small / "runs" / "sotu-d2-mhc-s0" / "mixing.jsonl"
    lines = read_jsonl(path)
    lines[1]["gain_forward"] = 508.0
    lines[2]["gain_forward"] = None  # was not finite
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = recollect(small).runs.set_index("run")
    assert runs.loc["sotu-d2-mhc-s0", "gain_forward_peak"] == 508
    assert runs.loc["sotu-d2-mhc-s0", "gain_forward"] == pytest.approx(gain("mhc", 4))
    assert pd.isna(runs.loc["sotu-d2-residual-s0", "gain_forward_peak"])


@pytest.mark.parametrize(
    ("variant", "final_norm", "count"),
    [
        ("residual", "per_stream", 0),
        ("identity", "per_stream", 0),
        ("hc", "after_sum", 8),
        ("jpmhc", "after_sum", 8),
        ("mhc", "per_stream", 7),
        ("mhc_lite", "after_sum", 6),
        ("kromhc", "per_stream", 7),
    ],
)
def test_functional_mixing_by_algebra(variant: str, final_norm: str, count: int) -> None:
    """measure/test_probe.py holds the models to the same."""
    settings = {"final_norm": final_norm}
    study = make_study(models={"d4": 4}, variants=[variant], seeds=[0], connections=settings)
    (config,) = study.runs().values()
    assert mixing_that_counts(config) == count
    frozen = replace(config, connection=replace(config.connection, freeze_mixing=True))
    assert mixing_that_counts(frozen) == 0


def test_probe_of_another_training_is_refused(small: Path) -> None:
    path = small / "probes" / "sotu-d2-mhc-s1.json"
    change_json(path, lambda probe: probe.update(key="0" * 64))
    message = refused(small)
    assert "is of another training of run sotu-d2-mhc-s1: delete" in message
    assert "probes.json and run `snakemake --cores all`" in message


def test_the_tidy_table_has_each_number_of_a_run_once(results: Results) -> None:
    """And of a run that diverged, those alone that any run has."""
    table = results.values
    assert list(table.columns) == list(VALUE_COLUMNS)
    keys = list(VALUE_COLUMNS)[:-1]
    assert not table.duplicated(keys).any()
    assert set(table["metric"]) == set(OF_RUNS) & set(table["metric"])
    found = table.set_index(keys)["value"]
    for row in results.all_runs.to_dict("records"):
        for name in OF_RUNS:
            key = tuple(row[part] for part in keys[:-1])
            has = pd.notna(row[name]) and (row["status"] == "completed" or METRICS[name].always)
            assert ((*key, name) in found.index) == has
            if has:
                assert found[(*key, name)] == row[name]


def test_a_metric_is_read_from_any_record() -> None:
    """Every source is a path; one that is missing on the way is no value."""
    names = ("record", "summary", "stability", "probe", "evaluations", "manifest", "derived")
    records = dict.fromkeys(names)
    for name in OF_RUNS:
        assert value_of(name, records) is None
    evaluated = {**records, "evaluations": {"gain_forward": [1.0, None, 3.0]}}
    assert value_of("gain_forward_peak", evaluated) == 3


def test_diverged_run_is_a_row_with_gaps(results: Results) -> None:
    row = results.runs.set_index("run").loc[DIVERGED]
    assert row["status"] == "diverged"
    assert row["diverged_step"] == row["steps"] == DIVERGED_STEP
    assert row[["train_loss", "validation_loss", "gain_forward"]].isna().all()
    assert row["best_validation_loss"] > 3
    # Its spike, at a step that the other seeds have too, is known; the rate is out of the steps
    # with a verdict: 45, less a warm-up of 10 and a window of 16, less the one that is not finite.
    assert row["grad_norm_spikes"] == 1
    assert row["spikes_per_1000_steps"] == pytest.approx(1000 / (DIVERGED_STEP - 10 - 16 - 1))
    assert results.probes[DIVERGED].skipped
    assert list(results.mixing("sotu", "d4", "hc")) == [0, 2]
    assert results.mixing("sotu", "d4", "residual") == {}


def test_curves_hold_every_step_of_a_short_run(results: Results) -> None:
    curves = results.curves
    assert list(curves.columns) == list(CURVE_COLUMNS)
    name = "sotu-d2-hc-s1"
    part = curves[curves["run"] == name]
    lines = metrics_of(results.study["runs"][name], diverged=False)
    assert part["step"].tolist() == list(range(STEPS + 1))
    for column in ("loss", "grad_norm", "validation_loss", "attention_logit"):
        expected = [line.get(column, np.nan) for line in lines]
        np.testing.assert_array_equal(part[column], expected)
    grad_norm = part["grad_norm"].to_numpy()
    window = part.set_index("step")[["grad_norm_window_mean", "grad_norm_window_sd"]]
    assert window.loc[:19].isna().all(axis=None)
    assert window.loc[20, "grad_norm_window_mean"] == pytest.approx(grad_norm[1:21].mean())
    spiked = grad_norm[GRAD_NORM_SPIKE - 19 : GRAD_NORM_SPIKE + 1]
    assert window.loc[GRAD_NORM_SPIKE, "grad_norm_window_sd"] == pytest.approx(spiked.std())

    diverged = curves[curves["run"] == DIVERGED]
    assert diverged["step"].max() == DIVERGED_STEP
    assert diverged.iloc[-1][["loss", "grad_norm", "grad_norm_window_mean"]].isna().all()
    assert diverged.iloc[-1]["tokens"] == DIVERGED_STEP * 16 * 64


def test_long_runs_are_thinned_after_the_windows_are_computed() -> None:
    study = make_study(models={"d2": 2}, variants=["hc"], seeds=[0], steps=5010)
    (run,) = study.runs().values()
    metrics = metrics_of(run.to_json(), diverged=False)
    finished = FinishedRun(run.run, run_record(run, "k"), run_summary(run, "k"), metrics)
    table = curve(finished, run, window=20)
    evaluated = [line["step"] for line in metrics if "validation_loss" in line]
    assert set(evaluated) <= set(table["step"])
    assert table["step"].is_monotonic_increasing
    assert table["step"].is_unique
    assert CURVE_POINTS <= len(table) <= CURVE_POINTS + len(evaluated)
    assert table["step"].iloc[[0, 1, -1]].tolist() == [0, 1, 5010]
    assert np.diff(table["step"]).max() <= 3
    grad_norm = [line["grad_norm"] for line in metrics[1:]]
    at = table.set_index("step")["grad_norm_window_mean"]
    for step in table["step"][table["step"] >= 20].iloc[::97]:
        assert at[step] == pytest.approx(np.mean(grad_norm[step - 20 : step]))


def test_orders_labels_and_baselines_follow_the_study(tmp_path: Path) -> None:
    study = make_study(
        corpora=["zebra", "apple"],
        models={"z": 4, "a": 2},
        variants=["mhc_lite", "residual"],
        seeds=[1, 0],
    )
    results = load_results(build_results(tmp_path, study, diverged=()))
    assert list(results.runs["corpus"].cat.categories) == results.corpora == ["zebra", "apple"]
    assert list(results.runs["model"].cat.categories) == results.models == ["z", "a"]
    assert list(results.curves["variant"].cat.categories) == ["mhc_lite", "residual"]
    assert results.runs["variant"].cat.ordered
    assert results.seeds == [1, 0]
    assert results.labels == {"mhc_lite": "mHC-lite", "residual": "Residual"}
    assert results.counting_models["apple"] == {"unigram": UNIGRAM, "bigram": BIGRAM}
    assert [results.model_label(model) for model in results.models] == ["4 layers", "2 layers"]
    assert (results.name, results.confidence) == ("synthetic", 0.95)


def test_models_of_one_depth_are_told_apart_by_width(tmp_path: Path) -> None:
    study = make_study(models={"a": 1, "b": 1}, variants=["residual"], seeds=[0])
    results = load_results(build_results(tmp_path, study, diverged=()))
    assert results.model_label("a") == "1 layer, 64 wide"


def test_words_that_pandas_takes_for_missing_values_are_names(tmp_path: Path) -> None:
    study = make_study(
        corpora=["null"], models={"nan": 2, "none": 4}, variants=["residual"], seeds=[0]
    )
    results = load_results(build_results(tmp_path, study, diverged=()))
    assert results.runs["corpus"].tolist() == ["null", "null"]
    assert results.curves["model"].unique().tolist() == ["nan", "none"]


def test_collecting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    study = make_study(models={"d4": 4}, variants=["residual", "hc"])
    names = ("study.json", "runs.csv", "values.csv", "curves.csv", "stability.json")
    (tmp_path / "results").mkdir()
    folder = build_results(tmp_path / "results", study)
    before = {name: (folder / name).read_bytes() for name in names}
    shutil.rmtree(tmp_path / "results")
    folder = build_results(tmp_path / "results", study)
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_step_reads_its_study_from_a_file(small: Path) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1])
    run_stability(study, small)
    description = small.parent / "resolved.json"
    write_json(description, to_json(resolved_of(study, small.parent)))
    assert cli.main(["collect", "--study", str(description), "--out", str(small)]) == 0
    assert len(load_results(small).runs) == 4


# --- what does not fit is refused -----------------------------------------------------------


def refused(folder: Path, **changes: Any) -> str:
    """The line that the user reads."""
    with pytest.raises(UserError) as caught:
        recollect(folder, **changes)
    message = str(caught.value)
    assert "\n" not in message
    assert not (folder / "study.json").exists()
    return message


def test_missing_summary_names_run_and_command(small: Path) -> None:
    run_stability(make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1]), small)
    (small / "runs" / "sotu-d2-mhc-s1" / "summary.json").unlink()
    message = refused(small)
    assert "run sotu-d2-mhc-s1 is not finished" in message
    assert "`snakemake --cores all`" in message


def test_summary_of_another_version_names_run_and_command(small: Path) -> None:
    path = small / "runs" / "sotu-d2-mhc-s0" / "summary.json"
    change_json(path, lambda summary: summary.update(schema=0))
    message = refused(small)
    assert "the summary of run sotu-d2-mhc-s0 is from another version" in message
    assert f"delete {path.parent} and run `snakemake --cores all`" in message


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("probes/sotu-d2-mhc-s1.json", "the probe of run sotu-d2-mhc-s1 is missing"),
        ("runs/sotu-d2-mhc-s1/metrics.jsonl", "run sotu-d2-mhc-s1 has no"),
        ("runs/sotu-d2-mhc-s1/run.json", "the record of run sotu-d2-mhc-s1 is missing"),
    ],
)
def test_missing_file_is_named(small: Path, missing: str, message: str) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1])
    run_stability(study, small)
    (small / missing).unlink()
    assert message in refused(small)


def test_run_of_another_configuration(small: Path) -> None:
    def longer(record: dict[str, Any]) -> None:
        record["config"]["training"]["steps"] = 100

    change_json(small / "runs" / "sotu-d2-mhc-s1" / "run.json", longer)
    message = refused(small)
    assert "run sotu-d2-mhc-s1 was trained with other settings" in message
    assert "training.steps is 60 in the study and 100 in the run" in message


def test_settings_that_decide_no_result_may_differ(small: Path) -> None:
    def other(record: dict[str, Any]) -> None:
        record["config"]["training"].update(processes=2, checkpoint_interval=7)

    change_json(small / "runs" / "sotu-d2-mhc-s1" / "run.json", other)
    assert len(recollect(small).runs) == 4


def test_run_on_other_data(small: Path) -> None:
    path = small / "runs" / "sotu-d2-mhc-s1" / "run.json"
    change_json(path, lambda record: record["corpus"].update(digest="0" * 64))
    assert "run sotu-d2-mhc-s1 was trained on other data: corpus sotu" in refused(small)


def test_stability_of_other_settings_or_other_runs(small: Path) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1])
    run_stability(study, small)
    path = small / "stability.json"
    change_json(path, lambda value: value["runs"].pop("sotu-d2-mhc-s0"))
    assert "has no run sotu-d2-mhc-s0" in refused(small)
    change_json(path, lambda value: value["settings"].update(spike_sigmas=5.0))
    assert "spike_sigmas is 6.0 in the study and 5.0 in the file" in refused(small)


def test_a_resolved_study_without_a_key(small: Path) -> None:
    study = make_study(models={"d2": 2}, variants=["residual", "mhc"], seeds=[0, 1])
    content = to_json(resolved_of(study, small.parent))
    del content["corpora"]
    write_json(small / "resolved.json", content)
    with pytest.raises(UserError, match=r"resolved\.json is not what .* corpora is missing"):
        read_resolved(small / "resolved.json")


def test_corpus_that_is_not_prepared(small: Path) -> None:
    message = refused(small, corpora={"sotu": str(small / "nowhere")})
    assert "is not a prepared corpus" in message


def test_metrics_with_a_torn_line(small: Path) -> None:
    path = small / "runs" / "sotu-d2-mhc-s1" / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(UserError, match=r"metrics\.jsonl is not what training wrote.*delete"):
        RunFolder(small / "runs" / "sotu-d2-mhc-s1").finished()
    with pytest.raises(UserError, match=r"metrics\.jsonl line 61 is not JSON"):
        read_jsonl(path)


# --- reading the collected tables -----------------------------------------------------------


def test_load_before_collect(small: Path) -> None:
    with pytest.raises(UserError, match="study's description is missing") as caught:
        load_results(small)
    assert "python -m mhclite collect" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("key", "kay", 1), "lacks the column 'key'"),
        (lambda text: text.replace(",mhc,", ",mhd,"), "has the variant 'mhd'"),
        (lambda text: "", "cannot be read as a table"),
        (lambda text: text.replace(",completed,", ",completed,x", 1), "cannot be read as a table"),
    ],
)
def test_table_that_does_not_fit_is_refused(
    small: Path, change: Callable[[str], str], message: str
) -> None:
    recollect(small)
    path = small / "runs.csv"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match="runs") as caught:
        load_results(small)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_table_and_throughput(small: Path) -> None:
    recollect(small)
    (small / "throughput" / "d2.json").unlink()
    with pytest.raises(UserError, match="the throughput of model d2 is missing"):
        load_results(small)
    (small / "runs.csv").unlink()
    with pytest.raises(UserError, match=r"runs\.csv does not exist; .*collect"):
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
