"""`python -m mhclite bundle`: pack a study, run it elsewhere, merge what comes back."""

from __future__ import annotations

import argparse
from pathlib import Path

from mhclite.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite bundle`."""
    actions = parser.add_subparsers(dest="action", required=True)
    pack = actions.add_parser("pack", help="code, tokens and jobs of a study, to be carried away")
    pack.add_argument("study", type=Path, help="study file")
    pack.add_argument(
        "--out", required=True, type=Path, help="folder, or archive that ends with .tar.gz"
    )
    run = actions.add_parser("run", help="do the jobs of a bundle; `run.py` in it calls this")
    run.add_argument("bundle", type=Path, help="the bundle's folder")
    run.add_argument("--minutes", type=float, help="then save and stop; left out: no limit")
    run.add_argument("--jobs", type=int, default=1, help="runs at once (default: %(default)s)")
    run.add_argument(
        "--throughput",
        choices=("first", "last", "no"),
        default="first",
        help="when throughput is measured, alone on the device (default: %(default)s)",
    )
    merge = actions.add_parser("merge", help="bring what a bundle has done into results/")
    merge.add_argument("source", type=Path, help="the bundle's folder or results, or an archive")
    merge.add_argument("--study", required=True, type=Path, help="study file")


def run(args: argparse.Namespace) -> int:
    """Do one of the three. `run` must not import what the others need."""
    if args.action == "run":
        from mhclite.bundle.drive import run_bundle

        if args.jobs < 1:
            raise UserError(f"--jobs {args.jobs}: at least one run at a time")
        if args.minutes is not None and not args.minutes > 0:
            raise UserError(f"--minutes {args.minutes}: a time above 0, or leave it out")
        return run_bundle(args.bundle, args.minutes, args.jobs, args.throughput)
    if args.action == "pack":
        from mhclite.bundle.pack import describe_bundle, pack

        pack(args.study, args.out)
        print(describe_bundle(args.out, args.study))
        return 0
    from mhclite.bundle.merge import merge

    print(merge(args.study, args.source))
    print(f"next: snakemake --cores all --configfile {args.study}")
    return 0
