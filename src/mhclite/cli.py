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

from mhclite import __version__
from mhclite.errors import Interrupted, UserError

# step -> (module with `configure(parser)` and `run(args)`, one line of help)
STEPS = {
    "check": ("mhclite.study.reading", "validate a study file and list its runs"),
    "prepare": ("mhclite.data.prepare", "turn a corpus into token shards and a manifest"),
    "bench-data": ("mhclite.bench.data", "how fast a corpus is prepared and read"),
    "train": ("mhclite.training.train", "train one run, or continue it"),
    "probe": ("mhclite.measure.probe", "measure H_res of a trained run on held-out text"),
    "sinkhorn": ("mhclite.measure.sinkhorn", "measure the error of Sinkhorn-Knopp iterations"),
    "throughput": ("mhclite.measure.throughput", "time every variant of one model size"),
    "bench": ("mhclite.bench.implementations", "what each variant costs in each implementation"),
    "gpu-check": ("mhclite.bench.gpu_check", "is the fused implementation right, how fast"),
    "overhead": ("mhclite.bench.pipeline", "what the pipeline costs around training"),
    "status": (
        "mhclite.runs.status",
        "where a study stands: finished, under way, failed, time left",
    ),
    "stability": ("mhclite.measure.stability", "find spikes and divergence in all runs"),
    "collect": ("mhclite.evidence.collect", "gather all runs into one tidy table"),
    "evidence": ("mhclite.evidence.evidence", "write the figures, tables and HTML report"),
    "publish": ("mhclite.evidence.publish", "publish a study's small files; rebuild from them"),
    "bundle": (
        "mhclite.bundle.command",
        "train a study on a machine that has only torch and numpy: pack, run, merge",
    ),
    "track": ("mhclite.tracking.track", "bring a study's results into MLflow"),
    "ui": ("mhclite.tracking.server", "open the MLflow UI on the tracked results"),
    "evaluate": (
        "mhclite.measure.evaluate",
        "loss of a trained run on held-out text",
    ),
    "exchange": (
        "mhclite.authors.exchange",
        "import and export checkpoints of the authors' repository",
    ),
    "describe": ("mhclite.planning.describe", "what a study will train, and what it costs"),
    "conformance": (
        "mhclite.authors.conformance",
        "compare with golden vectors of the authors' code",
    ),
}

# Failures of the storage, which are nobody's bug, and the way out.
STORAGE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within your quota",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it accessible",
    errno.EPERM: "make it accessible",
    errno.EEXIST: "a folder must be there: move the file away",
    errno.ENOTDIR: "a folder must be there: move the file away",
    errno.EIO: "have the storage looked at",
    errno.ESTALE: "have the storage mounted again",
}
EXIT_USER_ERROR = 2
EXIT_STORAGE = 74  # EX_IOERR
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: saved; run the same command again to continue


def main(argv: list[str] | None = None) -> int:
    """Run one step; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="mhclite",
        description="Replication pipeline for mHC-lite. The DAG calls these steps.",
        epilog="steps:\n" + "\n".join(f"  {name:<12} {text}" for name, (_, text) in STEPS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("step", choices=STEPS, metavar="step", help="one of the steps below")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    outer = parser.parse_args(argv)

    module = importlib.import_module(STEPS[outer.step][0])
    step_parser = argparse.ArgumentParser(
        prog=f"mhclite {outer.step}", description=STEPS[outer.step][1]
    )
    module.configure(step_parser)
    args = step_parser.parse_args(outer.rest)
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
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: {error.strerror}{where}: {STORAGE[error.errno]}, then run the same command "
            "again: it goes on from what is saved",
            file=sys.stderr,
        )
        return EXIT_STORAGE
