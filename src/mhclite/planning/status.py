"""`python -m mhclite status STUDY`: where a study stands, while it runs and on any machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mhclite.arguments import file_path, folder_path
from mhclite.jobs import RATES, SWEEP
from mhclite.measure.files import read_sweep
from mhclite.planning.keys import changed_corpora, corpus_digests, lost_files, lost_in_words
from mhclite.runs.folder import RunFolder
from mhclite.runs.status import last_words, report
from mhclite.study.reading import load_study
from mhclite.study.settings import Study


def sweep_report(study: Study, out: Path) -> str:
    """Where the arms of a sweep stand."""
    arms = study.arms()
    lines, done = [], 0
    for arm in arms:
        path = out / SWEEP.output.format(arm=arm)
        if path.is_file():
            done += 1
            found = read_sweep(path)
            why = "every finalist diverged" if found.bracketed else "not bracketed"
            rate = f"no rate, {why}" if found.rate is None else f"learning rate {found.rate:g}"
            line = f"finished: {rate}"
        elif words := last_words(out / SWEEP.log.format(arm=arm)):
            trials = [RunFolder(folder) for folder in path.with_suffix("").glob("*-x*-s*")]
            finished = sum(trial.is_finished() for trial in trials)
            line = f"{finished} trials finished; its log ends: {words}"
        else:
            line = "waiting"
        lines.append(f"  {arm:<{max(map(len, arms))}}  {line}")
    head = f"study {study.name}: a sweep, {done} of {len(arms)} arms finished"
    if done == len(arms):
        written = (out / RATES).is_file()
        lines.append(f"{'the rates are' if written else 'not gathered yet'}: {out / RATES}")
    return "\n".join([head, *lines])


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
    if study.sweep is None:
        print(report(study.name, study.runs().values(), out, digests))
    else:
        print(sweep_report(study, out))
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
