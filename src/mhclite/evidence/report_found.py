"""What a study found, in words made from its results.

Each function gives a point, a title and a text, where the numbers carry one: nothing is said of a
variant that is not there, or of a difference without an interval. The deepest model speaks, as it
does for the claims. Effects are means with Student t intervals over seeds; factors are geometric
means.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.claims import Claim
from mhclite.evidence.findings import Finding
from mhclite.evidence.report_losses import losses, place_of
from mhclite.evidence.report_methods import Entry, counted, listed
from mhclite.evidence.results import Results
from mhclite.evidence.rows import trend_models
from mhclite.evidence.statistics import (
    BASELINE,
    CONTROL,
    difference,
    geometric_interval,
    knockout_interval,
)
from mhclite.evidence.table_format import fixed, missing, plus_minus, significant, with_interval
from mhclite.evidence.topics.claims import claim_rows, effect_text
from mhclite.evidence.topics.stress import stress_data
from mhclite.evidence.values import (
    completed_by_seed,
    conditions_that_change,
    deepest_first,
    values_by_seed,
)
from mhclite.evidence.verdicts import Verdict
from mhclite.study.sections import BASE

LEFT = 1.2  # the peak of a gain over what is left at the end: below it, they are one number
SHRINKS = 0.99  # of the largest singular value
ONE_DIRECTION = 0.01  # the second singular value over the first
DECIDED: tuple[Verdict, ...] = ("supported", "contradicted", "practically equal")
UNDECIDED: tuple[Verdict, ...] = ("inconclusive", "not reached", "not tested")


def found(results: Results, findings: Sequence[Finding], corpus: str) -> list[Entry]:
    """What was measured on one corpus, and what became of the paper's claims: point and text.

    Args:
        results: a study.
        findings: its claims on this corpus.
        corpus: its name.
    """
    return [
        *losses(results, corpus),
        *_gain(results, corpus),
        *_product(results, corpus),
        *_aged(results, corpus),
        *_over_depth(results, corpus, findings),
        *_use(results, corpus),
        *_critical_rates(results, corpus),
        *_cost(results),
        *_speed(results, findings),
        *_diverged(results, corpus),
        *_claims(results, findings),
    ]


# --- parts of sentences ---------------------------------------------------------------------


def _factor(found: Mapping[int, float], confidence: float) -> str | None:
    """Geometric mean with its interval; None without one."""
    ends = geometric_interval(found.values(), confidence)
    if math.isnan(ends["low"]):
        return None
    return with_interval(ends["mean"], ends["low"], ends["high"])


# --- mixing matrices ------------------------------------------------------------------------


def _gain(results: Results, corpus: str) -> Iterator[Entry]:
    """What the product of all mixing matrices does to the size of the streams."""
    model = deepest_first(results)[0]

    def of(variant: str, column: str) -> dict[int, float]:
        return completed_by_seed(results, corpus, model, variant, column)

    peaks = {
        variant: text
        for variant in _mixing_variants(results)
        if (text := _factor(of(variant, "gain_forward_peak"), results.confidence))
    }
    if not peaks:
        return
    said = (
        f"Over {counted(2 * results.n_layer(model), 'sub-layer')} the composite gain is, at its "
        f"largest in training, {_by_text(results, peaks)} (largest absolute row sum of the product "
        "of all H_res, mean over tokens)."
    )
    ends = {}
    for variant in peaks:
        peak, end = (
            geometric_interval(of(variant, column).values(), results.confidence)["mean"]
            for column in ("gain_forward_peak", "gain_forward")
        )
        text = _factor(of(variant, "gain_forward"), results.confidence)
        if text and peak > LEFT * end:
            ends[variant] = text
    if ends:
        said += f" At the end it is {_by_text(results, ends)}."
    yield "Growth", said + _singular(results, corpus, model)


def _singular(results: Results, corpus: str, model: str) -> str:
    """What a gain hides: streams that shrink, or of which one direction is left."""
    shrinking, single, kept = [], [], []
    for variant in _mixing_variants(results):
        mixing = results.mixing(corpus, model, variant).values()
        values = np.array([one.geometry.singular_values[-1] for one in mixing if one.geometry])
        if values.ndim < 2 or values.shape[1] < 2:
            continue
        if values[:, 0].max() < SHRINKS:
            ends = [
                " to ".join(dict.fromkeys(significant(end, 2) for end in (part.min(), part.max())))
                for part in (values[:, 0], values[:, -1])
            ]
            shrinking.append(
                f"{results.label(variant)} (that product's largest singular value is {ends[0]}, "
                f"its smallest {ends[1]})"
            )
        if (values[:, 1] < ONE_DIRECTION * values[:, 0]).all():
            single.append(results.label(variant))
        if VARIANTS[variant].mixes == "freely" and np.abs(values - 1).max() < 1 - SHRINKS:
            kept.append(results.label(variant))
    said = f" All streams shrink in {listed(shrinking)}." if shrinking else ""
    if single:
        said += f" In {listed(single)} that product is of rank one: one direction is left."
    if kept:
        said += f" In {listed(kept)} all its singular values are 1: nothing grows or shrinks."
    return said


def _by_text(results: Results, texts: Mapping[str, str]) -> str:
    """`1.2 in A and 1.00 in B and C`: variants of equal text together."""
    labels: dict[str, list[str]] = {}
    for variant, text in texts.items():
        labels.setdefault(text, []).append(results.label(variant))
    return listed([f"{text} in {listed(names)}" for text, names in labels.items()])


def _mixing_variants(results: Results) -> list[str]:
    return [variant for variant in results.variants if VARIANTS[variant].mixes != "never"]


def _product(results: Results, corpus: str) -> Iterator[Entry]:
    """How far the product over depth is from doubly stochastic: iterated, and by construction."""
    model = deepest_first(results)[0]
    column = "product_deviation_99"
    own = _factor(
        {
            s: x
            for s, x in completed_by_seed(results, corpus, model, "mhc", column).items()
            if x > 0
        },
        results.confidence,
    )
    if own is None:
        return
    iterations = counted(results.settings["connections"]["sinkhorn_iterations"], "iteration")
    said = f"After {iterations} the row sums of mHC's product over all sub-layers are off by {own}"
    lite = completed_by_seed(results, corpus, model, "mhc_lite", column)
    if lite:
        said += f", those of mHC-lite's by {significant(max(lite.values()), 2)} in the worst run"
    yield "Sinkhorn-Knopp", f"{said} (99 % quantile over tokens and rows)."


def _aged(results: Results, corpus: str) -> Iterator[Entry]:
    """The same where mixing learns faster, at the deepest model that was so trained."""
    factors = {
        results.settings["conditions"][name]["connections"]["mixing_rate_factor"]: name
        for name in conditions_that_change(results, "mixing_rate_factor")
    }
    parts: list[str] = []
    for factor, condition in sorted(factors.items()):
        for model in deepest_first(results):
            at = (results, corpus, model, "mhc")
            hard = [
                100 * x
                for x in completed_by_seed(*at, "sinkhorn_share_above_30", condition).values()
            ]
            single, product = (
                _factor(completed_by_seed(*at, column, condition), results.confidence)
                for column in ("single_deviation_99", "product_deviation_99")
            )
            if hard and single and product:
                start = "" if parts else "With mixing "
                parts.append(
                    f"{start}{factor:g} times as fast ({place_of(results, model, condition)}), "
                    f"{sum(hard) / len(hard):.0f} % of mHC's Sinkhorn-Knopp inputs "
                    f"({min(hard):.0f} to {max(hard):.0f} % by seed) have log(1/ν) above 30, and "
                    f"row sums are off by {single} in single matrices and {product} in the product"
                )
                break
    if parts:
        yield "Faster mixing", f"{'; '.join(parts)}.{_dose(results, corpus, factors)}"


def _dose(results: Results, corpus: str, conditions: Mapping[float, str]) -> str:
    """Losses against the variant that never mixes, by how fast the mixing learns."""
    column = "validation_loss"
    for model in deepest_first(results):
        base = completed_by_seed(results, corpus, model, CONTROL, column)
        parts = []
        for variant in results.variants:
            if VARIANTS[variant].mixes != "doubly_stochastic":
                continue
            losses = [
                completed_by_seed(results, corpus, model, variant, column, condition)
                for condition in (BASE, *(conditions[factor] for factor in sorted(conditions)))
            ]
            seeds = base.keys() & set.intersection(*(set(of_one) for of_one in losses))
            shared = {seed: base[seed] for seed in seeds}
            apart = [difference(of_one, shared, results.confidence) for of_one in losses]
            if len(seeds) > 1:
                *means, last = apart
                sizes = [fixed(d.mean, 3) for d in means]
                sizes.append(plus_minus(last.mean, last.half_width, 3))
                parts.append(f"{listed(sizes)} in {results.label(variant)}")
        if parts:
            speeds = [
                "as fast as the rest",
                *(f"{factor:g} times" for factor in sorted(conditions)),
            ]
            return (
                f" With mixing {listed(speeds)} ({results.model_label(model)}), the loss minus "
                f"{results.label(CONTROL)}'s is {'; '.join(parts)}."
            )
    return ""


def _use(results: Results, corpus: str) -> Iterator[Entry]:
    """What the trained models lose without their mixing."""
    model = deepest_first(results)[0]
    costs, nothing = {}, []
    for variant in _mixing_variants(results):
        cell = (results, corpus, model, variant)
        lost, errors = (
            list(completed_by_seed(*cell, column).values())
            for column in ("knockout_identity", "knockout_identity_error")
        )
        interval = knockout_interval(lost, errors, results.confidence)
        if interval.half_width is None:
            continue
        if interval.excludes_zero():
            costs[variant] = plus_minus(interval.mean, interval.half_width, 4)
        else:
            nothing.append(results.label(variant))
    parts = [f"the loss rises by {_by_text(results, costs)}"] if costs else []
    if nothing:
        parts.append(f"the change is indistinguishable from 0 in {listed(nothing)}")
    if parts:
        yield (
            "Use of mixing",
            f"Where H_res is set to I in models trained at {results.model_label(model)}, "
            f"{'; '.join(parts)} (±: over seeds and windows of text). "
            "It is what a trained model loses, not what mixing gains in training.",
        )


def _over_depth(results: Results, corpus: str, findings: Sequence[Finding]) -> Iterator[Entry]:
    """Claims of growth with depth that are decided, with the values at each depth."""
    parts = []
    for one in findings:
        claim = one.claim
        if claim.kind != "trend" or one.verdict not in DECIDED:
            continue
        models = trend_models(results, claim)[::-1]
        depths = [str(results.n_layer(model)) for model in models]
        parts.append(f"{short(claim.statement)}: {one.verdict}.")
        at = [_trend_values(results, corpus, model, claim) for model in models]
        if not all(at):
            continue
        scale = math.exp if claim.log else float
        means = [significant(scale(sum(values.values()) / len(values))) for values in at]
        last = difference(at[-1], at[-2], results.confidence)
        mean, low, high = (
            math.nan if end is None else scale(end) for end in (last.mean, last.low, last.high)
        )
        parts.append(
            f"At {listed(depths)} layers it is {listed(means)}; from {depths[-2]} to {depths[-1]} "
            f"layers it changes by {'a factor of ' * claim.log}{with_interval(mean, low, high)}."
        )
    if parts:
        yield "Over depth", " ".join(parts)


def _trend_values(results: Results, corpus: str, model: str, claim: Claim) -> dict[int, float]:
    """seed -> the metric of a trend at one depth, of the runs that have a finite one."""
    assert claim.metric is not None
    values = values_by_seed(results, corpus, model, claim.variant, claim.metric)
    if claim.reference is not None:
        other = values_by_seed(results, corpus, model, claim.reference, claim.metric)
        values = {seed: values[seed] - other[seed] for seed in values.keys() & other.keys()}
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _critical_rates(results: Results, corpus: str) -> Iterator[Entry]:
    """At which learning rates runs cease to learn, and whose is above or below mHC's."""
    if not results.settings.get("critical_rate"):
        return
    model = deepest_first(results)[0]
    data = stress_data(results)
    place = (data["corpus"] == corpus) & (data["model"] == model) & (data["condition"] == BASE)
    rows = data[place].to_dict("records")
    rates = [
        f"{with_interval(*(2 ** row[end] for end in ('critical_rate', 'low', 'high')))} in "
        f"{results.label(row['variant'])}"
        for row in rows
        if not (missing(row["low"]) or missing(row["high"]))
    ]
    if not rates:
        return
    said = (
        f"At {results.model_label(model)} runs cease to learn at this multiple of the study's "
        f"learning rate: {listed(rates)}."
    )
    beside = [
        f"{side} in {listed(members)}"
        for side in ("lower", "higher")
        if (
            members := [
                results.label(row["variant"])
                for row in rows
                if row.get("minus_mhc_verdict") == side
            ]
        )
    ]
    if beside:
        said += f" Compared with {results.label('mhc')}'s it is {listed(beside)}, paired by seed."
    yield "Learning rate", said


# --- cost, divergence, claims ----------------------------------------------------------------


def _cost(results: Results) -> Iterator[Entry]:
    """Time of a training step beside the plain residual's."""
    model = deepest_first(results)[0]
    timed = {
        variant: one.ratio_quartiles.median
        for variant, one in results.throughput[model].variants.items()
        if variant != BASELINE and variant in results.variants
    }
    if not timed:
        return
    low, high = (fixed(end, 2) for end in (min(timed.values()), max(timed.values())))
    ends = low if low == high else f"{low} to {high}"
    said = (
        f"At {results.model_label(model)} a training step takes {ends} times as long as the plain "
        "residual's"
    )
    parts = [
        f"{fixed(timed[variant], 2)} in {results.label(variant)}"
        for variant in ("mhc", "mhc_lite")
        if variant in timed and len(timed) > 1
    ]
    yield "Cost", f"{said}{f': {listed(parts)}' if parts else ''}."


def _speed(results: Results, findings: Sequence[Finding]) -> Iterator[Entry]:
    """The step time of mHC-lite in that of mHC, in the authors' way of computing."""
    for finding in findings:
        comparison = finding.row.comparison
        if finding.claim.id == "lite_faster_than_mhc" and comparison is not None:
            interval = comparison.interval
            ends = (interval.mean, interval.low, interval.high)
            mean, low, high = (math.nan if end is None else math.exp(end) for end in ends)
            if not missing(low):
                yield (
                    "Speed",
                    "Computed as the authors do, a training step of mHC-lite takes "
                    f"{with_interval(mean, low, high)} times as long as one of mHC "
                    f"({results.model_label(finding.row.model)}).",
                )


def _diverged(results: Results, corpus: str) -> Iterator[Entry]:
    """Runs that diverged, of each variant and condition."""
    table = results.all_runs[results.all_runs["corpus"] == corpus]
    titles = {BASE: ""} | {
        name: f", {about['title']}" for name, about in results.settings["conditions"].items()
    }
    parts = []
    for condition, title in titles.items():
        runs = table[table["condition"] == condition]
        for (model, variant), cell in runs.groupby(["model", "variant"], sort=False):
            failed = int((cell["status"] == "diverged").sum())
            if failed:
                place = f"{results.label(variant)} ({results.model_label(model)}{title})"
                parts.append(f"{failed} of {counted(len(cell), 'run')} of {place}")
    if parts:
        yield "Diverged", f"{listed(parts)}."


def short(statement: str) -> str:
    """A claim's statement without what stands in brackets."""
    return re.sub(r" \([^()]*\)", "", statement)


def _told(results: Results, finding: Finding) -> str:
    """A claim with its effect, and the model size that decides where it is not the deepest."""
    model = finding.row.model
    shallower = model in deepest_first(results)[1:]
    at = f", {results.model_label(model)}" if shallower else ""
    return f"{short(finding.claim.statement)} ({effect_text(claim_rows(finding)[0])}{at})"


def _claims(results: Results, findings: Sequence[Finding]) -> Iterator[Entry]:
    """The confirmatory claims: those that are decided one by one, the others counted."""
    first = [finding for finding in findings if finding.claim.family == "confirmatory"]
    if not first:
        return
    counts = Counter(finding.verdict for finding in first)
    order = [word for word in (*DECIDED, *UNDECIDED) if counts[word]]
    shares = listed([f"{counts[one]} {'is' if counts[one] == 1 else 'are'} {one}" for one in order])
    said = f"Of the paper's {counted(len(first), 'main claim')} {shares}."
    for decided in DECIDED:
        parts = [_told(results, one) for one in first if one.verdict == decided]
        if parts:
            heading = decided.capitalize() + " at this size" * (decided == "contradicted")
            said += f" {heading}: {'; '.join(parts)}."
    contradicted = [
        _told(results, one)
        for one in findings
        if one.claim.family != "confirmatory" and one.verdict == "contradicted"
    ]
    if contradicted:
        said += f" Of the further claims contradicted at this size: {'; '.join(contradicted)}."
    yield "The paper's claims", said
