"""What a study says of each claim: one verdict, and what each of its model sizes shows.

The deepest model decides: the papers speak of depth, and at one or two layers most mixing matrices
can do nothing (`requirements`). Trends take all model sizes together. The other sizes are shown
below the verdict and decide nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from mhclite.evidence.claims import Claim, parse_claims
from mhclite.evidence.results import Results
from mhclite.evidence.rows import Row, row_of, trend_row
from mhclite.evidence.values import runs_of
from mhclite.evidence.verdicts import (
    Comparison,
    Verdict,
    detectable_effect,
    gatekeep,
    holm,
    verdict,
)


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
    detectable: float | None = None  # the true effect that is found with 80 % power

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
                found.append(Finding(claim, corpus, rows, _deciding(results, claim, corpus)))
    return _decided(results, found)


def _deciding(results: Results, claim: Claim, corpus: str) -> int:
    """Which model size decides: the deepest that has runs of what the claim compares.

    A setting other than the study's own may have been tried on some sizes alone.
    """
    arms = [(claim.variant, claim.setting)]
    if claim.reference is not None:
        arms.append((claim.reference, claim.reference_setting))

    def rank(at: int) -> tuple[bool, int]:
        model = results.models[at]
        there = all(len(runs_of(results, corpus, model, *arm)) for arm in arms)
        return there, results.n_layer(model)

    return max(range(len(results.models)), key=rank)


# --- verdicts -------------------------------------------------------------------------------


def _tested(finding: Finding) -> Comparison | None:
    """The comparison, if its p values count among those that are corrected."""
    row = finding.row
    return None if row.unmet or finding.claim.by_construction else row.comparison


def _decided(results: Results, found: list[Finding]) -> list[Finding]:
    """The findings with corrected p values and verdicts."""
    families: dict[str, dict[int, float]] = {"confirmatory": {}, "secondary": {}}
    equal: dict[int, float] = {}
    for at, finding in enumerate(found):
        comparison = _tested(finding)
        if comparison is not None and comparison.p is not None:
            families[finding.claim.family][at] = comparison.p
        if comparison is not None and comparison.p_equal is not None:
            equal[at] = comparison.p_equal
    first, second = families["confirmatory"], families["secondary"]
    corrected = gatekeep([*first.values()], [*second.values()], 1 - results.confidence)
    p = dict(zip([*first, *second], [*corrected[0], *corrected[1]], strict=True))
    p_equal = dict(zip(equal, holm([*equal.values()]), strict=True))
    return [
        _with_verdict(
            results,
            replace(finding, p=p.get(at), p_equal=p_equal.get(at)),
            len(families[finding.claim.family]),
        )
        for at, finding in enumerate(found)
    ]


def _with_verdict(results: Results, finding: Finding, tests: int) -> Finding:
    claim, row = finding.claim, finding.row
    if row.missing:
        return replace(finding, verdict="not tested", reason=row.missing)
    if claim.kind == "parameters":
        return replace(finding, verdict="counted", reason=row.numbers)
    if row.unmet:
        return replace(finding, verdict="not reached", reason="; ".join(row.unmet))
    assert row.comparison is not None
    if claim.by_construction:
        holds = "holds" if row.comparison.side < 0 else "does not hold"
        return replace(finding, verdict="by construction", reason=holds)
    decided = verdict(row.comparison, finding.p, finding.p_equal, results.confidence)
    reason = ""
    if decided in ("supported", "contradicted") and row.crossed is not None:
        low, high = row.crossed
        if low <= claim.margin <= high:
            decided, reason = "inconclusive", "other documents could turn it"
    if decided == "contradicted" and claim.scale is not None:
        reason = f"at this size; it was claimed at {claim.scale}"
    if decided == "inconclusive" and not reason:
        reason = _undecided(row.comparison)
    return replace(
        finding,
        verdict=decided,
        reason=reason,
        detectable=_detectable(results, row.comparison, tests) if claim.kind != "count" else None,
    )


def _undecided(comparison: Comparison) -> str:
    """Why nothing could be decided, where it is not for want of a large enough effect."""
    if comparison.p is not None:
        return ""
    return "one seed" if comparison.interval.n < 2 else "no spread over seeds"


def _detectable(results: Results, comparison: Comparison, tests: int) -> float | None:
    """The distance from the margin that is found with 80 % power at the spread and n observed.

    At the level that the correction asks of the smallest p value of the family.
    """
    interval = comparison.interval
    if interval.mean is None or not interval.sd:
        return None
    effect = detectable_effect(interval.n, 1 - (1 - results.confidence) / max(1, tests))
    return None if effect is None else effect * interval.sd
