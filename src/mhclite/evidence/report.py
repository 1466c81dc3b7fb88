"""A study as one self-contained HTML page.

The page needs neither network nor other files: styles and figures are inside. Every number comes
from results.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.exhibits import FIGURES, Exhibit, shown
from mhclite.evidence.findings import Finding, findings_of
from mhclite.evidence.report_origin import origin, training_dates
from mhclite.evidence.results import Results
from mhclite.evidence.tables import CSS, Table, counted, html_table, listed, percent_of
from mhclite.evidence.topics.claims import claim_rows, effect_text
from mhclite.evidence.topics.cost import how_measured
from mhclite.evidence.verdicts import DECIDED, Verdict

TEMPLATE = "report.html.j2"
FIRST = ("overview", "verdicts", "results")  # tables with a place of their own
HEADLINE = "depth"  # the figure that stands at the top, where a study has it


def verdict_counts(findings: Sequence[Finding]) -> str:
    """`8 claims: 2 supported, 6 not reached`."""
    counts = Counter(finding.verdict for finding in findings)
    shares = [f"{counts[word]} {word}" for word in get_args(Verdict) if counts[word]]
    return f"{counted(len(findings), 'claim')}: {', '.join(shares)}"


def paragraph(results: Results) -> str:
    """What a study comes to, in at most five sentences: its size, and the verdicts on its claims.

    Nothing is said but verdicts, so what they require is required of every sentence.
    """
    findings, runs = findings_of(results), results.all_runs
    layers = list(dict.fromkeys(results.model_label(model) for model in results.models))
    diverged = int((runs["status"] == "diverged").sum())
    said = [
        f"{counted(len(runs), 'run')} of {listed([*results.labels.values()])} at {listed(layers)}, "
        f"{counted(len(results.seeds), 'seed')}; {diverged or 'none'} diverged."
    ]
    if findings:
        said.append(f"{verdict_counts(findings)}.")
    for words in (DECIDED[:2], DECIDED[2:]):
        told = [
            f"{word}: {'; '.join(members)}"
            for word in words
            if (members := [_told(one) for one in findings if _main(one) and one.verdict == word])
        ]
        if told:
            text = "; ".join(told)
            said.append(f"Of the paper's main claims {text}.")
    short = Counter(one.row.unmet[0] for one in findings if one.verdict == "not reached")
    if short:
        reason = short.most_common(1)[0][0]
        said.append(f"What is not reached falls short of what it needs, most often: {reason}.")
    return " ".join(said)


def _main(finding: Finding) -> bool:
    return finding.claim.family == "confirmatory"


def _told(finding: Finding) -> str:
    """A claim without what stands in brackets, and its effect."""
    statement = finding.claim.statement.partition(" (")[0]
    return f"{statement} ({effect_text(claim_rows(finding)[0])})"


def html_figure(results: Results, exhibit: Exhibit) -> dict[str, str]:
    """A figure for the template, with its drawing inside."""
    drawing = (results.folder / "figures" / f"{exhibit.name}.svg").read_bytes()
    return {
        "name": exhibit.name,
        "title": exhibit.title,
        "caption": exhibit.caption_for(results),
        "alt": exhibit.alt,
        "data": f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}",
    }


def page(results: Results, written: Sequence[Table]) -> str:
    """The whole page, of the study's tables and of the figures drawn in its folder."""
    tables = {
        table.name: {"table": table, "html": html_table(table)}
        for table in (*written, origin(results))
    }
    figures = [html_figure(results, exhibit) for exhibit, _ in shown(FIGURES, results.settings)]
    context: dict[str, Any] = {
        "title": results.study.get("title", results.name),
        "name": results.name,
        "css": CSS,
        "paragraph": paragraph(results),
        "variants": [(results.label(name), VARIANTS[name].note) for name in results.variants],
        "headline": [figure for figure in figures if figure["name"] == HEADLINE],
        "first": {name: tables.pop(name) for name in FIRST if name in tables},
        "origin": tables.pop("origin"),
        "figures": [figure for figure in figures if figure["name"] != HEADLINE],
        "tables": list(tables.values()),
        "study": results.settings,
        "manifests": {corpus: results.manifest(corpus) for corpus in results.corpora},
        "level": percent_of(results.confidence),
        "error": percent_of(1 - results.confidence),
        "measured_on": how_measured(results),
        "trained": training_dates(results),
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
