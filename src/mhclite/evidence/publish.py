"""`python -m mhclite publish`: keep a study's small files, and make from them what the reader sees.

`make` packs them, `unpack` writes them again, `rebuild` computes figures, tables and report from
them, without training, and `pages` writes what README and docs/ say of published studies.

No weights, no shards: what figures, tables, verdicts and report are computed from, in one Parquet
file; beside it the tables that a reader opens without code.

Pages have numbers within sentences (`filled.py`) and text between marks, made from those files:

    <!-- found:STUDY -->     its verdicts counted, every variant in a row, the figure over depth

closed by <!-- /found -->. A test says when a page is stale.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from mhclite.arguments import folder_path
from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims
from mhclite.evidence.collect import collect
from mhclite.evidence.evidence import write
from mhclite.evidence.exhibits import FIGURES, TABLES
from mhclite.evidence.filled import MARK as NUMBER
from mhclite.evidence.filled import fill
from mhclite.evidence.findings import findings_of
from mhclite.evidence.front import front_figure
from mhclite.evidence.report import verdict_counts
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.tables import markdown
from mhclite.files import write_json, write_text
from mhclite.measure.measured import StabilitySettings
from mhclite.measure.stability import judge_all
from mhclite.records import build, to_json
from mhclite.runs.parquet import STUDY, pack, unpack
from mhclite.study.load import read_resolved

MANIFEST = "manifest.json"
RUN_FILES = ("run.json", "summary.json", "metrics.jsonl", "mixing.jsonl")
STUDY_FILES = ("probes/*.json", "critical/*.json", "throughput/*.json", "sinkhorn.json")
READABLE = ("runs.csv", "tables/claims.csv")
CLAIMS = Path("config/claims.yaml")
MARK = re.compile(r"<!-- found:([\w-]+) -->")
END = "<!-- /found -->"
FIGURE = "depth"
FRONT = "docs/images/front.svg"  # of README's first screen

log = logging.getLogger(__name__)


def publish(results: Path, out: Path) -> None:
    """Put what a finished study in results/<study> is computed from into `out`."""
    resolved = read_resolved(results / "resolved.json")
    for run in resolved.runs:
        if not (results / "runs" / run / "summary.json").is_file():
            raise UserError(f"run {run} is not finished: complete the study before it is published")
    paths = [f"runs/{run}/{name}" for run in sorted(resolved.runs) for name in RUN_FILES]
    checkout = results.resolve().parents[1]  # of results/<study>, perhaps not this one
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        for corpus, prepared in resolved.corpora.items():
            (made / "corpora" / corpus).mkdir(parents=True)
            shutil.copyfile(checkout / prepared / MANIFEST, made / "corpora" / corpus / MANIFEST)
        corpora = {corpus: f"corpora/{corpus}" for corpus in resolved.corpora}
        write_json(made / "resolved.json", to_json(replace(resolved, corpora=corpora)))
        sources = {str(path.relative_to(made)): path for path in made.rglob("*.json")}
        for pattern in STUDY_FILES:
            sources |= {str(path.relative_to(results)): path for path in results.glob(pattern)}
        sources |= {path: results / path for path in paths}
        pack(dict(sorted(sources.items())), out / STUDY)
    for name in READABLE:
        if (results / name).is_file():
            shutil.copyfile(results / name, out / Path(name).name)


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


def rebuild(published: Path, out: Path) -> Results:
    """Compute stability, tables, figures and report from a published folder, into `out`."""
    collect_again(published, out)
    return write(out)


# --- README and docs/ -----------------------------------------------------------------------


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
                figures[root / _figure(study)] = drawn(partial(FIGURES[FIGURE][1], results))
    if FRONT in pages[root / "README.md"]:
        figures[root / FRONT] = drawn(partial(front_figure, published))
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


def drawn(draw: Callable[[], Figure]) -> str:
    """A figure in the one look, as text."""
    with style(), tempfile.TemporaryDirectory() as scratch:
        save(draw(), Path(scratch) / "figure")
        return (Path(scratch) / "figure.svg").read_text(encoding="utf-8")


# --- the command ----------------------------------------------------------------------------


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite publish`."""
    actions = parser.add_subparsers(dest="action", required=True)
    for name, source, about in (
        ("make", "results", "pack a finished study's small files"),
        ("rebuild", "published", "figures, tables and report without training"),
        ("unpack", "published", "the files of a published study, as they were"),
    ):
        action = actions.add_parser(name, help=about)
        action.add_argument(f"--{source}", required=True, type=folder_path, help="folder to read")
        action.add_argument("--out", required=True, type=folder_path, help="folder to write")
    pages = actions.add_parser("pages", help="bring README and docs/ up to date")
    pages.add_argument(
        "--root", type=folder_path, default=Path(), help="README's folder (default: here)"
    )
    pages.add_argument(
        "--published",
        type=folder_path,
        default=Path("results/published"),
        help="folder of the published studies (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Publish, unpack, rebuild, or write README and docs/."""
    if args.action == "pages":
        changed = write_pages(args.root, args.published)
        log.info("%s", ", ".join(map(str, changed)) + " written" if changed else "nothing changed")
    elif args.action == "make":
        if not (args.results / "resolved.json").is_file():
            raise UserError(f"{args.results} holds no study; `snakemake --cores all` makes one")
        publish(args.results, args.out)
        log.info("published in %s", args.out)
    else:
        if not (args.published / STUDY).is_file():
            found = sorted(path.parent.name for path in args.published.parent.glob(f"*/{STUDY}"))
            there = ", ".join(found) or "none"
            raise UserError(f"{args.published} holds no published study; beside it: {there}")
        if args.action == "unpack":
            unpack(args.published / STUDY, args.out)
        else:
            rebuild(args.published, args.out)
        log.info("wrote %s", args.out)
