"""Around the trainer: the run folder, checkpoints, signals. Nothing here decides a number.

`train` needs torch and numpy, nothing else.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

from mhclite.config import ModelConfig, RunConfig
from mhclite.connections.fast import launch
from mhclite.data.manifest import Manifest, expect_window, load_manifest, open_split
from mhclite.errors import Interrupted, UserError
from mhclite.files import read_jsonl, sha256_of, sync
from mhclite.model import GPT
from mhclite.runs.folder import (
    CHECKPOINTS,
    SCHEMA,
    STEP_FILES,
    SUMMARY,
    WEIGHTS,
    Attempt,
    CorpusRecord,
    ParameterCounts,
    RunFolder,
    RunRecord,
    Summary,
)
from mhclite.runs.key import code_digest, module_digests, run_key
from mhclite.runs.provenance import provenance
from mhclite.training.checkpoint import Saver, load_checkpoint, save_tensors
from mhclite.training.group import Group
from mhclite.training.processes import processes
from mhclite.training.torchrun import stops
from mhclite.training.trainer import StepRecord, TokenSplits, Trainer

TRAIN_LOSS_STEPS = 50  # the summary's train_loss is the mean over the last so many steps

log = logging.getLogger(__name__)


class StepFiles:
    """The files of one JSON line per step, which can be cut back to a checkpoint.

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
            sync(file)
        return {name: file.tell() for name, file in self._files.items()}

    def __enter__(self) -> StepFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and the like instead of dying, so that a step can be finished."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in stops()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_text(corpus: Path, manifest: Manifest, model: ModelConfig, verify: bool) -> TokenSplits:
    """Both splits of a prepared corpus.

    Args:
        corpus: its folder.
        model: that is to read them, in windows of block_size + 1 tokens.
        verify: compare the shards with the manifest; one of several processes does it.

    Raises:
        UserError: the corpus is damaged, has ids that the model does not have, or a split is
            shorter than a window.
    """
    ids = manifest.tokenizer.n_tokens
    if ids > model.vocab_size:
        raise UserError(
            f"{corpus} was made with a tokenizer of {ids} ids, but the model's vocabulary ends at "
            f"{model.vocab_size - 1}: name the corpus of this run's study"
        )
    expect_window(manifest.splits, str(corpus), model.block_size)
    train, validation = (open_split(corpus, split, verify) for split in ("train", "validation"))
    return TokenSplits(train, validation, (manifest.validation.tokens, manifest.validation.bytes))


def _run(trainer: Trainer, folder: RunFolder, key: str, stopped: list[int]) -> None:
    """From the last checkpoint, or from the start, to the end of the run."""
    group, checkpoints = trainer.group, folder / CHECKPOINTS
    # All processes read the same file; only the main one writes.
    saved = load_checkpoint(checkpoints, key)
    if group.broadcast(saved and saved["step"]) != (saved and saved["step"]):
        raise UserError(f"the processes of this run see different checkpoints in {checkpoints}")
    step, sizes = 0, dict.fromkeys(STEP_FILES, 0)
    if saved is not None:
        trainer.restore(saved)
        step, sizes = saved["step"], saved["sizes"]
        log.info("continuing at step %d of %d", step, trainer.settings.steps)
    files = StepFiles(folder.path, sizes, group.is_main)
    with files, Saver(checkpoints, key) as saver:
        _steps(trainer, files, step, stopped, saver)
        files.sync()


def _steps(
    trainer: Trainer, files: StepFiles, first: int, stopped: list[int], saver: Saver
) -> None:
    """Write what the trainer's steps leave; save at intervals, and when asked to stop."""
    settings, group = trainer.settings, trainer.group
    began = time.perf_counter()
    for record in trainer.records(first, lambda: bool(stopped)):
        saver.check()
        files.write("metrics", record.metrics)
        if record.streams is not None:
            files.write("mixing", {"step": record.step, **record.streams})
        if record.step > 0:
            timing = {"step": record.step, "seconds": record.seconds, "wall": time.time()}
            files.write("timing", timing)
        if "validation_loss" in record.metrics:
            log_progress(
                record, settings.steps, (record.step - first) / (time.perf_counter() - began)
            )
        last = record.diverged or record.step == settings.steps
        stop = record.stop and record.settled and not last
        due = record.step > 0 and record.step % settings.checkpoint_interval == 0 and not last
        if (stop or due) and group.is_main:
            assert record.settled, record.step
            state = trainer.state() | {"step": record.step, "sizes": files.sync()}
            saver.save(record.step, state)
        if stop:
            saver.wait()
            # None leaves before it is saved: torchrun and srun end all once one is gone.
            group.broadcast(None)
            name = signal.Signals(stopped[0]).name if stopped else "a signal"
            raise Interrupted(
                f"{name} after step {record.step} of {settings.steps}; saved, run the same command "
                "to continue"
            )
        if record.diverged and record.step > 0:
            log.info("diverged at step %d: loss or gradient norm is not finite", record.step)


def log_progress(record: StepRecord, steps: int, rate: float) -> None:
    """One line on where training stands."""
    if record.step == 0 or record.diverged or record.metrics["validation_loss"] is None:
        return
    log.info(
        "step %d of %d: loss %.4f, validation %.4f, %.1f steps/s, %.0f s left",
        record.step,
        steps,
        record.metrics["loss"],
        record.metrics["validation_loss"],
        rate,
        (steps - record.step) / rate,
    )


def _summary(trainer: Trainer, folder: RunFolder, key: str, attempts: int) -> Summary:
    """What a finished run comes to, from its own files. Writes its final weights."""
    metrics = read_jsonl(folder / "metrics.jsonl")
    seconds = [record["seconds"] for record in read_jsonl(folder / "timing.jsonl")]
    steps = [m for m in metrics if m["step"] > 0]
    last = steps[-1]
    # The last line holds a null exactly if the run diverged there.
    diverged = None in last.values()
    evaluations = [m for m in metrics if m.get("validation_loss") is not None]
    (folder / WEIGHTS).unlink(missing_ok=True)
    weights = None if diverged else save_tensors(folder / WEIGHTS, trainer.model.state_dict())
    return Summary(
        schema=SCHEMA,
        run=trainer.config.run,
        key=key,
        status="diverged" if diverged else "completed",
        steps=last["step"],
        diverged_step=last["step"] if diverged else None,
        tokens=last["step"] * trainer.config.tokens_per_step,
        train_loss=(
            None if diverged else statistics.fmean(m["loss"] for m in steps[-TRAIN_LOSS_STEPS:])
        ),
        validation_loss=None if diverged else evaluations[-1]["validation_loss"],
        validation_bits_per_byte=(
            None if diverged else evaluations[-1]["validation_bits_per_byte"]
        ),
        best_validation_loss=min((m["validation_loss"] for m in evaluations), default=None),
        seconds=sum(seconds),
        tokens_per_second=trainer.config.tokens_per_step / statistics.median(seconds),
        attempts=attempts,
        metrics_sha256=sha256_of(folder / "metrics.jsonl"),
        weights_sha256=weights,
    )


def new_record(
    config: RunConfig,
    model: GPT,
    key: str,
    corpus: CorpusRecord,
    earlier: list[Attempt],
) -> RunRecord:
    """run.json of an attempt that begins now, after `earlier` ones."""
    choice = model.choice(config.training.precision == "bf16")
    if choice.obstacle:
        log.warning("connections are computed fast instead of fused: %s", choice.obstacle)
    on_gpu = next(model.parameters()).is_cuda
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return RunRecord(
        schema=SCHEMA,
        key=key,
        code=code_digest(config),
        config=config,
        corpus=corpus,
        attempts=[*earlier, Attempt(started, provenance())],
        parameters=ParameterCounts(**model.parameter_counts()),
        implementation=choice.implementation,
        launch=launch.settings() if on_gpu or choice.implementation == "fused" else None,
        modules=module_digests(config),
    )


def train(config: RunConfig, corpus: Path, path: Path) -> list[int]:
    """Train a run to its end, or continue it from its last checkpoint.

    Returns signals that came too late to stop it: whoever has more to do stops there.

    Args:
        config: one of `Study.runs()`.
        corpus: folder that `prepare` made.
        path: the run folder.

    Raises:
        Interrupted: after a signal; the state is saved.
        UserError: for a corpus that does not fit, damaged checkpoints, or no GPU where one is
            asked for.
    """
    folder = RunFolder(path)
    with (
        processes(
            config.training.device, config.training.threads, config.training.deterministic
        ) as group,
        folder.only_writer() if group.is_main else nullcontext(),
        stop_signals() as stopped,
    ):
        manifest = load_manifest(corpus)
        key = run_key(config, manifest.digest)
        if group.broadcast(group.is_main and folder.restore_summary(key)):
            log.info("%s is finished already: nothing to do", config.run)
            if group.is_main:
                folder.clear()  # a kill may have come before it
        else:
            _train(config, corpus, manifest, folder, key, group, stopped)
    return stopped


def _train(
    config: RunConfig,
    corpus: Path,
    manifest: Manifest,
    folder: RunFolder,
    key: str,
    group: Group,
    stopped: list[int],
) -> None:
    """The part of `train` for a run that is not finished yet."""
    text = open_text(corpus, manifest, config.model, verify=group.is_main)
    trainer = Trainer(config, text, group)
    attempts = 0
    if group.is_main:
        # A run of another key that was finished here: its metrics end where ours begin.
        (folder / SUMMARY).unlink(missing_ok=True)
        source = CorpusRecord(config.corpus, manifest.digest, str(corpus / "manifest.json"))
        record = new_record(config, trainer.model, key, source, folder.attempts(key))
        folder.begin(record)
        attempts = len(record.attempts)
    group.broadcast(None)  # the folder is ready for all
    _run(trainer, folder, key, stopped)
    if group.is_main:
        folder.finish(_summary(trainer, folder, key, attempts))
