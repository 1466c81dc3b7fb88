"""`python -m mhclite describe STUDY`: what a study trains, its time, and what it can show.

Parameters are counted on the models themselves, without allocating their weights. Nothing is
assumed: speeds come from a throughput or benchmark file, the spread between seeds from finished
runs, and what was not measured is reported as such.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy import optimize, stats
from tabulate import tabulate

from mhclite.arguments import file_path
from mhclite.connections.registry import VARIANTS
from mhclite.data.manifest import load_if_prepared
from mhclite.errors import UserError
from mhclite.files import read_json
from mhclite.jobs import THROUGHPUT
from mhclite.measure.steps import parameters
from mhclite.planning.check import add_study, work
from mhclite.runs.progress import duration
from mhclite.study.load import load_planned
from mhclite.study.sections import BASE
from mhclite.study.settings import Study

SEEDS = (3, 5)  # whose detectable differences are said, besides those of the study's own number
PUBLISHED = "published/depth/runs.csv"  # its spread is used until the study has one of its own
POWER, CONFIDENCE = 0.8, 0.95
SAME_FUNCTION = 0.001  # nats/token: two that agree so closely in every seed compute the same

log = logging.getLogger(__name__)


def speeds(study: Study, model: str, path: Path) -> dict[str, float]:
    """Variant -> training tokens per second on one device, of what a file has measured.

    Args:
        path: a throughput file, or that of a benchmark, of which the fastest implementation counts.
    """
    measured, training, found = read_json(path, "throughput"), study.training, dict[str, float]()
    mode = "compiled" if training.compile else "eager"
    try:
        if "rows" in measured:
            rows = [
                (row["variant"], row)
                for row in measured["rows"]
                if (row["size"], row["mode"]) == (model, mode)
                and row.get("deterministic", True) == training.deterministic
                and "failed" not in row
            ]
        else:
            rows = list(measured["variants"].items()) if measured["model"] == model else []
        for variant, row in rows:
            speed = float(row["tokens_per_second"]["median"])
            found[variant] = max(speed, found.get(variant, 0.0))
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is neither a throughput nor a benchmark file of mhclite") from None
    return found


def spreads(path: Path, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], float]:
    """Pair of variants -> standard deviation of their differences in loss, seed by seed.

    Pooled over corpora and models, from a study's runs.csv. Cells of one seed have none. Nor do
    those count where both compute the same function as far as their losses tell.
    """
    runs = pd.read_csv(path)
    losses = runs[runs["condition"] == BASE].pivot(
        index=["corpus", "model", "seed"], columns="variant", values="validation_loss"
    )
    found = {}
    for variant, reference in pairs:
        if not {variant, reference} <= {*losses.columns}:
            continue
        differences = (losses[variant] - losses[reference]).dropna()
        pooled = [
            (len(values) - 1, float(values.var()))
            for _, values in differences.groupby(["corpus", "model"])
            if len(values) > 1 and values.abs().max() >= SAME_FUNCTION
        ]
        if pooled:
            freedom = sum(n for n, _ in pooled)
            squares = sum(n * variance for n, variance in pooled)
            found[variant, reference] = math.sqrt(squares / freedom)
    return found


def detectable_effect(n: int) -> float:
    """The smallest effect, in standard deviations, that n paired differences show in 80 % of cases.

    By a two-sided t test at 5 %, of at least two differences.
    """
    limit = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)

    def missing(effect: float) -> float:  # the other tail has no weight
        return float(stats.nct.sf(limit, n - 1, effect * math.sqrt(n))) - POWER

    return float(optimize.brentq(missing, 1e-6, 1e4))


def detectable(study: Study, results: Path) -> str:
    """The differences in loss that would be seen, by pair of variants and number of seeds.

    By the spread of the study's own runs.csv, or else of a published study.
    """
    pairs = [(variant, "residual") for variant in study.variants if variant != "residual"]
    pairs = [pair for pair in (*pairs, ("mhc_lite", "mhc")) if {*pair} <= {*study.variants}]
    for source in (results / study.name / "runs.csv", results / PUBLISHED):
        if found := spreads(source, pairs) if source.is_file() else {}:
            break
    else:
        return "Detectable differences: unknown; no finished runs of several seeds show a spread."
    effects = {n: detectable_effect(n) for n in sorted({len(study.seeds), *SEEDS} - {1})}
    rows = [
        [" - ".join(VARIANTS[variant].label for variant in pair)]
        + [f"{effect * spread:.2g}" for effect in effects.values()]
        for pair, spread in found.items()
    ]
    table = tabulate(rows, ["difference", *(f"{n} seeds" for n in effects)], disable_numparse=True)
    return (
        "Smallest difference in validation loss found in 80 % of cases (nats/token; paired by "
        f"seed, two-sided 5 %, one comparison), by the spread of {source}:\n{table}"
    )


class Planned(NamedTuple):
    """A variant at one model size, with so many parameters."""

    model: str
    variant: str
    parameters: int
    tokens: int  # of a training
    runs: int  # in a sweep: arms
    hours: float | None  # of a training on one device; None: not measured


def sizes(study: Study, results: Path, throughput: Path | None = None) -> list[Planned]:
    """Every variant at every size, with its time where the study's throughput is measured.

    Where a condition changes the number of parameters, its runs have a row of their own.
    """
    found = Counter[tuple[str, str, int]]()
    for arm in study.arms().values():
        one = arm[0]
        cell = one.model.name, one.connection.variant, parameters(one.model, one.connection)
        found[cell] += 1 if study.sweep else len(arm)
    rows: list[Planned] = []
    for model in study.models:
        path = throughput or results / study.name / THROUGHPUT.output.format(model=model)
        speed = speeds(study, model, path) if throughput or path.is_file() else {}
        block_size = study.resolved_model(model).block_size
        tokens = study.training.steps * study.training.batch_size * block_size
        for (size, variant, total), runs in found.items():
            if size == model:
                hours = tokens / speed[variant] / 3600 if variant in speed else None
                rows.append(Planned(model, variant, total, tokens, runs, hours))
    return rows


def describe(study: Study, results: Path, throughput: Path | None = None) -> str:
    """The study in numbers, as text.

    Args:
        results: folder in which finished runs, throughput and corpora are looked up.
        throughput: a throughput or benchmark file to use instead of the study's own.
    """
    words, each = work(study)
    rows = sizes(study, results, throughput)
    cells = [
        (*row[:2], f"{row.parameters:,}", f"{row.tokens:,}", row.runs, _time(row.hours))
        for row in rows
    ]
    headings = ["model", "variant", "parameters", "tokens", "arms" if study.sweep else "runs"]
    align = ("left", "left", "right", "right", "right", "right")
    lines = [tabulate(cells, [*headings, "time/run"], disable_numparse=True, colalign=align), ""]
    for corpus in study.corpora:
        manifest = load_if_prepared(results / study.corpus_folder(corpus))
        known = f"{manifest.train.tokens:,} train tokens" if manifest else "not prepared here"
        lines.append(f"Corpus {corpus}: {known}.")
    tokens = round(sum(row.runs * each * row.tokens for row in rows))
    lines.append(f"Trained: {words}; {tokens:,} tokens in total.")
    hours = [row.runs * each * row.hours for row in rows if row.hours is not None]
    if len(hours) == len(rows):
        lines.append(
            f"Time, one after the other: {_time(sum(hours))}, of training steps alone; starts, "
            "compiling and evaluations come on top."
        )
    else:
        lines.append(
            "Time: not measured. The study's throughput step does it (a sweep has none); "
            "`--throughput FILE` takes it from another study or a benchmark."
        )
    return "\n".join(lines if study.sweep else [*lines, "", detectable(study, results)])


def _time(hours: float | None) -> str:
    return "not measured" if hours is None else duration(3600 * hours)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite describe`."""
    add_study(parser)
    parser.add_argument(
        "--throughput", type=file_path, help="throughput or benchmark file to take the speeds from"
    )


def run(args: argparse.Namespace) -> None:
    """Describe one study; also one whose learning rates have not been found yet."""
    study, note = load_planned(args.study)
    if note:
        log.warning("%s", note)
    print(describe(study, args.results, args.throughput))
