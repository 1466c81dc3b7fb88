"""`python -m mhclite publish`: keep a study's small files, and make from them what the reader sees.

`make` packs them, `unpack` writes them again, `rebuild` computes figures, tables and report from
them, without training, and `pages` writes what README and docs/ say of published studies.

No weights, no shards: what figures, tables, verdicts and report are computed from, in one Parquet
file; beside it the tables that a reader opens without code.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from mhclite.arguments import folder_path
from mhclite.errors import UserError
from mhclite.evidence.evidence import write
from mhclite.evidence.pages import collect_again, write_pages
from mhclite.evidence.results import Results
from mhclite.files import write_json
from mhclite.records import to_json
from mhclite.runs.parquet import STUDY, pack, unpack
from mhclite.study.reading import read_resolved

MANIFEST = "manifest.json"
RUN_FILES = ("run.json", "summary.json", "metrics.jsonl", "mixing.jsonl")
STUDY_FILES = ("probes/*.json", "critical/*.json", "throughput/*.json", "sinkhorn.json")
READABLE = ("runs.csv", "tables/claims.csv")

log = logging.getLogger(__name__)


def publish(results: Path, out: Path) -> None:
    """Put what a finished study in results/<study> is computed from into `out`."""
    resolved = read_resolved(results / "resolved.json")
    for run in resolved.runs:
        if not (results / "runs" / run / "summary.json").is_file():
            raise UserError(f"run {run} is not finished: complete the study before it is published")
    paths = [f"runs/{run}/{name}" for run in sorted(resolved.runs) for name in RUN_FILES]
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        for corpus, prepared in resolved.corpora.items():
            (made / "corpora" / corpus).mkdir(parents=True)
            shutil.copyfile(Path(prepared) / MANIFEST, made / "corpora" / corpus / MANIFEST)
        corpora = {corpus: f"corpora/{corpus}" for corpus in resolved.corpora}
        write_json(made / "resolved.json", to_json(replace(resolved, corpora=corpora)))
        sources = {str(path.relative_to(made)): path for path in made.rglob("*.json")}
        for pattern in STUDY_FILES:
            sources |= {str(path.relative_to(results)): path for path in results.glob(pattern)}
        sources |= {path: results / path for path in paths}
        pack(dict(sorted(sources.items())), out / STUDY)
    for name in READABLE:
        if (results / name).is_file():
            shutil.copyfile(results / name, out / Path(name).name)


def rebuild(published: Path, out: Path) -> Results:
    """Compute stability, tables, figures and report from a published folder, into `out`."""
    collect_again(published, out)
    return write(out)


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
