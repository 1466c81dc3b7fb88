"""A sweep through the DAG, killed on the way, and a study that takes its rates."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml
from checkout import Checkout

from mhclite.measure.measured import SweepSettings, read_sweep
from mhclite.measure.sweep import measure
from mhclite.records import build
from mhclite.runs.folder import RunFolder
from mhclite.study.load import load_study

STUDY: dict[str, Any] = {
    "corpora": {"sotu": {"source": "embedded", "max_documents": 40, "validation_fraction": 0.1}},
    "tokenizer": {"kind": "bpe", "vocab_size": 384},
    "models": {
        "d2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "learning_rate": 0.01}
    },
    "variants": ["residual", "mhc_lite"],
    "training": {
        "steps": 40,
        "batch_size": 8,
        "warmup_steps": 4,
        "threads": 1,
        "device": "cpu",
        "evaluation_interval": 20,
        "evaluation_sequences": 16,
        "checkpoint_interval": 5,
    },
}
# Rates so far apart that the middle one is the best of three; any of them may be a finalist.
SWEEP: dict[str, Any] = {
    "ratio": 100,
    "steps": 30,
    "widest": 2,
    "margin": 100,
    "finalists": 2,
    "final_seeds": [1],
}
ARMS = ("sotu-d2-residual", "sotu-d2-mhc_lite")
KILLED = ARMS[1]  # it has more to restore
RATES = "results/tiny_rates/learning-rates.yaml"


def hold_amid_a_trial(arm: Path, process: subprocess.Popen[str]) -> int:
    """Stop who trains a trial of this arm that has a checkpoint, after two that are finished."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        trials = sorted(arm.glob("*/checkpoints/*.json"))
        if len(list(arm.glob("*/summary.json"))) >= 2 and trials:
            folder = RunFolder(trials[0].parents[1])
            # The lock is empty for a moment: it is taken before the number is written.
            if folder.is_locked() and (number := (folder / "lock").read_text().strip()):
                os.kill(int(number), signal.SIGSTOP)
                if (folder / "metrics.jsonl").read_bytes().count(b"\n") < SWEEP["steps"]:
                    return int(number)
                os.kill(int(number), signal.SIGCONT)  # all but at its end: the next one
        time.sleep(0.02)
    raise AssertionError("no checkpoint in five minutes")


def test_a_sweep_goes_on_after_kills_and_a_study_takes_its_rates(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path)
    sweep_file, study_file = "config/tiny-rates.yaml", "config/tiny.yaml"
    content = {"name": "tiny_rates", "seeds": [0], "sweep": SWEEP, **STUDY}
    (tmp_path / sweep_file).write_text(yaml.safe_dump(content))
    arms = tmp_path / "results/tiny_rates/sweep"

    # A job and Snakemake die at once.
    process = checkout.start(f"results/tiny_rates/sweep/{KILLED}.json", study=sweep_file)
    trains = hold_amid_a_trial(arms / KILLED, process)
    process.kill()
    os.kill(trains, signal.SIGKILL)
    process.communicate(timeout=300)

    def trained() -> dict[Path, int]:
        found = arms.glob("*/*/summary.json")
        return {path: path.with_name("metrics.jsonl").stat().st_mtime_ns for path in found}

    before = trained()
    code, output = checkout.snakemake(study=sweep_file)
    assert code == 0, output
    assert before.items() <= trained().items(), "what was finished was not trained again"
    attempts = [len(RunFolder(path.parent).record().attempts) for path in arms.rglob("run.json")]
    assert max(attempts) > 1, "a trial went on from its checkpoint"
    assert not list(arms.rglob("weights.pt"))

    found = {arm: read_sweep(arms / f"{arm}.json") for arm in ARMS}
    for one in found.values():
        assert one.bracketed
        assert [trial.rate for trial in one.trials[:3]] == [0.01, 0.0001, 1.0]
        assert {trial.seed for trial in one.trials[3:]} == {1}
    study = load_study(tmp_path / sweep_file)
    (corpus,) = (tmp_path / "results/corpora").glob("sotu-*")
    settings = build(SweepSettings, {**study.sweep.model_dump(), "seeds": [0]})  # type: ignore[union-attr]
    out = tmp_path / "undisturbed" / f"{KILLED}.json"
    undisturbed = measure(study.arms()[KILLED][0], corpus, settings, out)
    assert undisturbed == found[KILLED], "kills change no bit"

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
