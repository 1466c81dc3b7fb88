"""Claims against model sizes: one verdict for each claim, and what each model shows beside it.

The verdict is corrected for the number of claims and stands alone in its column. A model's mark is
that of its own interval, uncorrected, and has other words, so that it is not taken for a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mhclite.evidence.findings import Finding
from mhclite.evidence.results import Results
from mhclite.evidence.rows import ALL_MODELS, Row
from mhclite.evidence.table_format import missing, significant
from mhclite.evidence.topics.claims import claim_rows, effect_text
from mhclite.evidence.verdicts import Verdict, verdict


@dataclass(frozen=True)
class Mark:
    """What a cell shows first: told apart by symbol and word where colours are not seen."""

    symbol: str
    word: str
    look: str  # class of the style sheet


MARKS: dict[Verdict, Mark] = {
    "supported": Mark("✓", "supported", "yes"),
    "contradicted": Mark("✗", "contradicted", "no"),
    "practically equal": Mark("=", "practically equal", "equal"),
    "inconclusive": Mark("?", "inconclusive", "open"),
    "not reached": Mark("–", "not reached", "none"),
    "by construction": Mark("≡", "by construction", "given"),
    "counted": Mark("#", "counted", "given"),
    "not tested": Mark("·", "not tested", "none"),
}
SHOWN: dict[Verdict, str] = {  # words for a single model
    "supported": "for",
    "contradicted": "against",
    "practically equal": "equal",
    "inconclusive": "open",
}


@dataclass(frozen=True)
class MatrixCell:
    """A claim at one model size."""

    mark: Mark
    effect: str = ""


@dataclass(frozen=True)
class MatrixRow:
    """A claim."""

    statement: str
    overall: Mark
    overall_note: str  # the effect of a trend, which has no model of its own
    cells: Sequence[MatrixCell]  # one per model size
    details: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class MatrixGroup:
    """Claims under a heading, and those of the same family that could not be tested."""

    title: str
    rows: Sequence[MatrixRow]
    untested: Sequence[tuple[str, str]]  # claim, what the study lacks


@dataclass(frozen=True)
class Matrix:
    """All claims of a study."""

    models: Sequence[str]  # headings of the columns
    groups: Sequence[MatrixGroup]


FAMILIES = {"confirmatory": "The paper's main claims", "secondary": "Further claims"}


def matrix(results: Results, findings: Sequence[Finding]) -> Matrix:
    """The claims in two groups, the deepest model first.

    With several corpora each claim has a row for each.
    """
    models = sorted(results.models, key=results.n_layer, reverse=True)
    groups = []
    for family, title in FAMILIES.items():
        members = [finding for finding in findings if finding.claim.family == family]
        untested = [
            (_statement(results, finding), finding.reason)
            for finding in members
            if finding.verdict == "not tested"
        ]
        rows = [
            _row(results, finding, models) for finding in members if finding.verdict != "not tested"
        ]
        if members:
            groups.append(MatrixGroup(title, rows, untested))
    return Matrix([results.model_label(model) for model in models], groups)


def _statement(results: Results, finding: Finding) -> str:
    several = f"{finding.corpus}: " * (len(results.corpora) > 1)
    return several + finding.claim.statement


def _row(results: Results, finding: Finding, models: Sequence[str]) -> MatrixRow:
    rows = {row["model"]: row for row in claim_rows(finding)}
    of_model = {row.model: row for row in finding.rows}
    decides = rows[finding.row.model]
    trend = finding.row.model == ALL_MODELS and finding.row.comparison is not None
    return MatrixRow(
        statement=_statement(results, finding),
        overall=MARKS[finding.verdict],
        overall_note=effect_text(decides) if trend else "",
        cells=[
            MatrixCell(
                shown(of_model[model], finding, results.confidence),
                effect_text(rows[model]) if of_model[model].comparison is not None else "",
            )
            if model in of_model and model in rows
            else MatrixCell(Mark("", "", "none"))
            for model in models
        ],
        details=_details(finding, decides),
    )


def shown(row: Row, finding: Finding, confidence: float) -> Mark:
    """What one model size shows by itself, without correction for the number of claims."""
    if row.missing:
        return MARKS["not tested"]
    if row.unmet:
        return MARKS["not reached"]
    found = row.comparison
    if found is None or finding.claim.by_construction:
        return MARKS["counted" if found is None else "by construction"]
    decided = verdict(found, found.p, found.p_equal, confidence)
    if row.crossed is not None and row.crossed[0] <= found.margin <= row.crossed[1]:
        decided = "inconclusive" if decided != "practically equal" else decided
    return Mark(MARKS[decided].symbol, SHOWN[decided], MARKS[decided].look)


def _details(finding: Finding, row: dict[str, Any]) -> list[tuple[str, str]]:
    """What stands behind a verdict."""
    claim, flip = finding.claim, row["p_flip"]
    numbers = [
        f"{name} {significant(value, 2)}"
        for name, value in (
            ("p", finding.p),
            ("p of equality", finding.p_equal),
        )
        if not missing(value)
    ]
    found = [
        ("Source", claim.source),
        ("Claimed at", claim.scale or ""),
        ("Why", finding.reason),
        ("Corrected", ", ".join(numbers)),
        ("Not corrected", f"sign-flip p {significant(flip, 2)}" if not missing(flip) else ""),
        ("Seeds or rounds", str(row["n"] or "")),
        ("In the paper", f"{claim.paper.value} ({claim.paper.how})" if claim.paper else ""),
        ("Claim", claim.id),
    ]
    return [(term, text) for term, text in found if text]
