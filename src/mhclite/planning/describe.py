"""`python -m mhclite describe STUDY`: what a study trains, and what that costs.

Parameters and FLOPs are counted on the models themselves, without allocating their weights. What
was measured or prepared before (throughput, tokens of a corpus) is used where it exists; `costs`
derives time, disk and statistical power from it.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mhclite.arguments import file_path, folder_path
from mhclite.config import RESIDUAL
from mhclite.data.lock import LOCK_FILE, CorporaLock, revision_text
from mhclite.data.manifest import load_if_prepared
from mhclite.evidence.claims import load_claims
from mhclite.evidence.published import CLAIMS
from mhclite.measure.steps import counts
from mhclite.planning import costs
from mhclite.study.reading import load_study
from mhclite.study.settings import Study

BYTES_PER_PARAMETER = 3 * 4  # weights and AdamW's two averages, in float32

log = logging.getLogger(__name__)


def describe(
    study: Study, results: Path, throughput: Path | None = None, lock: Path = LOCK_FILE
) -> dict[str, Any]:
    """The study in numbers: `rows` (one per model and variant), `corpora`, `totals`, `plan`.

    `hours` in a row is the time of one run on one device, from the measured throughput; None where
    none was measured. `tries` are the trainings, of as many steps, that a search for critical
    learning rates adds at most, or to which those of a sweep come at most: it has no runs.

    Args:
        results: folder in which finished runs, throughput and corpora are looked up.
        throughput: a throughput or benchmark file to use instead of the study's own.
        lock: the corpora lock file.
    """
    training = study.training
    runs = list(study.runs().values())
    search, sweep = study.critical_rate, study.sweep
    tries: float = 0 if search is None else len(search.factors) + search.halvings
    of_arms = [one[0] for one in study.arms().values()] if sweep else []
    if sweep is not None:
        (fewest, most), final = sweep.trainings(len(study.seeds))
        tries = final + most * sweep.steps / training.steps
    rows: list[dict[str, Any]] = []
    sources: list[str] = []
    for model in study.models:
        settings = study.resolved_model(model)
        tokens = training.steps * training.batch_size * settings.block_size
        speeds, source = costs.speeds(study, model, results, throughput)
        sources += [source] * (source not in ("", *sources))
        plain, _ = counts(settings, RESIDUAL)
        for variant in study.variants_of(model):
            parameters, flops = counts(settings, study.resolved_connection(variant))
            speed = speeds.get(variant)
            hours = None if speed is None else tokens / speed / 3600
            number = sum(
                one.model.name == model and one.connection.variant == variant
                for one in of_arms or runs
            )
            rows.append(
                {
                    "model": model,
                    "variant": variant,
                    "parameters": parameters,
                    "extra_parameters": parameters - plain,
                    "flops_per_token": flops,
                    "steps": training.steps,
                    "tokens": tokens,
                    "runs": 0 if sweep else number,
                    "arms": number if sweep else None,
                    "tries": number * tries,
                    "trial_bytes": (
                        number * tries * costs.RUN_BYTES_PER_STEP * training.steps if sweep else 0
                    ),
                    "checkpoint_bytes": BYTES_PER_PARAMETER * parameters,
                    "tokens_per_second": speed,
                    "hours": hours,
                }
            )
    corpora: dict[str, dict[str, Any]] = {}
    for corpus in study.corpora:
        folder = results / study.corpus_folder(corpus)
        manifest = load_if_prepared(folder)
        known = None if manifest is None else manifest.train.tokens
        corpora[corpus] = {
            "train_tokens": known,
            "revision": revision_text(study.corpus_settings(corpus)["corpus"], CorporaLock(lock)),
            "epochs": {
                row["model"]: None if known is None else row["tokens"] / known for row in rows
            },
        }
    cost = costs.study_costs(study, rows, results)
    claims = load_claims(CLAIMS) if CLAIMS.is_file() else []
    return {
        "study": study.name,
        "rows": rows,
        "corpora": corpora,
        "totals": {
            "runs": len(runs),
            "tries": tries * len(of_arms or runs),
            "sweep": (
                None
                if sweep is None
                else {
                    "arms": len(of_arms),
                    "least": len(of_arms) * fewest,
                    "most": len(of_arms) * (most + final),
                }
            ),
            "tokens": (
                round(sum(row["tries"] * row["tokens"] for row in rows))
                if sweep
                else sum(run.training.steps * run.tokens_per_step for run in runs)
            ),
            "device_hours": cost["total"]["device_hours"],
        },
        "plan": {
            "costs": cost,
            "speeds": sources,
            "power": None if sweep else costs.study_power(study, results, claims),
        },
    }


def as_text(found: dict[str, Any]) -> str:
    """What `describe` found, as text for readers."""
    rows = [
        [
            row["model"],
            row["variant"],
            f"{row['parameters']:,}",
            f"{row['extra_parameters']:,}",
            f"{row['flops_per_token'] / 1e6:,.1f}",
            f"{row['steps']:,}",
            f"{row['tokens']:,}",
            f"{row['checkpoint_bytes'] / 2**20:,.1f}",
            str(row["runs"] if row["arms"] is None else row["arms"]),
            costs.time_of(row["hours"]),
        ]
        for row in found["rows"]
    ]
    headings = [
        *("model", "variant", "parameters", "extra", "MFLOP/token", "steps", "tokens"),
        *("checkpoint MiB", "arms" if found["totals"]["sweep"] else "runs", "time/run"),
    ]
    numeric = ["left", "left", *["right"] * (len(headings) - 2)]
    lines = [tabulate(rows, headings, disable_numparse=True, colalign=numeric), ""]
    for name, corpus in found["corpora"].items():
        revision = f" {corpus['revision']}." if corpus["revision"] else ""
        if corpus["train_tokens"] is None:
            known = "not prepared here, so its epochs are not known."
        else:
            epochs = ", ".join(f"{model} {value:.3g}" for model, value in corpus["epochs"].items())
            known = f"{corpus['train_tokens']:,} train tokens; epochs: {epochs}."
        lines.append(f"Corpus {name}: {known}{revision[:2].upper()}{revision[2:]}")
    totals = found["totals"]
    if sweep := totals["sweep"]:
        lines.append(
            f"A sweep of {sweep['arms']:,} arms: {sweep['least']:,} to {sweep['most']:,} "
            f"trainings, at most as long as {totals['tries']:,.0f} of "
            f"{found['rows'][0]['steps']:,} steps ({totals['tokens']:,} training tokens): "
            "that is in the times below."
        )
    else:
        lines.append(f"{totals['runs']:,} runs, {totals['tokens']:,} training tokens in total.")
    if totals["tries"] and not sweep:
        lines.append(
            f"The search for critical learning rates trains up to {totals['tries']:,} times more; "
            "it is in the times below."
        )
    return "\n".join([*lines, "", costs.as_text(found["plan"])])


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
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Describe one study."""
    found = describe(load_study(args.study), args.results, args.throughput)
    print(json.dumps(found, indent=1) if args.json else as_text(found))
