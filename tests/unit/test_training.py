"""Training: batches, schedule, checkpoints, interruption, divergence, several processes."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import configuration, write_corpus

from mhclite import cli
from mhclite.config import RunConfig
from mhclite.data.batches import batch_starts, evaluation_starts
from mhclite.errors import Interrupted, UserError
from mhclite.files import read_json, read_jsonl, sha256_of
from mhclite.measure.trained import read_trained
from mhclite.model import GPT
from mhclite.runs.folder import RunFolder
from mhclite.runs.progress import status_of
from mhclite.training import checkpoint, loop, torchrun
from mhclite.training.checkpoint import Saver, load_checkpoint, save_checkpoint
from mhclite.training.loop import train
from mhclite.training.optimizer import AdamW, clip_divisor, learning_rate
from mhclite.training.streams import pairwise_cosine
from mhclite.training.trainer import Trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def command(config: RunConfig, corpus: Path, folder: Path) -> list[str]:
    """`train` as the workflow calls it."""
    options = ["--config", json.dumps(config.to_json()), "--corpus", str(corpus)]
    return ["train", *options, "--out", str(folder)]


# --- batches ----------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, database=None)
@given(
    length=st.integers(1, 50),
    spare=st.integers(0, 1000),
    seed=st.integers(0, 2**32 - 1),
    steps=st.lists(st.integers(0, 10**6), min_size=1, max_size=4),
)
def test_batches_are_a_function_of_seed_and_step(
    length: int, spare: int, seed: int, steps: list[int]
) -> None:
    n_tokens = length + spare
    forwards = {step: batch_starts(n_tokens, length, 8, seed, step) for step in steps}
    for step in reversed(steps):  # whatever was drawn before
        again = batch_starts(n_tokens, length, 8, seed, step)
        assert np.array_equal(again, forwards[step])
        assert again.shape == (8,)
        assert again.min() >= 0
        assert again.max() + length <= n_tokens
    draws = {tuple(batch_starts(10**9, 65, 16, seed ^ other, 0)) for other in range(3)}
    draws |= {tuple(batch_starts(10**9, 65, 16, seed, step)) for step in (1, 2)}
    assert len(draws) == 5
    assert set(batch_starts(length + 2, length, 200, seed, 0).tolist()) == {0, 1, 2}


def test_evaluation_windows_are_fixed_and_spread() -> None:
    starts = evaluation_starts(1000, 10, 100)
    assert (starts[0], starts[-1]) == (0, 990)
    assert np.diff(starts).min() >= 9
    assert evaluation_starts(10, 10, 3).tolist() == [0, 0, 0]


# --- schedule ---------------------------------------------------------------------------------


def test_learning_rate() -> None:
    rates = [learning_rate(step, 1.0, 0.1, 4, 24) for step in (*range(25), 1000)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])  # then the cosine begins
    assert rates[9] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[14] == pytest.approx(0.55)  # half way between 1 and 0.1
    assert rates[-2:] == pytest.approx([0.1, 0.1])


# --- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["flipped", "gone", "json", "other key"])
def test_two_checkpoints_are_kept_and_the_older_one_stands_in(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut, and where both are damaged: tests/faults/test_storage.py."""
    assert load_checkpoint(tmp_path / "none", "k") is None
    for step in (5, 10, 100):
        key = "other" if (what, step) == ("other key", 100) else "k"
        save_checkpoint(tmp_path, step, key, {"step": step, "w": torch.full((3,), float(step))})
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == [f"step_{s:09d}.{end}" for s in (10, 100) for end in ("json", "pt")]
    newest = tmp_path / "step_000000100.pt"
    if what == "flipped":
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
    elif what == "gone":
        newest.unlink()
    elif what == "json":
        newest.with_suffix(".json").write_text("{")
    with caplog.at_level(logging.WARNING):
        state = load_checkpoint(tmp_path, "k")
    assert state is not None
    assert torch.equal(state["w"], torch.full((3,), 10.0))
    assert (str(newest) in caplog.text) == (what != "other key")
    (tmp_path / "step_000000010.json").unlink()  # as if killed between the two files
    if what == "other key":
        assert load_checkpoint(tmp_path, "k") is None


class Slow:
    """`save_checkpoint`, each call of which waits until it is let go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[int] = []
        self.finished: list[int] = []
        self.go_on = threading.Semaphore(0)
        monkeypatch.setattr(checkpoint, "save_checkpoint", self)

    def __call__(self, folder: Path, step: int, key: str, state: dict[str, Any]) -> None:
        self.begun.append(step)
        assert self.go_on.acquire(timeout=60)
        save_checkpoint(folder, step, key, state)
        self.finished.append(step)


def test_a_checkpoint_is_of_the_state_when_it_was_asked_for_and_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last is waited for."""
    slow = Slow(monkeypatch)
    w = torch.zeros(3)
    with Saver(tmp_path, "k") as saver:
        saver.save(1, {"step": 1, "nested": {"w": w, "of": [w]}})
        w += 1  # as the next step does, before a byte is written
        saver.check()  # waits for nothing
        assert slow.finished == []
        later = threading.Timer(0.1, slow.go_on.release)
        later.start()
        saver.save(2, {"step": 2})
        assert slow.finished == [1]
        state = torch.load(tmp_path / "step_000000001.pt", weights_only=True)
        assert torch.equal(state["nested"]["w"], torch.zeros(3))
        assert torch.equal(state["nested"]["of"][0], torch.zeros(3))
        slow.go_on.release()
    assert slow.finished == [1, 2]
    later.join()


def test_the_next_call_raises_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def failing() -> Saver:
        saver = Saver(tmp_path / "file", "k")  # not a folder
        saver.save(1, {})
        saver._thread.shutdown()
        return saver

    for call in (Saver.check, Saver.wait, lambda saver: saver.save(2, {})):
        with pytest.raises(OSError, match="file"):
            call(failing())
    with pytest.raises(OSError, match="file"), failing():
        pass
    with pytest.raises(ValueError, match="of training"), failing():
        raise ValueError("of training")


# --- whole runs -------------------------------------------------------------------------------


def test_files_of_a_run_and_doing_it_again(corpus: Path, tmp_path: Path) -> None:
    config = configuration()
    train(config, corpus, tmp_path)
    summary, record = read_json(tmp_path / "summary.json"), read_json(tmp_path / "run.json")
    metrics = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(7))
    assert [line["step"] for line in metrics if "validation_loss" in line] == [0, 3, 6]
    assert summary["tokens"] == 6 * 4 * 6
    assert [line["step"] for line in metrics if "attention_logit" in line] == [0, 3, 6]
    bits = metrics[-1]["validation_loss"] / 3 / math.log(2)  # three bytes per token
    assert summary["validation_bits_per_byte"] == pytest.approx(bits)
    assert (summary["status"], summary["steps"], summary["attempts"]) == ("completed", 6, 1)
    assert summary["metrics_sha256"] == sha256_of(tmp_path / "metrics.jsonl")
    assert summary["weights_sha256"] == sha256_of(tmp_path / "weights.pt")
    assert RunConfig.from_json(record["config"]) == config
    assert not (tmp_path / "checkpoints").exists()

    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.*")}
    train(config, corpus, tmp_path)
    assert before == {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in tmp_path.glob("*.*")}

    train(configuration(steps=4), corpus, tmp_path)  # another configuration trains anew
    assert read_json(tmp_path / "summary.json")["steps"] == 4
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 5


def test_a_finished_run_that_is_trained_again_is_not_finished(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the moment at which its metrics begin anew, and when that is interrupted."""
    first, second = (configuration("hc", weight_decay=decay) for decay in (0.1, 0.2))
    folder = tmp_path / "runs" / first.run
    train(first, corpus, folder)
    assert status_of(tmp_path, first).state == "finished"
    assert status_of(tmp_path, second).state == "outdated"
    seen = []

    steps, stop = loop._steps, True

    def looked_at(*arguments: Any) -> None:
        seen.append(status_of(tmp_path, second).state)
        for ask in (RunFolder(folder).finished, lambda: read_trained(folder)):
            with pytest.raises(UserError, match="not finished"):
                ask()
        if stop:
            raise Interrupted("by the test")
        steps(*arguments)

    monkeypatch.setattr(loop, "_steps", looked_at)
    with pytest.raises(Interrupted):
        train(second, corpus, folder)
    assert status_of(tmp_path, second).state in ("waiting", "stopped")
    stop = False
    train(second, corpus, folder)
    assert seen == ["under way", "under way"]
    assert status_of(tmp_path, second).state == "finished"


def test_micro_batches_give_the_same_losses(corpus: Path, tmp_path: Path) -> None:
    """Several processes: tests/faults/test_processes.py."""
    found = []
    for name, size in (("whole", None), ("parts", 1)):
        train(configuration(micro_batch_size=size), corpus, tmp_path / name)
        found.append(read_jsonl(tmp_path / name / "metrics.jsonl"))
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def signal_at(step: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    """Have training send itself a signal when it has written the metrics of a step."""
    write = loop.StepFiles.write

    def stopping(files: Any, name: str, record: dict[str, Any]) -> None:
        write(files, name, record)
        if name == "metrics" and record["step"] == step:
            os.kill(os.getpid(), number)

    patch.setattr(loop.StepFiles, "write", stopping)


@pytest.mark.parametrize("name", [*torchrun.STOPS, "ignored"])
def test_every_signal_that_stops_saves_first(
    name: str,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And ends with exit code 75; handlers are as before afterwards. SIGHUP that is ignored, as
    under nohup, stops nothing. The bits: below, tests/faults/test_kills.py, tests/cluster."""
    config = configuration(steps=5, checkpoint_interval=100)
    number = signal.SIGHUP if name == "ignored" else signal.Signals[name]
    # Whatever it is here: the tests themselves may run under nohup.
    before = signal.SIG_IGN if name == "ignored" else signal.SIG_DFL
    kept = signal.signal(number, before)
    try:
        with monkeypatch.context() as patched:
            signal_at(2, number, patched)
            code = cli.main(command(config, corpus, tmp_path))
            if name == "ignored":
                assert code == 0
            else:
                assert code == 75
                assert re.search(f"{name} after step . of 5; saved", capsys.readouterr().err)
                assert list((tmp_path / "checkpoints").glob("*.pt"))
        asked = torchrun.environment()["PET_SIGNALS_TO_HANDLE"].split(",")
        assert (signal.Signals(number).name in asked) == (name != "ignored")
        train(config, corpus, tmp_path)
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, kept)
    assert read_json(tmp_path / "summary.json")["status"] == "completed"


def test_divergence_is_a_result(corpus: Path, tmp_path: Path) -> None:
    config = configuration("hc", steps=60, grad_clip=0.0, warmup_steps=0)
    config = replace(config, model=replace(config.model, learning_rate=1e6))
    train(config, corpus, tmp_path)  # ends without an exception: exit code 0
    summary, metrics = read_json(tmp_path / "summary.json"), read_jsonl(tmp_path / "metrics.jsonl")
    last = metrics[-1]
    assert summary["status"] == "diverged"
    assert summary["diverged_step"] == summary["steps"] == last["step"] < 60
    assert None in (last["loss"], last["grad_norm"])
    assert summary["validation_loss"] is summary["train_loss"] is summary["weights_sha256"] is None
    assert not (tmp_path / "weights.pt").exists()


@pytest.mark.parametrize(
    ("names", "made_again"),
    [
        (["summary.json"], False),  # result.json has it
        (["run.json"], True),
        (["metrics.jsonl"], True),
        (["mixing.jsonl"], True),
        # What no result is made from, as weights left where they were trained.
        (["weights.pt", "timing.jsonl", "summary.json"], False),
        (["result.json"], False),
    ],
)
def test_what_a_finished_run_lost(
    names: list[str], made_again: bool, corpus: Path, tmp_path: Path
) -> None:
    config = configuration("hc", steps=4)
    train(config, corpus, tmp_path)
    metrics = sha256_of(tmp_path / "metrics.jsonl")
    before = (tmp_path / "run.json").stat().st_mtime_ns
    for name in names:
        (tmp_path / name).unlink()
    train(config, corpus, tmp_path)
    assert ((tmp_path / "run.json").stat().st_mtime_ns != before) == made_again
    assert RunFolder(tmp_path).lost() == []
    assert RunFolder(tmp_path).summary().status == "completed"
    assert sha256_of(tmp_path / "metrics.jsonl") == metrics
    assert len(read_jsonl(tmp_path / "mixing.jsonl")) > 1


class Ahead(Trainer):
    """Reads the numbers of a step after the next one was launched, as on a GPU."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ahead.possible = True


def test_numbers_read_a_step_late_are_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, stopped at every step and continued, and diverged: the same files to the bit."""
    config = configuration("hc", steps=8, checkpoint_interval=4, evaluation_interval=5)
    wild = replace(config.model, learning_rate=1e6)
    unbounded = replace(config.training, grad_clip=0.0, warmup_steps=0, steps=60)
    runs = {"whole": config, "diverged": replace(config, model=wild, training=unbounded)}
    for name, one in runs.items():
        train(one, corpus, tmp_path / name)
    monkeypatch.setattr(loop, "Trainer", Ahead)
    for name, one in runs.items():
        train(one, corpus, tmp_path / f"ahead-{name}")
        files = [tmp_path / folder / "metrics.jsonl" for folder in (name, f"ahead-{name}")]
        assert files[0].read_bytes() == files[1].read_bytes()

    steps_at_stop = []
    for line in range(1, 6):
        folder = tmp_path / f"stopped-{line}"
        with monkeypatch.context() as patched:
            signal_at(line, signal.SIGTERM, patched)
            with pytest.raises(Interrupted, match=r"SIGTERM after step (\d+) of 8"):
                train(config, corpus, folder)
        steps_at_stop.append(len(read_jsonl(folder / "metrics.jsonl")) - 1)
        assert read_json(max((folder / "checkpoints").glob("*.json")))["step"] == steps_at_stop[-1]
        train(config, corpus, folder)
        for name in ("metrics.jsonl", "weights.pt"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # One step is under way when the signal comes, the next tells of it, while a third is under way.
    assert all(1 <= step - line <= 3 for line, step in enumerate(steps_at_stop, start=1))


def test_gradients_clipped_within_the_step() -> None:
    """As clipped before it; what is not finite stays so."""
    config = configuration("mhc_lite")
    torch.manual_seed(0)
    for scale, clipped in ((1e-3, False), (1e2, True)):
        models = [GPT(config.model, config.connection, 0) for _ in range(2)]
        gradients = [scale * torch.randn_like(p) for p in models[0].parameters()]
        norm = torch.nn.utils.get_total_norm(gradients)
        assert (norm > 1.0) == clipped
        for model, within in zip(models, (True, False), strict=True):
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            if not within:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer = AdamW(model, (0.9, 0.95), 0.1)
            optimizer.step(0.1, clip_divisor(norm, 1.0) if within else None)
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for norm in (torch.tensor(float("nan")), torch.tensor(float("inf"))):
        assert not clip_divisor(norm, 1.0).isfinite()


def test_corpus_too_small_for_one_window(corpus: Path, tmp_path: Path) -> None:
    config = configuration()
    config = replace(config, model=replace(config.model, block_size=500))
    with pytest.raises(UserError, match=r"validation split .* 300 tokens.* 501"):
        train(config, corpus, tmp_path)


def test_training_imports_torch_and_numpy_alone(corpus: Path, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from mhclite.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    words = [sys.executable, "-c", script, *command(configuration(steps=3), corpus, tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    loaded = set(done.stdout.split())
    assert {"torch", "numpy", "mhclite"} <= loaded
    others = "pydantic yaml pandas mlflow snakemake scipy matplotlib tokenizers datasets tabulate"
    assert not loaded & set(others.split())


def test_streams_are_looked_at_where_there_are_several(corpus: Path, tmp_path: Path) -> None:
    train(configuration("hc", steps=3), corpus, tmp_path / "hc")
    lines = read_jsonl(tmp_path / "hc" / "mixing.jsonl")
    assert [line["step"] for line in lines] == [0, 3]
    for line in lines:
        assert len(line["identity_distance"]) == len(line["stream_similarity"]) == 4
    assert max(lines[0]["identity_distance"]) < 0.05  # tanh of zero weights: H_res starts at I
    assert lines[0]["gain_forward"] == pytest.approx(1, abs=0.05)
    train(configuration("residual", steps=3), corpus, tmp_path / "residual")
    assert (tmp_path / "residual" / "mixing.jsonl").read_text() == ""
    x = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]])  # (1, 3 streams, 2), by hand
    assert pairwise_cosine(x).item() == pytest.approx(2 * 0.5**0.5 / 3)
