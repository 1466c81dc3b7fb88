"""Training throughput of every variant of one model size, alone on its device.

All variants live in one process and take their steps in turn, so that each step of a variant is
compared with the plain residual's step of the same round. A step is what training does: forward,
backward, clipping, AdamW. Warm-up rounds are dropped, the device is synchronised before the clock
is read.

Other implementations than the study's own are timed without torch.compile on a CPU.

On a GPU training asks torch for deterministic algorithms, unless the study says otherwise, and so
do the steps here; `benchmarks/session.py` times what they cost.

A variant whose step does not fit in a GPU's memory beside the weights of the others is recorded as
such.
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
from mhclite.measure.measured import (
    THROUGHPUT_SCHEMA,
    Measured,
    Throughput,
    Timing,
    Unfit,
    settings_argument,
)
from mhclite.measure.steps import Stepper, counts, interleaved, is_out_of_memory, timing
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


def measure(config: ThroughputConfig) -> Throughput:
    """Throughput of each connection at one model size, the plain residual's too, named or not.

    Raises:
        UserError: the weights of all variants, or a step of the plain residual, do not fit on the
            device.
    """
    training, model = config.training, config.model
    device = choose_device(training.device)
    deterministic(device, training.deterministic)
    connections = {RESIDUAL_NAME: RESIDUAL} | config.connections
    batch_size = training.micro_batch_size or training.batch_size
    try:
        own, steppers = steppers_of(config, connections, batch_size, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"the weights of all variants of model {model.name} do not fit on this device "
            "together: measure on one with more memory, or take the model or variants out of the "
            "study"
        ) from None
    seconds, failed = interleaved(steppers, config.warmup_rounds, config.rounds)
    base = seconds.get(Arm(own, RESIDUAL_NAME))
    if base is None:
        raise UserError(
            f"a step of model {model.name} with {batch_size} sequences does not fit on this "
            "device: lower training.micro_batch_size"
        )
    plain, _ = counts(model, RESIDUAL)
    counted: dict[str, dict[str, Any]] = {}
    for name, connection in connections.items():
        parameters, flops = counts(model, connection)
        counted[name] = {
            "flops_per_token": flops,
            "parameters": parameters,
            "extra_parameters": parameters - plain,
        }
    variants: dict[str, Measured] = {}
    others: dict[str, dict[str, Timing]] = {}
    for arm in seconds:
        peak, tokens = steppers[arm].peak_bytes(), batch_size * model.block_size
        row = timing(seconds[arm], base, tokens, peak)
        if arm.implementation == own:
            variants[arm.name] = Measured(**vars(row), **counted[arm.name])
        else:
            others.setdefault(str(arm.implementation), {})[arm.name] = row
    for arm, reason in failed.items():
        log.warning("%s %s did not fit: %s", arm.name, arm.implementation, reason)
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
        deterministic=device.type == "cuda" and training.deterministic,
        did_not_fit=[
            Unfit(str(arm.implementation), arm.name, reason, **counted[arm.name])
            for arm, reason in failed.items()
        ],
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
