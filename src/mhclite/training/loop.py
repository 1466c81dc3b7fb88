"""Train one run, or continue it. Needs torch and numpy, nothing else.

The run folder holds
    run.json       the resolved configuration and where the result comes from
    metrics.jsonl  one line an optimizer step; the same bits whenever the run is repeated
    timing.jsonl   seconds and wall time of each step
    mixing.jsonl   one line an evaluation: the streams and H_res of the model in training
    weights.pt     the final weights
    result.json    written when the run is finished
    summary.json   the same, written last: Snakemake's declared output, which it deletes at will
    checkpoints/   while the run is under way
    superseded/    a run of another configuration or code that was under way here before, by its key
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from torch import Tensor

from mhclite.data.batches import Tokens, batch_starts, evaluation_starts
from mhclite.data.manifest import load_manifest, open_split
from mhclite.data.tokens import TokenSplit
from mhclite.errors import Interrupted, UserError
from mhclite.files import read_json, read_jsonl, sha256_of, write_json
from mhclite.model import GPT, compiled_loss
from mhclite.runs.key import code_of, run_key
from mhclite.runs.provenance import provenance
from mhclite.training.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from mhclite.training.optimizer import AdamW, apply_update, learning_rate
from mhclite.training.processes import Processes, processes
from mhclite.training.streams import stream_statistics

SCHEMA = 1
STEP_FILES = ("metrics", "timing", "mixing")
STREAM_WINDOWS = 4  # evaluation windows from which mixing.jsonl is computed
TRAIN_LOSS_STEPS = 50  # the summary's train_loss is the mean over the last so many steps

log = logging.getLogger(__name__)


class StepFiles:
    """The files of one JSON line a step, which can be cut back to a checkpoint.

    Only the main process has them; elsewhere nothing is written.
    """

    def __init__(self, folder: Path, sizes: dict[str, int], is_main: bool) -> None:
        """Open for appending after the first `sizes[name]` bytes; what follows them is dropped."""
        self._files: dict[str, IO[str]] = {}
        with ExitStack() as opened:
            for name, size in sizes.items() if is_main else ():
                path = folder / f"{name}.jsonl"
                path.touch()
                if path.stat().st_size < size:
                    raise UserError(
                        f"{path} is shorter than its checkpoint says: it was changed from outside; "
                        f"delete {folder} to train this run again"
                    )
                os.truncate(path, size)
                self._files[name] = opened.enter_context(open(path, "a", encoding="utf-8"))
            self._opened = opened.pop_all()

    def write(self, name: str, record: dict[str, Any]) -> None:
        if name in self._files:
            self._files[name].write(json.dumps(record, allow_nan=False) + "\n")
            self._files[name].flush()  # a killed process leaves whole lines to whoever watches

    def sync(self) -> dict[str, int]:
        """Force to disk; returns the sizes in bytes."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def __enter__(self) -> StepFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()


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
        self.implementation, reason = self.model.choice(self.settings["precision"] == "bf16")
        if reason:
            log.warning("connections are computed fast instead of fused: %s", reason)
        compiled = self.settings["compile"]
        self.loss = compiled_loss(self.model) if compiled else self.model.loss
        self.optimizer = AdamW(
            self.model, tuple(self.settings["betas"]), self.settings["weight_decay"]
        )

    def _autocast(self) -> Any:
        if self.settings["precision"] == "bf16":
            return torch.autocast(self.group.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _share(self, starts: Tokens) -> Tokens:
        """This process's part of the windows."""
        return starts[self.group.rank :: self.group.count]

    def _starts(self, step: int) -> Tokens:
        """Where the windows of a step begin, for all processes."""
        count, seed = self.settings["batch_size"], self.config["seed"]
        return batch_starts(len(self.train_split), self.window, count, seed, step)

    def _windows(self, split: TokenSplit, starts: Tokens) -> Iterator[Tensor]:
        """This process's share of the windows, in micro-batches (b, T + 1) on the device."""
        starts = self._share(starts)
        size = self.settings["micro_batch_size"] or self.settings["batch_size"] // self.group.count
        for first in range(0, len(starts), size):
            windows = split.windows(starts[first : first + size], self.window)
            yield torch.from_numpy(windows).to(self.group.device)

    def step(self, step: int) -> dict[str, Any]:
        """Update number `step` (0 is the first). Returns its metrics."""
        settings, model = self.settings, self.config["model"]
        batch_size = settings["batch_size"]
        # Disks take longer than the share of a step that data may cost; this step hides it.
        self.train_split.expect(self._share(self._starts(step + 1)), self.window)
        total = torch.zeros((), device=self.group.device)
        for windows in self._windows(self.train_split, self._starts(step)):
            with self._autocast():
                loss = self.loss(windows) * (len(windows) / batch_size)
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
        bits = None if loss is None else self.manifest.bits_per_byte(loss)
        return {"validation_loss": loss, "validation_bits_per_byte": bits}

    def streams(self) -> dict[str, Any]:
        """Statistics of the streams on the first evaluation windows; None where not finite."""
        count = min(STREAM_WINDOWS, self.settings["evaluation_sequences"])
        starts = evaluation_starts(len(self.validation_split), self.window, count)
        windows = self.validation_split.windows(starts, self.window)[:, :-1]
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


def _train(
    trainer: Trainer, folder: Path, key: str, stopped: list[int], begun: Callable[[str], None]
) -> None:
    """From the last checkpoint, or from the start, to the end of the run."""
    group, checkpoints = trainer.group, folder / "checkpoints"
    # All processes read the same file; only the main one writes.
    saved = load_checkpoint(checkpoints, key)
    if group.broadcast(saved and saved["step"]) != (saved and saved["step"]):
        raise UserError(f"the processes of this run see different checkpoints in {checkpoints}")
    step, sizes = 0, dict.fromkeys(STEP_FILES, 0)
    if saved is not None:
        trainer.restore(saved)
        step, sizes = saved["step"], saved["sizes"]
        log.info("continuing at step %d of %d", step, trainer.settings["steps"])

    def checkpoint(step: int) -> None:
        if group.is_main:
            state = trainer.state() | {"step": step, "sizes": files.sync()}
            save_checkpoint(checkpoints, step, key, state)

    with StepFiles(folder, sizes, group.is_main) as files:
        begun(key)
        _steps(trainer, files, step, stopped, checkpoint)
        files.sync()


def _steps(
    trainer: Trainer,
    files: StepFiles,
    step: int,
    stopped: list[int],
    checkpoint: Callable[[int], None],
) -> None:
    """From a step to the end of the run."""
    settings, group = trainer.settings, trainer.group

    def look_at_streams() -> None:
        if group.is_main and trainer.model.n_streams > 1:
            files.write("mixing", {"step": step, **trainer.streams()})

    if step == 0:
        files.write("metrics", {"step": 0, "tokens": 0, **trainer.evaluate()})
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
        files.write("metrics", metrics)
        files.write("timing", {"step": step, "seconds": seconds, "wall": time.time()})
        if group.any(bool(stopped)) and not (last or diverged):
            checkpoint(step)
            name = signal.Signals(stopped[0]).name if stopped else "a signal"
            raise Interrupted(
                f"{name} after step {step} of {settings['steps']}; saved, run the same command to "
                "continue"
            )
        if not (last or diverged) and step % settings["checkpoint_interval"] == 0:
            checkpoint(step)
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


def _key_and_attempts(folder: Path) -> tuple[str | None, list[dict[str, Any]]]:
    """From run.json; None and no attempts if there is none."""
    path = folder / "run.json"
    if not path.exists():
        return None, []
    try:
        record = read_json(path)
        key, attempts = record["key"], record["attempts"]
        if not (isinstance(key, str) and key.isalnum() and isinstance(attempts, list)):
            raise UserError(f"{path} does not describe a run")
    except (UserError, KeyError, TypeError) as error:  # half a file cannot be: somebody changed it
        reason = error if isinstance(error, UserError) else f"{path} does not describe a run"
        raise UserError(f"{reason}; delete {folder} to train this run again") from None
    return key, attempts


def _make_room(folder: Path, key: str) -> None:
    """Put aside what another configuration or code has under way here; take back what ours had.

    Killed at any point, the next call does the rest: run.json is moved last.
    """
    other, _ = _key_and_attempts(folder)
    superseded = folder / "superseded"
    if other not in (None, key):
        assert other is not None
        log.info("configuration, code or corpus differ from what %s holds", folder)
        theirs = superseded / other[:12]
        if (folder / "checkpoints").exists() or (theirs / "checkpoints").exists():
            log.info("it was under way: kept in %s until this run is finished", theirs)
            _move(folder, theirs)
    ours = superseded / key[:12]
    if ours.exists():  # also where putting it aside was interrupted
        log.info("taking back what this configuration and code had done")
        _move(ours, folder)
        ours.rmdir()


def _move(source: Path, target: Path) -> None:
    """Move a run's files from folder to folder."""
    target.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{name}.jsonl" for name in STEP_FILES), "checkpoints", "run.json"):
        if (source / name).is_dir():
            shutil.rmtree(target / name, ignore_errors=True)
        if (source / name).exists():
            os.replace(source / name, target / name)


def _is_finished(folder: Path, key: str) -> bool:
    """Whether the run is done; a summary.json that was deleted is written again."""
    for name in ("summary.json", "result.json"):
        path = folder / name
        if not path.exists():
            continue
        result = read_json(path, "result")
        if not isinstance(result, dict) or result.get("key") != key:
            continue
        if name == "summary.json":
            return True
        files = {"metrics.jsonl": "metrics_sha256", "weights.pt": "weights_sha256"}
        if all(_has_digest(folder / file, result.get(digest)) for file, digest in files.items()):
            log.info("finished before: writing summary.json again from result.json")
            write_json(folder / "summary.json", result)
            return True
        log.warning("%s does not fit the files beside it: training again", path)
    return False


def _has_digest(path: Path, digest: str | None) -> bool:
    """Whether a file has this SHA-256; None: whether there is no such file."""
    return sha256_of(path) == digest if path.exists() else digest is None


def _begin(folder: Path, trainer: Trainer, key: str, corpus: Path) -> int:
    """Write run.json. Returns the attempt's number."""
    path = folder / "run.json"
    before, attempts = _key_and_attempts(folder)
    if before != key:
        attempts = []
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
                "digest": trainer.manifest.digest,
                "manifest": str(corpus / "manifest.json"),
            },
            "provenance": attempts[-1],
            "attempts": attempts,
            "parameters": trainer.model.parameter_counts(),
            "implementation": trainer.implementation,
        },
    )
    return len(attempts)


def _clear(folder: Path) -> None:
    """Remove what only an unfinished run needs."""
    for leftover in ("checkpoints", "superseded"):
        shutil.rmtree(folder / leftover, ignore_errors=True)


def train(
    config: dict[str, Any],
    corpus: Path,
    folder: Path,
    begun: Callable[[str], None] = lambda key: None,
) -> None:
    """Train a run to its end, or continue it from its last checkpoint.

    Args:
        config: one of `Study.runs()`.
        corpus: folder that `prepare` made.
        folder: the run folder.
        begun: called with the run's key when metrics.jsonl is open: from then on it only grows.

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
        key = run_key(config, trainer.manifest.digest)
        if group.broadcast(group.is_main and _is_finished(folder, key)):
            log.info("%s is finished already: nothing to do", config["run"])
            if group.is_main:
                _clear(folder)  # a kill may have come before it
            return
        attempts = 0
        if group.is_main:
            _make_room(folder, key)
            attempts = _begin(folder, trainer, key, corpus)
        group.broadcast(None)  # the folder is ready for all
        _train(trainer, folder, key, stopped, begun)
        if group.is_main:
            (folder / "summary.json").unlink(missing_ok=True)
            result = _summarise(trainer, folder, key, attempts)
            for name in ("result.json", "summary.json"):
                write_json(folder / name, result)
            _clear(folder)
