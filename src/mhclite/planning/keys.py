"""`python -m mhclite keys STUDY`: what decides each run, and why one would be trained again."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tabulate import tabulate

from mhclite.config import RunConfig
from mhclite.data.manifest import MANIFEST, load_if_prepared
from mhclite.errors import UserError
from mhclite.jobs import PREPARED, PROBE, PROBES, TRAIN
from mhclite.planning.check import add_study
from mhclite.runs.folder import RunFolder
from mhclite.runs.key import code_digest, deciding, differences, module_digests, settings_digest
from mhclite.runs.progress import outdated
from mhclite.study.load import load_study
from mhclite.study.settings import Study

SHORT = 12  # digits shown of a digest
SHOWN = 3  # files that are named


def corpus_digests(study: Study, results: Path) -> dict[str, str | None]:
    """Corpus -> digest of its tokens; None for one that is not prepared."""
    found = {name: load_if_prepared(results / study.corpus_folder(name)) for name in study.corpora}
    return {name: manifest.digest if manifest else None for name, manifest in found.items()}


def outdated_runs(study: Study, results: Path) -> dict[str, str]:
    """Finished runs that the study would train otherwise now -> in what: settings, code, corpus."""
    digests = corpus_digests(study, results)
    found = {}
    for run, config in study.runs().items():
        folder = RunFolder(results / study.name / "runs" / run)
        if not folder.is_finished():
            continue
        # What cannot be read is trained again, or refused, by `train`.
        with suppress(UserError):
            if why := outdated(config, digests[config.corpus], folder.record()):
                found[run] = why
    return found


def lost_files(study: Study, results: Path) -> dict[str, str]:
    """Files that are gone and that no rule declares -> the declared file that is made with each.

    Of finished runs, of probes and of prepared corpora: Snakemake knows nothing of these.
    """
    found, out = {}, results / study.name
    for run in study.runs():
        summary = out / TRAIN.output.format(run=run)
        if not summary.is_file():
            continue
        for name in RunFolder(summary.parent).lost():
            found[str(summary.with_name(name))] = str(summary)
        probe = out / PROBE.output.format(run=run)
        if (out / PROBES.output).is_file() and not probe.is_file():
            found[str(probe)] = str(out / PROBES.output)
    for name in study.corpora:
        folder = results / study.corpus_folder(name)
        if (folder / PREPARED).is_file():
            manifest = load_if_prepared(folder)
            splits = manifest.splits.values() if manifest else ()
            files = [MANIFEST, *(shard.file for split in splits for shard in split.shards)]
            for file in files:
                if not (folder / file).is_file():
                    found[str(folder / file)] = str(folder / PREPARED)
    return found


def lost_in_words(files: Iterable[str]) -> str:
    """One line on files of a study that are gone."""
    found = sorted(files)
    shown = ", ".join(found[:SHOWN]) + ", ..." * (len(found) > SHOWN)
    return f"missing, and made again ({len(found)}): {shown}"


def why(config: RunConfig, corpus: str | None, folder: RunFolder) -> list[str]:
    """What of a run's key differs from the run in its folder, one line per part.

    Args:
        config: as the study has it.
        corpus: digest of its corpus, None if it is not prepared.
        folder: where the run is.
    """
    if folder.begun_key() is None:
        return [f"{folder.path} holds no run: it will be trained from the start"]
    record = folder.record()
    lines = [
        f"settings: {found}" for found in differences(deciding(config), deciding(record.config))
    ]
    if code_digest(config) != record.code:
        here, there = module_digests(config), record.modules or {}
        edited = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
        commit = record.provenance.git.commit or "unknown"
        lines.append(
            f"code: {', '.join(edited)} computed something else in the run, of commit {commit}"
        )
    if corpus != record.corpus.digest:
        here_or_not = corpus[:SHORT] if corpus else "not prepared"
        lines.append(f"corpus: {here_or_not} here, {record.corpus.digest[:SHORT]} in the run")
    return lines or [f"the run in {folder.path} is this one: nothing differs"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite keys`."""
    add_study(parser)
    parser.add_argument(
        "--why", metavar="RUN", help="what of this run's key differs from the run in its folder"
    )


def run(args: argparse.Namespace) -> None:
    """Print the keys of a study, or why one run is what it is."""
    study = load_study(args.study)
    if study.sweep is not None:
        raise UserError(
            f"study {study.name!r} is a sweep and has arms, not runs: `python -m mhclite status "
            f"{args.study}` says where they stand"
        )
    corpora = corpus_digests(study, args.results)
    if args.why is None:
        rows = [
            (run, settings_digest(config)[:SHORT], code_digest(config)[:SHORT], corpus[:SHORT])
            for run, config in study.runs().items()
            for corpus in (corpora[config.corpus] or "not prepared",)
        ]
        print(tabulate(rows, ["run", "settings", "code", "corpus"], disable_numparse=True))
        return
    config = study.runs().get(args.why)
    if config is None:
        raise UserError(f"--why {args.why}: no run of study {study.name!r} has this name")
    folder = RunFolder(args.results / study.name / "runs" / config.run)
    print("\n".join(why(config, corpora[config.corpus], folder)))
