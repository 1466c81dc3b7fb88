"""`python -m mhclite publish`: keep a study's small files, and make from them what the reader sees.

`make` packs them, `unpack` writes them again, `rebuild` computes figures, tables and report from
them, without training, and `pages` writes what README and docs/ say of published studies.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from mhclite.arguments import folder_path
from mhclite.errors import UserError
from mhclite.evidence.pages import write_pages
from mhclite.evidence.published import publish, rebuild
from mhclite.runs.parquet import STUDY, unpack

log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite publish`."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="pack a finished study's small files")
    make.add_argument("--results", required=True, type=folder_path, help="results/<study>")
    again = actions.add_parser("rebuild", help="figures, tables and report without training")
    files = actions.add_parser("unpack", help="the files of a published study, as they were")
    for action in (again, files):
        action.add_argument("--published", required=True, type=folder_path, help="published folder")
    for action in (make, again, files):
        action.add_argument("--out", required=True, type=folder_path, help="folder to write")
    pages = actions.add_parser("pages", help="bring README and docs/ up to date")
    pages.add_argument(
        "--root",
        type=folder_path,
        default=Path(),
        help="folder of README.md and docs/ (default: here)",
    )
    pages.add_argument(
        "--published",
        type=folder_path,
        default=Path("results/published"),
        help="folder of the published studies (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Publish, unpack, rebuild, or write README and docs/."""
    if args.action == "pages":
        changed = write_pages(args.root, args.published)
        log.info("%s", ", ".join(map(str, changed)) + " written" if changed else "nothing changed")
    elif args.action == "make":
        if not (args.results / "resolved.json").is_file():
            raise UserError(f"{args.results} holds no study; `snakemake --cores all` makes one")
        publish(args.results, args.out)
        log.info("published in %s", args.out)
    else:
        if not (args.published / STUDY).is_file():
            found = sorted(path.parent.name for path in args.published.parent.glob(f"*/{STUDY}"))
            there = f"published are {', '.join(found)}" if found else "nothing is published there"
            raise UserError(f"{args.published} holds no published study; {there}")
        if args.action == "unpack":
            unpack(args.published / STUDY, args.out)
            log.info("unpacked in %s", args.out)
            return
        try:
            rebuild(args.published, args.out)
        except UserError as error:  # its way out is for studies that were made here
            problem = str(error).partition("; delete")[0]
            raise UserError(
                f"{problem}; the files of {args.published} come from version control: restore them"
            ) from None
        log.info("rebuilt in %s", args.out)
