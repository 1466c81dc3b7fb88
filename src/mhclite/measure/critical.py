"""The critical learning rate of a run: up to which multiple of its own rate it still learns.

A *try* is the run again at another rate, from its beginning, evaluated at its end. It *fails* if it
diverges, or if its final validation loss is not `below_unigram` nats per token below that of the
unigram model of its corpus: the same bar for every variant, known before anything is trained. A
loss that is not a number fails.

Every rate of `factors` is tried, so that variants can be compared at equal rates. Then the stretch
between the smallest rate that fails and the one below it is halved `halvings` times, on a
logarithmic axis. What is left is an interval that holds the critical rate. Failures need not be
monotone: a rate above the interval may hold, and the tries say so.

Tries that are done are kept beside the output until it is written: a search that was killed goes on
with the next.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mhclite.arguments import file_path, folder_path, required
from mhclite.config import RunConfig
from mhclite.data.manifest import load_manifest
from mhclite.errors import UserError
from mhclite.files import digest_of, write_json
from mhclite.measure.files import (
    CRITICAL_SCHEMA,
    RISE,
    SMOOTHING,
    Critical,
    CriticalSettings,
    Try,
    critical_interval,
    settings_argument,
)
from mhclite.records import read_record, to_json
from mhclite.runs.code import step_digest
from mhclite.training.group import Group
from mhclite.training.loop import open_text
from mhclite.training.processes import processes
from mhclite.training.train import run_config
from mhclite.training.trainer import TokenSplits, Trainer

log = logging.getLogger(__name__)


def unstable_step(losses: Sequence[float | None]) -> int | None:
    """First step (from 1) at which a run is unstable, None if it never is.

    Its mean training loss of `SMOOTHING` steps lies more than `RISE` above the smallest such mean
    so far, or a loss is not finite (None), which ends the run.
    """
    finite = np.array([loss for loss in losses if loss is not None], dtype=np.float64)
    if len(finite) >= SMOOTHING:
        smooth = np.convolve(finite, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")
        above = np.flatnonzero(smooth > np.minimum.accumulate(smooth) + RISE)
        if len(above):
            return int(above[0]) + SMOOTHING
    return len(finite) + 1 if len(finite) < len(losses) else None


def attempt(config: RunConfig, factor: float, text: TokenSplits, group: Group, bar: float) -> Try:
    """Train a run at `factor` times its learning rate; it fails unless it ends below `bar`."""
    rate = config.model.learning_rate * factor
    training = replace(config.training, evaluation_interval=config.training.steps, processes=1)
    scaled = replace(config, model=replace(config.model, learning_rate=rate), training=training)
    first, *steps = Trainer(scaled, text, group).records(0)
    last = steps[-1]
    loss = None if last.diverged else last.metrics["validation_loss"]
    # The loss may still be finite where the gradient norm is not.
    losses = [None if record.diverged else record.metrics["loss"] for record in steps]
    return Try(
        factor=factor,
        failed=loss is None or not loss < bar,
        initial_loss=first.metrics["validation_loss"],
        validation_loss=loss,
        steps=last.step,
        unstable_step=unstable_step(losses),
    )


def search(
    settings: CriticalSettings, make: Callable[[float], Try], done: Sequence[Try] = ()
) -> list[Try]:
    """All tries, the common rates first.

    Args:
        make: tries a factor of the learning rate.
        done: the tries that are there already, in this order.
    """
    tries: list[Try] = []

    def take(factor: float) -> None:
        known = done[len(tries)] if len(tries) < len(done) else None
        assert known is None or known.factor == factor, (known, factor)
        tries.append(known or make(factor))

    for factor in settings.factors:
        take(factor)
    for _ in range(settings.halvings):
        low, high = critical_interval(tries)
        if low is None or high is None:  # all fail or all hold: nothing to halve
            break
        take(math.sqrt(low * high))
    return tries


def measure(
    config: RunConfig, corpus: Path, settings: CriticalSettings, out: Path, group: Group
) -> Critical:
    """Search the critical rate of one run; the finished tries survive a kill."""
    manifest = load_manifest(corpus)
    text = open_text(corpus, manifest, config.model, verify=True)
    bar = manifest.baselines.unigram - settings.below_unigram
    made_of = digest_of(
        {
            "config": config.to_json(),
            "settings": to_json(settings),
            "corpus": manifest.digest,
            "code": step_digest("measure.critical", [config.connection.variant]),
        }
    )
    part = unfinished(out)
    found = Critical(CRITICAL_SCHEMA, config.run, made_of, bar, settings, earlier(part, made_of))
    tries = found.tries[:]

    def make(factor: float) -> Try:
        tries.append(attempt(config, factor, text, group, bar))
        write_json(part, to_json(replace(found, tries=tries)))
        end = (
            "diverged" if tries[-1].validation_loss is None else f"{tries[-1].validation_loss:.4f}"
        )
        log.info("x %g: %s, %s", factor, end, "fails" if tries[-1].failed else "holds")
        return tries[-1]

    return replace(found, tries=search(settings, make, found.tries))


def unfinished(out: Path) -> Path:
    """Where the tries of a search stand that has not ended."""
    return out.with_name(f"{out.name}.part")


def earlier(part: Path, made_of: str) -> list[Try]:
    """The tries of a search of the same `made_of` that was cut short."""
    try:
        found = read_record(Critical, part, "earlier tries", CRITICAL_SCHEMA, "")
    except UserError:  # none, or of another version: begin again
        return []
    return found.tries if found.made_of == made_of else []


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite critical`."""
    required(
        parser,
        config=(None, "resolved run configuration (JSON, or @FILE)"),
        corpus=(folder_path, "folder of a prepared corpus"),
        settings=(None, "JSON object with factors, halvings and below_unigram"),
        out=(file_path, "file to write"),
    )


def run(args: argparse.Namespace) -> None:
    """Search, and write the file."""
    config, settings = (
        run_config(args.config),
        settings_argument(CriticalSettings, args.settings, "--settings"),
    )
    training = config.training
    with processes(training.device, training.threads, training.deterministic) as group:
        found = measure(config, args.corpus, settings, args.out, group)
    write_json(args.out, to_json(found))
    unfinished(args.out).unlink(missing_ok=True)
