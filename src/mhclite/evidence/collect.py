"""Gather a study's finished runs, probes and verdicts into study.json, runs.csv and curves.csv.

Every figure, table and report reads these three (through `results.load_results`) and the files
they name, nothing else. What was measured for another configuration, other data or other settings
than the study's is refused: numbers in one table must be comparable.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mhclite.arguments import json_argument
from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.evidence.columns import CURVE_COLUMNS, RUN_COLUMNS
from mhclite.files import write_json, write_text
from mhclite.measure.stability import series_of, trailing
from mhclite.runs.folder import SCHEMA, FinishedRun, finished_run, read_schema
from mhclite.runs.key import deciding

log = logging.getLogger(__name__)

CURVE_POINTS = 2000  # steps kept of a run in curves.csv; evaluation steps are always kept


def _difference(expected: Any, found: Any, where: str = "") -> str:
    """The first setting in which two configurations differ, as `where: expected, found`."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            inner = _difference(expected.get(key), found.get(key), f"{where}.{key}".lstrip("."))
            if inner:
                return inner
        return ""
    if expected == found:
        return ""
    return f"{where} is {expected!r} in the study and {found!r} in the run"


def check_run(run: FinishedRun, configuration: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Refuse a run of another configuration or of other data than the study's."""
    again = f"delete its folder under runs/ and run `snakemake --cores all` (run {run.run})"
    difference = _difference(deciding(configuration), deciding(run.description["config"]))
    if difference:
        raise UserError(f"run {run.run} was trained with other settings: {difference}; {again}")
    if run.description["corpus"]["digest"] != manifest["digest"]:
        raise UserError(
            f"run {run.run} was trained on other data: corpus {configuration['corpus']} now has "
            f"digest {manifest['digest'][:12]}, the run's was "
            f"{run.description['corpus']['digest'][:12]}; {again}"
        )


def run_row(
    run: FinishedRun,
    configuration: dict[str, Any],
    verdict: dict[str, Any],
    probe: dict[str, Any],
    baselines: dict[str, float],
) -> dict[str, Any]:
    """One row of runs.csv, with the columns of `RUN_COLUMNS`; None where there is no value."""
    summary, parameters = run.summary, run.description["parameters"]
    row = {
        "run": run.run,
        "corpus": configuration["corpus"],
        "model": configuration["model"]["name"],
        "n_layer": configuration["model"]["n_layer"],
        "n_embd": configuration["model"]["n_embd"],
        "variant": configuration["connection"]["variant"],
        "condition": configuration["condition"],
        "n_streams": configuration["connection"]["n_streams"],
        "seed": configuration["seed"],
        "parameters": parameters["total"],
        "connection_parameters": parameters["connection"],
        "loss_spikes": len(verdict["loss_spikes"]),
        "grad_norm_spikes": len(verdict["grad_norm_spikes"]),
        "single_max_deviation": None,
        "product_max_deviation": None,
        "gain_forward": None,
        "gain_backward": None,
        "sinkhorn_share_above_30": None,
        "identity_distance": None,
        **baselines,
    }
    for name in ("spikes_per_1000_steps", "grad_norm_mean", "grad_norm_fluctuation"):
        row[name] = verdict[name]
    for name in RUN_COLUMNS.keys() - row.keys():
        row[name] = summary[name]
    if "skipped" not in probe:
        row["single_max_deviation"] = probe["single"]["max_deviation"]
        row["product_max_deviation"] = probe["product"]["max_deviation"]
        # The last entry is the product over the whole depth.
        row["gain_forward"] = probe["product"]["gain_forward"][-1]
        row["gain_backward"] = probe["product"]["gain_backward"][-1]
        row["identity_distance"] = float(np.mean(probe["identity_distance"]))
        if probe["sinkhorn_input"] is not None:
            row["sinkhorn_share_above_30"] = probe["sinkhorn_input"]["share_above_30"]
    return row


def curve(run: FinishedRun, configuration: dict[str, Any], window: int) -> pd.DataFrame:
    """The rows of one run in curves.csv, with the columns of `CURVE_COLUMNS`.

    The windowed gradient norm is computed over all steps, then long runs are thinned to
    `CURVE_POINTS` evenly spaced steps, the first and the last among them, plus all evaluations.
    """
    table = pd.DataFrame(run.metrics).reindex(columns=list(CURVE_COLUMNS))
    table["run"] = run.run
    table["corpus"] = configuration["corpus"]
    table["model"] = configuration["model"]["name"]
    table["variant"] = configuration["connection"]["variant"]
    table["condition"] = configuration["condition"]
    table["seed"] = configuration["seed"]
    # Evaluation before training (step 0) is a line of its own, without a gradient norm.
    trained = table["step"] > 0
    mean, deviation = trailing(series_of(run.metrics, "grad_norm"), window)
    table.loc[trained, "grad_norm_window_mean"] = mean
    table.loc[trained, "grad_norm_window_sd"] = deviation
    steps = np.flatnonzero(trained)
    table = _typed(table, CURVE_COLUMNS)
    if len(steps) <= CURVE_POINTS:
        return table
    even = steps[np.unique(np.linspace(0, len(steps) - 1, CURVE_POINTS).round().astype(int))]
    evaluated = [at for at, line in enumerate(run.metrics) if "validation_loss" in line]
    return table.iloc[np.union1d(even, evaluated).astype(int)]


def collect(description: dict[str, Any], out: Path) -> None:
    """Write study.json, runs.csv and curves.csv under `out`.

    `description` has `study` (Study.model_dump), `runs` (Study.runs()), `corpora` (name -> folder
    of the prepared corpus) and `claims` (config/claims.yaml); optionally `title`.
    """
    for key in ("study", "runs", "corpora"):
        if not isinstance(description.get(key), dict):
            raise UserError(f"--study: the object needs the key {key!r}, which holds an object")
    if not isinstance(description.get("claims"), list):
        raise UserError("--study: the object needs the key 'claims', which holds a list")
    study, runs = description["study"], description["runs"]
    corpora: dict[str, dict[str, Any]] = {
        name: {
            "folder": str(folder),
            "manifest": read_schema(
                Path(folder) / "manifest.json", f"the manifest of corpus {name}", "prepare"
            ),
        }
        for name, folder in description["corpora"].items()
    }
    stability = read_schema(out / "stability.json", "the stability of the runs", "stability")
    if stability["settings"] != study["stability"]:
        difference = _difference(study["stability"], stability["settings"])
        raise UserError(
            f"{out / 'stability.json'} was made with other settings: "
            f"{difference.replace('the run', 'the file')}; write it again with "
            "`python -m mhclite stability`"
        )

    rows, curves = [], []
    for name, configuration in runs.items():
        run = finished_run(out / "runs", name)
        manifest = corpora[configuration["corpus"]]["manifest"]
        check_run(run, configuration, manifest)
        if name not in stability["runs"]:
            raise UserError(
                f"{out / 'stability.json'} has no run {name}; write it again with "
                "`python -m mhclite stability`"
            )
        probe = read_schema(out / "probes" / f"{name}.json", f"the probe of run {name}", "probe")
        rows.append(
            run_row(run, configuration, stability["runs"][name], probe, manifest["baselines"])
        )
        curves.append(curve(run, configuration, study["stability"]["fluctuation_window"]))

    _write_csv(_typed(pd.DataFrame(rows), RUN_COLUMNS), out / "runs.csv")
    _write_csv(pd.concat(curves, ignore_index=True), out / "curves.csv")
    # Last: whoever finds study.json finds the tables beside it.
    write_json(
        out / "study.json",
        {
            "schema": SCHEMA,
            "name": study["name"],
            "title": description.get("title", study["name"]),
            "study": study,
            "runs": runs,
            "corpora": corpora,
            "claims": description["claims"],
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
    parser.add_argument(
        "--study",
        required=True,
        metavar="JSON",
        help="the resolved study: an object with study, runs and corpora, as @FILE, or - (stdin)",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the study's folder under results/"
    )


def run(args: argparse.Namespace) -> None:
    """Collect one study."""
    collect(json_argument(args.study, "--study"), args.out)
