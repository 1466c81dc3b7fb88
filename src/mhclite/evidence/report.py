"""`python -m mhclite report`: a study as one self-contained HTML page.

The page needs neither network nor other files: styles and figures are inside. Every number comes
from results; equal results give equal bytes.
"""

from __future__ import annotations

import argparse
import base64
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.evidence.captions import FIGURES, Caption, render, shown
from mhclite.evidence.report_methods import (
    introduction,
    methods,
    model_rows,
)
from mhclite.evidence.report_origin import origin_rows, rerun_rows
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.table_costs import how_measured
from mhclite.evidence.table_format import Table, fixed, sparse
from mhclite.evidence.table_results import seeds_data
from mhclite.evidence.tables import all_tables
from mhclite.files import write_text

TEMPLATE = "report.html.j2"
# The column that names a row, where it is not the variant.
ROW_HEADS = {
    "claims": "Claim",
    "paper": "Quantity",
    "sinkhorn": "Logit range",
    "warnings": "Signal",
    "sinkhorn_example": "Iterations",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """A cell of an HTML table."""

    text: str
    numeric: bool = False
    bold: bool = False
    heads_row: bool = False  # names its row, for screen readers and when scrolled aside
    code: bool = False


@dataclass(frozen=True)
class HtmlTable:
    """A table as the template takes it."""

    name: str
    title: str
    notes: str
    headings: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class HtmlFigure:
    """A figure as the template takes it."""

    name: str
    title: str
    caption: str
    alt: str
    data: str  # of a data: URI


def with_minus_signs(text: str) -> str:
    """The hyphen before a negative number as a minus sign."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text)


def html_of(table: Table, row_head: str = "Variant") -> HtmlTable:
    """A results table for the template; `row_head` is the column that names a row."""
    columns = list(table.display.columns)
    return HtmlTable(
        name=table.name,
        title=table.title,
        notes=table.notes,
        headings=[
            Cell(name, numeric=name in table.numeric, heads_row=name == row_head)
            for name in columns
        ],
        rows=[
            [
                Cell(
                    with_minus_signs(text),
                    numeric=name in table.numeric,
                    bold=(at, name) in table.bold,
                    heads_row=name == row_head,
                )
                for name, text in zip(columns, row, strict=True)
            ]
            for at, row in enumerate(table.display.to_numpy().tolist())
        ],
    )


def plain_table(
    name: str,
    title: str,
    notes: str,
    content: tuple[list[str], list[list[str]]],
    numeric: Sequence[int] = (),
    code: Sequence[int] = (),
) -> HtmlTable:
    """A table from headings and rows of text; the first column names the row."""
    headings, rows = content
    return HtmlTable(
        name=name,
        title=title,
        notes=notes,
        headings=[
            Cell(text, numeric=at in numeric, heads_row=at == 0) for at, text in enumerate(headings)
        ],
        rows=[
            [
                Cell(text, numeric=at in numeric, heads_row=at == 0, code=at in code)
                for at, text in enumerate(row)
            ]
            for row in rows
        ],
    )


def seeds_table(results: Results) -> Table:
    """Final validation loss of every run: a row a cell of the grid, a column a seed."""
    data = seeds_data(results)
    cells = {
        (row["corpus"], row["model"], row["variant"], row["seed"]): row
        for row in data.to_dict("records")
    }

    def text(row: dict[Any, Any]) -> str:
        return "diverged" if row["status"] == "diverged" else fixed(row["validation_loss"])

    display = pd.DataFrame(
        {
            "Corpus": corpus,
            "Model": model,
            "Layers": fixed(results.n_layer(model), 0),
            "Variant": results.label(variant),
            **{f"Seed {seed}": text(cells[corpus, model, variant, seed]) for seed in results.seeds},
        }
        for corpus, model, variant in product(results.corpora, results.models, results.variants)
    )
    diverged = data[data["status"] == "diverged"]
    steps = [
        f"{run} at step {step:,}"
        for run, step in zip(diverged["run"], diverged["diverged_step"], strict=True)
    ]
    return Table(
        name="seeds",
        title="Final validation loss of every run",
        notes="Nats per token. These are the values that the means and intervals above are made of."
        + (f" Diverged: {', '.join(steps)}." if steps else ""),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Layers"]),
        numeric=tuple(display.columns[4:]),
    )


def html_figure(results: Results, name: str, caption: Caption) -> HtmlFigure:
    """A figure with its drawing inside; `UserError` if it was not drawn."""
    path = results.folder / "figures" / f"{name}.svg"
    try:
        drawing = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run `snakemake --cores all`, or by hand "
            f"`python -m mhclite figures --results {results.folder}`"
        ) from None
    return HtmlFigure(
        name=name,
        title=caption.title,
        caption=render(caption, results.settings),
        alt=caption.alt,
        data=f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}",
    )


def page(results: Results) -> str:
    """The whole page."""
    tables = {
        table.name: html_of(table, ROW_HEADS.get(table.name, "Variant"))
        for table in all_tables(results, results.confidence)
    }
    context: dict[str, Any] = {
        "title": results.study.get("title", results.name),
        "name": results.name,
        "introduction": introduction(results),
        "variants": [(results.label(name), VARIANTS[name].note) for name in results.variants],
        "claims": tables.pop("claims"),
        "results": tables.pop("results"),
        "seeds": html_of(seeds_table(results)),
        "figures": [
            html_figure(results, *item) for item in shown(FIGURES, results.settings).items()
        ],
        "tables": list(tables.values()),
        "methods": methods(results),
        "models": plain_table(
            "models", "Model sizes", "", model_rows(results), numeric=range(1, 7)
        ),
        "measured_on": how_measured(results),
        "origin": plain_table("origin", "Origin of the training runs", "", origin_rows(results)),
        "rerun": plain_table(
            "rerun",
            "Where each number is, and how to make it again",
            "Commands are for the root of the repository. RUN and MODEL stand for a run (as in "
            "runs.csv) and a model size; STUDY.yaml is the study file, whose content stands below.",
            rerun_rows(results),
            code=(1, 2),
        ),
        "study_file": yaml.safe_dump(results.settings, sort_keys=False, allow_unicode=True),
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(TEMPLATE).render(context)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite report`."""
    parser.add_argument(
        "--results",
        required=True,
        type=Path,
        metavar="DIR",
        help="results/<study>, collected and with its figures drawn",
    )


def run(args: argparse.Namespace) -> None:
    """Write <results>/report.html."""
    path = args.results / "report.html"
    write_text(path, page(load_results(args.results)))
    log.info("wrote %s (%d kB)", path, path.stat().st_size // 1000)
