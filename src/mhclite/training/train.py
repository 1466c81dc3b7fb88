"""`python -m mhclite train`: one run as a job, with its curves sent to MLflow while it trains.

Apart from `loop`, so that nothing here counts as code that decides a run's result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mhclite.arguments import run_config_argument
from mhclite.training.live import live_metrics
from mhclite.training.loop import train


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite train`."""
    parser.add_argument("--config", required=True, help="resolved run configuration: JSON or @FILE")
    parser.add_argument("--corpus", required=True, type=Path, help="folder of a prepared corpus")
    parser.add_argument("--out", required=True, type=Path, help="run folder")


def run(args: argparse.Namespace) -> None:
    """Train or continue the run."""
    config = run_config_argument(args.config)
    with live_metrics(config, args.out) as begun:
        train(config, args.corpus, args.out, begun)
