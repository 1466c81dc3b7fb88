"""Several processes of one run: the same batches and losses, continued with any number of them."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import configuration, write_corpus

from mhclite.config import RunConfig
from mhclite.files import read_json, read_jsonl
from mhclite.training.loop import train
from mhclite.training.torchrun import environment as environment_of_torchrun
from mhclite.training.torchrun import launcher

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


def launch(
    processes: int,
    corpus: Path,
    folder: Path,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[str]:
    """A run as the workflow starts it, with more environment."""
    options = ["--config", json.dumps(settings(processes).to_json()), "--corpus", str(corpus)]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", *launcher(processes)),
            *("mhclite", "train", *options, "--out", str(folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
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


# What an operator of training jobs exports: of processes that it believes to be there.
OPERATOR = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "trainer-0.nowhere.invalid",
    "MASTER_PORT": "23456",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_MASTER_ADDR": "trainer-0.nowhere.invalid",
}


def test_continued_with_other_numbers_of_processes_after_a_signal_and_a_dead_one(
    corpus: Path, alone: Path, tmp_path: Path
) -> None:
    # Two processes meet on their machine, whatever an operator exports. A worker dies; torchrun
    # ends the other; the last checkpoint is what is left.
    process = launch(2, corpus, tmp_path, OPERATOR)
    until_step(tmp_path, 14, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert not (tmp_path / "summary.json").exists()

    # Four: a signal that torchrun would die of, were it not told to hand it on, reaches all; they
    # save at the same step.
    process = launch(4, corpus, tmp_path, environment=environment_of_torchrun())
    until_step(tmp_path, 30, process)
    process.send_signal(signal.SIGUSR2)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert re.search(r"continuing at step (10|20) of 60", output), output
    (saved,) = set(re.findall(r"SIGUSR2 after step (\d+) of 60; saved", output))
    newest = max((tmp_path / "checkpoints").glob("*.json"))
    assert read_json(newest)["step"] == int(saved) >= 30

    # One, to the end.
    process = launch(1, corpus, tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert f"continuing at step {saved}" in output
    assert difference(tmp_path, alone) < ROUNDING
    assert read_json(tmp_path / "summary.json")["attempts"] == 3


def test_several_nodes_are_started_by_slurm_alone(tmp_path: Path) -> None:
    """In a job, srun starts torchrun on each node; elsewhere one line says what to do."""
    command = [sys.executable, "-m", *launcher(8, nodes=2, threads=3), "mhclite", "train", "-x"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: training.nodes is 2")

    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    environment |= {"SLURM_JOB_ID": "7", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    words = done.stdout.split()
    given = dict(itertools.pairwise(words))
    assert (given["--nodes"], given["--ntasks"], given["--cpus-per-task"]) == ("2", "2", "12")
    assert (given["--nnodes"], given["--nproc-per-node"], given["--rdzv-id"]) == ("2", "4", "7")
    assert re.fullmatch(rf"{socket.gethostname()}:\d+", given["--rdzv-endpoint"])
    assert words[-4:] == ["-m", "mhclite", "train", "-x"]
