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
from collections.abc import Callable, Iterator, Mapping, Sequence

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.findings import Finding
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.report_methods import Entry, counted, listed
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, CONTROL, geometric_interval, t_interval
from mhclite.evidence.table_format import fixed, missing, plus_minus, significant, with_interval
from mhclite.evidence.topics.claims import claim_rows, effect_text
from mhclite.evidence.topics.stress import stress_data
from mhclite.evidence.values import (
    FAIR,
    completed_by_seed,
    condition_of,
    conditions_that_change,
    deepest_first,
    loss_difference,
)
from mhclite.evidence.verdicts import Verdict
from mhclite.study.sections import BASE

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
        *_losses(results, corpus),
        *_mixing(results, corpus),
        *_fair_losses(results, corpus),
        *_gain(results, corpus),
        *_product(results, corpus),
        *_aged(results, corpus),
        *_over_depth(findings),
        *_use(results, corpus),
        *_critical_rates(results, corpus),
        *_cost(results),
        *_speed(results, findings),
        *_diverged(results, corpus),
        *_claims(findings),
    ]


# --- parts of sentences ---------------------------------------------------------------------


def _factor(found: Mapping[int, float], confidence: float) -> str | None:
    """Geometric mean with its interval; None without one."""
    ends = geometric_interval(found.values(), confidence)
    if math.isnan(ends["low"]):
        return None
    return with_interval(ends["mean"], ends["low"], ends["high"])


def _place(results: Results, model: str, condition: str) -> str:
    """A model size for readers, with the number of seeds where a condition has others."""
    seeds = results.settings["conditions"][condition].get("seeds") or results.seeds
    few = f", {counted(len(seeds), 'seed')}" if len(seeds) != len(results.seeds) else ""
    return results.model_label(model) + few


def _of_each(
    results: Results, variants: Sequence[str], say: Callable[[str], str | None]
) -> list[str]:
    """`VALUE in VARIANT` for each variant that the study has and that has a value."""
    parts = []
    for variant in variants:
        text = say(variant) if variant in results.variants else None
        if text is not None:
            parts.append(f"{text} in {results.label(variant)}")
    return parts


def _mixing_variants(results: Results) -> list[str]:
    return [v for v in results.variants if VARIANTS[v].mixes != "never"]


# --- losses ---------------------------------------------------------------------------------


def _losses(results: Results, corpus: str) -> Iterator[Entry]:
    """Where the variants stand against the plain residual, as the authors compute them."""
    model = deepest_first(results)[0]
    norm = results.settings["connections"]["final_norm"]
    how = {"per_stream": "with the final norm per stream", "after_sum": "after one final norm"}
    parts = []
    against = _against(results, corpus, model, BASELINE, BASE)
    if against:
        place = f"At {results.model_label(model)}, {how.get(norm, 'with a learned final read')},"
        parts.append(
            f"{place} the validation loss is, beside the plain residual's, {_ranges(against)}."
        )
    if {"mhc", "mhc_lite"} <= set(results.variants):
        apart = loss_difference(results, corpus, model, "mhc_lite", "mhc")
        if apart.mean is not None and apart.half_width is not None:
            size = f"{plus_minus(apart.mean, apart.half_width, 4)} nats"
            least = METRICS["validation_loss"].equal
            assert least is not None
            if abs(apart.mean) + apart.half_width < least:
                parts.append(f"mHC-lite and mHC differ by less than {least:g} nats: {size}.")
            else:
                zero = "" if apart.excludes_zero() else ", an interval that includes 0"
                parts.append(f"mHC-lite minus mHC is {size}{zero}.")
    if parts:
        yield "Loss", " ".join([*parts, "What a claim may rest on is said with the verdicts."])


def _mixing(results: Results, corpus: str) -> Iterator[Entry]:
    """Where the variants that mix stand against the one that does not."""
    against = _against(results, corpus, deepest_first(results)[0], CONTROL, BASE)
    if against:
        said = _sizes(against)
        text = (
            f"Beside {results.label(CONTROL)}, whose streams never mix, the loss is {said}; the "
            "intervals are not corrected for their number."
        )
        others = [results.label(v) for v in results.variants if VARIANTS[v].own_reads]
        if others:
            text += f" {listed(others)} also {'read' if len(others) > 1 else 'reads'} and "
            text += f"{'write' if len(others) > 1 else 'writes'} the streams in another way."
        yield "Mixing", text


def _fair_losses(results: Results, corpus: str) -> Iterator[Entry]:
    """The same where the streams are summed before the final norm, at the deepest such model."""
    own = results.settings["connections"]
    if own["final_norm"] == FAIR["final_norm"]:
        return
    streams = counted(own["n_streams"], "normed stream")
    why = f"Otherwise the head is given the sum of {streams}, and one in the plain residual. "
    if own["final_norm"] != "per_stream":  # a learned read, of which that is not so
        why = ""
    conditions = {condition_of(results, variant, FAIR) for variant in results.variants} - {None}
    for condition in sorted(map(str, conditions)):
        for model in deepest_first(results):
            against = _against(results, corpus, model, BASELINE, condition)
            if against:
                yield (
                    "Fairer norm",
                    f"With one final norm, after the sum ({_place(results, model, condition)}), "
                    f"the loss is, beside the plain residual's, {_ranges(against)}. {why}".strip(),
                )
                return


Sides = dict[str, list[tuple[str, float, float]]]


def _against(results: Results, corpus: str, model: str, other: str, condition: str) -> Sides:
    """lower, higher or not told apart -> the variants whose loss so compares to another's.

    Each with the mean of its difference and the half-width of its interval.
    """
    groups: Sides = {"lower": [], "higher": [], "not told apart": []}
    for variant in results.variants if other in results.variants else ():
        # Nothing is said of the plain residual where others are set beside the control.
        if variant in (other, BASELINE):
            continue
        d = loss_difference(results, corpus, model, variant, other, condition)
        if d.mean is None or d.half_width is None:
            continue
        side = "not told apart"
        if d.excludes_zero():
            side = "lower" if d.mean < 0 else "higher"
        groups[side].append((results.label(variant), d.mean, d.half_width))
    return {side: members for side, members in groups.items() if members}


def _ranges(sides: Sides) -> str:
    """`lower by 0.100 to 0.200 nats in A and B and not told apart in C`."""
    parts = []
    for side, members in sides.items():
        apart = sorted(abs(mean) for _, mean, _ in members)
        ends = " to ".join(dict.fromkeys(fixed(end, 3) for end in (apart[0], apart[-1])))
        size = "" if side == "not told apart" else f" by {ends} nats"
        parts.append(f"{side}{size} in {listed([label for label, *_ in members])}")
    return listed(parts)


def _sizes(sides: Sides) -> str:
    """`lower in A (-0.100 ± 0.010) and not told apart in C`."""
    parts = []
    for side, members in sides.items():
        told = [
            label if side == "not told apart" else f"{label} ({plus_minus(mean, half_width, 3)})"
            for label, mean, half_width in members
        ]
        parts.append(f"{side} in {listed(told)}")
    return listed(parts)


# --- mixing matrices ------------------------------------------------------------------------


def _gain(results: Results, corpus: str) -> Iterator[Entry]:
    """What the product of all mixing matrices does to the size of the streams."""
    model = deepest_first(results)[0]
    parts = _of_each(
        results,
        _mixing_variants(results),
        lambda variant: _factor(
            completed_by_seed(results, corpus, model, variant, "gain_forward_peak"),
            results.confidence,
        ),
    )
    if parts:
        yield (
            "Growth",
            f"Over {counted(2 * results.n_layer(model), 'sub-layer')} a stream can grow by a "
            f"factor of {listed(parts)} (composite gain: mean over tokens, largest in training).",
        )


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
                    f"{start}{factor:g} times as fast ({_place(results, model, condition)}), "
                    f"{sum(hard) / len(hard):.0f} % of mHC's Sinkhorn-Knopp inputs "
                    f"({min(hard):.0f} to {max(hard):.0f} % by seed) have log(1/ν) above 30, and "
                    f"row sums are off by {single} in single matrices and {product} in the product"
                )
                break
    if parts:
        yield (
            "Faster mixing",
            "Mixing that learns faster than the rest stands in for longer training. "
            f"{'; '.join(parts)}.",
        )


def _use(results: Results, corpus: str) -> Iterator[Entry]:
    """What the trained models lose without their mixing."""
    model = deepest_first(results)[0]

    def cost(variant: str) -> str | None:
        found = completed_by_seed(results, corpus, model, variant, "knockout_identity")
        interval = t_interval(found.values(), results.confidence)
        if interval.half_width is None:
            return None
        return plus_minus(interval.mean, interval.half_width, 4)

    parts = _of_each(results, _mixing_variants(results), cost)
    if parts:
        yield (
            "Use of mixing",
            f"Where H_res is set to I in models trained at {results.model_label(model)}, the loss "
            f"rises by {listed(parts)}.",
        )


def _over_depth(findings: Sequence[Finding]) -> Iterator[Entry]:
    """Claims of growth with depth that are decided."""
    parts = [
        f"{short(one.claim.statement)} ({effect_text(claim_rows(one)[0])}): {one.verdict}"
        for one in findings
        if one.claim.kind == "trend" and one.verdict in DECIDED
    ]
    if parts:
        yield "Over depth", f"{'; '.join(parts)}."


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
        said += f" Beside {results.label('mhc')}'s it is {listed(beside)}, paired by seed."
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
    parts = _of_each(
        results, ("mhc", "mhc_lite"), lambda v: fixed(timed[v], 2) if v in timed else None
    )
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


def _claims(findings: Sequence[Finding]) -> Iterator[Entry]:
    """The confirmatory claims: those that are decided one by one, the others counted."""
    first = [finding for finding in findings if finding.claim.family == "confirmatory"]
    if not first:
        return
    counts = Counter(finding.verdict for finding in first)
    order = [verdict for verdict in (*DECIDED, *UNDECIDED) if counts[verdict]]
    shares = listed([f"{counts[one]} {'is' if counts[one] == 1 else 'are'} {one}" for one in order])
    said = f"Of the paper's {counted(len(first), 'main claim')} {shares}."
    for verdict in DECIDED:
        parts = [
            f"{short(one.claim.statement)} ({effect_text(claim_rows(one)[0])})"
            for one in first
            if one.verdict == verdict
        ]
        if parts:
            heading = verdict.capitalize() + " at this size" * (verdict == "contradicted")
            said += f" {heading}: {'; '.join(parts)}."
    contradicted = [
        f"{short(one.claim.statement)} ({effect_text(claim_rows(one)[0])})"
        for one in findings
        if one.claim.family != "confirmatory" and one.verdict == "contradicted"
    ]
    if contradicted:
        said += f" Of the further claims contradicted at this size: {'; '.join(contradicted)}."
    yield "The paper's claims", said
