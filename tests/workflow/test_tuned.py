"""A sweep through the DAG, stopped and killed on the way, and a study that takes its rates."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from checkout import Checkout

from mhclite.measure.files import SweepSettings, read_sweep
from mhclite.measure.sweep import measure
from mhclite.records import build
from mhclite.runs.folder import RunFolder
from mhclite.study.reading import load_study

STUDY: dict[str, Any] = {
    "corpora": {"sotu": {"source": "embedded", "max_documents": 40, "validation_fraction": 0.1}},
    "tokenizer": {"kind": "bpe", "vocab_size": 384},
    "models": {
        "d2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "learning_rate": 0.01}
    },
    "variants": ["residual", "mhc_lite"],
    "training": {
        "steps": 120,
        "batch_size": 8,
        "warmup_steps": 12,
        "threads": 2,  # one job at a time: who is killed is all that works
        "device": "cpu",
        "evaluation_interval": 60,
        "evaluation_sequences": 16,
        "checkpoint_interval": 20,
    },
}
# Rates so far apart that the middle one is the best of three; all of them may be finalists.
SWEEP = {"ratio": 20, "steps": 60, "widest": 2, "margin": 100, "final_seeds": [1]}
ARMS = ("sotu-d2-residual", "sotu-d2-mhc_lite")
RATES = "results/tiny_rates/learning-rates.yaml"


def wait_for_checkpoint(checkout: Checkout, process: subprocess.Popen[str], done: int) -> int:
    """Wait until so many trials are finished and a further one has a checkpoint; who trains it."""
    folder = checkout.folder / "results/tiny_rates/sweep"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        finished = [path for path in folder.glob("*/*") if (path / "summary.json").exists()]
        for path in folder.glob("*/*/checkpoints"):
            under_way = path.parent not in finished and RunFolder(path.parent).is_locked()
            # The lock is empty for a moment: it is taken before the number is written.
            if (
                len(finished) >= done
                and under_way
                and list(path.glob("*.json"))
                and (number := (path.parent / "lock").read_text().strip())
            ):
                return int(number)
        time.sleep(0.02)
    raise AssertionError("no checkpoint in five minutes")


def test_a_sweep_goes_on_after_kills_and_a_study_takes_its_rates(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    sweep_file, study_file = "config/tiny-rates.yaml", "config/tiny.yaml"
    content = {"name": "tiny_rates", "seeds": [0], "sweep": SWEEP, **STUDY}
    (tmp_path / sweep_file).write_text(yaml.safe_dump(content))
    arms = tmp_path / "results/tiny_rates/sweep"

    # Jobs and Snakemake die at once.
    process = checkout.start(study=sweep_file)
    trains = wait_for_checkpoint(checkout, process, 2)
    process.kill()
    os.kill(trains, signal.SIGKILL)
    for lock in arms.glob("*/*/lock"):  # of the other arm, which would be trained to its end
        if RunFolder(lock.parent).is_locked() and (number := lock.read_text().strip()):
            os.kill(int(number), signal.SIGKILL)
    process.communicate(timeout=300)
    before = {
        path: path.with_name("metrics.jsonl").stat().st_mtime_ns
        for path in arms.glob("*/*/summary.json")
    }
    assert not (tmp_path / RATES).exists()

    code, output = checkout.snakemake(study=sweep_file)
    assert code == 0, output
    assert checkout.planned(study=sweep_file) == {}
    again = {path: path.with_name("metrics.jsonl").stat().st_mtime_ns for path in before}
    assert again == before, "what was finished was not trained again"
    attempts = [len(RunFolder(path.parent).record().attempts) for path in arms.rglob("run.json")]
    assert max(attempts) > 1, "a trial went on from its checkpoint"
    assert not list(arms.rglob("weights.pt"))

    found = {arm: read_sweep(arms / f"{arm}.json") for arm in ARMS}
    study = load_study(tmp_path / sweep_file)
    (corpus,) = (tmp_path / "results/corpora").glob("sotu-*")
    for arm, one in found.items():
        assert one.bracketed
        assert [trial.rate for trial in one.trials[:3]] == [0.01, 0.0005, 0.2]
        assert {trial.seed for trial in one.trials[3:]} == {1}
        if arm == ARMS[0]:  # one arm is enough, of the variant that has more to restore
            continue
        config = study.arms()[arm][0]
        settings = build(SweepSettings, {**study.sweep.model_dump(), "seeds": [0]})  # type: ignore[union-attr]
        undisturbed = measure(config, corpus, settings, tmp_path / "undisturbed" / f"{arm}.json")
        assert undisturbed == one, "kills change no bit"

    # A study takes the rates.
    rates = {arm: one.rate for arm, one in found.items()}
    chosen = yaml.safe_load((tmp_path / RATES).read_text())
    assert [arm["rate"] for arm in chosen["arms"]] == list(rates.values())
    content = {"name": "tiny", "seeds": [2], "learning_rates": RATES, **STUDY}
    (tmp_path / study_file).write_text(yaml.safe_dump(content))
    runs = [f"results/tiny/runs/{arm}-s2/summary.json" for arm in ARMS]
    code, output = checkout.snakemake("results/tiny/resolved.json", *runs, study=study_file)
    assert code == 0, output
    for arm, path in zip(ARMS, runs, strict=True):
        record = RunFolder((tmp_path / path).parent).record()
        assert record.config.model.learning_rate == rates[arm]

    # Another rate in the file trains again the arm that has it, and no other.
    chosen["arms"][0]["rate"] *= 1.5
    (tmp_path / RATES).write_text(yaml.safe_dump(chosen))
    planned = checkout.planned("results/tiny/resolved.json", *runs, study=study_file)
    assert planned == {"resolve": 1, "train": 1}
