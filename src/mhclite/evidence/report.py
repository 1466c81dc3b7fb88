"""A study as one self-contained HTML page.

The page needs neither network nor other files: styles and figures are inside. Every number comes
from results.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, get_args

import yaml

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.exhibits import FIGURES, HEADINGS, TABLES, Exhibit, shown
from mhclite.evidence.findings import Finding, findings_of, main_findings
from mhclite.evidence.requirements import Unmet
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import DECIDED, Verdict
from mhclite.evidence.tables import Table, counted, html_page, listed
from mhclite.evidence.topics.cost import how_measured
from mhclite.evidence.topics.verdicts import claim_rows, effect_text
from mhclite.runs.folder import RunFolder
from mhclite.runs.provenance import hardware_in_words

FIRST = "overview"  # the table of the first page
HEADLINES = ("depth", "validation_loss")  # its figure: the first of these that the report prints
SECTIONS = {key: heading.partition(" ")[2] for key, heading in HEADINGS.items()}
# What is short of a requirement -> what that keeps open: of what, and why.
OPEN = {
    "learned": (
        "Losses",
        "The models compared end at {found} nats per token. A table of token pairs (bigrams) "
        "reaches {needed}.",
    ),
    "moved": ("Mixing", "H_res has moved too little from its start: {found}. Needed: {needed}."),
    "used": ("Mixing", "The loss depends too little on H_res, in standard errors: {found}."),
    "functional": ("Depth", "Too few H_res can change the output: {found}. Needed: {needed}."),
    "trained": ("Training", "It has {found} tokens for each parameter. Needed: {needed}."),
    "events": ("Rare events", "There are {found}, which is too few. Needed: {needed}."),
    "measured": ("Measurements", "What is asked was not measured in these runs."),
}


def verdict_counts(findings: Sequence[Finding], noun: str = "claim") -> str:
    """`8 claims: 2 supported, 6 not reached`."""
    counts = Counter(finding.verdict for finding in findings)
    shares = [f"{counts[word]} {word}" for word in get_args(Verdict) if counts[word]]
    return f"{counted(len(findings), noun)}: {', '.join(shares)}"


def decided(results: Results) -> list[dict[str, str]]:
    """Verdict, statement and effect of the main claims that the study decides."""
    several = len(results.corpora) > 1
    return [
        {
            "verdict": one.verdict.capitalize(),
            "statement": one.claim.statement + f" ({one.corpus})" * several,
            "effect": effect_text(claim_rows(one)[0]),
        }
        for one in main_findings(results)
        if one.verdict in DECIDED
    ]


def unanswered(results: Results) -> list[dict[str, str]]:
    """What limits claims: how many, and why. Each claim is counted once."""
    groups: dict[str, list[Unmet]] = {}
    for finding in findings_of(results):
        if finding.verdict == "not reached":
            short = finding.row.unmet[0]
            groups.setdefault(short.kind, []).append(short)
    found = [(OPEN[kind][0], len(group), _why(kind, group)) for kind, group in groups.items()]
    undecided = [one for one in findings_of(results) if one.verdict == "inconclusive"]
    found.append(("Undecided", len(undecided), "The intervals leave both answers open."))
    return [{"what": what, "count": counted(n, "claim"), "why": why} for what, n, why in found if n]


def _why(kind: str, group: Sequence[Unmet]) -> str:
    """What was found of each variant, or the least and the most; and what is needed."""
    values = sorted(group, key=lambda one: one.found)
    if kind in ("moved", "used", "functional"):
        by_name = {one.of: f"{one.found:.2g} in {one.of}" for one in values}
        found = listed([*by_name.values()])
    else:
        found = " to ".join(dict.fromkeys(f"{one.found:.3g}" for one in (values[0], values[-1])))
    return OPEN[kind][1].format(found=found, needed=f"{max(one.needed for one in group):.3g}")


# --- where the numbers come from ------------------------------------------------------------


def origin(results: Results) -> list[tuple[str, str]]:
    """A fact of provenance and its value; where runs differ, how many have each.

    The days are the first and the last on which a process of a run was started.
    """
    runs = results.folder / "runs"
    records = [RunFolder(runs / run).record() for run in results.all_runs["run"]]
    starts = [attempt.started for record in records for attempt in record.attempts]
    days = sorted(datetime.fromisoformat(s).astimezone(UTC).date().isoformat() for s in starts)
    found = [("Trained (UTC)", " to ".join(dict.fromkeys((days[0], days[-1]))))]
    facts = [
        {
            "Commit": (run.git.commit or "unknown")
            + " with uncommitted changes" * bool(run.git.dirty),
            "Hardware": hardware_in_words(run.hardware),
            "Platform": run.platform,
            "Versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        }
        for run in (record.provenance for record in records)
    ]
    for fact in facts[0]:
        counts = Counter(one[fact] for one in facts)
        several = [f"{value} ({n} of {len(facts)} runs)" for value, n in counts.items()]
        found.append((fact, "; ".join(several) if len(counts) > 1 else facts[0][fact]))
    return found


# --- the page -------------------------------------------------------------------------------


def page(results: Results, written: Sequence[Table]) -> str:
    """The whole page, of the study's tables and of the figures drawn in its folder.

    What the registry does not let it print stands in files beside it, which it links.
    """
    settings, main = results.settings, main_findings(results)
    tables = {table.name: table for table in written}
    exhibits = [exhibit for exhibit, _ in (*shown(TABLES, settings), *shown(FIGURES, settings))]
    printed = [exhibit for exhibit in exhibits if exhibit.printed_in(settings)]
    drawn = [exhibit.name for exhibit in printed if exhibit.kind == "figure"]
    headline = next(name for name in HEADLINES if name in drawn)

    def content(exhibit: Exhibit) -> dict[str, Any]:
        if exhibit.kind == "table":
            return {"table": tables[exhibit.name]}
        drawing = (results.folder / "figures" / f"{exhibit.name}.svg").read_bytes()
        data = f"data:image/svg+xml;base64,{base64.b64encode(drawing).decode()}"
        return {"about": exhibit, "caption": exhibit.caption_for(results), "data": data}

    tested = [one for one in findings_of(results) if one.verdict != "not tested"]
    context: dict[str, Any] = {
        "title": results.study.get("title", results.name),
        "name": results.name,
        "runs": results.all_runs,
        "layers": listed([results.model_label(model) for model in results.models]),
        "seeds": counted(len(results.seeds), "seed"),
        "labels": listed([*results.labels.values()]),
        "decided": decided(results),
        "verdict_counts": verdict_counts,
        "others": [one for one in tested if one not in main],
        "tested": counted(len(tested), "claim"),
        "unanswered": unanswered(results),
        "variants": [(results.labels[name], VARIANTS[name].note) for name in results.variants],
        "first": [content(one) for one in printed if one.name in (FIRST, headline)],
        "sections": {
            heading: [
                content(one)
                for one in printed
                if one.heading == key and one.name not in (FIRST, headline)
            ]
            for key, heading in SECTIONS.items()
        },
        "beside": [exhibit for exhibit in exhibits if exhibit not in printed],
        "origin": origin(results),
        "study": settings,
        "manifests": {corpus: results.manifest(corpus) for corpus in results.corpora},
        "measured_on": how_measured(results),
        "study_file": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True),
    }
    return html_page(**context)
