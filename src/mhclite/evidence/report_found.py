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

from mhclite.evidence.findings import Finding
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.report_methods import Entry, counted, listed
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, Interval, geometric_interval, t_interval
from mhclite.evidence.table_format import fixed, plus_minus, significant, with_interval
from mhclite.evidence.topics.claims import claim_rows, effect_text
from mhclite.evidence.values import condition_of, conditions_that_change, deepest_first
from mhclite.evidence.verdicts import Verdict
from mhclite.study.sections import BASE

GAINS = ("hc", "mhc", "mhc_lite")
FAIR = {"final_norm": "after_sum"}
CONTROL = "identity"  # streams that are never mixed
OTHER_READS = ("hc", "jpmhc", "mhc_v4", "gated")  # whose reads and writes are not those of CONTROL
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
        *_use(results, corpus),
        *_cost(results, corpus),
        *_speed(findings),
        *_diverged(results, corpus),
        *_claims(findings),
    ]


# --- values ---------------------------------------------------------------------------------


def values(
    results: Results, corpus: str, model: str, variant: str, column: str, condition: str = BASE
) -> dict[int, float]:
    """seed -> value of a column of runs.csv, of completed runs that have one."""
    rows = results.runs_by_cell.get((corpus, model, variant, condition))
    if rows is None or column not in rows:
        return {}
    rows = rows[rows["status"] == "completed"].dropna(subset=[column])
    return dict(zip(map(int, rows["seed"]), map(float, rows[column]), strict=True))


def _differences(
    results: Results, corpus: str, model: str, variant: str, other: str, condition: str = BASE
) -> Interval:
    """Final loss of a variant minus that of another with the study's own settings, by seed."""
    own = values(results, corpus, model, variant, "validation_loss", condition)
    base = values(results, corpus, model, other, "validation_loss")
    shared = sorted(own.keys() & base.keys())
    return t_interval([own[seed] - base[seed] for seed in shared], results.confidence)


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
            f"{place} the validation loss (nats per token) is, beside the plain residual's, "
            f"{against}."
        )
    if {"mhc", "mhc_lite"} <= set(results.variants):
        apart = _differences(results, corpus, model, "mhc_lite", "mhc")
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
        yield "Loss", " ".join(parts)


def _mixing(results: Results, corpus: str) -> Iterator[Entry]:
    """Where the variants that mix stand against the one that does not."""
    said = _against(results, corpus, deepest_first(results)[0], CONTROL, BASE)
    if said:
        text = f"Beside {results.label(CONTROL)}, whose streams never mix, the loss is {said}."
        others = [results.label(v) for v in OTHER_READS if v in results.variants]
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
    why = f"Per stream, the head is given the sum of {streams}, the plain residual's one. "
    if own["final_norm"] != "per_stream":  # a learned read, of which that is not so
        why = ""
    conditions = {condition_of(results, variant, FAIR) for variant in results.variants} - {None}
    for condition in sorted(map(str, conditions)):
        for model in deepest_first(results):
            said = _against(results, corpus, model, BASELINE, condition)
            if said:
                yield (
                    "Fairer norm",
                    f"{why}With one final norm, after the sum "
                    f"({_place(results, model, condition)}), the loss is, beside the plain "
                    f"residual's, {said}.",
                )
                return


def _against(results: Results, corpus: str, model: str, other: str, condition: str) -> str:
    """Where a loss is lower than another variant's, higher, or not told apart from it."""
    groups: dict[str, list[str]] = {"lower": [], "higher": [], "not told apart": []}
    if other not in results.variants:
        return ""
    for variant in results.variants:
        # Nothing is said of the plain residual where others are set beside the control.
        if variant in (other, BASELINE):
            continue
        d = _differences(results, corpus, model, variant, other, condition)
        if d.mean is None or d.half_width is None:
            continue
        side = "not told apart"
        if d.excludes_zero():
            side = "lower" if d.mean < 0 else "higher"
        size = plus_minus(d.mean, d.half_width, 3)
        groups[side].append(f"{results.label(variant)} ({size})")
    parts = [f"{side} in {listed(sizes)}" for side, sizes in groups.items() if sizes]
    return listed(parts) if parts else ""


# --- mixing matrices ------------------------------------------------------------------------


def _gain(results: Results, corpus: str) -> Iterator[Entry]:
    """What the product of all mixing matrices does to the size of the streams."""
    model = deepest_first(results)[0]
    parts = _of_each(
        results,
        GAINS,
        lambda variant: _factor(
            values(results, corpus, model, variant, "gain_forward_peak"), results.confidence
        ),
    )
    if parts:
        yield (
            "Growth",
            f"Over {counted(2 * results.n_layer(model), 'sub-layer')} a stream can grow by a "
            f"factor of {listed(parts)} (composite gain, the largest in training).",
        )


def _product(results: Results, corpus: str) -> Iterator[Entry]:
    """How far the product over depth is from doubly stochastic: iterated, and by construction."""
    model = deepest_first(results)[0]
    column = "product_deviation_99"
    own = _factor(
        {s: x for s, x in values(results, corpus, model, "mhc", column).items() if x > 0},
        results.confidence,
    )
    if own is None:
        return
    iterations = counted(results.settings["connections"]["sinkhorn_iterations"], "iteration")
    said = f"After {iterations} the row sums of mHC's product over all sub-layers are off by {own}"
    lite = values(results, corpus, model, "mhc_lite", column)
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
            hard = [100 * x for x in values(*at, "sinkhorn_share_above_30", condition).values()]
            single, product = (
                _factor(values(*at, column, condition), results.confidence)
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
        found = values(results, corpus, model, variant, "knockout_identity")
        interval = t_interval(found.values(), results.confidence)
        if interval.half_width is None:
            return None
        return plus_minus(interval.mean, interval.half_width, 4)

    parts = _of_each(results, GAINS, cost)
    if parts:
        yield (
            "Use of mixing",
            f"Where a trained model's H_res is set to I, its loss rises by {listed(parts)}.",
        )


# --- cost, divergence, claims ----------------------------------------------------------------


def _cost(results: Results, corpus: str) -> Iterator[Entry]:
    """Time of a training step and parameters, beside the plain residual's."""
    model = deepest_first(results)[0]
    own = values(results, corpus, model, BASELINE, "parameters")
    if not own:
        return

    def cost(variant: str) -> str | None:
        timed = results.throughput[model].variants.get(variant)
        parameters = values(results, corpus, model, variant, "parameters")
        if timed is None or not parameters or variant == BASELINE:
            return None
        more = min(parameters.values()) / min(own.values()) - 1
        return f"{fixed(timed.ratio_quartiles.median, 2)} (parameters {100 * more:+.0f} %)"

    parts = _of_each(results, results.variants, cost)
    if parts:
        yield (
            "Cost",
            f"At {results.model_label(model)} a training step takes, in steps of the plain "
            f"residual, {listed(parts)}.",
        )


def _speed(findings: Sequence[Finding]) -> Iterator[Entry]:
    """The step time of mHC-lite in that of mHC, in the authors' way of computing."""
    for finding in findings:
        comparison = finding.row.comparison
        if finding.claim.id == "lite_faster_than_mhc" and comparison is not None:
            interval = comparison.interval
            if interval.low is not None and interval.high is not None:
                low, high = (fixed(math.exp(end), 2) for end in (interval.low, interval.high))
                ends = low if low == high else f"{low} to {high}"
                yield (
                    "Speed",
                    f"A training step of mHC-lite takes {ends} times as long as one of mHC, "
                    "computed as the authors do.",
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
