"""The smoke study from end to end: real text, up to the report and MLflow.

Tests that change the checkout put it back; they share one run of the study.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
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
        assert in_mlflow[row.run] == [row.validation_loss]  # the probe's
        assert row.validation_loss < metrics[0]["validation_loss"] - 0.5, "it learns nothing"
    means = runs[runs["condition"] == "base"].groupby("variant")["validation_loss"].mean()
    for variant, mean in means.items():
        assert f"{mean:.3f}" in page, f"the report lacks the mean loss of {variant}"
    assert len(in_mlflow) == len(runs) + 1, "one MLflow run a training run, and the study's"


def test_the_terminal_has_a_line_a_job_and_what_was_found(finished: Checkout) -> None:
    lines = (finished.folder / "terminal.txt").read_text().splitlines()
    jobs = [line for line in lines if re.match(r" *\d+/\d+  ", line)]
    total = sum(finished.jobs("\n".join(lines)).values())
    assert len(jobs) == total - 1  # `all` makes nothing
    for row in pd.read_csv(finished.folder / OUT / "runs.csv").itertuples():
        loss = f"loss {row.validation_loss_windows:.3f}"
        assert any(re.search(f" {row.run} .*{loss}", line) for line in jobs), row.run
    assert len(lines) < 2.5 * total + 30
    assert max(map(len, lines)) < 250
    text = "\n".join(lines[lines.index(jobs[-1]) :])
    assert "bigrams" in text
    assert f"{OUT}/report.html" in text
    log = min((finished.folder / ".snakemake/log").glob("*.log"))
    assert log.read_text().count("rule train:") == len(
        pd.read_csv(finished.folder / OUT / "runs.csv")
    )


def test_snakemake_report_holds_every_figure_and_table(finished: Checkout) -> None:
    code, output = finished.snakemake("--report", "snakemake-report.html")
    assert code == 0, output
    page = (finished.folder / "snakemake-report.html").read_text()
    captions = sorted((finished.folder / OUT / "captions").iterdir())
    assert len(captions) > 7
    for caption in captions:
        assert any(f"{caption.stem}.{suffix}" in page for suffix in ("png", "html"))
        assert json.dumps(caption.read_text())[1:-1] in page, caption.name


@contextmanager
def edited(checkout: Checkout, lines: dict[str, str]) -> Iterator[None]:
    """With a line more in each of these modules."""
    modules = {checkout.folder / "src/mhclite" / name: line for name, line in lines.items()}
    before = {module: module.read_text() for module in modules}
    try:
        for module, line in modules.items():
            module.write_text(f"{before[module]}\n{line}\n")
        yield
    finally:
        for module, text in before.items():
            module.write_text(text)


def test_an_edit_reruns_what_it_decides(finished: Checkout) -> None:
    with edited(finished, {"connections/mhc.py": "UNUSED = 1"}):
        variant = {"train": 2, "probe": 1, "throughput": 1, "stability": 1, **EVIDENCE}
        assert finished.planned() == variant
    nothing = {
        "evidence/topics/losses.py": "UNUSED = 1",
        "connections/mhc_lite.py": "# a remark, and a newer file",
    }
    with edited(finished, nothing):
        assert set(finished.planned()) == {"evidence", "track", "all"}


def test_a_setting_reruns_exactly_what_depends_on_it(finished: Checkout) -> None:
    code, output = finished.snakemake("-n", "--config", "stability={spike_sigmas: 5.0}")
    assert code == 0, output
    # The job of the probes finds them all there.
    assert finished.jobs(output) == {"resolve": 1, "stability": 1, "probe": 1, **EVIDENCE}
    # What runs and why, not the settings before and after, which Snakemake prints.
    assert len(output.splitlines()) < 40
    assert max(map(len, output.splitlines())) < 300
    # A seed; and where runs are tracked, which decides nothing.
    tracking = "tracking={uri: 'http://127.0.0.1:9'}"
    seed = finished.planned("--config", "seeds=[0, 7]", tracking)
    assert seed["train"] == len(VARIANTS) + 1  # one under a condition
    assert seed["probe"] == 1  # of all runs, which makes those that are missing
    assert "throughput" not in seed
    assert "prepare" not in seed


RUN = "sotu-d2-mhc-s0"
AFTER_TRAINING = {"probe", "stability", *EVIDENCE}
# What is lost together, what is asked for, and the jobs that all of it takes. Of the kinds of
# files, one for each rule; tests/unit/planning/test_keys.py has the others.
LOST: dict[str, tuple[tuple[str, ...], tuple[str, ...], set[str]]] = {
    "measurements and runs": (
        (
            *("throughput/d2.json", f"probes/{RUN}.json", "captions/claims.txt", "resolved.json"),
            *("../corpora/*/validation-00000.bin", "runs/sotu-d2-mhc-s1"),
        ),
        (),
        {"resolve", "prepare", "train", "throughput", *AFTER_TRAINING},
    ),
    "whatever is asked for": (
        ("throughput/d2.json", "probes"),
        (f"{OUT}/report.html",),
        {"throughput", "probe", "collect", "evidence"},
    ),
    "what no result is made from, and Snakemake's records, as in another clone": (
        (
            *(f"runs/{RUN}/{name}" for name in ("weights.pt", "timing.jsonl", "result.json")),
            *("logs", "../../.snakemake"),
        ),
        (),
        set(),
    ),
}


@contextmanager
def lost(checkout: Checkout, patterns: tuple[str, ...], kept: Path) -> Iterator[list[Path]]:
    """Without these of its study's files."""
    found = [path for pattern in patterns for path in (checkout.folder / OUT).glob(pattern)]
    paths = [path.resolve() for path in found]
    assert len(paths) == len(patterns)
    for i, path in enumerate(paths):
        path.rename(kept / str(i))
    try:
        yield paths
    finally:
        for i, path in enumerate(paths):
            shutil.rmtree(path, ignore_errors=True)
            (kept / str(i)).rename(path)


@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=[pytest.mark.exhaustive] * bool(target))
        for what, (_, target, _) in LOST.items()
    ],
)
def test_what_is_lost_of_a_finished_study_is_missed(
    what: str, finished: Checkout, tmp_path: Path
) -> None:
    patterns, target, jobs = LOST[what]
    with lost(finished, patterns, tmp_path) as paths:
        code, output = finished.snakemake("--dry-run", *target)
        if not jobs:
            longer = finished.planned("--config", "training={steps: 41}")
            assert longer["train"] == 2 * len(VARIANTS) + 2
    assert code == 0, output
    assert set(finished.jobs(output)) == jobs
    if jobs and not target:
        (number,) = re.findall(r"^missing, and made again \((\d+)\)", output, re.MULTILINE)
        assert int(number) >= len(paths)


@pytest.mark.exhaustive
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


def test_a_step_that_fails_after_an_update_is_done_by_the_same_command(
    finished: Checkout, tmp_path: Path
) -> None:
    """Snakemake has deleted what it would have replaced, and the report is there and newer.

    Last, since Snakemake forgets what the measurement was made of, which is put back.
    """
    measured = finished.folder / OUT / "throughput/d2.json"
    shutil.copy2(measured, tmp_path / "kept.json")
    try:
        dies = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
        with edited(finished, {"measure/throughput.py": dies}):
            code, output = finished.snakemake()
        assert not measured.exists()
        planned = finished.planned()
    finally:
        measured.parent.mkdir(exist_ok=True)  # Snakemake has deleted the folder with its last file
        shutil.copy2(tmp_path / "kept.json", measured)
    assert code != 0, output
    assert "FAILED  throughput d2" in output
    assert "results/smoke/logs/throughput/d2.log" in output
    assert set(planned) == {"throughput", "evidence", "track", "all"}
