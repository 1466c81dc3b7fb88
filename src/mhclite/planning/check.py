"""`python -m mhclite check STUDY`: what can be known of a study before the DAG starts."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from mhclite.arguments import file_path, folder_path
from mhclite.data.manifest import expect_window, load_if_prepared
from mhclite.study.load import load_planned
from mhclite.study.sections import RESULTS
from mhclite.study.settings import Study

log = logging.getLogger(__name__)


def check_windows(study: Study) -> None:
    """Whether the contexts of all models fit into the corpora that are prepared already.

    Raises:
        UserError: a split is shorter.
    """
    for name in study.corpora:
        manifest = load_if_prepared(RESULTS / study.corpus_folder(name))
        if manifest is not None:
            expect_window(manifest.splits, f"corpus {name!r}", study.longest_context())


def work(study: Study) -> tuple[str, float]:
    """What a study trains.

    Returns:
        in words, and as how many trainings of full length each run, or arm, counts at most.
    """
    seeds, steps, search = len(study.seeds), study.training.steps, study.critical_rate
    if study.sweep is not None:
        arms, ((least, most), final) = len(study.arms()), study.sweep.trainings(seeds)
        words = f"a sweep of {arms:,} arms: {arms * least:,} to {arms * (most + final):,} trainings"
        return words, final + most * study.sweep.steps / steps
    words, tries = f"{len(study.runs()):,} runs of {steps:,} steps", 0
    if search is not None:
        tries = len(search.factors) + search.halvings
        words += f", and up to {tries} trainings for the critical learning rate of each"
    return words, 1 + tries


def add_study(parser: argparse.ArgumentParser) -> None:
    """`STUDY` and `--results`, for commands that look at one study."""
    parser.add_argument("study", type=file_path, help="study file (YAML)")
    parser.add_argument(
        "--results", type=folder_path, default=Path("results"), help="default: %(default)s"
    )


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite check`."""
    parser.add_argument("study", nargs="+", type=file_path, help="study file (YAML)")
    parser.add_argument("--runs", action="store_true", help="print each run's configuration, JSON")


def run(args: argparse.Namespace) -> None:
    """Print one line a study; the first bad one ends with its error."""
    for path in args.study:
        study, note = load_planned(path)
        if note:
            log.warning("%s: %s", path, note)
        check_windows(study)
        if args.runs:
            for config in study.grid().values():
                print(json.dumps(config.to_json()))
        else:
            print(f"{path}: study {study.name!r} is valid: {work(study)[0]}")
