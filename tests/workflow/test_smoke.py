"""The smoke study from end to end: real text, up to the report and MLflow.

Tests that change the checkout put it back; they share one run of the study.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path

import pandas as pd
import pytest
from checkout import VARIANTS, Checkout

from mhclite.files import read_jsonl, sha256_of
from mhclite.jobs import PREPARED

OUT = "results/smoke"
EVIDENCE = {"collect": 1, "evidence": 1, "track": 1, "all": 1}


def tracked(checkout: Checkout) -> dict[str, list[float]]:
    """Run name -> every final validation loss that MLflow holds for it."""
    with sqlite3.connect(checkout.folder / "results/mlflow.db") as database:
        rows = database.execute(
            "select runs.name, latest_metrics.value from runs"
            " left join latest_metrics on runs.run_uuid = latest_metrics.run_uuid"
            " and latest_metrics.key = 'final/validation_loss'"
            " where runs.lifecycle_stage = 'active'"
        ).fetchall()
    found: dict[str, list[float]] = {}
    for name, value in rows:
        found.setdefault(name, []).append(value)
    return found


def test_every_variant_is_there_and_all_views_say_the_same_numbers(finished: Checkout) -> None:
    out = finished.folder / OUT
    runs = pd.read_csv(out / "runs.csv")
    assert set(runs["variant"]) == set(VARIANTS)
    assert len(runs) == 2 * len(VARIANTS) + 2  # two seeds, and those of one condition
    page = (out / "report.html").read_text()
    in_mlflow = tracked(finished)
    for row in runs.itertuples():
        summary = json.loads((out / "runs" / row.run / "summary.json").read_text())
        metrics = read_jsonl(out / "runs" / row.run / "metrics.jsonl")
        assert summary["metrics_sha256"] == sha256_of(out / "runs" / row.run / "metrics.jsonl")
        assert summary["weights_sha256"] == sha256_of(out / "runs" / row.run / "weights.pt")
        on_windows = row.validation_loss_windows
        assert metrics[-1]["validation_loss"] == summary["validation_loss"] == on_windows
        assert in_mlflow[row.run] == [row.validation_loss]  # of the whole split, from the probe
    means = runs[runs["condition"] == "base"].groupby("variant")["validation_loss"].mean()
    for variant, mean in means.items():
        assert f"{mean:.4f}" in page, f"the report lacks the mean loss of {variant}"
    assert len(in_mlflow) == len(runs) + 1, "one MLflow run a training run, and the study's"


def test_models_learn(finished: Checkout) -> None:
    runs = pd.read_csv(finished.folder / OUT / "runs.csv")
    first = [
        read_jsonl(finished.folder / OUT / "runs" / run / "metrics.jsonl")[0]["validation_loss"]
        for run in runs["run"]
    ]
    assert (runs["validation_loss"] < pd.Series(first) - 0.5).all()


def test_snakemake_report_holds_every_figure_and_table(finished: Checkout) -> None:
    code, output = finished.snakemake("--report", "snakemake-report.html")
    assert code == 0, output
    page = (finished.folder / "snakemake-report.html").read_text()
    captions = sorted((finished.folder / OUT / "captions").iterdir())
    assert len(captions) > 10
    for caption in captions:
        assert any(f"{caption.stem}.{suffix}" in page for suffix in ("png", "html"))
        assert json.dumps(caption.read_text())[1:-1] in page, caption.name


def test_editing_one_variant_reruns_that_variant(finished: Checkout) -> None:
    module = finished.folder / "src/mhclite/connections/hc.py"
    before = module.read_text()
    try:
        module.write_text(before + "\nUNUSED = 1\n")
        planned = finished.planned()
    finally:
        module.write_text(before)
    assert planned == {
        "train": 2,
        "probe": 1,
        "throughput": 1,
        "stability": 1,
        **EVIDENCE,
    }


def test_editing_a_figure_or_a_comment_trains_nothing(finished: Checkout) -> None:
    edits = {
        finished.folder / "src/mhclite/evidence/topics/losses.py": "UNUSED = 1",
        finished.folder / "src/mhclite/connections/mhc_lite.py": "# a remark, and a newer file",
    }
    before = {module: module.read_text() for module in edits}
    try:
        for module, line in edits.items():
            module.write_text(f"{before[module]}\n{line}\n")
        planned = finished.planned()
    finally:
        for module, text in before.items():
            module.write_text(text)
    assert set(planned) == {"evidence", "track", "all"}


def test_a_setting_reruns_exactly_what_depends_on_it(finished: Checkout) -> None:
    code, output = finished.snakemake("-n", "--config", "stability={spike_sigmas: 5.0}")
    assert code == 0, output
    # The job of the probes finds them all there.
    assert finished.jobs(output) == {"resolve": 1, "stability": 1, "probe": 1, **EVIDENCE}
    # Names of runs, not the settings before and after, which Snakemake prints.
    assert max(map(len, output.splitlines())) < 1200
    seed = finished.planned("--config", "seeds=[0, 7]")
    assert seed["train"] == len(VARIANTS) + 1  # one under a condition
    assert seed["probe"] == 1  # of all runs, which makes those that are missing
    assert "throughput" not in seed
    assert "prepare" not in seed


def test_outdated_runs_are_trained_again_without_snakemakes_records(finished: Checkout) -> None:
    """As in another clone that the results were moved to, or after `--touch`."""
    records = finished.folder / ".snakemake"
    records.rename(finished.folder / "records")
    try:
        assert finished.planned() == {}
        longer = finished.planned("--config", "training={steps: 41}")
        assert longer["train"] == 2 * len(VARIANTS) + 2
    finally:
        shutil.rmtree(records, ignore_errors=True)
        (finished.folder / "records").rename(records)


RUN = "sotu-d2-mhc-s0"
AFTER_TRAINING = {"probe", "stability", *EVIDENCE}
MISSED = (  # together: what is lost, and the jobs that all of it takes
    (
        ("throughput/d2.json", f"probes/{RUN}.json", "captions/claims.txt"),
        {"throughput", "probe", *EVIDENCE},
    ),
    (
        ("resolved.json", "../corpora/*/validation-00000.bin", "runs/sotu-d2-hc-s1"),
        {"resolve", "prepare", "train", *AFTER_TRAINING},
    ),
)


@pytest.mark.parametrize(("patterns", "jobs"), MISSED)
def test_what_is_lost_of_a_finished_study_is_missed(
    patterns: tuple[str, ...], jobs: set[str], finished: Checkout, tmp_path: Path
) -> None:
    """Of the kinds of files, one for each rule; tests/unit/planning/test_keys.py has the others."""
    out = finished.folder / OUT
    paths = [path.resolve() for pattern in patterns for path in out.glob(pattern)]
    assert len(paths) == len(patterns)
    for i, path in enumerate(paths):
        path.rename(tmp_path / str(i))
    try:
        code, output = finished.snakemake("--dry-run")
    finally:
        for i, path in enumerate(paths):
            (tmp_path / str(i)).rename(path)
    assert code == 0, output
    planned = finished.jobs(output)
    said = [line for line in output.splitlines() if line.startswith("missing, and made again")]
    for path in paths:
        assert str(path.relative_to(finished.folder.resolve())) in "\n".join(said)
    assert set(planned) == jobs


def test_what_is_lost_is_missed_whatever_is_asked_for(finished: Checkout, tmp_path: Path) -> None:
    paths = (finished.folder / OUT / "throughput/d2.json", finished.folder / OUT / "probes")
    for path in paths:
        path.rename(tmp_path / path.name)
    try:
        planned = finished.planned(f"{OUT}/report.html")
    finally:
        for path in paths:
            (tmp_path / path.name).rename(path)
    assert set(planned) == {"throughput", "probe", "collect", "evidence"}


def test_what_no_result_is_made_from_is_not_missed(finished: Checkout, tmp_path: Path) -> None:
    run = f"{OUT}/runs/{RUN}"
    places = [f"{run}/weights.pt", f"{run}/timing.jsonl", f"{run}/result.json", f"{OUT}/logs"]
    for i, place in enumerate(places):
        (finished.folder / place).rename(tmp_path / str(i))
    try:
        assert finished.planned() == {}
    finally:
        shutil.rmtree(finished.folder / OUT / "logs", ignore_errors=True)
        for i, place in enumerate(places):
            (tmp_path / str(i)).rename(finished.folder / place)


def test_what_is_lost_is_made_again(finished: Checkout, tmp_path: Path) -> None:
    checkout = finished.copy(tmp_path / "copy")
    runs = checkout.folder / OUT / "runs"
    before = sha256_of(runs / RUN / "metrics.jsonl")
    (runs / RUN / "mixing.jsonl").unlink()
    shutil.rmtree(runs / "sotu-d2-identity-s1")
    code, output = checkout.snakemake("--until", "train")
    assert code == 0, output
    assert (runs / RUN / "mixing.jsonl").is_file()
    assert sha256_of(runs / RUN / "metrics.jsonl") == before
    assert (runs / "sotu-d2-identity-s1" / "summary.json").is_file()
    assert re.search(r"train\s+2", output)
    # And what is made from them, by the next command.
    planned = checkout.planned()
    assert "train" not in planned
    assert set(planned) == AFTER_TRAINING


def test_a_job_that_no_cluster_takes_costs_no_corpus(finished: Checkout, tmp_path: Path) -> None:
    """Snakemake deletes the declared output of a job that failed: one that never began, here."""
    checkout = finished.copy(tmp_path / "copy")
    (manifest,) = checkout.folder.glob("results/corpora/*/manifest.json")
    receipt = manifest.parent / PREPARED
    target = str(receipt.relative_to(checkout.folder))
    before = manifest.stat().st_mtime_ns
    path = checkout.environment["PATH"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\necho invalid account >&2\nexit 1\n")
    (tmp_path / "bin/sbatch").chmod(0o755)
    checkout.environment = {**checkout.environment, "PATH": f"{tmp_path}/bin:{path}"}
    slurm = ("--forcerun", "prepare", "--executor", "slurm", "--jobs", "1")
    code, output = checkout.snakemake(target, *slurm)
    assert code != 0, output
    receipt.unlink(missing_ok=True)  # where the plugin ended before it took up the job
    checkout.environment["PATH"] = path
    code, output = checkout.snakemake(target)
    assert code == 0, output
    assert receipt.is_file()
    assert manifest.stat().st_mtime_ns == before, "it was prepared from the start"


def test_config_on_the_command_line_replaces_no_results(finished: Checkout) -> None:
    report = (finished.folder / OUT / "report.html").read_bytes()
    code, output = finished.snakemake("--config", "stability={spike_sigmas: 5.0}")
    assert code != 0
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    assert "name=" in line
    assert "Job stats" not in output
    assert (finished.folder / OUT / "report.html").read_bytes() == report
    assert finished.planned("--config", "name=apart", "seeds=[0]")["train"] == len(VARIANTS) + 1
    assert "train" not in finished.planned("--config", "tracking={uri: 'http://127.0.0.1:9'}")


def test_mlflow_store_is_rebuilt_from_results(finished: Checkout) -> None:
    before = tracked(finished)
    results = finished.folder / "results"
    (results / "mlflow.db").unlink()
    shutil.rmtree(results / "mlartifacts")
    (finished.folder / OUT / "mlflow.json").unlink()
    code, output = finished.snakemake()
    assert code == 0, output
    assert re.search(r"track\s+1", output)
    assert not re.search(r"train\s+\d", output)
    assert tracked(finished) == before


def test_a_step_that_fails_after_an_update_is_done_by_the_same_command(
    finished: Checkout, tmp_path: Path
) -> None:
    """Snakemake has deleted what it would have replaced, and the report is there and newer.

    Last, since Snakemake forgets what the measurement was made of, which is put back.
    """
    module = finished.folder / "src/mhclite/measure/throughput.py"
    measured = finished.folder / OUT / "throughput/d2.json"
    shutil.copy2(measured, tmp_path / "kept.json")
    before = module.read_text()
    try:
        module.write_text(before + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
        code, output = finished.snakemake()
        module.write_text(before)
        lost = not measured.exists()
        planned = finished.planned()
    finally:
        module.write_text(before)
        measured.parent.mkdir(exist_ok=True)  # Snakemake has deleted the folder with its last file
        shutil.copy2(tmp_path / "kept.json", measured)
    assert code != 0, output
    assert lost
    assert set(planned) == {"throughput", "evidence", "track", "all"}
