"""Published results: a study's small files, kept in the repository, and what is made from them.

`make` copies what figures, tables and report are computed from: no weights, no shards. `rebuild`
computes everything from such a folder again, without training. `readme` writes the README's table
and figure from it.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.evidence import figures, report, tables
from mhclite.evidence.collect import collect
from mhclite.evidence.report_origin import training_dates
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.table_format import fixed, percent_of, plus_minus
from mhclite.evidence.table_results import results_data
from mhclite.files import read_json, write_json, write_text
from mhclite.measure import stability
from mhclite.runs.provenance import hardware_in_words

RUN_FILES = ("run.json", "summary.json", "metrics.jsonl", "mixing.jsonl")
STUDY_FILES = ("probes/*.json", "throughput/*.json", "sinkhorn.json")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
README_FIGURE = "loss_vs_depth"

log = logging.getLogger(__name__)


def publish(results: Path, out: Path) -> None:
    """Copy the small files of a finished study from results/<study> into `out`."""
    resolved = read_json(results / "resolved.json", "the resolved study")
    if out.exists():
        shutil.rmtree(out)
    for run in resolved["runs"]:
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
    for corpus, folder in resolved["corpora"].items():
        target = out / "corpora" / corpus / "manifest.json"
        target.parent.mkdir(parents=True)
        shutil.copyfile(Path(folder) / "manifest.json", target)
    study = {**resolved, "corpora": {corpus: f"corpora/{corpus}" for corpus in resolved["corpora"]}}
    write_json(out / "resolved.json", study)


def rebuild(published: Path, out: Path) -> Results:
    """Compute stability, tables, figures and report from a published folder, into `out`."""
    resolved: dict[str, Any] = read_json(published / "resolved.json", "the published study")
    shutil.copytree(published, out, dirs_exist_ok=True)
    stability.run(
        argparse.Namespace(
            settings=json.dumps(resolved["study"]["stability"]),
            runs=out / "runs",
            run=list(resolved["runs"]),
            out=out / "stability.json",
        )
    )
    corpora = {name: str(out / folder) for name, folder in resolved["corpora"].items()}
    collect({**resolved, "corpora": corpora}, out)
    step = argparse.Namespace(results=out, confidence=None, only=None, show=False)
    tables.run(step)
    figures.run(step)
    report.run(step)
    return load_results(out)


# --- README ---------------------------------------------------------------------------------


def readme_block(results: Results) -> str:
    """The README's table of results, between its marks."""
    data = results_data(results, results.confidence)
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
    baselines = "; ".join(
        f"{corpus}, " * several
        + ", ".join(
            f"{name} {fixed(value, 3)}" for name, value in results.baselines[corpus].items()
        )
        for corpus in results.corpora
    )
    provenance = read_json(results.folder / "runs" / results.runs["run"].iloc[0] / "run.json")[
        "provenance"
    ]
    commit = provenance["git"]["commit"]
    lines += [
        "",
        f"Mean ± half-width of the {percent_of(results.confidence)} Student t interval over "
        f"{len(results.seeds)} seeds, differences paired by seed; {baselines}. Commit "
        f"{commit[:10] if commit else 'unknown'}, {hardware_in_words(provenance['hardware'])}; "
        f"{len(results.runs)} runs. Made from `results/published/{results.name}`.",
    ]
    return "\n".join(lines)


def with_block(readme: str, block: str) -> str:
    """The README with its block replaced."""
    pattern = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    if not pattern.search(readme):
        raise UserError(f"README.md has no block between {BEGIN} and {END}")
    return pattern.sub(lambda _: f"{BEGIN}\n{block}\n{END}", readme)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite publish`."""
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("make", help="copy a finished study's small files")
    make.add_argument("--results", required=True, type=Path, help="results/<study>")
    again = actions.add_parser("rebuild", help="figures, tables and report without training")
    readme = actions.add_parser("readme", help="write the README's table and figure")
    for action in (again, readme):
        action.add_argument("--published", required=True, type=Path, help="published folder")
    for action in (make, again, readme):
        action.add_argument("--out", required=True, type=Path, help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Publish, rebuild, or write the README's part."""
    if args.action == "make":
        publish(args.results, args.out)
        log.info("published in %s", args.out)
        return
    results = rebuild(args.published, args.out)
    log.info("rebuilt in %s; %s", args.out, training_dates(results))
    if args.action == "readme":
        path = Path("README.md")
        write_text(path, with_block(path.read_text(encoding="utf-8"), readme_block(results)))
        figure = Path("docs/images") / f"{README_FIGURE}.svg"
        shutil.copyfile(args.out / "figures" / figure.name, figure)
        log.info("%s and %s written", path, figure)
