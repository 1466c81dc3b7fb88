"""`python -m mhclite describe STUDY`: what a study trains, its time, and what it can show.

Parameters and FLOPs are counted on the models themselves, without allocating their weights. Nothing
is assumed: speeds come from a throughput or benchmark file, the spread between seeds from finished
runs, and what was not measured is reported as such.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats
from tabulate import tabulate

from mhclite.arguments import file_path, folder_path
from mhclite.config import RESIDUAL
from mhclite.connections.registry import VARIANTS
from mhclite.data.corpora import LOCK_FILE, CorporaLock, revision_text
from mhclite.data.manifest import load_if_prepared
from mhclite.errors import UserError
from mhclite.files import read_json
from mhclite.measure.steps import counts
from mhclite.planning.check import work
from mhclite.runs.status import duration
from mhclite.study.reading import load_planned
from mhclite.study.sections import BASE
from mhclite.study.settings import Study

SEEDS = (3, 5)  # whose detectable differences are said, beside those of the study's own number
PUBLISHED = "published/depth/runs.csv"  # its spread is used until the study has one of its own
POWER, CONFIDENCE = 0.8, 0.95
SAME_FUNCTION = 0.001  # nats/token: two that agree so closely in every seed compute the same

log = logging.getLogger(__name__)

Losses = dict[tuple[str, str, str, int], float]  # by corpus, model, variant and seed


def speeds(
    study: Study, model: str, results: Path, file: Path | None = None
) -> tuple[dict[str, float], str]:
    """(variant -> training tokens per second on one device, source); empty if not measured.

    Args:
        file: a throughput or benchmark file to use instead of the study's own. Of a benchmark the
            fastest implementation counts, compiled or not as the study trains.
    """
    path = file or results / study.name / "throughput" / f"{model}.json"
    if file is None and not path.is_file():
        return {}, ""
    measured = read_json(path, "throughput")
    found: dict[str, float] = {}
    try:
        if "rows" in measured:
            mode = "compiled" if study.training.compile else "eager"
            timed = [
                (row.get("deterministic", True), float(row["tokens_per_second"]["median"]), row)
                for row in measured["rows"]
                if row["size"] == model and row["mode"] == mode and "failed" not in row
            ]
            # As training is, with deterministic algorithms, where rows of both are there.
            for _, speed, row in sorted(timed, key=lambda one: one[:2]):
                found[row["variant"]] = speed
        elif measured.get("model", model) == model:
            rows = measured["variants"].items()
            found = {name: float(row["tokens_per_second"]["median"]) for name, row in rows}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is neither a throughput nor a benchmark file of mhclite") from None
    return found, str(path) if found else ""


def final_losses(path: Path) -> Losses:
    """Final validation losses of a study's runs.csv; empty where there is none."""
    if not path.is_file():
        return {}
    runs = pd.read_csv(path)
    runs = runs[(runs["condition"] == BASE) & runs["validation_loss"].notna()]
    cells = zip(runs["corpus"], runs["model"], runs["variant"], runs["seed"], strict=True)
    return dict(zip(cells, runs["validation_loss"], strict=True))


def pooled_spread(losses: Losses, variant: str, reference: str) -> float | None:
    """Standard deviation of two variants' differences seed by seed, pooled over corpora and models.

    Cells of one seed have none. Nor are those counted where both compute the same function as far
    as their losses tell: there the spread is that of rounding, and says nothing of other sizes.
    """
    cells = defaultdict(list)
    for (corpus, model, name, seed), loss in losses.items():
        other = losses.get((corpus, model, reference, seed))
        if name == variant and other is not None:
            cells[corpus, model].append(loss - other)
    kept = [
        values
        for values in cells.values()
        if len(values) > 1 and max(map(abs, values)) >= SAME_FUNCTION
    ]
    freedom = sum(len(values) - 1 for values in kept)
    squares = sum((len(values) - 1) * float(np.var(values, ddof=1)) for values in kept)
    return math.sqrt(squares / freedom) if kept else None


def detectable_effect(n: int) -> float | None:
    """The smallest effect, in standard deviations, that n paired differences show in 80 % of cases.

    By a two-sided t test at 5 %. None for one seed, which shows nothing.
    """
    if n < 2:
        return None
    limit = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)

    def missing(effect: float) -> float:  # the other tail has no weight
        return float(stats.nct.sf(limit, n - 1, effect * math.sqrt(n))) - POWER

    return float(optimize.brentq(missing, 1e-6, 1e4))


def detectable(study: Study, results: Path) -> tuple[dict[str, dict[int, float | None]], str]:
    """The differences in loss that would be seen, and by whose spread; empty if nobody tells one.

    Differences are by pair of variants and number of seeds, in nats per token, None for one seed.
    The spread is that of the study's own runs.csv, or else of a published study.
    """
    pairs = [(variant, RESIDUAL.variant) for variant in study.variants]
    pairs = [pair for pair in pairs if pair[0] != pair[1]] + [("mhc_lite", "mhc")]
    effects = {n: detectable_effect(n) for n in sorted({len(study.seeds), *SEEDS})}
    for source in (results / study.name / "runs.csv", results / PUBLISHED):
        losses, found = final_losses(source), {}
        for pair in pairs:
            spread = pooled_spread(losses, *pair) if {*pair} <= {*study.variants} else None
            if spread is not None:
                name = " - ".join(VARIANTS[variant].label for variant in pair)
                found[name] = {n: effect and effect * spread for n, effect in effects.items()}
        if found:
            return found, str(source)
    return {}, ""


class Row(NamedTuple):
    """A variant at one model size."""

    model: str
    variant: str
    parameters: int
    extra_parameters: int  # more than the plain residual's
    flops_per_token: float
    tokens: int  # of a training
    runs: int  # in a sweep: arms
    hours: float | None  # of a training on one device; None: not measured


def sizes(study: Study, results: Path, throughput: Path | None) -> tuple[list[Row], list[str]]:
    """Every variant at every size, and the files that tell their speeds."""
    training = study.training
    trainings = [arm[0] for arm in study.arms().values()] if study.sweep else study.runs().values()
    cells = [(one.model.name, one.connection.variant) for one in trainings]
    rows: list[Row] = []
    sources: list[str] = []
    for model in study.models:
        settings = study.resolved_model(model)
        speed, source = speeds(study, model, results, throughput)
        sources += [source] * (source not in ("", *sources))
        plain, _ = counts(settings, RESIDUAL)
        tokens = training.steps * training.batch_size * settings.block_size
        for variant in study.variants_of(model):
            parameters, flops = counts(settings, study.resolved_connection(variant))
            hours = tokens / speed[variant] / 3600 if variant in speed else None
            runs = cells.count((model, variant))
            extra = parameters - plain
            rows.append(Row(model, variant, parameters, extra, flops, tokens, runs, hours))
    return rows, sources


def describe(
    study: Study, results: Path, throughput: Path | None = None, lock: Path = LOCK_FILE
) -> str:
    """The study in numbers, as text.

    Args:
        results: folder in which finished runs, throughput and corpora are looked up.
        throughput: a throughput or benchmark file to use instead of the study's own.
        lock: the corpora lock file.
    """
    words, each = work(study)
    rows, sources = sizes(study, results, throughput)
    cells = [
        [
            *(row.model, row.variant, f"{row.parameters:,}", f"{row.extra_parameters:,}"),
            *(f"{row.flops_per_token / 1e6:,.1f}", f"{row.tokens:,}", row.runs, _time(row.hours)),
        ]
        for row in rows
    ]
    headings = ["model", "variant", "parameters", "extra", "MFLOP/token", "tokens"]
    headings += ["arms" if study.sweep else "runs", "time/run"]
    right = ["left", "left", *["right"] * (len(headings) - 2)]
    lines = [tabulate(cells, headings, disable_numparse=True, colalign=right), ""]
    for corpus in study.corpora:
        known = "not prepared here, so its epochs are not known"
        if manifest := load_if_prepared(results / study.corpus_folder(corpus)):
            there = manifest.train.tokens
            epochs = {row.model: f"{row.model} {row.tokens / there:.3g}" for row in rows}
            known = f"{there:,} train tokens; epochs: {', '.join(epochs.values())}"
        settings = study.corpus_settings(corpus)["corpus"]
        if settings["source"] == "hub":
            known += f"; {revision_text(settings, CorporaLock(lock))}"
        lines.append(f"Corpus {corpus}: {known}.")
    tokens = round(sum(row.runs * each * row.tokens for row in rows))
    lines.append(f"Trained: {words}; {tokens:,} tokens in total.")
    if sources:
        hours = [None if row.hours is None else row.runs * each * row.hours for row in rows]
        total = _time(None if None in hours else sum(filter(None, hours)))
        lines.append(
            f"Time, one after the other: {total}, of training steps alone at the speed in "
            f"{', '.join(sources)}; starts, compiling and evaluations come on top."
        )
    else:
        lines.append(
            "Time: no speed was measured. `snakemake` measures it in the study's own throughput "
            "step (a sweep has none); `--throughput FILE` takes one from another study or from "
            "a benchmark (docs/performance.md)."
        )
    return "\n".join(lines if study.sweep else [*lines, "", *_detectable_lines(study, results)])


def _time(hours: float | None) -> str:
    return "not measured" if hours is None else duration(3600 * hours)


def _detectable_lines(study: Study, results: Path) -> list[str]:
    differences, source = detectable(study, results)
    if not source:
        return ["Detectable differences: unknown; no finished runs of several seeds show a spread."]
    rows = [
        [pair, *("none" if value is None else f"{value:.2g}" for value in by_seeds.values())]
        for pair, by_seeds in differences.items()
    ]
    seeds = next(iter(differences.values()))
    headings = ["difference", *(f"{n} seed{'s' * (n > 1)}" for n in seeds)]
    return [
        "Smallest difference in validation loss found in 80 % of cases (nats/token; paired by "
        f"seed, two-sided 5 %, one comparison), by the spread of {source}:",
        tabulate(rows, headings, disable_numparse=True),
    ]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite describe`."""
    parser.add_argument("study", type=file_path, help="study file")
    parser.add_argument(
        "--results",
        type=folder_path,
        default=Path("results"),
        help="results folder (default: results)",
    )
    parser.add_argument(
        "--throughput", type=file_path, help="throughput or benchmark file to take the speeds from"
    )


def run(args: argparse.Namespace) -> None:
    """Describe one study; also one whose learning rates have not been found yet."""
    study, note = load_planned(args.study)
    if note:
        log.warning("%s", note)
    print(describe(study, args.results, args.throughput))
