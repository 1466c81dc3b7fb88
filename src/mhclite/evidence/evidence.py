"""`python -m mhclite evidence`: a study's figures, tables, captions and report, from its results.

The results are read once. Equal results give equal bytes.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mhclite.arguments import folder_path
from mhclite.evidence import topics
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.report import page
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.table_format import (
    NONE,
    Table,
    fixed,
    missing,
    percent_of,
    plus_minus,
    write_table,
)
from mhclite.evidence.topics.losses import best_rows, results_data
from mhclite.files import write_text

assert topics.__all__, "imported to register the exhibits"

log = logging.getLogger(__name__)


def write_figures(results: Results) -> None:
    """Draw the figures that the study has, as PNG and SVG, and write their captions."""
    for exhibit, draw in shown(FIGURES, results.settings):
        with style():
            save(draw(results), results.folder / "figures" / exhibit.name)
        write_text(results.folder / exhibit.caption_file, exhibit.caption_for(results))
        log.info("drew %s", exhibit.name)


def write_tables(results: Results) -> list[Table]:
    """Write the tables that the study has, in every format, and their captions."""
    tables = []
    for exhibit, make in shown(TABLES, results.settings):
        tables.append(make(results))
        write_table(tables[-1], results.folder / "tables")
        write_text(results.folder / exhibit.caption_file, exhibit.caption_for(results))
    return tables


def write(folder: Path) -> Results:
    """Write everything that is computed from the collected results in results/<study>."""
    results = load_results(folder)
    tables = write_tables(results)
    write_figures(results)
    path = folder / "report.html"
    write_text(path, page(results, tables))
    log.info("wrote %s (%d kB)", path, path.stat().st_size // 1000)
    return results


def terminal_table(results: Results) -> str:
    """A short results table as plain text: one row per variant, one column per model size."""
    data = results_data(results)
    best = set(best_rows(data))
    cells = {
        (row["corpus"], row["model"], row["variant"]): _terminal_cell(row, at in best)
        for at, row in enumerate(data.to_dict("records"))
    }
    blocks = []
    for corpus in results.corpora:
        rows = [
            [results.label(variant)]
            + [cells.get((corpus, model, variant), NONE) for model in results.models]
            for variant in results.variants
        ]
        headings = [corpus, *(results.model_label(model) for model in results.models)]
        lines = [tabulate(rows, headings, tablefmt="simple", disable_numparse=True), ""]
        for name, loss in results.counting_models[corpus].items():
            bits = results.bits_per_byte(corpus, loss)
            lines.append(f"{name.capitalize()} baseline: {fixed(loss, 3)} ({fixed(bits, 3)})")
        blocks.append("\n".join(lines))
    seeds = len(results.seeds)
    head = (
        f"Validation loss in nats per token (bits per byte), mean over {seeds} "
        f"seed{'s' * (seeds != 1)}\n± half-width of the {percent_of(results.confidence)} Student t "
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
    """Arguments of `python -m mhclite evidence`."""
    parser.add_argument(
        "--results",
        required=True,
        type=folder_path,
        metavar="DIR",
        help="results/<study>, collected",
    )
    parser.add_argument(
        "--show", action="store_true", help="print a short table of results and write nothing"
    )


def run(args: argparse.Namespace) -> None:
    """Write figures, tables, captions and report into <results>, or print the short table."""
    if args.show:
        print(terminal_table(load_results(args.results)))
    else:
        write(args.results)
