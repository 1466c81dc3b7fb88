"""`python -m mhclite check STUDY`: what can be known of a study before the DAG starts."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time

from mhclite.arguments import file_path
from mhclite.data.manifest import expect_window, load_if_prepared
from mhclite.data.reading import look_into
from mhclite.errors import UserError
from mhclite.study.reading import load_planned
from mhclite.study.sections import RESULTS
from mhclite.study.settings import Study
from mhclite.study.text_files import matching

log = logging.getLogger(__name__)

SECONDS = 3.0  # spent on local files; the rest of them `prepare` reads as a whole


def check_files(study: Study) -> None:
    """Look into the local files of each corpus, as many as the time allows.

    Raises:
        UserError: for the first that has no text where the study says.
    """
    end = time.monotonic() + SECONDS
    for name, corpus in study.corpora.items():
        for path in matching(str(corpus.files)) if corpus.source == "files" else ():
            if time.monotonic() > end:
                return
            try:
                look_into(path.as_posix(), corpus.text_field)
            except UserError as problem:
                raise UserError(f"corpora.{name}: {problem}") from None


def check_windows(study: Study) -> None:
    """Whether the contexts of all models fit into the corpora that are prepared already.

    Raises:
        UserError: a split is shorter.
    """
    for name in study.corpora:
        manifest = load_if_prepared(RESULTS / study.corpus_folder(name))
        if manifest is not None:
            expect_window(manifest.splits, f"corpus {name!r}", study.longest_context())


def check_nodes(study: Study) -> None:
    """Whether several nodes can be asked for from this machine, where the study wants them.

    Raises:
        UserError: there is no SLURM here.
    """
    nodes = max(study.nodes().values())
    if nodes > 1 and shutil.which("srun") is None:
        raise UserError(
            f"training.nodes is {nodes}, but several nodes are started by SLURM alone, and there "
            "is no srun here: set it to 1, or start this study on a login node of a cluster"
        )


def work(study: Study) -> tuple[str, float]:
    """What a study trains.

    Returns:
        in words, and as how many trainings of full length each run, or arm, counts at most.
    """
    seeds, steps = len(study.seeds), study.training.steps
    if study.sweep is not None:
        arms, ((least, most), final) = len(study.arms()), study.sweep.trainings(seeds)
        each = final + most * study.sweep.steps / steps
        words = f"a sweep of {arms:,} arms: {arms * least:,} to {arms * (most + final):,} trainings"
        return f"{words}, at most as long as {arms * each:,.0f} of {steps:,} steps", each
    runs, search = len(study.runs()), study.critical_rate
    tries = 0 if search is None else len(search.factors) + search.halvings
    words = f"{runs:,} runs of {steps:,} steps"
    if tries:
        words += f", and up to {tries * runs:,} trainings for critical learning rates"
    return words, 1 + tries


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
        check_files(study)
        check_nodes(study)
        check_windows(study)
        if args.runs:
            for config in study.grid().values():
                print(json.dumps(config.to_json()))
        else:
            print(f"{path}: study {study.name!r} is valid: {work(study)[0]}")
