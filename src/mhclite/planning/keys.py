"""`python -m mhclite keys STUDY`: what decides each run, and why one would be trained again."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tabulate import tabulate

from mhclite.arguments import file_path, folder_path
from mhclite.config import RunConfig
from mhclite.data.corpora import changed
from mhclite.data.manifest import MANIFEST, load_if_prepared
from mhclite.errors import UserError
from mhclite.jobs import PREPARED, PROBE, PROBES, TRAIN
from mhclite.runs.folder import RunFolder, RunRecord
from mhclite.runs.key import (
    code_digest,
    deciding,
    differences,
    module_digests,
    settings_digest,
)
from mhclite.runs.status import outdated
from mhclite.study.reading import load_study, read_resolved
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


def outdated_in_words(outdated: dict[str, str], runs: int) -> str:
    """One line on what `outdated_runs` found, of so many runs."""
    whys = list(outdated.values())
    counts = ", ".join(f"{whys.count(why)} {why}" for why in dict.fromkeys(whys))
    return (
        f"{len(outdated)} of {runs} runs were made otherwise ({counts}) and are trained again; "
        f"`python -m mhclite keys STUDY.yaml --why {next(iter(outdated))}` says more"
    )


def replaced(study: Study, results: Path) -> str:
    """What of the results that are there a study would replace; empty if it adds to them.

    Of a sweep its arms, whatever they were trained with: they do not say all of it.
    """
    out = results / study.name
    if study.sweep is not None:
        return "its arms" if any((out / "sweep").glob("*.json")) else ""
    try:
        before = read_resolved(out / "resolved.json")
    except UserError:  # none, damaged, or of another version
        return ""
    runs, now = study.runs(), study.model_dump(mode="json")
    others = [
        run
        for run, config in before.runs.items()
        if run not in runs or deciding(runs[run]) != deciding(config)
    ]
    if others:
        return f"{len(others)} of {len(before.runs)} runs"
    rest = ("probe", "throughput", "stability", "sinkhorn", "critical_rate", "statistics")
    return next((name for name in rest if now[name] != before.study.get(name)), "")


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


def changed_corpora(study: Study, results: Path) -> list[str]:
    """Prepared corpora whose files are others now."""
    return [
        name
        for name, corpus in study.corpora.items()
        if ((folder := results / study.corpus_folder(name)) / MANIFEST).is_file()
        and changed(corpus.model_dump(mode="json"), folder)
    ]


def why(config: RunConfig, corpus: str | None, folder: RunFolder) -> list[str]:
    """What of a run's key differs from the run in its folder, one line per part.

    Args:
        config: as the study has it.
        corpus: digest of its corpus, None if it is not prepared.
        folder: where the run is.
    """
    if folder.begun_key() is None:
        return [f"{folder.path} holds no run: it will be trained from the start"]
    if lost := folder.lost() if folder.is_finished() else []:
        return [f"{folder.path} has no {lost[0]} any more: it is trained again"]
    record = folder.record()
    lines = [
        f"settings: {found}" for found in differences(deciding(config), deciding(record.config))
    ]
    if code_digest(config) != record.code:
        lines.append(f"code: {other_code(config, record)}")
    if corpus is None:
        lines.append("corpus: not prepared here, so its digest is not known")
    elif corpus != record.corpus.digest:
        lines.append(f"corpus: {corpus[:SHORT]} here, {record.corpus.digest[:SHORT]} in the run")
    return lines or [f"the run in {folder.path} is this one: nothing differs"]


def other_code(config: RunConfig, record: RunRecord) -> str:
    """Which modules of a run's key compute something else than when it was trained."""
    commit = record.provenance.git.commit
    since = f"`git diff {commit[:SHORT]}` says what" if commit else "its commit is not known"
    here, there = module_digests(config), record.modules
    if there is None:
        return f"the run keeps no digest of each module; {since}"
    edited = [name for name in sorted({*here, *there}) if here.get(name) != there.get(name)]
    return f"{', '.join(edited)} computed something else in the run; {since}"


def table(study: Study, corpora: dict[str, str | None]) -> str:
    """One row per run: digests of its settings, code and corpus."""
    rows = [
        [
            config.run,
            settings_digest(config)[:SHORT],
            code_digest(config)[:SHORT],
            (corpora[config.corpus] or "not prepared")[:SHORT],
        ]
        for config in study.runs().values()
    ]
    return tabulate(rows, ["run", "settings", "code", "corpus"], disable_numparse=True)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite keys`."""
    parser.add_argument("study", type=file_path, help="study file (YAML)")
    parser.add_argument(
        "--results", type=folder_path, default=Path("results"), help="default: %(default)s"
    )
    parser.add_argument(
        "--why", metavar="RUN", help="what of this run's key differs from the run in its folder"
    )


def run(args: argparse.Namespace) -> None:
    """Print the keys of a study, or why one run is what it is."""
    study = load_study(args.study)
    if study.sweep is not None:
        raise UserError(
            f"study {study.name!r} is a sweep and has no runs of its own; `python -m mhclite "
            f"status {args.study}` shows its arms"
        )
    corpora = corpus_digests(study, args.results)
    if args.why is None:
        print(table(study, corpora))
        return
    config = study.runs().get(args.why)
    if config is None:
        raise UserError(f"--why {args.why}: no run of study {study.name!r} has this name")
    folder = RunFolder(args.results / study.name / "runs" / config.run)
    print("\n".join(why(config, corpora[config.corpus], folder)))
