"""What a run computes: its steps, its evaluations, and the records that they leave.

All of it decides a run's numbers and is in its key (`runs/key.py`); files, checkpoints and signals
are in `loop.py` and are not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mhclite.config import RunConfig
from mhclite.data.batches import Tokens, batch_starts, evaluation_starts
from mhclite.data.tokens import TokenSplit
from mhclite.model import GPT
from mhclite.training.ahead import Ahead, Launched
from mhclite.training.compiled import compiled_loss
from mhclite.training.group import Group
from mhclite.training.optimizer import AdamW, learning_rate
from mhclite.training.step import autocast, train_step
from mhclite.training.streams import largest_attention_logit, stream_statistics

LOOKED_AT = 4  # evaluation windows from which statistics of streams and attention are computed


@dataclass(frozen=True)
class TokenSplits:
    """The tokens that a run is trained and evaluated on."""

    train: TokenSplit
    validation: TokenSplit
    tokens_per_byte: tuple[int, int]  # tokens and bytes of the validation text


@dataclass(frozen=True)
class StepRecord:
    """What one step leaves: a line of metrics.jsonl, and one of mixing.jsonl at an evaluation."""

    step: int
    metrics: dict[str, Any]
    streams: dict[str, Any] | None
    seconds: float  # of the update alone
    # Whether the trainer's state is that after this step, so that it may be saved: not so where
    # the device is at work on the next one already.
    settled: bool
    stop: bool  # some process of the run had been asked to stop when this step began

    @property
    def diverged(self) -> bool:
        """Whether something is not finite. Training ends there."""
        return None in self.metrics.values()


class Trainer:
    """One run in one process.

    On a GPU the numbers of a step are read while the device computes the next one (`ahead.py`).
    Where the state is looked at (an evaluation, a checkpoint, a stop, the end) they are read at
    once.

    Args:
        config: the run.
        text: tokens; each split has at least one window of block_size + 1.
        group: the processes that share the run.
    """

    def __init__(self, config: RunConfig, text: TokenSplits, group: Group) -> None:
        self.config = config
        self.settings = config.training
        self.text = text
        self.group = group
        self.window = config.model.block_size + 1
        self.model = GPT(config.model, config.connection, config.seed).to(group.device)
        compiled = self.settings.compile
        self.loss = compiled_loss(self.model) if compiled else self.model.loss
        self.optimizer = AdamW(self.model, self.settings.betas, self.settings.weight_decay)
        self.ahead = Ahead(group.device)

    def state(self) -> dict[str, Any]:
        """All tensors that the next step depends on."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.tensors()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load(state["optimizer"])

    def records(
        self, step: int, stopping: Callable[[], bool] = lambda: False
    ) -> Iterator[StepRecord]:
        """Train from a step to the end; a record after each step, and one before the first.

        Args:
            step: steps done; the state is that after them.
            stopping: whether this process was asked to stop. All of them learn it with the numbers
                of a step, and come to a settled record with `stop` at the same step.
        """
        if step == 0:
            metrics = {"step": 0, **self.evaluate()}
            yield StepRecord(0, metrics, self.streams(), 0.0, settled=True, stop=False)
        waiting: Launched | None = None
        for done in range(step + 1, self.settings.steps + 1):
            launched = self._launch(done - 1, stopping())
            stop = False
            if waiting is not None:
                record = self._read(waiting, settled=False)
                yield record
                if record.diverged:
                    return
                stop = record.stop
            evaluated = done == self.settings.steps or done % self.settings.evaluation_interval == 0
            saved = done % self.settings.checkpoint_interval == 0
            waiting = launched if self.ahead.possible and not (evaluated or saved or stop) else None
            if waiting is not None:
                continue
            record = self._read(launched, settled=True)
            if evaluated and not record.diverged:
                metrics = record.metrics | self.evaluate()
                record = replace(record, metrics=metrics, streams=self.streams())
            yield record
            if record.diverged:
                return

    def _launch(self, index: int, stopping: bool) -> Launched:
        """Update number `index` (0 is the first)."""
        settings, peak, device = self.settings, self.config.model.learning_rate, self.group.device
        began = time.perf_counter()
        # Disks take longer than the share of a step that data may cost; this step hides it.
        self.text.train.prefetch(self._share(self._starts(index + 1)), self.window)
        rate = learning_rate(
            index, peak, peak * settings.min_lr_ratio, settings.warmup_steps, settings.steps
        )
        windows = self._windows(self.text.train, self._starts(index))
        result = train_step(self.loss, windows, self.optimizer, rate, settings, self.group)
        asked = torch.full((), float(stopping), device=device)  # no copy that the host waits for
        loss, asked = self.group.sum(torch.stack([result.loss, asked]))
        numbers = torch.stack([loss, result.grad_norm, result.backbone_grad_norm, asked])
        return self.ahead.launched(index + 1, numbers, began)

    def _read(self, launched: Launched, settled: bool) -> StepRecord:
        """What a step leaves, when it is computed."""
        (loss, norm, backbone, asked), seconds = self.ahead.read(launched)
        metrics = {
            "step": launched.step,
            "loss": finite(loss),
            "grad_norm": finite(norm),
            "backbone_grad_norm": finite(backbone),
        }
        return StepRecord(launched.step, metrics, None, seconds, settled, stop=asked > 0)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float | None]:
        """Loss on the fixed validation windows, and the largest attention logit on a few."""
        count = self.settings.evaluation_sequences
        starts = evaluation_starts(len(self.text.validation), self.window, count)
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        self.model.eval()
        for windows in self._windows(self.text.validation, starts):
            with autocast(self.settings.precision, self.group.device):
                total += self.loss(windows).double() * len(windows)
        logit = largest_attention_logit(self.model, self._looked_at())
        self.model.train()
        loss = finite(self.group.sum(total).item() / count)
        tokens, text_bytes = self.text.tokens_per_byte
        bits = None if loss is None else loss * tokens / text_bytes / math.log(2)
        return {
            "validation_loss": loss,
            "validation_bits_per_byte": bits,
            "attention_logit": finite(logit),
        }

    def _looked_at(self) -> Tensor:
        """Inputs (b, T) of the first validation windows, in which the model is looked into."""
        count = min(LOOKED_AT, self.settings.evaluation_sequences)
        starts = evaluation_starts(len(self.text.validation), self.window, count)
        windows = self.text.validation.windows(starts, self.window)[:, :-1]
        return torch.from_numpy(windows).to(self.group.device)

    def streams(self) -> dict[str, Any] | None:
        """Statistics of the streams on the first evaluation windows; None where not finite.

        None altogether with one stream, and in all processes but the main one.
        """
        if self.model.n_streams == 1 or not self.group.is_main:
            return None
        self.model.eval()
        found = stream_statistics(self.model, self._looked_at())
        self.model.train()
        return {
            name: [finite(v) for v in value] if isinstance(value, list) else finite(value)
            for name, value in found.items()
        }

    def _share(self, starts: Tokens) -> Tokens:
        """This process's part of the windows."""
        return starts[self.group.rank :: self.group.count]

    def _starts(self, index: int) -> Tokens:
        """Where the windows of a step begin, for all processes."""
        count, seed = self.settings.batch_size, self.config.seed
        return batch_starts(len(self.text.train), self.window, count, seed, index)

    def _windows(self, split: TokenSplit, starts: Tokens) -> Iterator[Tensor]:
        """This process's share of the windows, in micro-batches (b, T + 1) on the device."""
        starts = self._share(starts)
        if len(starts) == 0:
            return
        windows = torch.from_numpy(split.windows(starts, self.window))
        if self.group.device.type == "cuda":  # one copy, for which the host does not wait
            windows = windows.pin_memory().to(self.group.device, non_blocking=True)
        yield from windows.split(
            self.settings.micro_batch_size or self.settings.batch_size // self.group.count
        )


def finite(value: float) -> float | None:
    """The value, or None if it is NaN or infinite: those are not JSON."""
    return value if -float("inf") < value < float("inf") else None
