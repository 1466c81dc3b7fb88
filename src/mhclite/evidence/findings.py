"""What a study's runs say of each claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.claims import GAIN_GROWTH, Claim, parse_claims
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import BASELINE, tokens_to_reach
from mhclite.evidence.verdicts import (
    Comparison,
    Verdict,
    compare,
    holm,
    seeds_to_decide,
    verdict,
)
from mhclite.measure.files import Throughput, Timing


def claims_of(results: Results) -> list[Claim]:
    """The claims that were collected with a study."""
    return parse_claims(results.study["claims"], str(results.folder / "study.json"))


@dataclass(frozen=True)
class Finding:
    """What a study says of a claim, for one corpus and model size.

    The comparison is of d: variant minus reference (or threshold), turned so that lower supports.
    """

    claim: Claim
    corpus: str
    model: str
    verdict: Verdict
    reason: str = ""  # why it was not tested
    comparison: Comparison | None = None
    p_holm: float | None = None
    seeds_needed: int | None = None  # for inconclusive
    tokens_percent: float | None = None  # of loss claims: see `token_difference`
    numbers: str = ""  # where the verdict is a count

    @property
    def sign(self) -> int:
        """1 if lower supports the claim, else -1."""
        return 1 if self.claim.direction == "lower" else -1


def metric_by_seed(
    results: Results, corpus: str, model: str, variant: str, metric: str
) -> dict[int, float]:
    """seed -> value of the completed runs that have one."""
    cell = of(results.runs, corpus, model, variant)
    values: dict[int, float] = {}
    for row in cell[cell["status"] == "completed"].to_dict("records"):
        if metric == GAIN_GROWTH:
            mixing = results.probes[row["run"]].mixing
            if mixing is None:
                continue
            gain = mixing.product.gain_forward
            value = math.log(gain[-1] / gain[0])
        else:
            value = row[metric]
        if math.isfinite(value):
            values[int(row["seed"])] = float(value)
    return values


def token_difference(
    results: Results, corpus: str, model: str, variant: str, reference: str
) -> float | None:
    """Tokens that the variant needs beyond the reference's, in percent; mean over seeds.

    The better run of a seed is followed to where it reaches the other's final loss: -20 means that
    the variant was there after 80 % of the tokens. As the learning rate falls only at the end, a
    shorter run planned as such would save more.
    """
    cell = of(results.curves.dropna(subset=["validation_loss"]), corpus, model)
    differences = []
    seeds = metric_by_seed(results, corpus, model, variant, "validation_loss")
    for seed in seeds.keys() & metric_by_seed(results, corpus, model, reference, "validation_loss"):
        own, other = (
            cell[(cell["variant"] == name) & (cell["seed"] == seed)]
            for name in (variant, reference)
        )
        ends = own["validation_loss"].iloc[-1], other["validation_loss"].iloc[-1]
        better, target, sign = (own, ends[1], 1) if ends[0] <= ends[1] else (other, ends[0], -1)
        reached = tokens_to_reach(
            better["tokens"].to_numpy(float), better["validation_loss"].to_numpy(float), target
        )
        assert reached is not None
        differences.append(sign * 100 * (reached / float(own["tokens"].iloc[-1]) - 1))
    return float(np.mean(differences)) if differences else None


def measured_in(throughput: Throughput, implementation: str) -> Mapping[str, Timing] | None:
    """variant -> its timing in a throughput file by an implementation; None if not measured."""
    if throughput.implementation == implementation:
        return throughput.variants
    others = throughput.others.get(implementation)
    # The plain residual is the same in all.
    plain = {name: row for name, row in throughput.variants.items() if name == BASELINE}
    return None if others is None else plain | others


def _compare(
    results: Results, claim: Claim, corpus: str, model: str
) -> tuple[Comparison | None, str]:
    """(comparison, reason if there is none) of a claim with a p value."""
    sign = 1 if claim.direction == "lower" else -1
    for variant in filter(None, (claim.variant, claim.reference)):
        if variant not in results.variants:
            return None, f"{VARIANTS[variant].label} is not in this study"
    if claim.kind == "throughput":
        assert claim.implementation is not None
        assert claim.reference is not None
        measured = measured_in(results.throughput[model], claim.implementation)
        if measured is None:
            return None, f"the {claim.implementation} implementation was not measured"
        own, other = (
            np.array(measured[name].step_seconds) for name in (claim.variant, claim.reference)
        )
        return compare(list(np.log(own / other)), 0.0, results.confidence), ""
    assert claim.metric is not None
    own_values = metric_by_seed(results, corpus, model, claim.variant, claim.metric)
    if claim.kind == "bound":
        assert claim.threshold is not None
        values = [sign * (value - claim.threshold) for value in own_values.values()]
        margin = 0.0
    else:
        assert claim.reference is not None
        others = metric_by_seed(results, corpus, model, claim.reference, claim.metric)
        shared = sorted(own_values.keys() & others.keys())
        values = [sign * (own_values[seed] - others[seed]) for seed in shared]
        margin = claim.margin
    if not values:
        return None, f"no completed runs with {claim.metric}"
    return compare(values, margin, results.confidence), ""


def _count(results: Results, claim: Claim, corpus: str, model: str) -> Finding:
    """A claim about parameters."""
    assert claim.reference is not None
    measured = results.throughput[model].variants
    for variant in (claim.variant, claim.reference):
        if variant not in measured:
            reason = f"{VARIANTS[variant].label} is not in this study"
            return Finding(claim, corpus, model, "not tested", reason)
    own, other = (measured[name].extra_parameters for name in (claim.variant, claim.reference))
    decided: Verdict = "supported" if own < other else "contradicted"
    return Finding(claim, corpus, model, decided, numbers=f"{own:,} against {other:,}")


def evaluate(results: Results, claims: Sequence[Claim]) -> list[Finding]:
    """A finding for each claim, corpus and model size, Holm-corrected over all of them."""
    found: list[Finding] = []
    for claim in claims:
        for corpus, model in results.panels():
            if claim.kind == "parameters":
                found.append(_count(results, claim, corpus, model))
                continue
            comparison, reason = _compare(results, claim, corpus, model)
            found.append(Finding(claim, corpus, model, "not tested", reason, comparison=comparison))
    tested = [
        at
        for at, finding in enumerate(found)
        if finding.comparison is not None and finding.comparison.p is not None
    ]
    adjusted = holm([found[at].comparison.p for at in tested])  # type: ignore[union-attr, misc]
    p_holm = dict(zip(tested, adjusted, strict=True))
    return [
        finding
        if finding.comparison is None
        else _decided(results, finding, finding.comparison, p_holm.get(at), len(tested))
        for at, finding in enumerate(found)
    ]


def _decided(
    results: Results, finding: Finding, comparison: Comparison, p_holm: float | None, tests: int
) -> Finding:
    """The finding with its verdict and what goes with it; `tests` are corrected for together."""
    claim = finding.claim
    decided = verdict(comparison, p_holm, results.confidence)
    tokens = None
    if claim.kind == "difference" and claim.metric == "validation_loss":
        assert claim.reference is not None
        tokens = token_difference(
            results, finding.corpus, finding.model, claim.variant, claim.reference
        )
    # The level that Holm's method asks of the smallest p value: a little more than may be needed.
    level = 1 - (1 - results.confidence) / max(1, tests)
    needed = seeds_to_decide(comparison, level) if decided == "inconclusive" else None
    return replace(
        finding, verdict=decided, p_holm=p_holm, tokens_percent=tokens, seeds_needed=needed
    )
