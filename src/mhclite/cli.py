"""`python -m mhclite <step>`: every step of the DAG, runnable by hand with the same arguments.

Steps are imported only when they are called, so that training needs torch and numpy alone and a
login node needs neither.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from typing import NamedTuple

from mhclite import __version__
from mhclite.errors import Interrupted, UserError


class Entry(NamedTuple):
    """One command: its module has `configure(parser)` and `run(args) -> exit code or None`."""

    module: str
    help: str


Groups = Mapping[str, Mapping[str, Entry]]

# tests/unit/test_cli.py freezes the steps, their groups and their options.
GROUPS: Groups = {
    "steps of the DAG, which Snakemake calls": {
        "prepare": Entry("mhclite.data.prepare", "turn a corpus into token shards and a manifest"),
        "train": Entry("mhclite.training.train", "train one run, or continue it"),
        "probe": Entry("mhclite.measure.probe", "measure H_res of a trained run on held-out text"),
        "sinkhorn": Entry("mhclite.measure.sinkhorn", "measure the error of Sinkhorn-Knopp"),
        "critical": Entry("mhclite.measure.critical", "search the rate at which a run fails"),
        "sweep": Entry("mhclite.measure.sweep", "find the learning rate of one arm"),
        "rates": Entry("mhclite.evidence.learning_rates", "gather the learning rates of all arms"),
        "throughput": Entry("mhclite.measure.throughput", "time every variant of one model size"),
        "stability": Entry("mhclite.measure.stability", "find spikes and divergence in all runs"),
        "collect": Entry("mhclite.evidence.collect", "gather all runs into tidy tables"),
        "evidence": Entry("mhclite.evidence.evidence", "write figures, tables and the report"),
        "track": Entry("mhclite.tracking.track", "bring a study's results into MLflow"),
    },
    "for users": {
        "check": Entry("mhclite.planning.check", "what is wrong with a study file, if anything"),
        "keys": Entry("mhclite.planning.keys", "what decides each run, why it is trained again"),
        "status": Entry("mhclite.planning.status", "what has finished, runs, failed, and is left"),
        "describe": Entry(
            "mhclite.planning.describe", "what a study will train, and what it costs"
        ),
        "exchange": Entry("mhclite.authors.exchange", "checkpoints of the authors' repository"),
        "bundle": Entry("mhclite.bundle.command", "train where only torch and numpy are"),
        "ui": Entry("mhclite.tracking.server", "open the MLflow UI on the tracked results"),
    },
    "for developers": {
        "conformance": Entry("mhclite.authors.conformance", "compare with the authors' code"),
        "publish": Entry("mhclite.evidence.publish", "publish a study; rebuild what is published"),
    },
}
STEPS: dict[str, Entry] = {name: step for group in GROUPS.values() for name, step in group.items()}

# What torch's allocators say; its own error is a RuntimeError too, and torch is not imported here.
NO_MEMORY = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED")
# What the system answers where a mistake of our own is the likely cause: it ends with a traceback.
BUGS = (errno.EINVAL, errno.EBADF, errno.EFAULT, errno.ENOTTY, errno.ESPIPE, errno.ENOTSOCK)
EXIT_USER_ERROR = 2
EXIT_STORAGE = 74  # EX_IOERR
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: saved; run the same command again to continue


def main(argv: list[str] | None = None) -> int:
    """Run one step of the pipeline; returns the exit code."""
    about = "Replication pipeline for mHC-lite. `STEP --help` shows the options of a step."
    return dispatch("python -m mhclite", about, GROUPS, sys.argv[1:] if argv is None else argv)


def dispatch(prog: str, about: str, groups: Groups, argv: list[str]) -> int:
    """Run the step that the first argument names; returns the exit code."""
    steps = {name: step for group in groups.values() for name, step in group.items()}
    lines = []
    for title, group in groups.items():
        lines += [f"{title}:", *(f"  {name:<15} {step.help}" for name, step in group.items()), ""]
    parser = argparse.ArgumentParser(
        prog=prog,
        description=about,
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("step", choices=steps, metavar="STEP", help="one of the steps below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    if not argv:
        parser.print_help(sys.stderr)
        return EXIT_USER_ERROR
    outer = parser.parse_args(argv)
    return run_step(steps[outer.step], f"{prog} {outer.step}", outer.rest)


def run_step(step: Entry, prog: str, argv: list[str]) -> int:
    """Run one step with its own arguments; what the user can mend ends in one line, no traceback.

    Returns:
        the exit code: that of the step, or EXIT_USER_ERROR, EXIT_STORAGE or EXIT_INTERRUPTED.
    """
    try:
        module = importlib.import_module(step.module)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(f"{__package__}."):
            raise
        print(
            f"error: {sys.executable} has no package {error.name}: use .venv/bin/python of the "
            "checkout, which `make check` installs",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    parser = argparse.ArgumentParser(prog=prog, description=step.help)
    module.configure(parser)
    args = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    try:
        return module.run(args) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"interrupted: {error or 'stopped by the user'}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(w in str(error) for w in NO_MEMORY):
            raise
        print(
            "error: out of memory: free some, or run fewer jobs at once; a model needs less with a "
            "lower training.micro_batch_size, n_embd or block_size",
            file=sys.stderr,
        )
        return EXIT_USER_ERROR
    except OSError as error:
        if error.errno is None or error.errno in BUGS:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{where}: mend that, then run the same command again: it goes "
            "on from what is saved",
            file=sys.stderr,
        )
        return EXIT_STORAGE
