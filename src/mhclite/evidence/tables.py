"""Tables: numbers and sentences for readers, and how a table is written.

CSV has all digits; Markdown and HTML are rounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tabulate import tabulate

from mhclite.evidence.metrics import METRICS
from mhclite.evidence.results import Results
from mhclite.files import write_text
from mhclite.study.sections import BASE

NONE = "–"  # shown where there is no value
MIB = 2**20
SHORT = 25  # letters; a shorter text is not broken into lines
NEARLY_EXACT = 1e-4  # below it a row-sum error is one of float32, or of an iteration that converged

Record = dict[Any, Any]  # a row of numbers


class Col(NamedTuple):
    """A column for readers: its heading, and the text of a row of numbers."""

    heading: str
    text: Callable[[Record], str]


@dataclass(frozen=True)
class Table:
    """A table: for readers, and the numbers behind it.

    `data` goes to the CSV: one row per cell of the grid, snake_case columns, unrounded. `display`
    is the same for readers: strings, headings with units; repeated group names are blank. `bold`
    are the (row, column) positions in `display` to stress. `numeric` columns are aligned right.
    """

    notes: str  # what the columns mean, n and the kind of interval
    data: pd.DataFrame
    display: pd.DataFrame
    numeric: Sequence[str] = ()
    bold: frozenset[tuple[int, str]] = frozenset()

    name: str = ""  # of its files; this and the title are the registry's
    title: str = ""


def rows_of(
    data: pd.DataFrame,
    places: Sequence[Col],
    columns: Sequence[Col],
    notes: str,
    bold: Callable[[Record], Iterable[str]] = lambda row: (),
) -> Table:
    """A table of one line for each row of numbers.

    Args:
        places: columns that say which cell a row is; names that repeat are left blank, but for
            the last of them.
        columns: numbers; one without any value is left out.
        bold: the headings to stress in a row.
    """
    records = data.to_dict("records")
    display = pd.DataFrame(
        [[column.text(row) for column in (*places, *columns)] for row in records],
        columns=[column.heading for column in (*places, *columns)],
    )
    headings = [column.heading for column in columns]
    empty = [name for name in headings if display[name].isin(["", NONE]).all()]
    display = display.drop(columns=empty)
    return Table(
        notes=notes,
        data=data,
        display=sparse(display, [column.heading for column in places[:-1]]),
        numeric=[name for name in headings if name not in empty],
        bold=frozenset(
            (at, name) for at, row in enumerate(records) for name in bold(row) if name not in empty
        ),
    )


# --- text -----------------------------------------------------------------------------------


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


def rounded(mean: Any, half_width: Any) -> str:
    """`mean ± half_width` to two digits of the half-width; where it has none, the mean alone."""
    if missing(half_width) or not 1e-4 <= half_width < 1e4:
        ends = [significant(value) for value in (mean, half_width) if not missing(value)]
        return " ± ".join(ends) or NONE
    return plus_minus(mean, half_width, max(0, 1 - math.floor(math.log10(half_width))))


def with_interval(mean: Any, low: Any, high: Any, exact: float = NEARLY_EXACT) -> str:
    """`mean [low, high]`; the mean alone where there is no interval, or none to be seen.

    Below `exact` it is rounding, as of a row sum that is exact, of which an interval says nothing.
    """
    if not missing(mean) and 0 <= mean < exact:
        return significant(mean, 1)
    middle, *ends = (significant(value) for value in (mean, low, high))
    return middle if missing(low) or ends[0] == ends[1] else f"{middle} [{', '.join(ends)}]"


def counted(number: int, noun: str) -> str:
    """`1 seed`, `2 seeds`, `10,000 steps`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def sparse(display: pd.DataFrame, groups: list[str]) -> pd.DataFrame:
    """Blank the names of a group, outermost first, in all its rows but the first."""
    blank = display.copy()
    for depth, name in enumerate(groups, start=1):
        blank.loc[display.duplicated(groups[:depth]), name] = ""
    return blank


# --- columns --------------------------------------------------------------------------------


def mean_and_half(name: str, decimals: int | None = None) -> Callable[[Record], str]:
    """Text of a mean with the half-width of its interval; None: as many decimals as that needs."""

    def text(row: Record) -> str:
        found = row.get(name), row.get(f"{name}_half_width")
        return rounded(*found) if decimals is None else plus_minus(*found, decimals)

    return text


def number(name: str, decimals: int | None = None, scale: float = 1.0) -> Callable[[Record], str]:
    """Text of a number, with fixed decimals or three significant digits."""

    def text(row: Record) -> str:
        value = row.get(name)
        if value is None or missing(value):
            return NONE
        value *= scale
        return significant(value) if decimals is None else fixed(value, decimals)

    return text


def places(results: Results) -> list[Col]:
    """The columns that say which cell of the grid a row is; one corpus is not named."""
    models = {model: results.model_label(model) for model in results.models}
    return [
        *([Col("Corpus", lambda row: row["corpus"])] if len(results.corpora) > 1 else []),
        Col("Model", lambda row: models.get(row["model"], str(row["model"]))),
        Col("Variant", lambda row: results.labels[row["variant"]]),
    ]


def quartiles(name: str, decimals: int) -> Callable[[Record], str]:
    """Text of `median [q1, q3]`."""

    def text(row: Record) -> str:
        found = [row.get(f"{name}_{q}") for q in ("median", "q1", "q3")]
        middle, *ends = (fixed(value, decimals) for value in found)
        return middle if missing(found[0]) else f"{middle} [{', '.join(ends)}]"

    return text


def changed(results: Results) -> Col:
    """The column that says under which condition a row is."""
    conditions = results.settings["conditions"]

    def title(row: Record) -> str:
        return NONE if row["condition"] == BASE else str(conditions[row["condition"]]["title"])

    return Col("Changed", title)


def metric(name: str, heading: str = "", of: Callable[[str], bool] = lambda variant: True) -> Col:
    """The column of a metric's mean, as the registry says; `of` which variants."""
    about = METRICS[name]

    def text(row: Record) -> str:
        if not of(row["variant"]):
            return NONE
        if about.log or about.geometric:
            middle, low, high = (row.get(name + end) for end in ("", "_low", "_high"))
            return with_interval(middle, low, high)
        if about.share:
            return number(name, None, 100)(row)
        return mean_and_half(name, about.decimals)(row)

    return Col(heading or about.heading, text)


# --- files ----------------------------------------------------------------------------------


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


def kinds(table: Table) -> dict[str, str]:
    """Column -> how the template sets it: numbers, texts in one line, or texts of many."""
    found = {}
    for name, texts in table.display.items():
        kind = "short" if max(map(len, texts), default=0) < SHORT else ""
        found[str(name)] = "number" if name in table.numeric else kind
    return found


def html_page(**content: Any) -> str:
    """A page of its own: of one table (`only`), or with what `report` gives it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html.j2").render(content, kinds=kinds)


def write_table(table: Table, folder: Path) -> None:
    """Write <name>.csv, .md and .html."""
    csv = table.data.to_csv(index=False, lineterminator="\n")  # numbers with all their digits
    write_text(folder / f"{table.name}.csv", csv)
    write_text(folder / f"{table.name}.md", markdown(table))
    write_text(folder / f"{table.name}.html", html_page(title=table.title, only=table))
