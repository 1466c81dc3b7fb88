"""What README and docs/ say of published studies: text between marks, made from their files.

    <!-- found:STUDY -->         every variant at a glance, and the figure over depth
    <!-- losses:STUDY -->        its final losses
    <!-- table:STUDY/NAME -->    a table of its report

each closed by <!-- /found -->, <!-- /losses -->, <!-- /table -->. A test says when a page is stale.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mhclite.errors import UserError
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.published import collect_again
from mhclite.evidence.report_methods import counted, layers_of, listed
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import BASELINE, far_off
from mhclite.evidence.style import save, style
from mhclite.evidence.table_format import fixed, markdown, percent_of, plus_minus
from mhclite.evidence.topics.losses import results_data
from mhclite.evidence.topics.overview import overview_table
from mhclite.evidence.values import completed_by_seed
from mhclite.files import write_text
from mhclite.runs.folder import RunFolder
from mhclite.runs.parquet import STUDY
from mhclite.runs.provenance import hardware_in_words

COLUMN = "validation_loss"
FIGURE = "depth"  # shown with what was found
MARK = re.compile(r"<!-- (found|losses|table):([\w-]+)(?:/(\w+))? -->")


class Mark(NamedTuple):
    """What stands between a mark and its end."""

    kind: str  # found, losses or table
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
            drawn = FIGURES[FIGURE][0].shown_in(results.settings)
            if drawn and Mark("found", study, "") in wanted[study]:
                figures[root / _figure(study)] = _drawn(results, Path(scratch))
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


def _text(results: Results, mark: Mark) -> str:
    """What belongs behind a mark."""
    if mark.kind == "found":
        return found_block(results)
    if mark.kind == "losses":
        return losses_block(results)
    tables = {exhibit.name: make for exhibit, make in shown(TABLES, results.settings)}
    if mark.name not in tables:
        raise UserError(f"a page names table {mark.name!r}, which study {mark.study!r} has not")
    return markdown(tables[mark.name](results))


def _drawn(results: Results, scratch: Path) -> str:
    """The figure that is shown with what was found, as SVG."""
    _, draw = FIGURES[FIGURE]
    with style():
        save(draw(results), scratch / FIGURE)
    return (scratch / f"{FIGURE}.svg").read_text(encoding="utf-8")


def _figure(study: str) -> str:
    """The figure of a study in the checkout."""
    return f"docs/images/{study}-{FIGURE}.svg"


def found_block(results: Results) -> str:
    """Every variant of a study at a glance, and the figure over depth."""
    about, _ = FIGURES[FIGURE]
    size = ", ".join(
        [
            layers_of(results, results.models),
            counted(len(results.seeds), "seed"),
            counted(len(results.all_runs), "run"),
        ]
    )
    return "\n".join(
        [
            f"Study `{results.name}`: {size}.",
            "",
            markdown(overview_table(results)).strip(),
            "",
            *(
                # as a page in docs/ names it, where these blocks stand
                [f"![{about.title}: {about.alt}](images/{results.name}-{FIGURE}.svg)"]
                if about.shown_in(results.settings)  # a study of one depth has no such figure
                else []
            ),
        ]
    )


def losses_block(results: Results) -> str:
    """The table of losses."""
    data = results_data(results)
    cells = {
        (row["corpus"], row["model"], row["variant"]): row
        for row in data.to_dict("records")
        if row["kind"] == "variant"
    }
    columns = [(corpus, model) for corpus in results.corpora for model in results.models]
    beside = BASELINE in results.variants
    several = len(results.corpora) > 1
    names = [f"{corpus}, " * several + results.model_label(model) for corpus, model in columns]
    lines = [
        "| validation loss (nats/token) | "
        + " | ".join(name + " | minus residual" * beside for name in names)
        + " |",
        "|:--|" + ("--:|" * (1 + beside)) * len(columns),
    ]
    for variant in results.variants:
        row = [results.label(variant)]
        for cell in columns:
            found = cells[*cell, variant]
            row.append(plus_minus(found["validation_loss"], found["validation_loss_half_width"], 3))
            if beside:
                row.append(
                    ""
                    if variant == BASELINE
                    else plus_minus(found["difference_mean"], found["difference_half_width"], 3)
                )
        lines.append(f"| {' | '.join(row)} |")
    counting = "; ".join(
        f"{corpus}, " * several
        + ", ".join(
            f"{name} {fixed(value, 3)}" for name, value in results.counting_models[corpus].items()
        )
        for corpus in results.corpora
    )
    far = [
        f"{results.label(variant)} at {name} ({losses[seed]:.3f})"
        for cell, name in zip(columns, names, strict=True)
        for variant in results.variants
        if (seed := far_off(losses := completed_by_seed(results, *cell, variant, COLUMN)))
        is not None
    ]
    outliers = f"One seed ends far from all others: {listed(far)}. " if far else ""
    records = [RunFolder(results.folder / "runs" / run).record() for run in results.all_runs["run"]]
    commits = dict.fromkeys((one.provenance.git.commit or "unknown")[:10] for one in records)
    lines += [
        "",
        f"Mean ± half-width of the {percent_of(results.confidence)} Student t interval over "
        f"{counted(len(results.seeds), 'seed')}, differences paired by seed; {counting}. Commit "
        f"{listed(list(commits))}, {hardware_in_words(records[0].provenance.hardware)}; "
        f"{counted(len(results.runs), 'run')}. {outliers}{_changed(results)}Made from "
        f"`results/published/{results.name}`.",
    ]
    return "\n".join(lines)


def _changed(results: Results) -> str:
    """The runs of a study besides those of the table, each with a setting changed."""
    parts = []
    for name, condition in results.settings["conditions"].items():
        runs = results.all_runs[results.all_runs["condition"] == name]
        if runs.empty:
            continue
        layers = layers_of(results, [m for m in results.models if (runs["model"] == m).any()])
        labels = [results.label(v) for v in results.variants if (runs["variant"] == v).any()]
        parts.append(
            f"{condition['title']} ({layers}; {listed(labels)}; "
            f"{counted(runs['seed'].nunique(), 'seed')})"
        )
    more = len(results.all_runs) - len(results.runs)
    return f"{more} more with a setting changed: {'; '.join(parts)}. " if parts else ""
