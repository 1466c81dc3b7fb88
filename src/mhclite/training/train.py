"""`python -m mhclite train`: one run as a job."""

from __future__ import annotations

import argparse

from mhclite.arguments import folder_path, json_argument
from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.records import Misfit
from mhclite.training.loop import train


def run_config(text: str) -> RunConfig:
    """The run given by `--config`; `UserError` if it is not one."""
    try:
        return RunConfig.from_json(json_argument(text, "--config"))
    except Misfit as problem:
        raise UserError(
            f"--config {text[:60]!r} is not a resolved run configuration: {problem}; "
            "`python -m mhclite check --runs STUDY` prints those of a study"
        ) from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite train`."""
    parser.add_argument(
        "--config", required=True, help="resolved run configuration (JSON, or @FILE)"
    )
    parser.add_argument(
        "--corpus", required=True, type=folder_path, help="folder of a prepared corpus"
    )
    parser.add_argument("--out", required=True, type=folder_path, help="run folder")


def run(args: argparse.Namespace) -> None:
    """Train or continue the run."""
    train(run_config(args.config), args.corpus, args.out)
