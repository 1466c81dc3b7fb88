"""`python -m mhclite status STUDY`: where a study stands, while it runs and on any machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mhclite.arguments import file_path, folder_path
from mhclite.planning.keys import changed_corpora, corpus_digests, lost_files, lost_in_words
from mhclite.runs.status import report
from mhclite.study.reading import load_study


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite status`."""
    parser.add_argument("study", type=file_path, help="study file (YAML)")
    parser.add_argument(
        "--results", type=folder_path, default=Path("results"), help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> None:
    """Print where the study stands."""
    study = load_study(args.study)
    out, digests = args.results / study.name, corpus_digests(study, args.results)
    print(report(study.name, study.runs().values(), out, digests))
    if lost := lost_files(study, args.results):
        print(lost_in_words(lost))
    for corpus in changed_corpora(study, args.results):
        print(
            f"the files of corpus {corpus} changed since it was prepared: the next start of "
            "Snakemake prepares it again, and trains what depends on it"
        )
    if not out.is_dir():
        print(
            f"nothing of it is in {out} yet: snakemake --cores all --configfile {args.study}",
            file=sys.stderr,
        )
