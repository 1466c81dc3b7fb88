"""Training throughput of every variant of one model size, alone on its device.

All variants live in one process and take their steps in turn, so that each step of a variant is
compared with the plain residual's step of the same round. A step is what training does: forward,
backward, clipping, AdamW. Warm-up rounds are dropped, the device is synchronised before the clock
is read.

Other implementations than the study's own are timed without torch.compile on a CPU.

On a GPU training asks torch for deterministic algorithms, unless the study says otherwise, and so
do the steps here; `benchmarks/session.py` times what they cost.

Where the weights of all variants and a step do not fit on a GPU together, each variant is timed
with the plain residual alone. What does not fit even so is recorded as such.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from mhclite.arguments import file_path, positive_int, required
from mhclite.config import (
    RESIDUAL,
    ConnectionConfig,
    ThroughputConfig,
)
from mhclite.errors import UserError
from mhclite.files import write_json
from mhclite.measure.files import (
    THROUGHPUT_SCHEMA,
    Measured,
    Throughput,
    Timing,
    Unfit,
    settings_argument,
)
from mhclite.measure.steps import Stepper, counts, interleaved, is_out_of_memory, release, timing
from mhclite.records import to_json
from mhclite.runs.provenance import hardware
from mhclite.training.group import deterministic
from mhclite.training.processes import choose_device

log = logging.getLogger(__name__)
RESIDUAL_NAME = "residual"


class Arm(NamedTuple):
    """What is timed."""

    implementation: str | None  # None: the plain residual alone is timed
    name: str  # of the connection


def steppers_of(
    config: ThroughputConfig,
    connections: Mapping[str, ConnectionConfig],
    batch_size: int,
    device: torch.device,
) -> tuple[str | None, dict[Arm, Stepper]]:
    """Each connection as the study computes it, then in every other way that runs.

    Returns:
        The study's own implementation (None: the plain residual alone), and the steppers.
    """

    def made(name: str, how: str | None = None) -> Stepper:
        connection, training = connections[name], config.training
        if how:
            connection = replace(connection, implementation=how)
            if device.type == "cpu":  # compiling the authors' formulas takes minutes there
                training = replace(training, compile=False)
        return Stepper(
            config.model, connection, training, batch_size, device, first.get(name),
            training.deterministic,
        )  # fmt: skip

    first: dict[str, Stepper] = {}
    for name in connections:
        first[name] = made(name)
    own = next((s.computed for s in first.values() if s.model.n_streams > 1), None)
    steppers = {Arm(own, name): stepper for name, stepper in first.items()}
    for other in config.implementations:
        for name, stepper in first.items():
            if stepper.model.n_streams > 1:
                another = made(name, other)
                # Triton's interpreter is for tests: its speed says nothing.
                runs = another.computed == other and (other != "fused" or device.type == "cuda")
                if runs and other != stepper.computed:
                    steppers[Arm(other, name)] = another
    return own, steppers


class Collected:
    """What has been measured of one model size."""

    def __init__(self, config: ThroughputConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.connections = {RESIDUAL_NAME: RESIDUAL} | config.connections
        self.batch_size = config.training.micro_batch_size or config.training.batch_size
        self.own: str | None = None
        self.variants: dict[str, Measured] = {}
        self.others: dict[str, dict[str, Timing]] = {}
        self.did_not_fit: list[Unfit] = []

    def fit(self, names: list[str]) -> bool:
        """Time some connections in the same rounds; False where they do not fit together.

        Of the plain residual and one other what does not fit is noted; False if the weights do not.
        """
        try:
            return self._time(names)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return False

    def _time(self, names: list[str]) -> bool:
        config = self.config
        connections = {name: self.connections[name] for name in names}
        own, steppers = steppers_of(config, connections, self.batch_size, self.device)
        seconds, failed = interleaved(steppers, config.warmup_rounds, config.rounds)
        if failed and len(names) > 2:
            return False
        self.own = own or self.own
        base = seconds.get(Arm(own, RESIDUAL_NAME))
        tokens = self.batch_size * config.model.block_size
        for arm, stepper in steppers.items():
            if arm in failed or base is None:
                self._note(arm, failed.get(arm, "the plain residual did not fit beside it"))
                continue
            row = timing(seconds[arm], base, tokens, stepper.peak_bytes())
            if arm.implementation in (None, self.own):
                self.variants.setdefault(arm.name, Measured(**vars(row), **self._counts(arm.name)))
            else:
                self.others.setdefault(str(arm.implementation), {})[arm.name] = row
        return True

    def _note(self, arm: Arm, reason: str) -> None:
        log.warning("%s %s did not fit: %s", arm.name, arm.implementation or "", reason)
        counted = self._counts(arm.name)
        self.did_not_fit.append(Unfit(arm.implementation or "", arm.name, reason, **counted))

    def _counts(self, name: str) -> dict[str, Any]:
        parameters, flops = counts(self.config.model, self.connections[name])
        plain, _ = counts(self.config.model, RESIDUAL)
        return {
            "flops_per_token": flops,
            "parameters": parameters,
            "extra_parameters": parameters - plain,
        }


def measure(config: ThroughputConfig) -> Throughput:
    """Throughput of each connection at one model size, the plain residual's too, named or not.

    Raises:
        UserError: not even the plain residual fits on the device.
    """
    training, model = config.training, config.model
    device = choose_device(training.device)
    deterministic(device, training.deterministic)
    collected = Collected(config, device)
    batch_size = collected.batch_size
    names = list(collected.connections)
    if not collected.fit(names):
        log.info("each variant is timed with the plain residual alone: all do not fit together")
        for group in [[RESIDUAL_NAME, name] for name in names[1:]] or [names]:
            release(device)
            if not collected.fit(group):
                raise UserError(
                    f"the weights of two variants of model {model.name} do not fit on this device: "
                    "measure on one with more memory, or take the model out of the study"
                )
    if RESIDUAL_NAME not in collected.variants:
        reason = collected.did_not_fit[0].reason
        raise UserError(
            f"a step of model {model.name} with {batch_size} sequences does not fit on this "
            f"device ({reason}): lower training.micro_batch_size"
        )
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
        implementation=collected.own,
        variants=collected.variants,
        others=collected.others,
        deterministic=device.type == "cuda" and training.deterministic,
        did_not_fit=[unfit for unfit in collected.did_not_fit if unfit.name != RESIDUAL_NAME],
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite throughput`."""
    required(
        parser,
        config=(None, "what the study resolves for it (JSON, or @FILE)"),
        threads=(positive_int, "CPU threads"),
        out=(file_path, "file to write"),
    )


def run(args: argparse.Namespace) -> None:
    """Measure one model size and write the file."""
    config = settings_argument(ThroughputConfig, args.config, "--config")
    torch.set_num_threads(args.threads)
    result = measure(config)
    write_json(args.out, to_json(result))
    timed: dict[str, Mapping[str, Timing]] = {"": result.variants, **result.others}
    for implementation, rows in timed.items():
        for variant, row in rows.items():
            ratio = row.ratio_quartiles.median
            log.info("%-10s %-17s %.2fx the residual's step", variant, implementation, ratio)
