"""A study as one self-contained HTML page.

The page needs neither network nor other files: styles and figures are inside. Every number comes
from results.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.exhibits import FIGURES, Exhibit, shown
from mhclite.evidence.findings import Finding, findings_of
from mhclite.evidence.report_found import found
from mhclite.evidence.report_limits import limits
from mhclite.evidence.report_matrix import matrix
from mhclite.evidence.report_methods import Entry, introduction, methods, model_rows
from mhclite.evidence.report_origin import origin_rows, rerun_rows
from mhclite.evidence.report_scale import GLOSSARY, settings
from mhclite.evidence.results import Results
from mhclite.evidence.table_format import NONE, Table
from mhclite.evidence.topics.cost import how_measured

TEMPLATE = "report.html.j2"
HEADLINE = "depth"  # the figure that stands at the top, where a study has it
PLACES = ("Corpus", "Model", "Layers")  # columns that say which cell of the grid


@dataclass(frozen=True)
class Cell:
    """A cell of an HTML table."""

    text: str
    numeric: bool = False
    bold: bool = False
    heads_row: bool = False  # names its row, for screen readers and when scrolled aside
    code: bool = False
    model: str = ""  # beside the name of a row on a narrow screen, where its group scrolls away


@dataclass(frozen=True)
class HtmlGroup:
    """Rows under a heading of one line or more; without one in a table that has no groups."""

    heading: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class HtmlTable:
    """A table as the template takes it."""

    name: str
    title: str
    notes: str
    headings: Sequence[Cell]
    groups: Sequence[HtmlGroup]

    @property
    def wordy(self) -> bool:
        """Whether it is sentences more than numbers: a narrow screen has its cells in a column."""
        return 2 * sum(cell.numeric for cell in self.headings) < len(self.headings)

    @property
    def wide(self) -> bool:
        """Whether paper is too narrow for its numbers on one line each."""
        return len(self.headings) > 8


@dataclass(frozen=True)
class HtmlFigure:
    """A figure as the template takes it."""

    name: str
    title: str
    caption: str
    alt: str
    data: str  # of a data: URI


def with_minus_signs(text: str) -> str:
    """The hyphen before a negative number or power as a minus sign, at which no line breaks."""
    return re.sub(r"(?:(?<![\w.])|(?<=\de))-(?=\d)", "−", text)


def html_of(table: Table) -> HtmlTable:
    """A table of results for the template: what stands left of the row's name heads its group.

    A group begins where `sparse` left one of these names; a single corpus is not named. A group of
    one row that says nothing is its heading alone.
    """
    columns = list(table.display.columns)
    first = columns.index(table.row_head)
    several = len(set(table.display.get("Corpus", [])) - {""}) > 1
    leading, shown = (
        [name for name in part if several or name != "Corpus"]
        for part in (columns[:first], columns[first:])
    )
    groups: list[tuple[list[Cell], list[list[Cell]]]] = []
    heads = dict.fromkeys(leading, "")
    for at, row in enumerate(table.display.to_dict("records")):
        if not groups or any(row[name] for name in leading):
            heads = {name: row[name] or heads[name] for name in leading}
            groups.append((_heading(heads, {n for n in leading if (at, n) in table.bold}), []))
        model = heads.get("Model", NONE)
        groups[-1][1].append(
            [
                Cell(
                    with_minus_signs(row[name]),
                    numeric=name in table.numeric,
                    bold=(at, name) in table.bold,
                    heads_row=name == table.row_head,
                    model=model if name == table.row_head and model != NONE else "",
                )
                for name in shown
            ]
        )
    return HtmlTable(
        name=table.name,
        title=table.title,
        notes=table.notes,
        headings=[
            Cell(name, numeric=name in table.numeric, heads_row=name == table.row_head)
            for name in shown
        ],
        groups=[
            HtmlGroup(heading, [] if heading and _says_nothing(rows) else rows)
            for heading, rows in groups
        ],
    )


def _heading(heads: dict[str, str], bold: set[str]) -> list[Cell]:
    """Lines that head a group: names of corpus and model on one, sentences on their own."""
    lines: list[Cell] = []
    cell = [text for name, text in heads.items() if name in PLACES and text not in ("", NONE)]
    if "Layers" in heads and heads["Layers"] != NONE:
        cell[-1] += " layer" + "s" * (heads["Layers"] != "1")
    lines += [
        Cell(with_minus_signs(text), bold=name in bold)
        for name, text in heads.items()
        if name not in PLACES and text
    ]
    return [*([Cell(", ".join(cell))] if cell else []), *lines]


def _says_nothing(rows: Sequence[Sequence[Cell]]) -> bool:
    return len(rows) == 1 and all(cell.heads_row or cell.text in ("", NONE) for cell in rows[0])


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
        groups=[
            HtmlGroup(
                (),
                [
                    [
                        Cell(text, numeric=at in numeric, heads_row=at == 0, code=at in code)
                        for at, text in enumerate(row)
                    ]
                    for row in rows
                ],
            )
        ],
    )


def html_figure(results: Results, exhibit: Exhibit) -> HtmlFigure:
    """A figure with its drawing inside."""
    drawing = (results.folder / "figures" / f"{exhibit.name}.svg").read_bytes()
    return HtmlFigure(
        name=exhibit.name,
        title=exhibit.title,
        caption=exhibit.caption_for(results),
        alt=exhibit.alt,
        data=f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}",
    )


def _said(
    results: Results, findings: Sequence[Finding], corpus: str
) -> tuple[list[Entry], list[Entry]]:
    """What was found on a corpus, and what cannot be said."""
    here = [finding for finding in findings if finding.corpus == corpus]
    return found(results, here, corpus), limits(results, here, corpus)


def page(results: Results, written: Sequence[Table]) -> str:
    """The whole page, of the study's tables and of the figures drawn in its folder."""
    tables = {table.name: html_of(table) for table in written}
    findings = findings_of(results)
    figures = [html_figure(results, exhibit) for exhibit, _ in shown(FIGURES, results.settings)]
    context: dict[str, Any] = {
        "title": results.study.get("title", results.name),
        "name": results.name,
        "introduction": introduction(results),
        "variants": [(results.label(name), VARIANTS[name].note) for name in results.variants],
        "overview": tables.pop("overview"),
        "found": [(corpus, *_said(results, findings, corpus)) for corpus in results.corpora],
        "matrix": matrix(results, findings),
        "headline": [figure for figure in figures if figure.name == HEADLINE],
        "scale": plain_table(
            "scale",
            "What this size can say, and what it cannot",
            "The paper's settings are those of its authors' code, for its sizes S, M and L; "
            "parameters are those of the plain residual.",
            (
                ["Setting", "Here", "In the paper", "What follows"],
                [[row.name, row.here, row.paper, row.meaning] for row in settings(results)],
            ),
        ),
        "glossary": GLOSSARY,
        "results": tables.pop("results"),
        "seeds": tables.pop("results_seeds"),
        "figures": [figure for figure in figures if figure.name != HEADLINE],
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
    environment.filters["minus"] = with_minus_signs
    return environment.get_template(TEMPLATE).render(context)
