"""`python -m mhclite evidence`: a study's figures, tables, captions and report, from its results.

The results are read once. Equal results give equal bytes.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from mhclite.arguments import folder_path
from mhclite.evidence import topics
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import findings_of
from mhclite.evidence.frame import LOSS
from mhclite.evidence.report import page, verdict_counts
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.tables import Table, percent_of, write_table
from mhclite.evidence.topics.claims import claim_rows, effect_text
from mhclite.evidence.verdicts import DECIDED
from mhclite.files import write_text

assert topics.__all__, "imported to register the exhibits"

MOST_TOLD = 4  # verdicts on the terminal

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


def terminal_lines(results: Results) -> list[str]:
    """What a study found, in at most six lines: its verdicts, those on the main claims first."""
    findings, runs = findings_of(results), results.all_runs
    diverged = int((runs["status"] == "diverged").sum())
    lines = [f"{len(runs)} runs, {diverged or 'none'} diverged; {verdict_counts(findings)}."]
    main = [one for one in findings if one.claim.family == "confirmatory"]
    order = [*main, *(one for one in findings if one not in main)]
    decided = [one for one in order if one.verdict in DECIDED]
    for one in decided[:MOST_TOLD]:
        statement = one.claim.statement.partition(" (")[0]
        corpus = f" ({one.corpus})" if len(results.corpora) > 1 else ""
        effect = effect_text(claim_rows(one)[0])
        lines.append(f"  {one.verdict}: {statement}{corpus}: {effect}")
    short = Counter(one.row.unmet[0] for one in main if one.verdict == "not reached")
    if short:
        reason = short.most_common(1)[0][0]
        lines.append(
            f"  not reached: {short.total()} of {len(main)} main claims, most often for: {reason}"
        )
    return lines


def terminal_table(results: Results) -> str:
    """The final losses as plain text; those that a table of bigrams beats are marked."""
    _, make = TABLES["results"]
    table = make(results)
    losses = ["Corpus", "Variant", *map(results.model_label, results.models)]
    display = table.display[[name for name in table.display if name in losses]].copy()
    bigram = {corpus: known["bigram"] for corpus, known in results.counting_models.items()}
    marked = False
    for row in table.data[table.data["kind"] == "variant"].to_dict("records"):
        if row[LOSS] >= bigram[row["corpus"]]:
            here = display["Variant"] == row["label"]
            if "Corpus" in display:
                here &= display["Corpus"] == row["corpus"]
            display.loc[here, results.model_label(row["model"])] += " *"
            marked = True
    text = tabulate(
        display.to_numpy().tolist(), list(display.columns), tablefmt="simple", disable_numparse=True
    )
    notes = "* not below a table of bigrams: such losses do not say which variant learns better\n"
    unit = f"nats per token, mean ± {percent_of(results.confidence)} interval over seeds"
    return f"{table.title}: {unit}\n\n{text}\n{notes if marked else ''}"


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
        "--show", action="store_true", help="print what was found and the losses; write nothing"
    )


def run(args: argparse.Namespace) -> None:
    """Write figures, tables, captions and report into <results>, or print what was found."""
    if args.show:
        results = load_results(args.results)
        print("\n".join(["", *terminal_lines(results), "", terminal_table(results)]))
        print(f"Next: open {args.results / 'report.html'}; `make ui` shows every run in MLflow.")
    else:
        write(args.results)
