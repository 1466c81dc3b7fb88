"""Training steps that are timed: forward, backward, clipping, AdamW, as training does them."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mhclite.config import ConnectionConfig, ModelConfig, TrainingConfig
from mhclite.measure.measured import Quartiles, Timing
from mhclite.model import GPT
from mhclite.training.compiled import compiled_loss
from mhclite.training.group import deterministic
from mhclite.training.optimizer import AdamW

log = logging.getLogger(__name__)
A = TypeVar("A")  # names an arm: what is timed


def parameters(model: ModelConfig, connection: ConnectionConfig) -> int:
    """Number of parameters of a model, counted on itself without allocating them."""
    with torch.device("meta"):
        return GPT(model, connection, seed=0).parameter_counts()["total"]


def counts(model: ModelConfig, connection: ConnectionConfig) -> tuple[int, float]:
    """(parameters, FLOPs of forward and backward per token) of a model.

    FLOPs are counted by torch, operator by operator, on the meta device with one sequence. Only
    matrix products count; attention counts in full although half of it is masked. All layers do
    the same, so that one and two of them are counted, and the others follow.
    """
    one, two = (_flops(replace(model, n_layer=n), connection) for n in (1, 2))
    flops = one + (model.n_layer - 1) * (two - one)
    return parameters(model, connection), flops / model.block_size


def _flops(model: ModelConfig, connection: ConnectionConfig) -> int:
    with torch.device("meta"):
        gpt = GPT(model, replace(connection, implementation="reference"), seed=0)
        tokens = torch.zeros(1, model.block_size + 1, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        gpt.loss(tokens).backward()
    return counter.get_total_flops()


def share_parameters(model: GPT, other: GPT) -> None:
    """Put the parameters of `other`, of the same variant and size, into `model`."""
    theirs = dict(other.named_modules())
    for name, module in model.named_modules():
        for key in list(module._parameters):
            module._parameters[key] = theirs[name]._parameters[key]


class Stepper:
    """Takes training steps of one variant on a fixed random batch.

    Args:
        weights_of: another of the same variant and size, whose weights it shares.
        repeatable: with deterministic algorithms, where the device has others.
    """

    def __init__(
        self,
        model: ModelConfig,
        connection: ConnectionConfig,
        training: TrainingConfig,
        batch_size: int,
        device: torch.device,
        weights_of: Stepper | None = None,
        repeatable: bool = True,
    ) -> None:
        self.device = device
        self.connection = connection
        self.repeatable = repeatable
        self.training = training
        self.model = GPT(model, connection, seed=0).to(device)
        if weights_of is not None:  # the same model, computed in another way
            share_parameters(self.model, weights_of.model)
        self.optimizer: AdamW = (
            AdamW(self.model, training.betas, training.weight_decay)
            if weights_of is None
            else weights_of.optimizer
        )
        self.loss = compiled_loss(self.model) if training.compile else self.model.loss
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(
            model.vocab_size, (batch_size, model.block_size + 1), generator=generator
        ).to(device)
        self.rate = model.learning_rate

    @property
    def computed(self) -> str:
        """How its connections are computed: `reference`, `fast` or `fused`."""
        return self.model.choice(self.training.precision == "bf16")[0]

    def forward(self) -> Tensor:
        """The loss, ()."""
        enabled = self.training.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled):
            return self.loss(self.tokens)

    def step(self) -> None:
        deterministic(self.device, self.repeatable)  # the compiler keeps a graph for either
        self.forward().backward()
        self.optimizer.update(self.rate, self.training.grad_clip)

    def timed_step(self) -> float:
        """Seconds of one step."""
        start = self._now()
        self.step()
        return self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def persistent_bytes(self) -> int:
        """Parameters, buffers and optimizer state."""
        tensors = [
            *self.model.parameters(),
            *self.model.buffers(),
            *self.optimizer.tensors(),
        ]
        return sum(t.numel() * t.element_size() for t in tensors)

    def peak_bytes(self) -> int:
        """Most memory held during a step: what stays, and what the step adds at its worst."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step()
            added = torch.cuda.max_memory_allocated(self.device) - before
        else:
            added = cpu_peak_of(self.step)
        return self.persistent_bytes() + added


def cpu_peak_of(work: Callable[[], None]) -> int:
    """Most bytes of CPU tensors that `work` holds at once beyond those held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = peak = 0
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiler.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        peak = max(peak, held)
    return peak


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full, from whichever library it comes."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "alloc_failed" in said)
    )


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def quartiles(values: list[float]) -> Quartiles:
    """Median and quartiles."""
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Quartiles(median, q1, q3)


def interleaved(
    steppers: Mapping[A, Stepper], warmup: int, rounds: int
) -> tuple[dict[A, list[float]], dict[A, str]]:
    """Seconds of every stepper's steps, one a round; the warm-up rounds are dropped.

    Returns:
        Seconds of those that fit in the device's memory, and why the others did not.
    """
    seconds: dict[A, list[float]] = {arm: [] for arm in steppers}
    failed: dict[A, str] = {}
    for index in range(warmup + rounds):
        # Each round starts with another one, so that none always follows the same.
        order = list(seconds)
        shift = index % max(len(order), 1)
        for arm in order[shift:] + order[:shift]:
            elapsed = fitting_step(steppers[arm])
            if elapsed is None:
                failed[arm] = "out of memory"
                del seconds[arm]
            elif index >= warmup:
                seconds[arm].append(elapsed)
        log.info("round %d of %d done", index + 1, warmup + rounds)
    return seconds, failed


def fitting_step(stepper: Stepper) -> float | None:
    """Seconds of a step; None if the device's memory does not suffice for it."""
    try:
        return stepper.timed_step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Here, where the error no longer holds what was computed.
    stepper.model.zero_grad(set_to_none=True)
    release(stepper.device)
    return None


def timing(seconds: list[float], residual: list[float], tokens: int, peak_bytes: int) -> Timing:
    """Speed from step times, and relative to the plain residual's in the same rounds.

    Args:
        tokens: of a step.
        peak_bytes: most memory held during a step.
    """
    ratio = [own / base for own, base in zip(seconds, residual, strict=True)]
    speed = quartiles([tokens / s for s in seconds])
    return Timing(seconds, ratio, speed, quartiles(ratio), peak_bytes)
