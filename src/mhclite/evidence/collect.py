"""Gather a study's finished runs, probes and stability into one tidy table.

It writes values.csv, the same with one row per run as runs.csv, curves.csv and study.json. Every
figure, table and report reads these (through `results.load_results`) and the files that they name,
nothing else. What was measured for another configuration, other data or other settings
than the study's is refused: numbers in one table must be comparable.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mhclite.arguments import file_path, folder_path
from mhclite.config import RunConfig
from mhclite.connections.registry import VARIANTS, functional_mixing
from mhclite.data.manifest import Manifest, load_manifest
from mhclite.errors import UserError
from mhclite.evidence.metrics import (
    CURVE_COLUMNS,
    METRICS,
    OF_RUNS,
    RUN_COLUMNS,
    VALUE_COLUMNS,
    value_of,
)
from mhclite.evidence.results import SCHEMA, evenly_spaced
from mhclite.files import read_jsonl, write_json, write_text
from mhclite.measure.measured import Probe, RunStability, read_probe, read_stability
from mhclite.measure.stability import series_of, trailing
from mhclite.records import to_json
from mhclite.runs.folder import FinishedRun, RunFolder
from mhclite.runs.key import deciding, difference
from mhclite.study.load import Resolved, read_resolved

log = logging.getLogger(__name__)

FROM_SUMMARY = ("status", "steps", "diverged_step", "tokens", "key")
CURVE_POINTS = 2000  # steps kept of a run in curves.csv; evaluation steps are always kept


def check_run(run: FinishedRun, config: RunConfig, corpus_digest: str) -> None:
    """Refuse a run of other settings or of other data than the study's."""
    again = f"delete its folder under runs/ and run `snakemake --cores all` (run {run.run})"
    found = difference(deciding(config), deciding(run.record.config))
    if found:
        raise UserError(f"run {run.run} was trained with other settings: {found}; {again}")
    if run.record.corpus.digest != corpus_digest:
        raise UserError(
            f"run {run.run} was trained on other data: corpus {config.corpus} now has digest "
            f"{corpus_digest[:12]}, the run's was {run.record.corpus.digest[:12]}; {again}"
        )


def run_row(
    run: FinishedRun,
    config: RunConfig,
    stability: RunStability,
    probe: Probe,
    evaluations: dict[str, list[Any]],
    manifest: Manifest,
) -> dict[str, Any]:
    """One row of runs.csv, with the columns of `RUN_COLUMNS`; None where there is no value.

    Args:
        evaluations: the columns of mixing.jsonl.
    """
    loss = None if probe.evaluation is None else probe.evaluation.loss
    records = {
        "record": run.record,
        "summary": run.summary,
        "stability": stability,
        "probe": probe,
        "evaluations": evaluations,
        "manifest": to_json(manifest),
        "derived": {
            "bits_per_byte": None if loss is None else manifest.bits_per_byte(loss),
            "functional_mixing": mixing_that_counts(config),
        },
    }
    summary = {name: getattr(run.summary, name) for name in FROM_SUMMARY}
    return facts_of(config) | summary | {name: value_of(name, records) for name in OF_RUNS}


def facts_of(config: RunConfig) -> dict[str, Any]:
    """What a row says of the run that it is of."""
    return {
        "run": config.run,
        "corpus": config.corpus,
        "model": config.model.name,
        "n_layer": config.model.n_layer,
        "n_embd": config.model.n_embd,
        "variant": config.connection.variant,
        "condition": config.condition,
        "n_streams": config.connection.n_streams,
        "seed": config.seed,
    }


def tidy(runs: pd.DataFrame) -> pd.DataFrame:
    """The table of runs with one row for each number: `VALUE_COLUMNS`.

    Of a run that diverged, the metrics alone that it has as well as any other.
    """
    keys = [name for name in VALUE_COLUMNS if name in runs]
    long = runs.melt([*keys, "status"], OF_RUNS, "metric", "value").dropna(subset="value")
    has = [name for name in OF_RUNS if METRICS[name].always]
    kept = long[(long["status"] == "completed") | long["metric"].isin(has)]
    return kept[list(VALUE_COLUMNS)]


def mixing_that_counts(config: RunConfig) -> int:
    """Sub-layers of a run whose H_res can change what it computes."""
    connection = config.connection
    if connection.freeze_mixing:
        return 0
    axis = connection.options.get("stochastic_axis", "rows")
    return functional_mixing(connection.variant, config.model.n_layer, connection.final_norm, axis)


def evaluations_of(folder: RunFolder) -> dict[str, list[Any]]:
    """The columns of mixing.jsonl; none where the run recorded nothing."""
    path = folder / "mixing.jsonl"
    lines = read_jsonl(path) if path.is_file() else []
    return {name: [line[name] for line in lines] for name in (lines[0] if lines else ())}


def probe_of(run: FinishedRun, path: Path) -> Probe:
    """The probe of a run; `UserError` if it is of other weights than the run has now."""
    probe = read_probe(path, run.run)
    if probe.key != run.summary.key:
        raise UserError(
            f"{path} is of another training of run {run.run}: "
            f"delete {path.parent.with_suffix('.json')} and run `snakemake --cores all`"
        )
    return probe


def curve(run: FinishedRun, config: RunConfig, window: int) -> pd.DataFrame:
    """The rows of one run in curves.csv, with the columns of `CURVE_COLUMNS`.

    The windowed gradient norm is computed over all steps, then long runs are thinned to
    `CURVE_POINTS` evenly spaced steps, the first and the last among them, plus all evaluations.
    """
    facts = {name: fact for name, fact in facts_of(config).items() if name in CURVE_COLUMNS}
    table = pd.DataFrame(run.metrics).reindex(columns=list(CURVE_COLUMNS)).assign(**facts)
    table["tokens"] = table["step"] * config.tokens_per_step
    # Evaluation before training (step 0) is a line of its own, without a gradient norm.
    trained = table["step"] > 0
    mean, _ = trailing(series_of(run.metrics, "grad_norm"), window)
    table.loc[trained, "grad_norm_window_mean"] = mean
    steps = np.flatnonzero(trained)
    table = _typed(table, CURVE_COLUMNS)
    if len(steps) <= CURVE_POINTS:
        return table
    even = steps[evenly_spaced(len(steps), CURVE_POINTS)]
    evaluated = [at for at, line in enumerate(run.metrics) if "validation_loss" in line]
    return table.iloc[np.union1d(even, evaluated).astype(int)]


def collect(resolved: Resolved, out: Path) -> None:
    """Write study.json, values.csv, runs.csv and curves.csv under `out`, the study's folder."""
    study = resolved.study
    manifests = {name: load_manifest(Path(folder)) for name, folder in resolved.corpora.items()}
    stability = read_stability(out / "stability.json")
    lacks = ", ".join(f"it has no run {run}" for run in resolved.runs if run not in stability.runs)
    if found := difference(study["stability"], to_json(stability.settings)) or lacks:
        raise UserError(
            f"{out / 'stability.json'} is of another study: {found}; write it again with "
            "`python -m mhclite stability`"
        )

    rows, curves = [], []
    for name, config in resolved.runs.items():
        run = RunFolder(out / "runs" / name).finished()
        manifest = manifests[config.corpus]
        check_run(run, config, manifest.digest)
        probe = probe_of(run, out / "probes" / f"{name}.json")
        evaluations = evaluations_of(RunFolder(out / "runs" / name))
        rows.append(run_row(run, config, stability.runs[name], probe, evaluations, manifest))
        curves.append(curve(run, config, study["stability"]["fluctuation_window"]))

    runs = _typed(pd.DataFrame(rows), RUN_COLUMNS)
    _write_csv(runs, out / "runs.csv")
    _write_csv(_typed(tidy(runs), VALUE_COLUMNS), out / "values.csv")
    _write_csv(pd.concat(curves, ignore_index=True), out / "curves.csv")
    # Last: whoever finds study.json finds the tables beside it.
    write_json(
        out / "study.json",
        {
            "schema": SCHEMA,
            "name": study["name"],
            "title": study["name"],
            "study": study,
            "runs": to_json(resolved.runs),
            "corpora": {
                name: {"folder": folder, "manifest": to_json(manifests[name])}
                for name, folder in resolved.corpora.items()
            },
            "claims": resolved.claims,
            "labels": {variant: VARIANTS[variant].label for variant in study["variants"]},
        },
    )
    log.info("collected %d runs into %s", len(rows), out)


def _typed(table: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """The columns in their order and type."""
    types = {name: "str" if kind == "order" else kind for name, kind in columns.items()}
    return table[list(columns)].astype(types)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table; numbers keep all their digits."""
    write_text(path, table.to_csv(index=False, lineterminator="\n"))


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite collect`."""
    parser.add_argument("--study", required=True, type=file_path, help="resolved.json")
    parser.add_argument("--out", required=True, type=folder_path, help="results/<study>")


def run(args: argparse.Namespace) -> None:
    """Collect one study."""
    collect(read_resolved(args.study), args.out)
