"""Write a study's tables, or print the short one that ends `make replicate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mhclite.errors import UserError
from mhclite.evidence.captions import TABLES, shown
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.sinkhorn_error import example_table, sinkhorn_table
from mhclite.evidence.table_claims import claims_table, paper_table
from mhclite.evidence.table_conditions import conditions_table
from mhclite.evidence.table_costs import parameters_table
from mhclite.evidence.table_format import (
    Table,
    fixed,
    missing,
    percent_of,
    plus_minus,
    write_csv,
    write_table,
)
from mhclite.evidence.table_results import best_rows, results_data, results_table, seeds_data
from mhclite.evidence.table_stability import stability_table
from mhclite.evidence.table_streams import streams_table
from mhclite.evidence.table_stress import stress_table, warnings_table


def all_tables(results: Results, confidence: float) -> list[Table]:
    """Every table of the study, in the order of the report."""
    tables: dict[str, Callable[[], Table]] = {
        "claims": lambda: claims_table(results),
        "paper": lambda: paper_table(results),
        "results": lambda: results_table(results, confidence),
        "conditions": lambda: conditions_table(results, confidence),
        "stress": lambda: stress_table(results),
        "warnings": lambda: warnings_table(results),
        "streams": lambda: streams_table(results, confidence),
        "sinkhorn": lambda: sinkhorn_table(results),
        "sinkhorn_example": lambda: example_table(results),
        "parameters": lambda: parameters_table(results),
        "stability": lambda: stability_table(results, confidence),
    }
    wanted = shown(TABLES, results.settings)
    return [table() for name, table in tables.items() if name in wanted]


def terminal_table(results: Results, confidence: float | None = None) -> str:
    """A short results table as plain text: a row a variant, a column a model size."""
    confidence = results.confidence if confidence is None else confidence
    data = results_data(results, confidence)
    best = set(best_rows(data))
    cells = {
        (row["corpus"], row["model"], row["variant"]): _terminal_cell(row, at in best)
        for at, row in enumerate(data.to_dict("records"))
    }
    blocks = []
    for corpus in results.corpora:
        rows = [
            [results.label(variant)] + [cells[corpus, model, variant] for model in results.models]
            for variant in results.variants
        ]
        headings = [corpus, *(results.model_label(model) for model in results.models)]
        lines = [tabulate(rows, headings, tablefmt="simple", disable_numparse=True), ""]
        for baseline, value in results.baselines[corpus].items():
            bits = results.bits_per_byte(corpus, value)
            lines.append(f"{baseline.capitalize()} baseline: {fixed(value, 3)} ({fixed(bits, 3)})")
        blocks.append("\n".join(lines))
    seeds = len(results.seeds)
    head = (
        f"Validation loss in nats per token (bits per byte), mean over {seeds} "
        f"seed{'s' * (seeds != 1)}\n± half-width of the {percent_of(confidence)} Student t "
        "interval; * lowest mean of the variants that never diverged"
    )
    return "\n\n".join([head, *blocks])


def _terminal_cell(row: dict[Any, Any], best: bool) -> str:
    text = plus_minus(row["validation_loss"], row["validation_loss_half_width"], 3)
    if not missing(row["bits_per_byte"]):
        text += f" ({fixed(row['bits_per_byte'], 3)})"
    if not missing(row["n_diverged"]) and row["n_diverged"]:
        text += f", {row['n_diverged']} diverged"
    return text + " *" * best


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite tables`."""
    parser.add_argument(
        "--results", required=True, type=Path, metavar="DIR", help="the study's results folder"
    )
    parser.add_argument(
        "--confidence", type=float, help="level of the intervals; left out: the study's"
    )
    parser.add_argument(
        "--show", action="store_true", help="print a short table of results and write nothing"
    )


def run(args: argparse.Namespace) -> None:
    """Write all tables under <results>/tables, or print the short one."""
    if args.confidence is not None and not 0.5 < args.confidence < 1:
        raise UserError(f"--confidence {args.confidence}: must lie between 0.5 and 1, e.g. 0.95")
    results = load_results(args.results)
    confidence = results.confidence if args.confidence is None else args.confidence
    if args.show:
        print(terminal_table(results, confidence))
        return
    folder = args.results / "tables"
    write_csv(seeds_data(results), folder / "results_seeds.csv")
    for table in all_tables(results, confidence):
        write_table(table, folder)
