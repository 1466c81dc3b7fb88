"""What README and docs/ say of published studies: text between marks, made from their files.

    <!-- found:STUDY -->     its verdicts counted, every variant in a row, the figure over depth

closed by <!-- /found -->; and numbers within sentences (`filled.py`). A test says when a page is
stale.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims
from mhclite.evidence.collect import collect
from mhclite.evidence.exhibits import FIGURES, TABLES
from mhclite.evidence.filled import MARK as NUMBER
from mhclite.evidence.filled import fill
from mhclite.evidence.findings import findings_of
from mhclite.evidence.front import front_figure
from mhclite.evidence.report import verdict_counts
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.tables import markdown
from mhclite.files import write_text
from mhclite.measure.files import StabilitySettings
from mhclite.measure.stability import judge_all
from mhclite.records import build
from mhclite.runs.parquet import STUDY, unpack
from mhclite.study.reading import read_resolved

MARK = re.compile(r"<!-- found:([\w-]+) -->")
END = "<!-- /found -->"
FIGURE = "depth"
FRONT = "docs/images/front.svg"  # of README's first screen
CLAIMS = Path("config/claims.yaml")


def collect_again(published: Path, out: Path) -> None:
    """Compute what tables, figures and report are made from.

    The study is asked the claims of this checkout, not those that it was published with.
    """
    asked = [claim.model_dump(mode="json") for claim in load_claims(CLAIMS)]
    unpack(published / STUDY, out)
    resolved = replace(read_resolved(out / "resolved.json"), claims=asked)
    settings = build(StabilitySettings, resolved.study["stability"])
    judge_all(out / "runs", list(resolved.runs), settings, out / "stability.json")
    corpora = {name: str(out / folder) for name, folder in resolved.corpora.items()}
    collect(replace(resolved, corpora=corpora), out)


def with_texts(page: str, texts: dict[str, str]) -> str:
    """A page with the text behind its marks replaced, by study.

    `UserError` for a mark that is not closed: the text after it would be lost.
    """
    for study, text in texts.items():
        mark = f"<!-- found:{study} -->"
        parts = page.split(mark)
        for at in range(1, len(parts)):
            old, end, rest = parts[at].partition(END)
            if not end or MARK.search(old):
                raise UserError(f"{mark} is not closed by {END}")
            parts[at] = f"\n\n{text.strip()}\n\n{end}{rest}"
        page = mark.join(parts)
    return page


def current(root: Path, published: Path) -> dict[Path, str]:
    """README.md, the pages of docs/ that have marks, and their figures, as they are to be.

    Args:
        root: of the checkout.
        published: folder of the published studies.

    Raises:
        UserError: a mark names a study that is not published; a number does not bear out its
            sentence.
    """
    paths = [root / "README.md", *sorted((root / "docs").rglob("*.md"))]
    pages = {path: path.read_text(encoding="utf-8") for path in paths}
    texts: dict[str, str] = {}
    figures: dict[Path, str] = {}
    for study in sorted(set().union(*map(MARK.findall, pages.values()))):
        if not (published / study / STUDY).is_file():
            raise UserError(f"a page names study {study!r}: {published / study} is missing")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / study
            collect_again(published / study, folder)
            results = load_results(folder)
            texts[study] = _text(results)
            if FIGURES[FIGURE][0].shown_in(results.settings):
                figures[root / _figure(study)] = _svg(partial(FIGURES[FIGURE][1], results))
    if FRONT in pages[root / "README.md"]:
        figures[root / FRONT] = _svg(partial(front_figure, published))
    marked = {
        path: fill(with_texts(page, texts), published, path.name)
        for path, page in pages.items()
        if MARK.search(page) or NUMBER.search(page)
    }
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


def _figure(study: str) -> str:
    """The figure of a study in the checkout."""
    return f"docs/images/{study}-{FIGURE}.svg"


def _text(results: Results) -> str:
    """What belongs behind a mark."""
    about, _ = FIGURES[FIGURE]
    # As a page in docs/findings/ names it: README shows the figure in a place of its own.
    figure = f"![{about.title}: {about.alt}](../{_figure(results.name).removeprefix('docs/')})"
    return "\n\n".join(
        [
            f"Verdicts of study `{results.name}` on {verdict_counts(findings_of(results))}.",
            markdown(TABLES["overview"][1](results)).strip(),
            *([figure] if about.shown_in(results.settings) else []),
        ]
    )


def _svg(draw: Callable[[], Figure]) -> str:
    """A figure in the one look, as text."""
    with style(), tempfile.TemporaryDirectory() as scratch:
        save(draw(), Path(scratch) / "figure")
        return (Path(scratch) / "figure.svg").read_text(encoding="utf-8")
