"""`python -m mhclite probe`: what trained models do on held-out text, many of them in one process.

A probe file says what it was made of: one that is still right is left alone, so that a new run
costs one probe, and a job that was ended goes on. The models run in float32 whatever they were
trained in.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mhclite.arguments import (
    add_run_arguments,
    file_path,
    folder_path,
    positive_int,
    required,
    run_arguments,
)
from mhclite.data.batches import evaluation_starts
from mhclite.data.manifest import load_manifest
from mhclite.data.pool import run_jobs
from mhclite.errors import UserError
from mhclite.files import digest_of, write_json
from mhclite.measure.measured import PROBE_SCHEMA, Probe, read_probe
from mhclite.measure.mixing import knockouts, mixing
from mhclite.measure.trained import (
    Trained,
    evaluation,
    held_out,
    load_trained,
    read_trained,
    windows_over,
)
from mhclite.model import GPT
from mhclite.records import to_json
from mhclite.runs.code import step_digest
from mhclite.runs.folder import WEIGHTS

log = logging.getLogger(__name__)

# Of each knock-out, at most: on a whole split they would take several times as long as the final
# loss.
KNOCKOUT_TOKENS = 32_768


@dataclass(frozen=True)
class ProbeSettings:
    """What is measured."""

    sequences: int  # windows of the validation split
    evaluation_tokens: int | None  # of the final loss; None: the whole split
    text: Path | None  # folder of a corpus; None: what the run was trained on


@dataclass(frozen=True)
class Task:
    """One model to probe."""

    trained: Trained
    text: Path
    settings: ProbeSettings
    made_of: str
    out: Path


def task_of(folder: Path, settings: ProbeSettings, out: Path) -> Task:
    """The task of a finished run, which `out` says nothing of yet or no longer.

    Args:
        folder: run folder, or one that `exchange` imported into.
        settings: what is measured.
        out: folder of the probe files.
    """
    trained = read_trained(folder)
    text = settings.text
    if text is None:
        if trained.corpus is None:
            raise UserError(f"{folder} was trained elsewhere: name its text, --corpus")
        text = Path(trained.corpus.manifest).parent
    digest = load_manifest(text).digest
    if settings.text is None and trained.corpus and digest != trained.corpus.digest:
        raise UserError(
            f"{text} was prepared again after {folder} was trained on it: delete {folder} and "
            "run `snakemake --cores all`"
        )
    made_of = digest_of(
        {
            "code": step_digest("measure.probe", [trained.connection.variant]),
            "weights": trained.weights_sha256,
            "key": trained.key,
            "text": digest,
            "sequences": settings.sequences,
            "evaluation_tokens": settings.evaluation_tokens,
        }
    )
    return Task(trained, text, settings, made_of, out / f"{folder.name}.json")


def is_made(task: Task) -> bool:
    """Whether the probe file is there, whole, and was made of the same, or must do.

    A published run comes without weights: its probe, made of them by the code of its day, cannot be
    made again.
    """
    trained = task.trained
    try:
        found = read_probe(task.out, trained.folder.name)
    except UserError:
        return False
    gone = trained.has_weights and not (trained.folder / WEIGHTS).exists()
    if found.made_of != task.made_of and gone and found.key == trained.key:
        log.warning("%s: kept; other code or settings made it, from weights not here", task.out)
        return True
    return found.made_of == task.made_of


def probe(task: Task) -> Probe:
    """Measure; a run that diverged says so in `skipped`."""
    trained = task.trained
    result = Probe(
        schema=PROBE_SCHEMA,
        run=trained.folder.name,
        key=trained.key,
        made_of=task.made_of,
        skipped=None if trained.has_weights else "the run diverged: it has no final weights",
        evaluation=None,
        mixing=None,
        use=None,
    )
    if result.skipped:
        return result
    model, device = load_trained(trained)
    split, most = held_out(task.text, trained), task.settings.evaluation_tokens
    result = replace(result, evaluation=evaluation(model, split, most, device))
    if model.n_streams == 1:
        return result
    start = GPT(trained.model, trained.connection, trained.seed).to(device).eval()
    length = model.block_size
    starts = evaluation_starts(len(split), length + 1, task.settings.sequences)
    windows = split.windows(starts, length)
    found = mixing(model, list(start.connections()), windows, device)
    tokens = min(most or KNOCKOUT_TOKENS, KNOCKOUT_TOKENS)
    changed = windows_over(split, model.block_size, tokens)[0]
    return replace(result, mixing=found, use=knockouts(model, found, changed, device))


def write_probe(task: Task) -> UserError | None:
    """Probe a run and write its file; what went wrong must not stop the other runs."""
    torch.set_num_threads(1)
    try:
        found = probe(task)
    except UserError as error:
        return error
    write_json(task.out, to_json(found))
    loss = "diverged" if found.evaluation is None else f"loss {found.evaluation.loss:.4f}"
    log.info("%s: measured, %s", task.out, loss)
    return None


def probe_runs(
    folders: Sequence[Path], settings: ProbeSettings, out: Path, processes: int = 1
) -> dict[str, str]:
    """Probe those runs that have no right probe yet. Returns run -> what it is to be made of.

    Args:
        folders: run folders.
        settings: what is measured.
        out: folder of the probe files.
        processes: at once, one thread each; one where a GPU may be used.

    Raises:
        UserError: the first run that could not be probed, after all others are.
    """
    tasks = [task_of(folder, settings, out) for folder in folders]
    missing = [task for task in tasks if not is_made(task)]
    if any(task.trained.device != "cpu" for task in missing):
        processes = 1
    # Forked: torch, imported once, takes longer to import than many a probe. Nothing has been
    # computed in this process, so no thread holds a lock.
    failed = [error for error in run_jobs(write_probe, missing, processes, "fork") if error]
    if failed:
        raise UserError(f"{failed[0]}" + f" (and {len(failed) - 1} more)" * (len(failed) > 1))
    log.info("%d probes made, %d were there", len(missing), len(tasks) - len(missing))
    return {task.trained.folder.name: task.made_of for task in tasks}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite probe`."""
    add_run_arguments(parser)
    parser.add_argument(
        "--corpus", type=folder_path, help="prepared corpus (default: what a run was trained on)"
    )
    required(parser, sequences=(positive_int, "validation windows"))
    parser.add_argument(
        "--evaluation-tokens",
        type=positive_int,
        help="of the final loss, spread evenly (default: the whole validation split)",
    )
    parser.add_argument("--processes", type=positive_int, default=1, help="runs at once on CPUs")
    required(parser, out=(folder_path, "folder of the probe files"))
    parser.add_argument(
        "--receipt", type=file_path, help="file that says what each probe was made of"
    )


def run(args: argparse.Namespace) -> None:
    """Probe the runs."""
    settings = ProbeSettings(args.sequences, args.evaluation_tokens, args.corpus)
    folders = [args.runs / run for run in run_arguments(args.run)]
    made_of = probe_runs(folders, settings, args.out, args.processes)
    if args.receipt:
        write_json(args.receipt, made_of)
