"""What a study says of each claim: one verdict, and what each of its model sizes shows.

The deepest model that meets a claim's requirements decides: the papers speak of depth. Trends take
model sizes together. The other sizes are shown below the verdict and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from mhclite.evidence.claims import Claim, parse_claims
from mhclite.evidence.results import Results
from mhclite.evidence.rows import ALL_MODELS, Row, row_of
from mhclite.evidence.statistics import (
    BASELINE,
    CONTROL,
    DECIDED,
    Comparison,
    Verdict,
    gatekeep,
    holm,
    verdict,
)

OWN = "asked of every variant"  # source of a claim on a variant of a user's own
FEWEST_SEEDS = 4  # of which one sign in all says something
MOST = 8  # claims that the report prints; the paper has as many main ones
# What is asked of a variant that no claim is about: what these ask of HC.
ASKED_OF_HC = ("hc_beats_residual", "hc_ahead_of_identity", "hc_needs_its_mixing")


def claims_of(results: Results) -> list[Claim]:
    """The claims that were collected with a study, and those on variants of a user's own."""
    claims = parse_claims(results.study["claims"], str(results.folder / "study.json"))
    about = {claim.variant for claim in claims} | {BASELINE, CONTROL}
    return claims + [
        _asked_of(variant, results.labels[variant], claim)
        for variant in results.variants
        for claim in claims
        if variant not in about and claim.id in ASKED_OF_HC
    ]


def _asked_of(variant: str, label: str, claim: Claim) -> Claim:
    """A claim on HC, asked of another variant."""
    return claim.model_copy(
        update={
            "id": claim.id.replace("hc", variant, 1),
            "statement": claim.statement.replace("HC", label, 1),
            "variant": variant,
            "source": OWN,
            "scale": None,
            "paper": None,
        }
    )


@lru_cache(maxsize=1)
def findings_of(results: Results) -> list[Finding]:
    """A finding for each of the study's claims: judged once for table, figure and page."""
    return evaluate(results, claims_of(results))


def main_findings(results: Results) -> list[Finding]:
    """What the report prints: of the claims that the study can test the paper's main ones, those on
    variants of a user's own and, up to `MOST`, others, decided ones first.
    """
    testable = [one for one in findings_of(results) if one.verdict != "not tested"]

    def rank(one: Finding) -> tuple[bool, bool]:
        return not one.is_main, not one.is_main and one.verdict not in DECIDED

    ordered = sorted(testable, key=rank)
    names = list(dict.fromkeys(one.claim.id for one in ordered))
    return [one for one in ordered if one.is_main or one.claim.id in names[:MOST]]


@dataclass(frozen=True)
class Finding:
    """What a study says of a claim on one corpus."""

    claim: Claim
    corpus: str
    rows: tuple[Row, ...]  # one per model size, in the study's order
    decides: int  # which of the rows
    verdict: Verdict = "not tested"
    reason: str = ""
    p: float | None = None  # corrected
    p_equal: float | None = None  # corrected

    @property
    def row(self) -> Row:
        """The row that decides."""
        return self.rows[self.decides]

    @property
    def is_main(self) -> bool:
        """Whether its claim is one of the paper's main ones, or on a variant of a user's own."""
        return self.claim.family == "confirmatory" or self.claim.source == OWN


def evaluate(results: Results, claims: Sequence[Claim]) -> list[Finding]:
    """A finding for each claim and corpus."""
    found = []
    for claim in claims:
        sizes = [ALL_MODELS] if claim.kind == "trend" else results.models
        for corpus in results.corpora:
            rows = tuple(row_of(results, claim, corpus, model) for model in sizes)
            found.append(Finding(claim, corpus, rows, _deciding(results, rows)))
    return _decided(results, found)


def _deciding(results: Results, rows: Sequence[Row]) -> int:
    """The deepest model size at which the claim can be asked; of those where it is not reached, or
    that have no runs of what it compares, if there is no other.
    """

    def rank(at: int) -> tuple[bool, bool, int]:
        row = rows[at]
        depth = 0 if row.model == ALL_MODELS else results.n_layer(row.model)
        return not row.missing, not row.unmet, depth

    return max(range(len(rows)), key=rank)


# --- verdicts -------------------------------------------------------------------------------


def _decided(results: Results, found: list[Finding]) -> list[Finding]:
    """The findings with corrected p values and verdicts.

    What is corrected for is fixed by the study: a claim that is not reached, or of which nothing
    can be decided, counts with p = 1.
    """
    families: dict[str, dict[int, float]] = {"confirmatory": {}, "secondary": {}}
    equal: dict[int, float] = {}
    for at, finding in enumerate(found):
        comparison, claim = finding.row.comparison, finding.claim
        if comparison is not None and not claim.by_construction:
            families[claim.family][at] = _or_one(finding, comparison.p)
            if claim.asks_equality:
                equal[at] = _or_one(finding, comparison.p_equal)
    first, second = families["confirmatory"], families["secondary"]
    corrected = gatekeep([*first.values()], [*second.values()])
    p = dict(zip([*first, *second], [*corrected[0], *corrected[1]], strict=True))
    p_equal = dict(zip(equal, holm([*equal.values()]), strict=True))
    return [
        _with_verdict(results, replace(finding, p=p.get(at), p_equal=p_equal.get(at)))
        for at, finding in enumerate(found)
    ]


def _or_one(finding: Finding, p: float | None) -> float:
    return 1.0 if p is None or finding.row.unmet else p


def _with_verdict(results: Results, finding: Finding) -> Finding:
    claim, row = finding.claim, finding.row
    found = row.comparison
    if found is None or found.p is None or row.unmet:  # p = 1 is of the family, and not its own
        finding = replace(finding, p=None)
    if found is None or found.p_equal is None or row.unmet:
        finding = replace(finding, p_equal=None)
    if row.missing:
        return replace(finding, verdict="not tested", reason=row.missing)
    if claim.kind == "parameters":
        return replace(finding, verdict="counted", reason=row.numbers)
    if row.unmet:
        return replace(finding, verdict="not reached", reason=row.short)
    assert found is not None
    if claim.by_construction:
        holds = "holds" if found.side < 0 else "does not hold"
        return replace(finding, verdict="by construction", reason=holds)
    decided = verdict(found, finding.p, finding.p_equal)
    reason = ""
    if decided in ("supported", "contradicted") and row.windows is not None:
        low, high = row.windows
        if low <= found.margin <= high:
            decided, reason = "inconclusive", "other text could turn it"
    if decided == "contradicted" and claim.scale is not None:
        reason = f"at this size; it was claimed at {claim.scale}"
    if decided == "inconclusive" and not reason:
        reason = _undecided(found) or _by_seed(finding)
    return replace(finding, verdict=decided, reason=reason)


def _undecided(comparison: Comparison) -> str:
    """Why nothing could be decided, where it is not for want of a large enough effect."""
    if comparison.p is not None:
        return ""
    return "one seed" if comparison.interval.n < 2 else "no spread over seeds"


def _by_seed(finding: Finding) -> str:
    """One sign of a loss difference in all seeds, which its mean hides."""
    values = finding.row.values or {}
    if (finding.claim.kind, finding.claim.metric) != ("difference", "validation_loss"):
        return ""
    n, higher = len(values), sum(value > 0 for value in values.values())
    if n < FEWEST_SEEDS or 0 < higher < n:
        return ""
    return f"{'higher' if higher else 'lower'} in all {n} seeds"
