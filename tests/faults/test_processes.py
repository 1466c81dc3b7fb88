"""Several processes of one run: the same batches and losses, continued with any number of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import configuration, write_corpus

from mhclite.config import RunConfig
from mhclite.data.batches import batch_starts
from mhclite.files import read_json, read_jsonl
from mhclite.training.loop import train

# Sums over a batch are taken in another order: the relative difference this makes grows with the
# steps, from about 1e-7 in the first.
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    train(settings(1), corpus, folder)
    return folder


def settings(processes: int, steps: int = 60) -> RunConfig:
    return configuration(
        processes=processes, steps=steps, checkpoint_interval=10, evaluation_interval=20
    )


def launch(processes: int, corpus: Path, folder: Path) -> subprocess.Popen[str]:
    """A run as the workflow starts it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    options = ["--config", json.dumps(settings(processes).to_json()), "--corpus", str(corpus)]
    return subprocess.Popen(
        [
            *(sys.executable, *(launcher if processes > 1 else [])),
            *("-m", "mhclite", "train", *options, "--out", str(folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def until_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    metrics = folder / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") <= step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def difference(one: Path, other: Path) -> float:
    """Largest relative difference of any metric of any step."""
    ours, theirs = (read_jsonl(folder / "metrics.jsonl") for folder in (one, other))
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    return max(
        abs(a[name] - b[name]) / max(abs(b[name]), 1e-12)
        for a, b in zip(ours, theirs, strict=True)
        for name in a
    )


@pytest.mark.parametrize("processes", [2, 4])
def test_as_many_processes_as_you_like(
    processes: int, corpus: Path, alone: Path, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    process = launch(processes, corpus, tmp_path)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    found = difference(tmp_path, alone)
    assert found < ROUNDING
    tell(f"processes: {processes} differ from 1 by at most {found:.1e} in any metric of 60 steps")


def test_batches_do_not_depend_on_the_number_of_processes() -> None:
    """Each process takes every count-th window of one batch, which seed and step decide."""
    whole = batch_starts(10_000, 7, 8, 3, 5).tolist()
    for count in (1, 2, 4):
        shares = [batch_starts(10_000, 7, 8, 3, 5)[rank::count].tolist() for rank in range(count)]
        assert sorted(start for share in shares for start in share) == sorted(whole)


def test_continued_with_other_numbers_of_processes_after_sigterm_and_a_dead_one(
    corpus: Path, alone: Path, tmp_path: Path
) -> None:
    # Two processes: a worker dies. torchrun ends the other; the last checkpoint is what is left.
    process = launch(2, corpus, tmp_path)
    until_step(tmp_path, 14, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (tmp_path / "summary.json").exists()

    # Four: SIGTERM to the launcher reaches all; they save at the same step.
    process = launch(4, corpus, tmp_path)
    until_step(tmp_path, 30, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (saved,) = set(re.findall(r"SIGTERM after step (\d+) of 60; saved", output))
    assert re.search(r"continuing at step (10|20) of 60", output), output
    newest = max((tmp_path / "checkpoints").glob("*.json"))
    assert read_json(newest)["step"] == int(saved) >= 30

    # One, to the end.
    process = launch(1, corpus, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"continuing at step {saved}" in output
    assert difference(tmp_path, alone) < ROUNDING
    assert read_json(tmp_path / "summary.json")["attempts"] == 3
