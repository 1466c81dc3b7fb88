"""`python -m mhclite evidence`: a study's figures, tables, captions and report, from its results.

The results are read once. Equal results give equal bytes.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from tabulate import tabulate

from mhclite.arguments import folder_path
from mhclite.evidence import topics
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.report import page
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.tables import Table, write_table
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
    """The table of results as plain text."""
    _, make = TABLES["results"]
    table = make(results)
    text = tabulate(
        table.display.to_numpy().tolist(),
        list(table.display.columns),
        tablefmt="simple",
        disable_numparse=True,
    )
    return f"{table.title}\n\n{text}\n\n{table.notes}"


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
