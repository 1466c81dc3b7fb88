"""`python -m mhclite evidence`: a study's figures, tables, captions and report, from its results.

The results are read once. Equal results give equal bytes. What the terminal shows once a study has
ended is a file as well, so that no further process is needed.
"""

from __future__ import annotations

import argparse
import logging
import textwrap
from pathlib import Path

from tabulate import tabulate

from mhclite.arguments import folder_path
from mhclite.evidence import topics  # noqa: F401  registers the exhibits
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import findings_of
from mhclite.evidence.report import decided, page, unanswered, verdict_counts
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.tables import Table, write_table
from mhclite.files import write_text

FOUND = "found.txt"  # what the terminal shows

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
    write_text(folder / FOUND, found_text(results))
    log.info("wrote %s (%d kB)", path, path.stat().st_size // 1000)
    return results


def found_text(results: Results) -> str:
    """What a study found, in at most six lines as the first page of its report says it, and the
    final losses.
    """
    runs = results.all_runs
    diverged = int((runs["status"] == "diverged").sum())
    counts = verdict_counts(findings_of(results))
    lines = [f"{len(runs)} runs, {diverged or 'none'} diverged; {counts}."]
    lines += [
        f"  {one['verdict']}: {one['statement']}: {one['effect']}" for one in decided(results)[:4]
    ]
    for one in unanswered(results)[:1]:
        lines.append(f"  Not answered: {one['what']} ({one['count']}). {one['why']}")
    table = TABLES["results"][1](results)
    losses = ["Corpus", "Variant", *map(results.model_label, results.models)]
    display = table.display[[name for name in table.display if name in losses]]
    text = tabulate(
        display.to_numpy().tolist(), list(display.columns), tablefmt="simple", disable_numparse=True
    )
    following = f"Next: open {results.folder / 'report.html'}; `make ui` shows every run in MLflow."
    parts = ("\n".join(lines), table.title, text, textwrap.fill(table.notes, 100), following)
    return "\n\n".join(parts) + "\n"


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite evidence`."""
    parser.add_argument("--results", required=True, type=folder_path, help="results/<study>")


def run(args: argparse.Namespace) -> None:
    """Write figures, tables, captions and report into <results>."""
    write(args.results)
