"""Train one run, or continue it. Needs torch and numpy, nothing else.

The run folder holds
    run.json       the resolved configuration and where the result comes from
    metrics.jsonl  one line an optimizer step; the same bits whenever the run is repeated
    timing.jsonl   seconds and wall time of each step
    mixing.jsonl   one line an evaluation: the streams and H_res of the model in training
    weights.pt     the final weights
    summary.json   written last: a run that has one is finished
    checkpoints/   while the run is under way
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import shutil
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from torch import Tensor

from mhclite.data.batches import Tokens, batch_starts, evaluation_starts, read_windows
from mhclite.data.shards import TokenSplit, bits_per_byte, load_manifest, open_split
from mhclite.errors import Interrupted, UserError
from mhclite.files import digest_of, read_json, read_jsonl, sha256_of, write_json
from mhclite.model import GPT
from mhclite.provenance import code_digest, provenance
from mhclite.training.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from mhclite.training.optimizer import AdamW, apply_update, learning_rate
from mhclite.training.processes import Processes, processes
from mhclite.training.streams import stream_statistics

SCHEMA = 1
STEP_FILES = ("metrics", "timing", "mixing")
STREAM_WINDOWS = 4  # evaluation windows from which mixing.jsonl is computed
TRAIN_LOSS_STEPS = 50  # the summary's train_loss is the mean over the last so many steps
# Settings that do not decide the result: a run may be continued with others.
FREE_SETTINGS = ("processes", "checkpoint_interval")

log = logging.getLogger(__name__)


def code_of(config: dict[str, Any]) -> str:
    """Digest of the source that decides a run's result."""
    variant = config["connection"]["variant"]
    return code_digest("mhclite.training.loop", f"mhclite.connections.{variant}")


def run_key(config: dict[str, Any], corpus_digest: str) -> str:
    """What decides a run's result: configuration, code and corpus. Another key, another run."""
    training = {k: v for k, v in config["training"].items() if k not in FREE_SETTINGS}
    return digest_of(
        {
            "config": {**config, "training": training},
            "code": code_of(config),
            "corpus": corpus_digest,
        }
    )


class StepFile:
    """A file of one JSON line a step, which can be cut back to a checkpoint."""

    def __init__(self, path: Path, size: int) -> None:
        """Open for appending after the first `size` bytes; what follows them is dropped."""
        path.touch()
        if path.stat().st_size < size:
            raise UserError(
                f"{path} is shorter than its checkpoint says: it was changed from outside; "
                f"delete {path.parent} to train this run again"
            )
        os.truncate(path, size)
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()  # a killed process leaves whole lines to whoever watches

    def sync(self) -> int:
        """Force to disk; returns the size in bytes."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and SIGINT instead of dying, so that a step can be finished."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the run folder alone. The lock falls with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            log.info(
                "another process (pid %s) is training this run: waiting for it to end",
                file.read().strip() or "unknown",
            )
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class Trainer:
    """One run in one process."""

    def __init__(self, config: dict[str, Any], corpus: Path, group: Processes) -> None:
        self.config = config
        self.settings = config["training"]
        self.group = group
        self.manifest = load_manifest(corpus)
        # One process checks the shards; the others wait for it below.
        self.train_split = open_split(corpus, "train", verify=group.is_main)
        self.validation_split = open_split(corpus, "validation", verify=group.is_main)
        self.window = config["model"]["block_size"] + 1
        for split, tokens in (("train", self.train_split), ("validation", self.validation_split)):
            if len(tokens) < self.window:
                raise UserError(
                    f"the {split} split of {corpus} has {len(tokens)} tokens, fewer than one "
                    f"window of block_size + 1 = {self.window}"
                )
        self.model = GPT(config["model"], config["connection"], config["seed"]).to(group.device)
        self.optimizer = AdamW(
            self.model, tuple(self.settings["betas"]), self.settings["weight_decay"]
        )

    def _autocast(self) -> Any:
        if self.settings["precision"] == "bf16":
            return torch.autocast(self.group.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _windows(self, split: TokenSplit, starts: Tokens) -> Iterator[Tensor]:
        """This process's share of the windows, in micro-batches (b, T + 1) on the device."""
        starts = starts[self.group.rank :: self.group.count]
        size = self.settings["micro_batch_size"] or self.settings["batch_size"] // self.group.count
        for first in range(0, len(starts), size):
            windows = read_windows(split, starts[first : first + size], self.window)
            yield torch.from_numpy(windows).to(self.group.device)

    def step(self, step: int) -> dict[str, Any]:
        """Update number `step` (0 is the first). Returns its metrics."""
        settings, model = self.settings, self.config["model"]
        batch_size = settings["batch_size"]
        starts = batch_starts(
            len(self.train_split), self.window, batch_size, self.config["seed"], step
        )
        total = torch.zeros((), device=self.group.device)
        for windows in self._windows(self.train_split, starts):
            with self._autocast():
                loss = self.model.loss(windows) * (len(windows) / batch_size)
            loss.backward()
            total += loss.detach()
        self.group.sum_gradients(self.model)
        rate = learning_rate(
            step,
            model["learning_rate"],
            model["learning_rate"] * settings["min_lr_ratio"],
            settings["warmup_steps"],
            settings["steps"],
        )
        norm = apply_update(self.model, self.optimizer, rate, settings["grad_clip"])
        return {
            "step": step + 1,
            "loss": finite(self.group.sum(total).item()),
            "grad_norm": finite(norm.item()),
            "learning_rate": rate,
            "tokens": (step + 1) * batch_size * model["block_size"],
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float | None]:
        """Loss on the fixed validation windows."""
        count = self.settings["evaluation_sequences"]
        starts = evaluation_starts(len(self.validation_split), self.window, count)
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        self.model.eval()
        for windows in self._windows(self.validation_split, starts):
            with self._autocast():
                total += self.model.loss(windows).double() * len(windows)
        self.model.train()
        loss = finite(self.group.sum(total).item() / count)
        bits = None if loss is None else bits_per_byte(loss, self.manifest)
        return {"validation_loss": loss, "validation_bits_per_byte": bits}

    def streams(self) -> dict[str, Any]:
        """Statistics of the streams on the first evaluation windows; None where not finite."""
        count = min(STREAM_WINDOWS, self.settings["evaluation_sequences"])
        starts = evaluation_starts(len(self.validation_split), self.window, count)
        windows = read_windows(self.validation_split, starts, self.window)[:, :-1]
        self.model.eval()
        found = stream_statistics(self.model, torch.from_numpy(windows).to(self.group.device))
        self.model.train()
        return {
            name: [finite(v) for v in value] if isinstance(value, list) else finite(value)
            for name, value in found.items()
        }

    def state(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.tensors()}

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load(state["optimizer"])


def finite(value: float) -> float | None:
    """The value, or None if it is NaN or infinite: those are not JSON."""
    return value if -float("inf") < value < float("inf") else None


def _train(trainer: Trainer, folder: Path, key: str, stopped: list[int]) -> None:
    """From the last checkpoint, or from the start, to the end of the run."""
    settings, group = trainer.settings, trainer.group
    checkpoints = folder / "checkpoints"
    # All processes read the same file; only the main one writes.
    saved = load_checkpoint(checkpoints, key)
    if group.broadcast(saved and saved["step"]) != (saved and saved["step"]):
        raise UserError(f"the processes of this run see different checkpoints in {checkpoints}")
    step = 0
    sizes = dict.fromkeys(STEP_FILES, 0)
    if saved is not None:
        trainer.restore(saved)
        step, sizes = saved["step"], saved["sizes"]
        log.info("continuing at step %d of %d", step, settings["steps"])
    files = (
        {name: StepFile(folder / f"{name}.jsonl", size) for name, size in sizes.items()}
        if group.is_main
        else {}
    )

    def write(name: str, record: dict[str, Any]) -> None:
        if group.is_main:
            files[name].write(record)

    def checkpoint() -> None:
        if group.is_main:
            state = trainer.state() | {
                "step": step,
                "sizes": {name: file.sync() for name, file in files.items()},
            }
            save_checkpoint(checkpoints, step, key, state)

    def look_at_streams() -> None:
        if group.is_main and trainer.model.n_streams > 1:
            write("mixing", {"step": step, **trainer.streams()})

    if step == 0:
        write("metrics", {"step": 0, "tokens": 0, **trainer.evaluate()})
        look_at_streams()
    began, first = time.monotonic(), step
    diverged = False
    while step < settings["steps"] and not diverged:
        tick = time.perf_counter()
        metrics = trainer.step(step)
        seconds = time.perf_counter() - tick
        step += 1
        diverged = metrics["loss"] is None or metrics["grad_norm"] is None
        last = step == settings["steps"]
        if not diverged and (last or step % settings["evaluation_interval"] == 0):
            metrics |= trainer.evaluate()
            look_at_streams()
            diverged = metrics["validation_loss"] is None
            rate = (step - first) / (time.monotonic() - began)
            log.info(
                "step %d of %d: loss %.4f, validation %s, %.1f steps/s, %.0f s left",
                step,
                settings["steps"],
                metrics["loss"],
                metrics["validation_loss"],
                rate,
                (settings["steps"] - step) / rate,
            )
        write("metrics", metrics)
        write("timing", {"step": step, "seconds": seconds, "wall": time.time()})
        if group.broadcast(bool(stopped)) and not (last or diverged):
            checkpoint()
            name = signal.Signals(stopped[0]).name if stopped else "a signal"
            raise Interrupted(
                f"{name} after step {step} of {settings['steps']}; saved, run the same command to "
                "continue"
            )
        if not (last or diverged) and step % settings["checkpoint_interval"] == 0:
            checkpoint()
    for file in files.values():
        file.sync()
        file.close()
    if diverged:
        log.info("diverged at step %d: loss or gradient norm is not finite", step)


def _summarise(trainer: Trainer, folder: Path, key: str, attempts: int) -> dict[str, Any]:
    """What a finished run comes to, from its own files."""
    metrics = read_jsonl(folder / "metrics.jsonl")
    seconds = [record["seconds"] for record in read_jsonl(folder / "timing.jsonl")]
    steps = metrics[1:]
    # The last line holds a null exactly if the run diverged there.
    diverged = None in steps[-1].values()
    evaluations = [m for m in metrics if m.get("validation_loss") is not None]
    losses = [m["loss"] for m in steps[-TRAIN_LOSS_STEPS:]]
    tokens_per_step = trainer.settings["batch_size"] * trainer.config["model"]["block_size"]
    weights = folder / "weights.pt"
    weights.unlink(missing_ok=True)
    return {
        "schema": SCHEMA,
        "run": trainer.config["run"],
        "key": key,
        "status": "diverged" if diverged else "completed",
        "steps": steps[-1]["step"],
        "diverged_step": steps[-1]["step"] if diverged else None,
        "tokens": steps[-1]["tokens"],
        "train_loss": None if diverged else statistics.fmean(losses),
        "validation_loss": None if diverged else evaluations[-1]["validation_loss"],
        "validation_bits_per_byte": (
            None if diverged else evaluations[-1]["validation_bits_per_byte"]
        ),
        "best_validation_loss": min(m["validation_loss"] for m in evaluations),
        "seconds": sum(seconds),
        "tokens_per_second": tokens_per_step / statistics.median(seconds),
        "attempts": attempts,
        "metrics_sha256": sha256_of(folder / "metrics.jsonl"),
        "weights_sha256": (None if diverged else save_tensors(weights, trainer.model.state_dict())),
    }


def _begin(folder: Path, trainer: Trainer, key: str, corpus: Path) -> int:
    """Write run.json, clearing what another configuration left. Returns the attempt's number."""
    path = folder / "run.json"
    attempts: list[dict[str, Any]] = []
    if path.exists():
        try:
            before = read_json(path)
        except UserError as error:  # half a file cannot be: somebody changed it
            raise UserError(f"{error}; delete {folder} to train this run again") from None
        if isinstance(before, dict) and before.get("key") == key:
            attempts = before["attempts"]
        else:
            log.info("configuration, code or corpus differ from what %s holds: starting", folder)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    attempts.append({"started": datetime.now(UTC).isoformat(timespec="seconds"), **provenance()})
    config = trainer.config
    write_json(
        path,
        {
            "schema": SCHEMA,
            "key": key,
            "code": code_of(config),
            "config": config,
            "corpus": {
                "name": config["corpus"],
                "digest": trainer.manifest["digest"],
                "manifest": str(corpus / "manifest.json"),
            },
            "provenance": attempts[-1],
            "attempts": attempts,
            "parameters": trainer.model.parameter_counts(),
        },
    )
    return len(attempts)


def train(config: dict[str, Any], corpus: Path, folder: Path) -> None:
    """Train a run to its end, or continue it from its last checkpoint.

    Args:
        config: one of `Study.runs()`.
        corpus: folder that `prepare` made.
        folder: the run folder.

    Raises:
        Interrupted: after a signal; the state is saved.
        UserError: for a corpus that does not fit, damaged checkpoints, or no GPU where one is
            asked for.
    """
    settings = config["training"]
    with (
        processes(settings["device"], settings["threads"]) as group,
        only_writer(folder) if group.is_main else nullcontext(),
        stop_signals() as stopped,
    ):
        trainer = Trainer(config, corpus, group)
        key = run_key(config, trainer.manifest["digest"])
        summary = folder / "summary.json"
        finished = summary.exists() and read_json(summary, "summary").get("key") == key
        if group.broadcast(finished):
            log.info("%s is finished already: nothing to do", config["run"])
            return
        attempts = _begin(folder, trainer, key, corpus) if group.is_main else 0
        group.broadcast(None)  # the folder is ready for all
        _train(trainer, folder, key, stopped)
        if group.is_main:
            summary.unlink(missing_ok=True)
            write_json(summary, _summarise(trainer, folder, key, attempts))
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite train`."""
    parser.add_argument("--config", required=True, help="resolved run configuration (JSON)")
    parser.add_argument("--corpus", required=True, type=Path, help="folder of a prepared corpus")
    parser.add_argument("--out", required=True, type=Path, help="run folder")


def run(args: argparse.Namespace) -> None:
    """Train or continue the run."""
    try:
        config = json.loads(args.config)
        assert {"run", "corpus", "seed", "model", "connection", "training"} <= config.keys()
    except (json.JSONDecodeError, AssertionError, AttributeError):
        raise UserError(
            f"--config {args.config[:60]!r} is not a resolved run configuration; "
            "`python -m mhclite check --runs STUDY` prints those of a study"
        ) from None
    train(config, args.corpus, args.out)
