"""`python -m mhclite bundle`: pack a study, run it elsewhere, merge what comes back."""

from __future__ import annotations

import argparse

from mhclite.arguments import any_path, file_path, folder_path, positive_float


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite bundle`."""
    actions = parser.add_subparsers(dest="action", required=True)
    pack = actions.add_parser("pack", help="code, tokens and jobs of a study, to be carried away")
    pack.add_argument("study", type=file_path, help="study file")
    pack.add_argument("--out", required=True, type=any_path, help="folder to make")
    run = actions.add_parser("run", help="do the jobs of a bundle; `run.py` in it calls this")
    run.add_argument("bundle", type=folder_path, help="the bundle's folder")
    run.add_argument(
        "--minutes", type=positive_float, help="then save and stop (default: no limit)"
    )
    merge = actions.add_parser("merge", help="bring what a bundle has done into results/")
    merge.add_argument("source", type=folder_path, help="the bundle, its results, or published")
    merge.add_argument("--study", required=True, type=file_path, help="study file")


def run(args: argparse.Namespace) -> int:
    """Do one of the three. `run` must not import what the others need."""
    if args.action == "run":
        from mhclite.bundle.drive import run_bundle

        return run_bundle(args.bundle, args.minutes)
    if args.action == "pack":
        from mhclite.bundle.home import pack

        pack(args.study, args.out)
        print(
            f"{args.out} is packed (docs/gpu.md). There, in its folder, until nothing is left: "
            f"python3 run.py --minutes 30; back here: python -m mhclite bundle merge FOLDER "
            f"--study {args.study}"
        )
        return 0
    from mhclite.bundle.home import merge

    print(merge(args.study, args.source))
    print(f"next: snakemake --cores all --configfile {args.study}")
    return 0
