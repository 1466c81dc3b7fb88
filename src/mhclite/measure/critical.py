"""The critical learning rate of a run: up to which multiple of its own rate it still learns.

A *try* is the run again at another rate, from its beginning, evaluated at its end. It *fails* if it
diverges, or if its final validation loss is not `below_unigram` nats per token below that of the
unigram model of its corpus: the same bar for every variant, known before anything is trained. A
loss that is not a number fails.

Every rate of `factors` is tried, so that variants can be compared at equal rates. Then the stretch
between the smallest rate that fails and the one below it is halved `halvings` times, on a
logarithmic axis. What is left is an interval that holds the critical rate. Failures need not be
monotone: a rate above the interval may hold, and the tries say so.

A try is a run folder beside the output, as a trial of a sweep is: what was killed goes on.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mhclite.arguments import file_path, folder_path, required
from mhclite.config import RunConfig
from mhclite.data.manifest import load_manifest
from mhclite.files import write_json
from mhclite.measure.measured import (
    CRITICAL_SCHEMA,
    Critical,
    CriticalSettings,
    Try,
    critical_interval,
    settings_argument,
)
from mhclite.measure.sweep import at_rate, train_trial
from mhclite.records import to_json
from mhclite.training.train import run_config

log = logging.getLogger(__name__)


def search(settings: CriticalSettings, make: Callable[[float], Try]) -> list[Try]:
    """All tries, the common rates first.

    Args:
        make: tries a factor of the learning rate.
    """
    tries = [make(factor) for factor in settings.factors]
    for _ in range(settings.halvings):
        low, high = critical_interval(tries)
        if low is None or high is None:  # all fail or all hold: nothing to halve
            break
        tries.append(make(math.sqrt(low * high)))
    return tries


def measure(config: RunConfig, corpus: Path, settings: CriticalSettings, out: Path) -> Critical:
    """Search the critical rate of one run, or go on with it.

    Args:
        corpus: folder of the prepared corpus.
        out: the file that will be written; tries are in the folder of this name without `.json`.

    Raises:
        Interrupted: after a signal; the try that was under way is saved.
    """
    bar = load_manifest(corpus).baselines.unigram - settings.below_unigram
    training = replace(config.training, evaluation_interval=config.training.steps)

    def make(factor: float) -> Try:
        name = f"x{factor:g}"
        one = at_rate(replace(config, training=training), name, factor)
        found = train_trial(one, corpus, out.with_suffix("") / name)
        loss = found.validation_loss
        failed = loss is None or not loss < bar
        end = "diverged" if loss is None else f"{loss:.4f}"
        log.info("x %g: %s, %s", factor, end, "fails" if failed else "holds")
        return Try(factor, failed, loss, found.steps)

    return Critical(CRITICAL_SCHEMA, config.run, bar, settings, search(settings, make))


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
    config = run_config(args.config)
    settings = settings_argument(CriticalSettings, args.settings, "--settings")
    write_json(args.out, to_json(measure(config, args.corpus, settings, args.out)))
