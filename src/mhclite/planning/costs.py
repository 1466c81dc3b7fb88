"""What a study costs and can show: device-hours, days, disk, and the smallest visible difference.

Nothing is assumed: speeds come from a throughput or benchmark file, the spread between seeds from
finished runs, and what was not measured is reported as such.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from mhclite.connections.registry import VARIANTS
from mhclite.data.manifest import load_if_prepared
from mhclite.errors import UserError
from mhclite.evidence.claims import Claim
from mhclite.evidence.statistics import BASELINE
from mhclite.evidence.verdicts import POWER, detectable_effect, power
from mhclite.files import read_json
from mhclite.runs.folder import SUMMARY, RunFolder
from mhclite.runs.status import duration
from mhclite.study.sections import BASE
from mhclite.study.settings import Study
from mhclite.training.checkpoint import KEEP

GPUS = (1, 8)
SEEDS = (1, 3, 5)
MOST_SEEDS = 100  # tried for the number that a margin needs
PUBLISHED = "published/depth"  # its spread is used until the study has one of its own
CONFIDENCE = 0.95
SAME_FUNCTION = 0.001  # nats/token: two that agree so closely in every seed compute the same
BYTES_PER_WEIGHT = 4
RUN_BYTES_PER_STEP = 220  # metrics.jsonl and timing.jsonl; measured: 205 to 215
BYTES_PER_TOKEN = 2
MIB, GIB = 2**20, 2**30


# --- speed ----------------------------------------------------------------------------------


def speeds(
    study: Study, model: str, results: Path, file: Path | None = None
) -> tuple[dict[str, float], str]:
    """(variant -> training tokens per second on one device, source); empty if not measured.

    Args:
        file: a throughput or benchmark file to use instead of the study's own.
    """
    path = file or results / study.name / "throughput" / f"{model}.json"
    if file is None and not path.is_file():
        return {}, ""
    measured = read_json(path, "throughput")
    try:
        if "rows" in measured:
            found = _benchmarked_speeds(study, model, measured["rows"])
            device, precision = measured["hardware"], measured["precision"]
            device = device.get("gpu", device["cpu"])
        else:
            device, precision = measured.get("device", "unknown"), measured.get("precision", "")
            own = measured.get("model", model) == model
            found = {
                variant: float(row["tokens_per_second"]["median"])
                for variant, row in measured["variants"].items()
                if own
            }
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is neither a throughput nor a benchmark file of mhclite") from None
    return found, f"{path} ({device}, {precision})" if found else ""


def _benchmarked_speeds(study: Study, model: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """From a benchmark's rows, in the study's mode and its implementation (the best for `auto`)."""
    mode = "compiled" if study.training.compile else "eager"
    order = [study.connections.implementation, "fused", "fast", "reference"]
    found: dict[str, dict[str, float]] = defaultdict(dict)
    # As training is, where rows of both are there: with deterministic algorithms.
    for row in sorted(rows, key=lambda row: not row.get("deterministic", True)):
        if row["size"] == model and row["mode"] == mode and "failed" not in row:
            speed = float(row["tokens_per_second"]["median"])
            found[row["variant"]].setdefault(row["implementation"], speed)
    return {
        variant: next((by[name] for name in order if name in by), next(iter(by.values())))
        for variant, by in found.items()
    }


# --- power ----------------------------------------------------------------------------------

Losses = dict[tuple[str, str, str, int], float]  # by corpus, model, variant and seed


def final_losses(runs: Path, wanted: Iterable[str] | None) -> Losses:
    """(corpus, model, variant, seed) -> final validation loss of the completed runs of a folder."""
    found = {}
    for folder in map(RunFolder, sorted(path.parent for path in runs.glob(f"*/{SUMMARY}"))):
        summary, config = folder.summary(), folder.record().config
        counted = config.condition == BASE and (wanted is None or config.run in wanted)
        if counted and summary.validation_loss is not None:
            cell = (config.corpus, config.model.name, config.connection.variant)
            found[*cell, config.seed] = summary.validation_loss
    return found


def paired_differences(losses: Losses, variant: str, reference: str) -> list[list[float]]:
    """Differences of losses, for each corpus and model with two seeds of both variants."""
    differences = defaultdict(list)
    for (corpus, model, name, seed), loss in losses.items():
        other = losses.get((corpus, model, reference, seed))
        if name == variant and other is not None:
            differences[corpus, model].append(loss - other)
    return [values for values in differences.values() if len(values) >= 2]


def compute_the_same(differences: list[float]) -> bool:
    """Whether two variants are one function as far as their losses tell.

    Their spread is that of rounding then, and says nothing of one where they differ.
    """
    return max(map(abs, differences)) < SAME_FUNCTION


def pooled_spread(cells: list[list[float]]) -> tuple[float, int]:
    """(standard deviation, degrees of freedom) of paired differences, pooled over cells."""
    freedom = sum(len(values) - 1 for values in cells)
    squares = sum((len(values) - 1) * float(np.var(values, ddof=1)) for values in cells)
    return math.sqrt(squares / freedom), freedom


def margins(claims: Iterable[Claim]) -> dict[tuple[str, str], float]:
    """(variant, reference) -> the smallest margin of a claim on their final losses."""
    found: dict[tuple[str, str], float] = {}
    for claim in claims:
        plain = claim.metric == "validation_loss" and not (claim.setting or claim.reference_setting)
        if claim.kind == "difference" and claim.reference and plain and claim.margin:
            pair = (claim.variant, claim.reference)
            found[pair] = min(claim.margin, found.get(pair, math.inf))
    return found


def seeds_needed(sd: float, margin: float) -> int | None:
    """Seeds that detect a difference as large as the margin; None for more than `MOST_SEEDS`."""
    effect = margin / max(sd, margin / 1e4)  # seeds may differ by nothing
    tried = range(2, MOST_SEEDS + 1)
    return next((n for n in tried if power(effect, n, CONFIDENCE) >= POWER), None)


def study_power(study: Study, results: Path, claims: Iterable[Claim] = ()) -> dict[str, Any]:
    """`source` of the spread, and for each comparison its `sd` and the `detectable` differences.

    `detectable`: seeds -> smallest true difference in nats per token that a t test of the paired
    differences finds with 80 % power, two-sided at 5 %; None where nothing can be said. `planned`:
    the study's own number of seeds. `margin`: that of a claim, or None; `needed`: how many seeds
    would detect it, None for more than are tried. `refused`: (variant, reference) that compute the
    same function in that source.
    """
    planned, asked = len(study.seeds), margins(claims)
    seeds = sorted({*SEEDS, planned})
    own = results / study.name / "runs"
    beside = [(variant, BASELINE) for variant in study.variants if variant != BASELINE]
    places = ((own, study.runs().keys()), (results / PUBLISHED / "runs", None))
    for runs, wanted in places:
        losses = final_losses(runs, wanted)
        comparisons, refused = [], []
        for variant, reference in dict.fromkeys((*beside, ("mhc_lite", "mhc"), *asked)):
            cells = paired_differences(losses, variant, reference)
            if not cells or not {variant, reference} <= set(study.variants):
                continue
            differing = [values for values in cells if not compute_the_same(values)]
            if not differing:
                refused.append((variant, reference))
                continue
            sd, freedom = pooled_spread(differing)
            effects = {n: detectable_effect(n, CONFIDENCE) for n in seeds}
            margin = asked.get((variant, reference))
            comparisons.append(
                {
                    "variant": variant,
                    "reference": reference,
                    "sd": sd,
                    "degrees_of_freedom": freedom,
                    "detectable": {
                        n: None if effect is None else effect * sd for n, effect in effects.items()
                    },
                    "margin": margin,
                    "needed": None if margin is None else seeds_needed(sd, margin),
                }
            )
        if comparisons or refused:
            return {
                "source": str(runs),
                "own": runs == own,
                "planned": planned,
                "comparisons": comparisons,
                "refused": refused,
            }
    return {
        "source": None,
        "own": False,
        "planned": planned,
        "comparisons": [],
        "refused": [],
    }


# --- cost -----------------------------------------------------------------------------------


def study_costs(study: Study, rows: list[dict[str, Any]], results: Path) -> dict[str, Any]:
    """Device-hours, days and bytes of disk: `variants`, with one row each, and `total`.

    `device` is the study's setting, `days` are by number of such devices: of GPUs, or on CPUs of
    runs at a time. `checkpoints` are the further bytes that unfinished runs need, by the same
    numbers. `tokens` are the bytes of each prepared corpus, None for one that is not prepared.

    Args:
        rows: those of `describe`, one per model and variant; `hours` of one run on one device.
    """
    variants = [
        _sum(variant, [row for row in rows if row["variant"] == variant])
        for variant in study.variants
    ]
    largest = max(row["checkpoint_bytes"] for row in rows)
    tokens: dict[str, int | None] = {}
    for corpus in study.corpora:
        folder = results / study.corpus_folder(corpus)
        manifest = load_if_prepared(folder)
        tokens[corpus] = (
            None
            if manifest is None
            else BYTES_PER_TOKEN * (manifest.train.tokens + manifest.validation.tokens)
        )
    return {
        "variants": variants,
        "total": _sum("all", rows),
        "device": study.training.device,
        "checkpoints": {
            gpus: KEEP * largest * max(1, gpus // study.training.processes) for gpus in GPUS
        },
        "tokens": tokens,
    }


def _sum(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    known = all(row["hours"] is not None for row in rows)
    hours = sum((row["runs"] + row["tries"]) * row["hours"] for row in rows) if known else None
    per_run = [
        BYTES_PER_WEIGHT * row["parameters"] + RUN_BYTES_PER_STEP * row["steps"] for row in rows
    ]
    return {
        "variant": name,
        "runs": sum(row["runs"] for row in rows),
        "device_hours": hours,
        "days": {gpus: None if hours is None else hours / 24 / gpus for gpus in GPUS},
        "disk_bytes": sum(
            row["runs"] * size + row["trial_bytes"] for row, size in zip(rows, per_run, strict=True)
        ),
    }


# --- for readers ----------------------------------------------------------------------------


def as_text(plan: dict[str, Any]) -> str:
    """Costs and power as text, with what they rest on."""
    lines = _cost_lines(plan["costs"], plan["speeds"])
    if plan["power"] is not None:
        lines += ["", *_power_lines(plan["power"])]
    return "\n".join(lines)


def time_of(hours: float | None) -> str:
    """In the unit that suits it."""
    return "not measured" if hours is None else duration(3600 * hours)


def size_of(size: float) -> str:
    """Bytes in the unit that suits them."""
    return f"{size / GIB:,.1f} GiB" if size >= GIB else f"{size / MIB:,.1f} MiB"


def _cost_lines(found: dict[str, Any], sources: list[str]) -> list[str]:
    # A run on CPUs takes some of them: how many there are, the study does not know.
    noun = {"cuda": "GPU", "auto": "device"}.get(found["device"])
    places = {n: f"on {n} {noun}{'s' * (n > 1)}" if noun else f"{n} at a time" for n in GPUS}
    hours = f"{noun}-hours"
    rows = [
        [
            row["variant"],
            row["runs"],
            *(time_of(None if days is None else 24 * days) for days in row["days"].values()),
            *([] if row["device_hours"] is None or not noun else [f"{row['device_hours']:,.1f}"]),
            size_of(row["disk_bytes"]),
        ]
        for row in (*found["variants"], found["total"])
    ]
    headings = ["variant", "runs", *places.values(), *([hours] * (len(rows[0]) == 6)), "disk"]
    align = ["left", *["right"] * (len(headings) - 1)]
    tokens = ", ".join(
        f"{corpus} {'not prepared here' if size is None else size_of(size)}"
        for corpus, size in found["tokens"].items()
    )
    under_way = ", ".join(
        f"{size_of(size)} ({places[n]})" for n, size in found["checkpoints"].items()
    )
    if sources:
        rests = (
            "Time: training steps alone, at the speed in " + ", ".join(sources) + "; starts, "
            "compiling, evaluations and communication come on top. Eight are assumed to be eight "
            "times as fast as one."
        )
    else:
        rests = (
            "Time: no speed was measured. `snakemake` measures it in the study's own throughput "
            "step (a sweep has none); `--throughput FILE` takes one from another study or from "
            "a benchmark (docs/performance.md)."
        )
    return [
        tabulate(rows, headings, disable_numparse=True, colalign=align),
        "",
        rests,
        f"Disk: final weights and run files. Unfinished runs need more, {KEEP} checkpoints each: "
        f"{under_way}; tokens: {tokens}.",
    ]


def _power_lines(found: dict[str, Any]) -> list[str]:
    if found["source"] is None:
        one = " One seed has none, and can show no difference at all." * (found["planned"] == 1)
        return [
            "Detectable differences: unknown; no finished runs of several seeds show a spread."
            + one
        ]

    def cell(value: float | None) -> str:
        return "none" if value is None else f"{value:.2g}"

    def pair(variant: str, reference: str) -> str:
        return f"{VARIANTS[variant].label} - {VARIANTS[reference].label}"

    refused = [
        f"No spread is taken from {found['source']} for {pair(*names)}: the two agree to "
        f"{SAME_FUNCTION:g} nats in every seed there, and so compute the same function."
        for names in found["refused"]
    ]
    if not found["comparisons"]:
        return ["Detectable differences: unknown.", *refused]
    rows = [
        [
            pair(row["variant"], row["reference"]),
            f"{row['sd']:.2g}",
            *(cell(value) for value in row["detectable"].values()),
        ]
        for row in found["comparisons"]
    ]
    planned = found["planned"]
    own_seeds = f"The study's {planned} seeds" if planned > 1 else "The study's one seed"
    seeds = [
        f"{n} seed{'s' * (n > 1)}{' (planned)' * (n == planned)}"
        for n in found["comparisons"][0]["detectable"]
    ]
    too_few = [
        f"{own_seeds} cannot decide whether {VARIANTS[row['variant']].label} is no worse than "
        f"{VARIANTS[row['reference']].label} by the claims' margin of {row['margin']:g}: it takes "
        f"{row['needed'] or f'more than {MOST_SEEDS}'} seeds of this spread."
        for row in found["comparisons"]
        if row["margin"] is not None and not 0 < (row["needed"] or 0) <= planned
    ]
    whose = (
        "the study's own finished runs"
        if found["own"]
        else "another study, since this one has too few seeds yet: it may differ at this size"
    )
    return [
        "Smallest difference in validation loss detected with 80 % power (nats/token; paired by "
        "seed, two-sided 5 %, one comparison):",
        tabulate(rows, ["difference", "its sd", *seeds], disable_numparse=True),
        f"Spread: {found['source']}, {whose}. One seed has none, and detects nothing.",
        *too_few,
        *refused,
    ]
