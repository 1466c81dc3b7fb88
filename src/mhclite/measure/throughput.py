"""Training throughput of every variant of one model size, alone on its device.

All variants live in one process and take their steps in turn, so that each step of a variant is
compared with the plain residual's step of the same round. A step is what training does: forward,
backward, clipping, AdamW. Warm-up rounds are dropped, the device is synchronised before the clock
is read.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mhclite.arguments import file_path, json_argument, positive_int
from mhclite.config import (
    RESIDUAL,
    ConnectionConfig,
    ModelConfig,
    ThroughputConfig,
    TrainingConfig,
)
from mhclite.errors import UserError
from mhclite.files import write_json
from mhclite.measure.files import THROUGHPUT_SCHEMA, Measured, Quartiles, Throughput, Timing
from mhclite.model import GPT, compiled_loss
from mhclite.records import Misfit, build, to_json
from mhclite.runs.provenance import hardware
from mhclite.training.optimizer import AdamW, apply_update
from mhclite.training.processes import choose_device

log = logging.getLogger(__name__)


def counts(model: ModelConfig, connection: ConnectionConfig) -> tuple[int, float]:
    """(parameters, FLOPs of forward and backward per token) of a model.

    FLOPs are counted by torch, operator by operator, on the meta device with one sequence. Only
    matrix products count; attention counts in full although half of it is masked. All layers do
    the same, so that one and two of them are counted, and the others follow.
    """
    with torch.device("meta"):
        parameters = GPT(model, connection, seed=0).parameter_counts()["total"]
    one, two = (_flops(replace(model, n_layer=n), connection) for n in (1, 2))
    return parameters, (one + (model.n_layer - 1) * (two - one)) / model.block_size


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
    """Takes training steps of one variant on a fixed random batch."""

    def __init__(
        self,
        model: ModelConfig,
        connection: ConnectionConfig,
        training: TrainingConfig,
        batch_size: int,
        device: torch.device,
        weights_of: Stepper | None = None,
    ) -> None:
        self.device = device
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
        self.forward().backward()
        apply_update(self.model, self.optimizer, self.rate, self.training.grad_clip)

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


def quartiles(values: list[float]) -> Quartiles:
    """Median and quartiles."""
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Quartiles(median, q1, q3)


Arm = tuple[str | None, str]  # implementation, name of the connection


def steppers_of(
    config: ThroughputConfig, batch_size: int, device: torch.device
) -> tuple[str | None, dict[Arm, Stepper]]:
    """What is timed: each connection as the study computes it, then in every other way that runs.

    Returns:
        The study's own implementation (None: the plain residual alone), and the steppers.
    """
    connections = {"residual": RESIDUAL} | config.connections
    own_steppers = {
        name: Stepper(config.model, connection, config.training, batch_size, device)
        for name, connection in connections.items()
    }
    own = next((s.computed for s in own_steppers.values() if s.model.n_streams > 1), None)
    steppers: dict[Arm, Stepper] = {(own, name): s for name, s in own_steppers.items()}
    for other in config.implementations:
        for name, stepper in own_steppers.items():
            if stepper.model.n_streams > 1:
                connection = replace(connections[name], implementation=other)
                made = Stepper(
                    config.model, connection, config.training, batch_size, device, stepper
                )
                # Triton's interpreter is for tests: its speed says nothing.
                runs = made.computed == other and (other != "fused" or device.type == "cuda")
                if runs and other != stepper.computed:
                    steppers[other, name] = made
    return own, steppers


def measure(config: ThroughputConfig) -> Throughput:
    """Throughput of each connection at one model size, the plain residual's too, named or not."""
    training, model = config.training, config.model
    device = choose_device(training.device)
    batch_size = training.micro_batch_size or training.batch_size
    own, steppers = steppers_of(config, batch_size, device)
    base = steppers[own, "residual"]
    seconds = interleaved(steppers, config.warmup_rounds, config.rounds)
    variants: dict[str, Measured] = {}
    others: dict[str, dict[str, Timing]] = {}
    for (implementation, name), stepper in steppers.items():
        row = timing(
            seconds[implementation, name],
            seconds[own, "residual"],
            batch_size * model.block_size,
            stepper.peak_bytes(),
        )
        if implementation == own:
            total = stepper.model.parameter_counts()["total"]
            connection = RESIDUAL if name == "residual" else config.connections[name]
            extra = total - base.model.parameter_counts()["total"]
            flops = counts(model, connection)[1]
            variants[name] = Measured(
                **vars(row), flops_per_token=flops, parameters=total, extra_parameters=extra
            )
        else:
            assert implementation is not None
            others.setdefault(implementation, {})[name] = row
    found = hardware()
    return Throughput(
        schema=THROUGHPUT_SCHEMA,
        model=model.name,
        device=found.get("gpu", "cpu") if device.type == "cuda" else "cpu",
        hardware=found,
        threads=torch.get_num_threads(),
        precision=training.precision,
        compile=training.compile,
        batch_size=batch_size,
        block_size=model.block_size,
        rounds=config.rounds,
        warmup_rounds=config.warmup_rounds,
        implementation=own,
        variants=variants,
        others=others,
    )


def interleaved(steppers: dict[Any, Stepper], warmup: int, rounds: int) -> dict[Any, list[float]]:
    """Seconds of every stepper's steps, one a round; the warm-up rounds are dropped."""
    seconds: dict[Any, list[float]] = {arm: [] for arm in steppers}
    for index in range(warmup + rounds):
        # Each round starts with another one, so that none always follows the same.
        order = list(steppers)
        shift = index % len(order)
        for arm in order[shift:] + order[:shift]:
            elapsed = steppers[arm].timed_step()
            if index >= warmup:
                seconds[arm].append(elapsed)
        log.info("round %d of %d done", index + 1, warmup + rounds)
    return seconds


def timing(seconds: list[float], residual: list[float], tokens: int, peak_bytes: int) -> Timing:
    """Speed from step times, and relative to the plain residual's in the same rounds.

    Args:
        tokens: of a step.
        peak_bytes: most memory held during a step.
    """
    ratio = [own / base for own, base in zip(seconds, residual, strict=True)]
    speed = quartiles([tokens / s for s in seconds])
    return Timing(seconds, ratio, speed, quartiles(ratio), peak_bytes)


def throughput_config(text: str) -> ThroughputConfig:
    """What `--config` asks for; `UserError` if it is not that."""
    try:
        return build(ThroughputConfig, json_argument(text, "--config"))
    except Misfit as problem:
        raise UserError(
            f"--config {text[:60]!r} is not what a study resolves for throughput: {problem}"
        ) from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite throughput`."""
    parser.add_argument(
        "--config",
        required=True,
        help="model, connections, training and rounds, as the study resolves them (JSON or @FILE)",
    )
    parser.add_argument("--threads", type=positive_int, required=True, help="CPU threads")
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure one model size and write the file."""
    config = throughput_config(args.config)
    torch.set_num_threads(args.threads)
    result = measure(config)
    write_json(args.out, to_json(result))
    timed: dict[str, Mapping[str, Timing]] = {"": result.variants, **result.others}
    for implementation, rows in timed.items():
        for variant, row in rows.items():
            ratio = row.ratio_quartiles.median
            log.info("%-10s %-9s %.2fx the residual's step", variant, implementation, ratio)
