"""How a table is written: CSV with all digits; Markdown, LaTeX and HTML rounded for readers."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from mhclite.files import write_text

NONE = "–"  # shown where there is no value
NEARLY_EXACT = 1e-4  # below it a row-sum error is one of float32, or of an iteration that converged

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"$|$",
        "<": r"$<$",
        ">": r"$>$",
        "±": r"$\pm$",
        "×": r"$\times$",
        "ν": r"$\nu$",
        "–": "--",
    }
)


@dataclass(frozen=True)
class Rows:
    """The content of a table: for readers, and the numbers behind it.

    `data` goes to the CSV: one row per cell of the grid, snake_case columns, unrounded. `display`
    is the same for readers: strings, headings with units; repeated group names are blank. `bold`
    are the (row, column) positions in `display` to stress. `numeric` columns are aligned right.
    """

    notes: str  # what the columns mean, n and the kind of interval
    data: pd.DataFrame
    display: pd.DataFrame
    numeric: Sequence[str]
    bold: frozenset[tuple[int, str]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Table(Rows):
    """A table with the name of its files, its title, and the column that names its rows."""

    name: str
    title: str
    row_head: str


# --- numbers --------------------------------------------------------------------------------


def missing(value: Any) -> bool:
    """Whether there is no number: None, NaN or NA."""
    return value is None or bool(pd.isna(value))


def fixed(value: Any, decimals: int = 4) -> str:
    """A number with a fixed number of decimals and thousands separators."""
    return NONE if missing(value) else f"{value:z,.{decimals}f}"


def significant(value: Any, digits: int = 3) -> str:
    """A number with significant digits; powers of ten where it is very small or large."""
    if missing(value):
        return NONE
    if value == 0:
        return "0"
    # The exponent of the rounded number: 9.999 has two digits before the point when rounded.
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    if not -3 <= exponent < 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def plus_minus(mean: Any, half_width: Any, decimals: int = 4) -> str:
    """`mean ± half_width`; the mean alone where there is no interval."""
    if missing(mean) or missing(half_width):
        return fixed(mean, decimals)
    return f"{fixed(mean, decimals)} ± {fixed(half_width, decimals)}"


def scaled_plus_minus(mean: Any, half_width: Any, digits: int = 3) -> str:
    """`mean ± half_width` with as many decimals as the mean has at that many digits."""
    if missing(mean) or mean == 0:
        return plus_minus(mean, half_width)
    exponent = math.floor(math.log10(abs(mean)))
    return plus_minus(mean, half_width, min(6, max(0, digits - 1 - exponent)))


def with_interval(mean: Any, low: Any, high: Any, digits: int = 3) -> str:
    """`mean [low, high]`; the mean alone where there is no interval, or none to be seen."""
    middle, *ends = (significant(value, digits) for value in (mean, low, high))
    return middle if missing(low) or ends[0] == ends[1] else f"{middle} [{', '.join(ends)}]"


def row_sums(mean: Any, low: Any, high: Any) -> str:
    """`mean [low, high]` of a row-sum error or a gain; the mean alone where it is rounding."""
    if not missing(mean) and mean < NEARLY_EXACT:  # of which an interval says nothing
        return significant(mean, 1)
    return with_interval(mean, low, high)


def quartiles(values: dict[str, float], decimals: int) -> str:
    """`median [q1, q3]`."""
    if missing(values["median"]):
        return NONE
    return (
        f"{fixed(values['median'], decimals)} "
        f"[{fixed(values['q1'], decimals)}, {fixed(values['q3'], decimals)}]"
    )


def percent_of(confidence: float) -> str:
    """0.95 as `95 %`, 0.995 as `99.5 %`."""
    return f"{100 * confidence:.6g} %"


def sparse(display: pd.DataFrame, groups: list[str]) -> pd.DataFrame:
    """Blank the names of a group, outermost first, in all its rows but the first."""
    blank = display.copy()
    for depth, name in enumerate(groups, start=1):
        blank.loc[display.duplicated(groups[:depth]), name] = ""
    return blank


# --- files ----------------------------------------------------------------------------------


def latex(text: str) -> str:
    """Plain text as LaTeX: special characters escaped, minus signs and powers of ten set."""
    text = text.translate(_LATEX)
    if text.startswith(("[", "*")):  # at the start of a row both belong to the line break before
        text = f"{{{text[0]}}}{text[1:]}"
    text = re.sub(
        r"(-?\d\.\d+)e([+-]\d+)",
        lambda match: rf"${match[1]} \times 10^{{{int(match[2])}}}$",
        text,
    )
    return re.sub(r"(?<![\w$.{-])-(?=\d)", "$-$", text)


# What would be read as markup: emphasis, code, mathematics, links, tags, entities, a column's end.
_MARKUP = re.compile(r"[\\`*$|]|(?<!\w)_|_(?!\w)|~(?=~)|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=#?\w+;)")


def escaped(text: str) -> str:
    """Plain text for a cell of a Markdown table."""
    return " ".join(_MARKUP.sub(r"\\\g<0>", text).splitlines())


def markdown(table: Table) -> str:
    """The table as Markdown: title, table, notes."""
    columns = list(table.display.columns)
    rows = [
        [
            f"**{escaped(text)}**" if (at, name) in table.bold else escaped(text)
            for name, text in zip(columns, row)
        ]
        for at, row in enumerate(table.display.to_numpy().tolist())
    ]
    text = tabulate(
        rows,
        [escaped(name) for name in columns],
        tablefmt="pipe",
        disable_numparse=True,  # 0.10 stays 0.10
        colalign=["right" if name in table.numeric else "left" for name in columns],
    )
    return f"**{table.title}**\n\n{text}\n\n{table.notes}\n"


def _bold(table: Table, css: str) -> pd.DataFrame:
    """Styles of the cells: `css` where the table is bold."""
    styles = pd.DataFrame("", index=table.display.index, columns=table.display.columns)
    for row, column in table.bold:
        styles.loc[row, column] = css
    return styles


def _heading(name: str) -> str:
    """A heading as LaTeX on two lines, broken before its unit or at its comma."""
    first, comma, rest = name.partition(", ")
    if not comma:
        first, bracket, rest = name.partition(" (")
        rest = f"({rest}" if bracket else ""
    if not rest:
        return latex(name)
    return rf"\shortstack{{{latex(first)}\\{latex(rest)}}}"


def latex_table(table: Table) -> str:
    """The table as a LaTeX float with booktabs rules; title and notes are its caption.

    A table wider than the text is scaled down to it.
    """
    display = table.display.map(latex)
    style = display.style.hide(axis="index").apply(
        lambda _: _bold(table, "textbf:--rwrap;"), axis=None
    )
    style.format_index(lambda name: _heading(str(name)), axis="columns")
    aligned = "".join("r" if name in table.numeric else "l" for name in display.columns)
    tabular: str = style.to_latex(hrules=True, column_format=aligned)
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs,graphicx}. Written by mhclite; do not edit.",
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{latex(f'{table.title}. {table.notes}')}}}",
            rf"\label{{tab:{table.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"{tabular.rstrip()}}}",
            r"\end{table}",
            "",
        ]
    )


def html_table(table: Table) -> str:
    """The table alone as HTML, styled; ids depend on the table's name only."""
    style = table.display.style.hide(axis="index").format(escape="html")
    style.format_index(escape="html", axis="columns")
    style.apply(lambda _: _bold(table, "font-weight: bold"), axis=None)
    right = [at for at, name in enumerate(table.display.columns) if name in table.numeric]
    style.set_table_styles(
        [
            {
                "selector": "",
                "props": "border-collapse: collapse; font: 14px system-ui, sans-serif",
            },
            {"selector": "th, td", "props": "padding: 4px 10px; white-space: nowrap"},
            {"selector": "th", "props": "white-space: normal; vertical-align: bottom"},
            {"selector": "thead", "props": "border-bottom: 1px solid #444; text-align: left"},
            {"selector": ", ".join(f".col{at}" for at in right), "props": "text-align: right"},
        ]
    )
    return str(style.set_uuid(table.name).to_html())


def html_page(table: Table) -> str:
    """The table as a page of its own, with title and notes."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(table.title)}</title>\n</head>\n"
        '<body style="font: 14px system-ui, sans-serif; margin: 1.5em">\n'
        f'<h1 style="font-size: 18px">{html.escape(table.title)}</h1>\n{html_table(table)}'
        f'<p style="max-width: 60em; color: #444">{html.escape(table.notes)}</p>\n'
        "</body>\n</html>\n"
    )


def write_table(table: Table, folder: Path) -> None:
    """Write <name>.csv, .md, .tex and .html."""
    write_csv(table.data, folder / f"{table.name}.csv")
    write_text(folder / f"{table.name}.md", markdown(table))
    write_text(folder / f"{table.name}.tex", latex_table(table))
    write_text(folder / f"{table.name}.html", html_page(table))


def write_csv(data: pd.DataFrame, path: Path) -> None:
    """Write numbers with all their digits."""
    write_text(path, data.to_csv(index=False, lineterminator="\n"))
