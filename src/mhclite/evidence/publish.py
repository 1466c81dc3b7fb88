"""Published results: a study's small files, kept in the repository, and what is made from them.

`make` copies what figures, tables and report are computed from: no weights, no shards. `rebuild`
computes everything from such a folder again, without training. `readme` writes the README's first
screen from it (what was found, figure, table), `docs` the tables of studies that stand in docs/.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from mhclite.arguments import folder_path
from mhclite.errors import UserError
from mhclite.evidence.collect import collect
from mhclite.evidence.evidence import write
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import claims_of, evaluate
from mhclite.evidence.report_found import found
from mhclite.evidence.report_methods import counted
from mhclite.evidence.report_origin import training_dates
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.table_format import fixed, markdown, percent_of, plus_minus
from mhclite.evidence.topics.losses import results_data
from mhclite.files import write_json, write_text
from mhclite.measure.files import StabilitySettings
from mhclite.measure.stability import judge_all
from mhclite.records import build, to_json
from mhclite.runs.folder import RunFolder
from mhclite.runs.provenance import hardware_in_words
from mhclite.study.resolved import read_resolved

RUN_FILES = ("run.json", "summary.json", "metrics.jsonl", "mixing.jsonl")
STUDY_FILES = ("probes/*.json", "critical/*.json", "throughput/*.json", "sinkhorn.json")
README_FIGURE = "depth"

log = logging.getLogger(__name__)


def publish(results: Path, out: Path) -> None:
    """Copy the small files of a finished study from results/<study> into `out`."""
    resolved = read_resolved(results / "resolved.json")
    if out.exists():
        shutil.rmtree(out)
    for run in resolved.runs:
        folder = results / "runs" / run
        if not (folder / "summary.json").is_file():
            raise UserError(f"run {run} is not finished: complete the study before it is published")
        (out / "runs" / run).mkdir(parents=True)
        for name in RUN_FILES:
            shutil.copyfile(folder / name, out / "runs" / run / name)
    for pattern in STUDY_FILES:
        for path in sorted(results.glob(pattern)):
            target = out / path.relative_to(results)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for corpus, prepared in resolved.corpora.items():
        target = out / "corpora" / corpus / "manifest.json"
        target.parent.mkdir(parents=True)
        shutil.copyfile(Path(prepared) / "manifest.json", target)
    corpora = {corpus: f"corpora/{corpus}" for corpus in resolved.corpora}
    write_json(out / "resolved.json", to_json(replace(resolved, corpora=corpora)))


def rebuild(published: Path, out: Path) -> Results:
    """Compute stability, tables, figures and report from a published folder, into `out`."""
    _collect_again(published, out)
    return write(out)


def _collect_again(published: Path, out: Path) -> None:
    """Compute what tables, figures and report are made from."""
    resolved = read_resolved(published / "resolved.json")
    shutil.copytree(published, out, dirs_exist_ok=True)
    settings = build(StabilitySettings, resolved.study["stability"])
    judge_all(out / "runs", list(resolved.runs), settings, out / "stability.json")
    corpora = {name: str(out / folder) for name, folder in resolved.corpora.items()}
    collect(replace(resolved, corpora=corpora), out)


# --- README ---------------------------------------------------------------------------------


def readme_blocks(results: Results) -> dict[str, str]:
    """The README's blocks by name: what was found, with the figure, and the table of losses."""
    return {"found": _found_block(results), "results": _results_block(results)}


def _found_block(results: Results) -> str:
    """What was found on the first corpus, and the figure that shows it."""
    corpus = results.corpora[0]
    said = found(results, evaluate(results, claims_of(results)), corpus)
    about, _ = FIGURES[README_FIGURE]
    seeds = counted(len(results.seeds), "seed")
    return "\n".join(
        [
            f"**What the default study found** ({seeds}; intervals: "
            f"{percent_of(results.confidence)}). {' '.join(said.numbers)}",
            "",
            f"**What it cannot say.** {' '.join(said.limits)}" if said.limits else "",
            "",
            f"![{about.title}: {about.alt}](docs/images/{README_FIGURE}.svg)",
        ]
    )


def _results_block(results: Results) -> str:
    """The table of losses."""
    data = results_data(results)
    cells = {
        (row["corpus"], row["model"], row["variant"]): row
        for row in data.to_dict("records")
        if row["kind"] == "variant"
    }
    columns = [(corpus, model) for corpus in results.corpora for model in results.models]
    several = len(results.corpora) > 1
    names = [f"{corpus}, " * several + results.model_label(model) for corpus, model in columns]
    lines = [
        "| validation loss (nats/token) | "
        + " | ".join(f"{name} | minus residual" for name in names)
        + " |",
        "|:--|" + "--:|--:|" * len(columns),
    ]
    for variant in results.variants:
        row = [results.label(variant)]
        for cell in columns:
            found = cells[*cell, variant]
            row.append(plus_minus(found["validation_loss"], found["validation_loss_half_width"], 3))
            row.append(
                ""
                if variant == "residual"
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
    first = RunFolder(results.folder / "runs" / results.runs["run"].iloc[0])
    provenance = first.record().provenance
    commit = provenance.git.commit
    lines += [
        "",
        f"Mean ± half-width of the {percent_of(results.confidence)} Student t interval over "
        f"{len(results.seeds)} seeds, differences paired by seed; {counting}. Commit "
        f"{commit[:10] if commit else 'unknown'}, {hardware_in_words(provenance.hardware)}; "
        f"{len(results.runs)} runs. Made from `results/published/{results.name}`.",
    ]
    return "\n".join(lines)


def with_blocks(readme: str, blocks: dict[str, str]) -> str:
    """The README with its blocks replaced."""
    for name, block in blocks.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, _, rest = readme.partition(begin)
        _, closed, after = rest.partition(end)
        if not closed:
            raise UserError(f"README.md has no block between {begin} and {end}")
        readme = f"{before}{begin}\n{block}\n{end}{after}"
    return readme


# --- tables in docs/ ------------------------------------------------------------------------


def tables_in(text: str) -> set[tuple[str, str]]:
    """(study, table) of every mark `<!-- table:STUDY/TABLE -->` in a page."""
    return set(re.findall(r"<!-- table:([\w-]+)/(\w+) -->", text))


def with_tables(page: str, tables: dict[tuple[str, str], str]) -> str:
    """A page with the text between its marks replaced by tables, as Markdown.

    `UserError` for a mark that is not closed: the text after it would be lost.
    """
    for (study, name), table in tables.items():
        mark = f"<!-- table:{study}/{name} -->"
        parts = page.split(mark)
        for at in range(1, len(parts)):
            old, end, rest = parts[at].partition("<!-- /table -->")
            if not end or "<!-- table:" in old:
                raise UserError(f"docs: {mark} is not closed by <!-- /table -->")
            parts[at] = f"\n\n{table.strip()}\n\n{end}{rest}"
        page = mark.join(parts)
    return page


def current_pages(docs: Path, published: Path) -> dict[Path, str]:
    """Pages of `docs` that hold tables of studies, as they are to be.

    Raises:
        UserError: a mark names a study that is not published, or a table that it does not have.
    """
    pages = {path: path.read_text(encoding="utf-8") for path in sorted(docs.glob("*.md"))}
    wanted = set().union(*map(tables_in, pages.values()))
    tables: dict[tuple[str, str], str] = {}
    for study in sorted({study for study, _ in wanted}):
        if not (published / study / "resolved.json").is_file():
            raise UserError(f"docs name a table of study {study!r}: {published / study} is missing")
        with tempfile.TemporaryDirectory() as folder:
            _collect_again(published / study, Path(folder) / study)
            results = load_results(Path(folder) / study)
            there = {exhibit.name: make for exhibit, make in shown(TABLES, results.settings)}
            for name in sorted(name for of, name in wanted if of == study):
                if name not in there:
                    raise UserError(f"docs name the table {name!r}, which study {study!r} has not")
                tables[study, name] = markdown(there[name](results))
    return {path: with_tables(page, tables) for path, page in pages.items() if tables_in(page)}


def write_docs(docs: Path, published: Path) -> list[Path]:
    """Bring the tables in docs/ up to date; returns the pages that changed."""
    changed = [
        (path, page)
        for path, page in current_pages(docs, published).items()
        if path.read_text(encoding="utf-8") != page
    ]
    for path, page in changed:
        write_text(path, page)
    return [path for path, _ in changed]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite publish`."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="copy a finished study's small files")
    make.add_argument("--results", required=True, type=folder_path, help="results/<study>")
    again = actions.add_parser("rebuild", help="figures, tables and report without training")
    readme = actions.add_parser("readme", help="write what the README says of the study")
    for action in (again, readme):
        action.add_argument("--published", required=True, type=folder_path, help="published folder")
    docs = actions.add_parser("docs", help="bring tables of published studies in docs/ up to date")
    docs.add_argument("--docs", type=folder_path, default=Path("docs"), help="default: %(default)s")
    docs.add_argument(
        "--published",
        type=folder_path,
        default=Path("results/published"),
        help="folder of the published studies (default: %(default)s)",
    )
    for action in (make, again, readme):
        action.add_argument("--out", required=True, type=folder_path, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Publish, rebuild, or write the README's part or the tables in docs/."""
    if args.action == "docs":
        changed = write_docs(args.docs, args.published)
        log.info("%s", ", ".join(map(str, changed)) + " written" if changed else "nothing changed")
        return
    if args.action == "make":
        publish(args.results, args.out)
        log.info("published in %s", args.out)
        return
    results = rebuild(args.published, args.out)
    log.info("rebuilt in %s; %s", args.out, training_dates(results))
    if args.action == "readme":
        path = Path("README.md")
        write_text(path, with_blocks(path.read_text(encoding="utf-8"), readme_blocks(results)))
        figure = Path("docs/images") / f"{README_FIGURE}.svg"
        shutil.copyfile(args.out / "figures" / figure.name, figure)
        log.info("%s and %s written", path, figure)
