"""What README and docs/ say of published studies: text between marks, made from their files.

    <!-- found:STUDY -->         its verdicts counted, every variant in a row, the figure over depth
    <!-- table:STUDY/NAME -->    a table of its report

each closed by <!-- /found -->, <!-- /table -->. A test says when a page is stale.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mhclite.errors import UserError
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import findings_of
from mhclite.evidence.published import collect_again
from mhclite.evidence.report import HEADLINE, verdict_counts
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.tables import markdown
from mhclite.files import write_text
from mhclite.runs.parquet import STUDY

MARK = re.compile(r"<!-- (found|table):([\w-]+)(?:/(\w+))? -->")


class Mark(NamedTuple):
    """What stands between a mark and its end."""

    kind: str  # found or table
    study: str
    name: str  # of a table; else empty

    def __str__(self) -> str:
        return f"<!-- {self.kind}:{self.study}{'/' * bool(self.name)}{self.name} -->"


def marks_in(page: str) -> set[Mark]:
    """The marks of a page."""
    return {Mark(*(part or "" for part in found)) for found in MARK.findall(page)}


def with_texts(page: str, texts: dict[Mark, str]) -> str:
    """A page with the text behind its marks replaced.

    `UserError` for a mark that is not closed: the text after it would be lost.
    """
    for mark, text in texts.items():
        parts = page.split(str(mark))
        for at in range(1, len(parts)):
            old, end, rest = parts[at].partition(f"<!-- /{mark.kind} -->")
            if not end or MARK.search(old):
                raise UserError(f"{mark} is not closed by <!-- /{mark.kind} -->")
            parts[at] = f"\n\n{text.strip()}\n\n{end}{rest}"
        page = str(mark).join(parts)
    return page


def current(root: Path, published: Path) -> dict[Path, str]:
    """README.md, the pages of docs/ that have marks, and their figures, as they are to be.

    Args:
        root: of the checkout.
        published: folder of the published studies.

    Raises:
        UserError: a mark names a study that is not published, or a table that it does not have.
    """
    paths = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    pages = {path: path.read_text(encoding="utf-8") for path in paths}
    wanted: dict[str, set[Mark]] = defaultdict(set)
    for mark in set().union(*map(marks_in, pages.values())):
        wanted[mark.study].add(mark)
    texts: dict[Mark, str] = {}
    figures: dict[Path, str] = {}
    for study in sorted(wanted):
        if not (published / study / STUDY).is_file():
            raise UserError(f"a page names study {study!r}: {published / study} is missing")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / study
            collect_again(published / study, folder)
            results = load_results(folder)
            texts |= {mark: _text(results, mark) for mark in wanted[study]}
            if has_figure(results) and Mark("found", study, "") in wanted[study]:
                with style():
                    save(FIGURES[HEADLINE][1](results), folder / HEADLINE)
                drawn = (folder / f"{HEADLINE}.svg").read_text(encoding="utf-8")
                figures[root / _figure(study)] = drawn
    marked = {path: with_texts(page, texts) for path, page in pages.items() if marks_in(page)}
    return marked | figures


def write_pages(root: Path, published: Path) -> list[Path]:
    """Bring README, docs/ and their figures up to date; returns what changed."""
    changed = {
        path: text
        for path, text in current(root, published).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }
    for path, text in changed.items():
        write_text(path, text)
    return sorted(changed)


def has_figure(results: Results) -> bool:
    """Whether a study has the figure over depth: one of a single depth has not."""
    return FIGURES[HEADLINE][0].shown_in(results.settings)


def _figure(study: str) -> str:
    """The figure of a study in the checkout."""
    return f"docs/images/{study}-{HEADLINE}.svg"


def _text(results: Results, mark: Mark) -> str:
    """What belongs behind a mark."""
    tables = {exhibit.name: make for exhibit, make in shown(TABLES, results.settings)}
    if mark.kind == "table":
        if mark.name not in tables:
            raise UserError(f"a page names table {mark.name!r}, which study {mark.study!r} has not")
        return markdown(tables[mark.name](results))
    about, _ = FIGURES[HEADLINE]
    # As a page in docs/ names it: README shows the figure in a place of its own.
    figure = f"![{about.title}: {about.alt}]({_figure(results.name).removeprefix('docs/')})"
    return "\n\n".join(
        [
            f"Verdicts of study `{results.name}` on {verdict_counts(findings_of(results))}.",
            markdown(tables["overview"](results)).strip(),
            *([figure] if has_figure(results) else []),
        ]
    )
