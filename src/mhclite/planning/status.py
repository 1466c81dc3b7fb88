"""`python -m mhclite status STUDY`: where a study stands, while it runs and on any machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mhclite.runs.status import report
from mhclite.study.reading import load_study


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite status`."""
    parser.add_argument("study", type=Path, help="study file (YAML)")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> None:
    """Print where the study stands."""
    study = load_study(args.study)
    print(report(study.name, study.runs().values(), args.results / study.name))
    if not (args.results / study.name).is_dir():
        print(
            f"nothing of it is in {args.results / study.name} yet: "
            f"snakemake --cores all --configfile {args.study}",
            file=sys.stderr,
        )
