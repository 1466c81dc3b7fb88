"""The import into MLflow, with a real SQLite store: what is in it, and that it stays a view."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent / "evidence"))
from builder import (
    DIVERGED,
    DIVERGED_STEP,
    build_results,
    make_study,
    resolved_of,
    run_stability,
    seal,
)

from mhclite.errors import UserError
from mhclite.evidence.collect import collect
from mhclite.evidence.evidence import write_tables
from mhclite.evidence.results import load_results
from mhclite.files import locked, read_json, read_jsonl, sha256_of
from mhclite.study.settings import Study
from mhclite.tracking import track as tracking
from mhclite.tracking.content import CURVE_POINTS, thinned
from mhclite.tracking.store import Store, database_of

ROOT = Path(__file__).parents[2]
RUN = "sotu-d4-mhc-s0"


def study_of(seeds: tuple[int, ...] = (0, 1)) -> Study:
    """8 runs, one of which (`DIVERGED`) diverges."""
    return make_study(variants=("hc", "mhc"), seeds=seeds)


def finish(folder: Path) -> None:
    """What `evidence` writes; the figures are only names here."""
    write_tables(load_results(folder))
    for suffix in ("png", "svg"):
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / f"loss.{suffix}").write_text(f"a figure as {suffix}")
    (folder / "report.html").write_text("<h1>report</h1>")
    (folder / "logs/train").mkdir(parents=True, exist_ok=True)
    for run in study_of().runs():
        (folder / f"logs/train/{run}.log").write_text(f"training {run}")


def track(results: Path) -> dict[str, Any]:
    """Import results/synthetic; returns the receipt."""
    folder = results / "synthetic"
    tracking.track(folder, f"sqlite:///{results}/mlflow.db", folder / "mlflow.json")
    return dict(read_json(folder / "mlflow.json"))


def query(results: Path, text: str, *values: Any) -> list[Any]:
    """Rows of the store's database."""
    with closing(sqlite3.connect(results / "mlflow.db")) as connection:
        return connection.execute(text, values).fetchall()


def content(results: Path) -> dict[str, Any]:
    """Everything in the store, with names in place of the ids that MLflow chooses."""
    names = dict(query(results, "SELECT run_uuid, name FROM runs"))
    # Duplicate names, rows without a run and folders without a run would all show up here.
    found: dict[str, Any] = {
        "names": sorted(names.values()),
        "runs": sorted(
            query(results, "SELECT name, status, start_time, end_time, lifecycle_stage FROM runs")
        ),
        "experiments": sorted(query(results, "SELECT name, lifecycle_stage FROM experiments")),
        "experiment_tags": sorted(query(results, "SELECT * FROM experiment_tags")),
    }
    for table, columns in (
        ("tags", "key, value"),
        ("params", "key, value"),
        ("metrics", "key, value, timestamp, step, is_nan"),
        ("latest_metrics", "key, value, timestamp, step, is_nan"),
    ):
        rows = query(results, f"SELECT run_uuid, {columns} FROM {table}")
        found[table] = sorted((names[run], *rest) for run, *rest in rows)
    root = results / "mlartifacts" / "synthetic"
    found["artifacts"] = sorted(
        (names[file.relative_to(root).parts[0]], *file.relative_to(root).parts[1:], sha256_of(file))
        for file in root.rglob("*")
        if file.is_file()
    )
    found["folders"] = sorted(names[folder.name] for folder in root.iterdir())
    return found


def values_of(results: Path, run: str) -> dict[str, float]:
    """Latest value of each metric of a run."""
    return dict(
        query(
            results,
            "SELECT key, value FROM latest_metrics JOIN runs USING (run_uuid) WHERE name = ?",
            run,
        )
    )


def tags_of(results: Path, run: str) -> dict[str, str]:
    """Tags of a run."""
    return dict(
        query(results, "SELECT key, value FROM tags JOIN runs USING (run_uuid) WHERE name = ?", run)
    )


def curve_of(results: Path, run: str, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a run's metric, by step."""
    return query(
        results,
        "SELECT step, value FROM metrics JOIN runs USING (run_uuid) "
        "WHERE name = ? AND key = ? ORDER BY step",
        run,
        metric,
    )


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ of a complete study, not yet in MLflow: read only."""
    results = tmp_path_factory.mktemp("untracked") / "results"
    finish(build_results(results, study_of()))
    return results


@pytest.fixture(scope="module")
def tracked(untracked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, imported once: read only."""
    results = tmp_path_factory.mktemp("tracked") / "results"
    shutil.copytree(untracked, results)
    track(results)
    return results


@pytest.fixture
def results(tracked: Path, tmp_path: Path) -> Path:
    """A copy of the imported study that a test may change."""
    shutil.copytree(tracked, tmp_path / "results")
    return tmp_path / "results"


# --- what is in the store ---------------------------------------------------------------------


def test_every_run_once_and_flat(tracked: Path) -> None:
    assert content(tracked)["names"] == sorted(["study", *study_of().runs()])
    assert query(tracked, "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId'") == [(0,)]
    assert {row[1] for row in content(tracked)["runs"]} == {"FINISHED"}


def test_numbers_are_those_of_the_run_folder(tracked: Path) -> None:
    collected = pd.read_csv(tracked / "synthetic/runs.csv").set_index("run")
    for run in study_of().runs():
        summary = read_json(tracked / "synthetic/runs" / run / "summary.json")
        found = values_of(tracked, run)
        # The final losses are the probe's, which runs.csv has; a diverged run has none.
        for key in ("validation_loss", "validation_bits_per_byte"):
            value = collected.loc[run, key]
            assert found.get(f"final/{key}") == (None if math.isnan(value) else value), (run, key)
        for metric, key in (
            ("final/train_loss", "train_loss"),
            ("cost/tokens_per_second", "tokens_per_second"),
            ("stability/diverged_step", "diverged_step"),
        ):
            assert found.get(metric) == summary[key], (run, metric)
        assert found["stability/diverged"] == (summary["status"] == "diverged")


def test_curves(tracked: Path) -> None:
    lines = read_jsonl(tracked / f"synthetic/runs/{RUN}/metrics.jsonl")
    trained = [line for line in lines if line["step"] > 0]
    for metric, key in (("train/loss", "loss"), ("train/grad_norm", "grad_norm")):
        assert curve_of(tracked, RUN, metric) == [(line["step"], line[key]) for line in trained]
    assert curve_of(tracked, RUN, "validation/loss") == [
        (line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line
    ]
    mixing = read_jsonl(tracked / f"synthetic/runs/{RUN}/mixing.jsonl")
    for key in ("gain_forward", "gain_backward", "identity_distance", "stream_similarity"):
        expected = [(line["step"], pytest.approx(np.mean(line[key]))) for line in mixing]
        assert curve_of(tracked, RUN, f"mixing_in_training/{key}") == expected
    lines = [{"step": step} for step in range(1, 10_001)]
    kept = [line["step"] for line in thinned(lines)]
    assert len(kept) == CURVE_POINTS
    assert (kept[0], kept[-1]) == (1, 10_000)


def test_diverged_run_has_its_place_and_no_non_finite_value(tracked: Path) -> None:
    assert query(tracked, "SELECT count(*) FROM metrics WHERE is_nan OR abs(value) > 1e300") == [
        (0,)
    ]
    found, tags = values_of(tracked, DIVERGED), tags_of(tracked, DIVERGED)
    assert (found["stability/diverged"], found["stability/diverged_step"]) == (1, DIVERGED_STEP)
    assert "final/validation_loss" not in found
    assert (tags["status"], tags["diverged_step"]) == ("diverged", str(DIVERGED_STEP))
    assert curve_of(tracked, DIVERGED, "train/loss")[-1][0] == DIVERGED_STEP - 1


def test_tags_parameters_and_artifacts(tracked: Path) -> None:
    expected = {
        "mhclite.run": RUN,
        "kind": "training",
        "cell": "d4 mhc",
        "seed": "0",
        "status": "completed",
        "git_commit": "f" * 40,
        "hardware": "Synthetic CPU, 2 cores, 8 GiB memory",
    }
    assert expected.items() <= tags_of(tracked, RUN).items()
    params = dict(
        query(tracked, "SELECT key, value FROM params JOIN runs USING (run_uuid) WHERE name=?", RUN)
    )
    assert params["training.batch_size"] == "16"
    assert params["connection.sinkhorn_iterations"] == "20"
    found = content(tracked)["artifacts"]
    files = {(row[0], "/".join(row[2:-1])): row[-1] for row in found}
    for name in ("report.html", "study.json", "tables/results.md", "figures/loss.png"):
        assert files["study", name] == sha256_of(tracked / "synthetic" / name)
    assert (RUN, f"logs/{RUN}.log") in files


def test_a_view_of_each_model_size_fits_its_runs(tracked: Path) -> None:
    tags = dict(query(tracked, "SELECT key, value FROM experiment_tags"))
    assert max(map(len, tags.values())) < 20_000  # MLflow's limit
    metrics = {row[0] for row in query(tracked, "SELECT DISTINCT key FROM metrics")}
    known = {f"metrics.`{name}`" for name in metrics}
    known |= {f"tags.`{key}`" for (key,) in query(tracked, "SELECT DISTINCT key FROM tags")}
    cells: set[str] = set()
    for (model,) in query(tracked, "SELECT DISTINCT value FROM tags WHERE key = 'model'"):
        state = json.loads(json.loads(tags[f"mlflow.sharedViewState.{model}"])["state"])
        cells |= set(state["groupsExpanded"])
        assert {chart["metricKey"] for chart in state["compareRunCharts"]} == metrics
        assert set(state["selectedColumns"]) <= known
    of_runs = {row[0] for row in query(tracked, "SELECT value FROM tags WHERE key = 'cell'")}
    assert cells == {f"tag.cell.{cell}" for cell in of_runs}


# --- a view: once, twice, after a change, after a deletion -------------------------------------


def test_importing_twice_changes_nothing(results: Path) -> None:
    first, before = read_json(results / "synthetic/mlflow.json")["runs"], content(results)
    ids = query(results, "SELECT run_uuid FROM runs ORDER BY run_uuid")
    assert track(results)["runs"] == first
    assert content(results) == before
    assert query(results, "SELECT run_uuid FROM runs ORDER BY run_uuid") == ids


def test_changed_run_is_replaced_and_a_removed_seed_removed(results: Path) -> None:
    before, receipt = content(results), read_json(results / "synthetic/mlflow.json")["runs"]
    folder = results / "synthetic/runs" / RUN
    lines = read_jsonl(folder / "metrics.jsonl")
    lines[7]["loss"] = 99.0
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    seal(folder, {**read_json(folder / "summary.json"), "train_loss": 9.25})
    collect(resolved_of(study_of(), results), results / "synthetic")
    after = track(results)["runs"]
    # The study's own run holds runs.csv, which has changed too.
    assert {run for run in receipt if receipt[run] != after[run]} == {RUN, "study"}
    assert curve_of(results, RUN, "train/loss")[6] == (7, 99.0)
    assert values_of(results, RUN)["final/train_loss"] == 9.25
    # As many rows as before, everywhere: nothing was appended, nothing was left behind.
    assert {k: len(v) for k, v in content(results).items()} == {
        k: len(v) for k, v in before.items()
    }

    smaller = study_of(seeds=(0,))
    run_stability(smaller, results / "synthetic")
    collect(resolved_of(smaller, results), results / "synthetic")
    finish(results / "synthetic")
    track(results)
    assert content(results)["names"] == sorted(["study", *smaller.runs()])
    assert content(results)["folders"] == content(results)["names"]


def test_an_import_that_was_cut_off_is_completed(
    untracked: Path, tracked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid the files of its third run; and so a store that was deleted is rebuilt."""
    results = tmp_path / "results"
    shutil.copytree(untracked, results)
    add, count = Store.add_artifact, 0

    def dying(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if arguments[3].endswith("metrics.jsonl") and count > 15:
            raise RuntimeError("cut off")
        add(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "add_artifact", dying)
        with pytest.raises(RuntimeError, match="cut off"):
            track(results)
    assert 2 <= len(content(results)["names"]) < 9
    track(results)
    assert content(results) == content(tracked)


def test_an_import_waits_for_another(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mhclite")
    second = Thread(target=track, args=(results,))
    with locked(results / ".mlflow.db.lock"):
        second.start()
        while "is writing to the same store" not in caplog.text:
            time.sleep(0.05)
        (results / "synthetic/mlflow.json").unlink()
    second.join()
    assert (results / "synthetic/mlflow.json").is_file()


def test_what_others_did_in_the_store(results: Path) -> None:
    """A run deleted in the UI comes back; a run of the user's own is left alone."""
    from mlflow import MlflowClient

    before = content(results)
    client = MlflowClient(f"sqlite:///{results}/mlflow.db")
    receipt = read_json(results / "synthetic/mlflow.json")
    client.delete_run(receipt["runs"][RUN]["id"])
    track(results)
    assert content(results) == before
    own = client.create_run(receipt["experiment"]["id"], run_name="my own").info.run_id
    note = results / "mlartifacts/synthetic" / own / "artifacts/note.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    track(results)
    assert sorted([*before["names"], "my own"]) == content(results)["names"]
    assert content(results)["folders"] == content(results)["names"]


# --- mistakes --------------------------------------------------------------------------------


def test_uris() -> None:
    assert database_of("sqlite:///results/mlflow.db") == Path.cwd() / "results/mlflow.db"
    assert database_of("sqlite:////data/mlflow.db") == Path("/data/mlflow.db")
    assert database_of("https://host:5000/path") is None
    for uri in ("mlruns", "sqlite://", "sqlite:///:memory:", "http://", "ftp://x"):
        with pytest.raises(UserError, match="expected a file as sqlite:///"):
            database_of(uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        database_of("https://me:s3cret@host/x")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("damage", ["no database", "another MLflow"])
def test_store_that_cannot_be_used_is_one_line(results: Path, damage: str) -> None:
    if damage == "no database":
        (results / "mlflow.db").write_text("this is not a database, whatever its name says")
    else:
        with closing(sqlite3.connect(results / "mlflow.db")) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = 'cfd24bdc0731'")
    with pytest.raises(UserError, match=r"mlflow\.db cannot be used .*run the same command"):
        track(results)


@pytest.mark.parametrize("missing", ["report.html", f"runs/{RUN}/summary.json"])
def test_incomplete_study_is_one_line(untracked: Path, tmp_path: Path, missing: str) -> None:
    results = tmp_path / "results"
    shutil.copytree(untracked, results)
    (results / "synthetic" / missing).unlink()
    with pytest.raises(UserError, match=r"snakemake --cores all"):
        track(results)
    assert not (results / "mlflow.db").exists()
