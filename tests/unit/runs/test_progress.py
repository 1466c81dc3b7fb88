"""`status`: every state that a run can be in, told from its folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from tiny import run_record, run_summary

from mhclite import cli
from mhclite.files import write_json
from mhclite.records import to_json
from mhclite.runs import progress
from mhclite.runs.folder import RunFolder
from mhclite.runs.key import code_digest
from mhclite.study.load import load_study

ROOT = Path(__file__).parents[3]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of 6 runs, of 100 steps each."""
    content = yaml.safe_load((ROOT / "config/smoke.yaml").read_text())
    content |= {"name": "watched", "variants": ["residual", "hc", "mhc"], "conditions": {}}
    content["training"] |= {"steps": 100}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "study.yaml"


@pytest.fixture
def place(study: Path) -> Callable[..., Path]:
    """Makes the folder of a run as training leaves it."""
    runs = load_study(study).runs()
    out = study.parent / "results" / "watched"

    def make(
        run: str,
        step: int = 0,
        wall: float | None = None,
        log: str | None = None,
        status: str | None = None,
        **training: Any,
    ) -> Path:
        folder = out / "runs" / run
        folder.mkdir(parents=True)
        wall = time.time() if wall is None else wall
        lines = [
            json.dumps({"step": at, "seconds": 0.5, "wall": wall - (step - at) * 0.5})
            for at in range(1, step + 1)
        ]
        if step:
            (folder / "timing.jsonl").write_text("\n".join(lines) + "\n")
        config = replace(runs[run], training=replace(runs[run].training, **training))
        write_json(folder / "run.json", to_json(run_record(config, "k", code_digest(config))))
        if status is not None:
            diverged = step if status == "diverged" else None
            summary = run_summary(config, "k", status=status, diverged_step=diverged)
            write_json(folder / "summary.json", to_json(summary))
            for name in ("metrics.jsonl", "mixing.jsonl"):
                (folder / name).touch()
        if log is not None:
            (out / "logs" / "train").mkdir(parents=True, exist_ok=True)
            (out / "logs" / "train" / f"{run}.log").write_text(log)
        return folder

    return make


def said(study: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    code = cli.main(["status", str(study), "--results", str(study.parent / "results")])
    assert code == 0
    return capsys.readouterr().out.splitlines()


def test_every_state(
    study: Path, place: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    long_ago = time.time() - 5000
    place("sotu-d2-residual-s0", 100, long_ago, status="completed")
    place("sotu-d2-residual-s1", 40, long_ago, status="diverged")
    place("sotu-d2-hc-s0", 30)
    place("sotu-d2-hc-s1", 20, long_ago, log="12:00:00 step 20\ninterrupted: SIGTERM, saved\n")
    place("sotu-d2-mhc-s0", 10, long_ago, log="error: no GPU\nmore\n")
    assert said(study, capsys) == [
        "study watched: 6 runs: 1 finished, 1 under way, 1 diverged, 1 failed, 1 stopped, "
        "1 waiting",
        "  under way  sotu-d2-hc-s0        step 30 of 100, 2 steps/s, 35 s left",
        "  diverged   sotu-d2-residual-s1  at step 40",
        "  failed     sotu-d2-mhc-s0       error: no GPU",
        "  stopped    sotu-d2-hc-s1        step 20 of 100; interrupted: SIGTERM, saved",
        # 35 + 40 + 45 + 50 s
        "about 2.8 min of training left",
    ]


def test_a_run_of_other_settings_code_or_text_is_outdated(
    study: Path, place: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place("sotu-d2-hc-s0", 100, status="completed", weight_decay=0.7)
    other = place(
        "sotu-d2-hc-s1", 100, status="completed", checkpoint_interval=7
    )  # decides nothing
    lines = said(study, capsys)
    assert "1 finished, 1 outdated, 4 waiting" in lines[0]
    assert lines[1].split() == ["outdated", "sotu-d2-hc-s0", "of", "other", "settings"]
    config, record = load_study(study).runs()["sotu-d2-hc-s1"], RunFolder(other).record()
    for corpus, code, expected in (
        (record.corpus.digest, record.code, ""),
        (None, record.code, ""),
        (None, "another", "of other code"),
        ("another", record.code, "of another corpus"),
    ):
        assert progress.outdated(config, corpus, replace(record, code=code)) == expected


def test_what_a_finished_run_lost(
    study: Path, place: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose whole folder is gone has not failed."""
    log = "12:00:00 step 100 of 100: loss 4.8034\n"
    folder = place("sotu-d2-hc-s0", 100, status="completed", log=log)
    (folder / "metrics.jsonl").unlink()
    lines = said(study, capsys)
    assert lines[1].split() == ["damaged", "sotu-d2-hc-s0", "metrics.jsonl", "is", "gone"]
    assert str(folder / "metrics.jsonl") in lines[-1]  # what the start of the DAG says
    shutil.rmtree(folder)
    assert said(study, capsys)[0].endswith("6 waiting")


def test_a_held_lock_is_a_run_under_way(
    study: Path, place: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """However long ago its last step was, for instance in a long evaluation."""
    folder = place("sotu-d2-hc-s0", 30, time.time() - 5000)
    with RunFolder(folder).only_writer():
        assert "1 under way" in said(study, capsys)[0]
    assert "stopped" in said(study, capsys)[0]


def test_who_trains_a_run_that_is_under_way_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then goes on where the other ended."""
    caplog.set_level("INFO")
    done: list[str] = []

    def second() -> None:
        with RunFolder(tmp_path).only_writer():
            done.append("second")

    with RunFolder(tmp_path).only_writer():
        waiting = Thread(target=second)
        waiting.start()
        while f"(pid {os.getpid()}) is training this run" not in caplog.text:
            time.sleep(0.01)
        done.append("first")
    waiting.join()
    assert done == ["first", "second"]


@pytest.mark.parametrize(
    ("log", "state"),
    [
        ("12:00:00 step 30\ninterrupted: SIGINT, saved\nW1125 torchrun: sent SIGTERM\n", "stopped"),
        ("interrupted: SIGINT, saved\n12:00:09 step 3\n", "under way"),  # appended by the next try
    ],
)
def test_what_has_just_ended_is_not_under_way(
    log: str,
    state: str,
    study: Path,
    place: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Right after Ctrl-C, when its last step is still fresh."""
    place("sotu-d2-hc-s0", 30, log=log)
    assert f"1 {state}" in said(study, capsys)[0]


def test_needs_no_torch(study: Path) -> None:
    """A login node has none, and it is asked often."""
    script = (
        "import sys\nfrom mhclite.cli import main\nmain(sys.argv[1:])\n"
        "print(*{name.split('.')[0] for name in sys.modules})"
    )
    arguments = [sys.executable, "-c", script, "status", str(study)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "mhclite" in loaded
    assert not loaded & {"torch", "pandas", "mlflow", "snakemake"}
