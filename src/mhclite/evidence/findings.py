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
from mhclite.evidence.rows import Row, row_of, trend_row
from mhclite.evidence.statistics import FEWEST_SEEDS, far_off, t_interval
from mhclite.evidence.tables import plus_minus
from mhclite.evidence.verdicts import Comparison, Verdict, gatekeep, holm, verdict


def claims_of(results: Results) -> list[Claim]:
    """The claims that were collected with a study."""
    return parse_claims(results.study["claims"], str(results.folder / "study.json"))


@lru_cache(maxsize=1)
def findings_of(results: Results) -> list[Finding]:
    """A finding for each of the study's claims: judged once for table, figure and page."""
    return evaluate(results, claims_of(results))


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


def evaluate(results: Results, claims: Sequence[Claim]) -> list[Finding]:
    """A finding for each claim and corpus."""
    found = []
    for claim in claims:
        for corpus in results.corpora:
            if claim.kind == "trend":
                found.append(Finding(claim, corpus, (trend_row(results, claim, corpus),), 0))
            else:
                rows = tuple(row_of(results, claim, corpus, model) for model in results.models)
                found.append(Finding(claim, corpus, rows, _deciding(results, rows)))
    return _decided(results, found)


def _deciding(results: Results, rows: Sequence[Row]) -> int:
    """The deepest model size at which the claim can be asked; of those where it is not reached, or
    that have no runs of what it compares, if there is no other.
    """

    def rank(at: int) -> tuple[bool, bool, int]:
        row = rows[at]
        return not row.missing, not row.unmet, results.n_layer(row.model)

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
    corrected = gatekeep([*first.values()], [*second.values()], 1 - results.confidence)
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
        return replace(finding, verdict="not reached", reason="; ".join(row.unmet))
    assert found is not None
    if claim.by_construction:
        holds = "holds" if found.side < 0 else "does not hold"
        return replace(finding, verdict="by construction", reason=holds)
    decided = verdict(found, finding.p, finding.p_equal, results.confidence)
    reason = ""
    if decided in ("supported", "contradicted") and row.windows is not None:
        low, high = row.windows
        if low <= found.margin <= high:
            decided, reason = "inconclusive", "other text could turn it"
    if decided == "contradicted" and claim.scale is not None:
        reason = f"at this size; it was claimed at {claim.scale}"
    if decided == "inconclusive" and not reason:
        reason = _undecided(found) or _by_seed(results, finding)
    return replace(finding, verdict=decided, reason=reason)


def _undecided(comparison: Comparison) -> str:
    """Why nothing could be decided, where it is not for want of a large enough effect."""
    if comparison.p is not None:
        return ""
    return "one seed" if comparison.interval.n < 2 else "no spread over seeds"


def _by_seed(results: Results, finding: Finding) -> str:
    """What the mean of a loss difference hides: one sign in all seeds, or one run far off."""
    values = finding.row.values or {}
    if (finding.claim.kind, finding.claim.metric) != ("difference", "validation_loss"):
        return ""
    n, higher = len(values), sum(value > 0 for value in values.values())
    side, count = ("higher", higher) if 2 * higher > n else ("lower", n - higher)
    parts = [f"{side} in all {n} seeds"] if count == n >= FEWEST_SEEDS else []
    if (far := far_off(values)) is not None:
        rest = t_interval([x for seed, x in values.items() if seed != far], results.confidence)
        parts = parts or [f"{side} in {count} of {n} seeds"]
        parts.append(
            f"without seed {far}, far from all others, {plus_minus(rest.mean, rest.half_width, 4)}"
        )
    return "; ".join(parts)
