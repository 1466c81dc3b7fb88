"""What a study found, in words made from its results.

Each function gives the sentences that the numbers carry, and none where they are missing: nothing
is said of a variant that is not there, or of a difference without an interval. The deepest model
speaks, as it does for the claims. Effects are means with Student t intervals over seeds; factors
are geometric means.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from mhclite.evidence.findings import Finding
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.report_methods import counted, listed, tokens_per_run
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, Interval, t_interval
from mhclite.evidence.table_format import fixed, plus_minus, significant
from mhclite.evidence.topics.claims import claim_rows, effect_text
from mhclite.evidence.values import condition_of, conditions_that_change, values_by_seed
from mhclite.evidence.verdicts import Verdict
from mhclite.study.sections import BASE

# The paper's, what is left without mixing, and what followed it.
SPOKEN_OF = ("identity", "hc", "mhc", "mhc_lite", "kromhc", "jpmhc")
GAINS = ("hc", "mhc", "mhc_lite")
FAIR = {"final_norm": "after_sum"}
CONTROL = "identity"  # streams that are never mixed
DECIDED: tuple[Verdict, ...] = ("supported", "contradicted", "practically equal")
UNDECIDED: tuple[Verdict, ...] = ("inconclusive", "not reached", "not tested")
NEARLY_ALL = 0.9  # of the steps
NOTEWORTHY = 0.1  # by so much of all steps the others are clipped more often


@dataclass(frozen=True)
class Found:
    """Sentences about one corpus."""

    numbers: list[str]  # what was measured
    verdicts: list[str]  # what became of the paper's claims
    limits: list[str]  # what cannot be said


def found(results: Results, findings: Sequence[Finding], corpus: str) -> Found:
    """What a study found on one corpus."""
    here = [finding for finding in findings if finding.corpus == corpus]
    return Found(
        numbers=[
            *_losses(results, corpus),
            *_mixing(results, corpus),
            *_fair_losses(results, corpus),
            *_gain(results, corpus),
            *_product(results, corpus),
            *_aged(results, corpus),
            *_use(results, corpus),
            *_speed(results, here),
            *_diverged(results, corpus),
        ],
        verdicts=list(_verdicts(here)),
        limits=[
            *_answered(here),
            *_bigram(results, corpus),
            *_depth_and_rate(results),
            *_clipping(results, corpus),
            *_one_seed(results),
        ],
    )


# --- values ---------------------------------------------------------------------------------


def deepest_first(results: Results) -> list[str]:
    """Model sizes, the deepest first."""
    return sorted(results.models, key=results.n_layer, reverse=True)


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
    interval = t_interval([math.log(value) for value in found.values()], confidence)
    if interval.low is None or interval.high is None or interval.mean is None:
        return None
    low, middle, high = (
        significant(math.exp(end), 3) for end in (interval.low, interval.mean, interval.high)
    )
    return middle if low == high else f"{middle} [{low}, {high}]"


# --- what was measured ----------------------------------------------------------------------


def _losses(results: Results, corpus: str) -> Iterator[str]:
    """Where the variants stand against the plain residual, as the authors compute them."""
    model = deepest_first(results)[0]
    norm = results.settings["connections"]["final_norm"]
    how = {"per_stream": "with the final norm per stream", "after_sum": "after one final norm"}
    said = _against(results, corpus, model, BASELINE, BASE)
    if said:
        place = f"At {results.model_label(model)}, {how.get(norm, 'with a learned final read')},"
        yield f"{place} the validation loss (nats per token) is {said}."
    if {"mhc", "mhc_lite"} <= set(results.variants):
        apart = _differences(results, corpus, model, "mhc_lite", "mhc")
        if apart.mean is not None and apart.half_width is not None:
            size = f"{plus_minus(apart.mean, apart.half_width, 4)} nats"
            least = METRICS["validation_loss"].equal
            assert least is not None
            if abs(apart.mean) + apart.half_width < least:
                yield f"mHC-lite and mHC differ by less than {least:g} nats: {size}."
            else:
                zero = "" if apart.excludes_zero() else ", an interval that includes 0"
                yield f"mHC-lite minus mHC is {size}{zero}."


def _mixing(results: Results, corpus: str) -> Iterator[str]:
    """Where the variants that mix stand against the one that does not."""
    model = deepest_first(results)[0]
    said = _against(results, corpus, model, CONTROL, BASE)
    if said:
        yield f"Against {results.label(CONTROL)}, whose streams never mix, the loss is {said}."


def _fair_losses(results: Results, corpus: str) -> Iterator[str]:
    """The same where the streams are summed before the final norm, at the deepest such model."""
    if results.settings["connections"]["final_norm"] == FAIR["final_norm"]:
        return
    variants = [variant for variant in SPOKEN_OF if variant in results.variants]
    conditions = {condition_of(results, variant, FAIR) for variant in variants} - {None}
    for condition in sorted(map(str, conditions)):
        for model in deepest_first(results):
            said = _against(results, corpus, model, BASELINE, condition)
            if said:
                label = results.model_label(model)
                yield (
                    f"With the final norm after the sum of the streams ({label}), which is fairer "
                    f"to the plain residual, the loss is {said}."
                )
                return


def _against(results: Results, corpus: str, model: str, other: str, condition: str) -> str:
    """Differences to another variant in words: below, above, or not told apart."""
    groups: dict[str, list[str]] = {"below": [], "above": [], "apart": []}
    for variant in SPOKEN_OF:
        if variant == other or not {variant, other} <= set(results.variants):
            continue
        d = _differences(results, corpus, model, variant, other, condition)
        if d.mean is None or d.half_width is None:
            continue
        if d.excludes_zero():
            side = "below" if d.mean < 0 else "above"
            size = plus_minus(abs(d.mean), d.half_width, 3)
        else:
            side, size = "apart", plus_minus(d.mean, d.half_width, 3)
        groups[side].append(f"{size} in {results.label(variant)}")
    whose = " the plain residual's" if other == BASELINE else ""
    words = {
        "below": f"below{whose} by {{}}",
        "above": f"above{whose} by {{}}",
        "apart": f"within chance of{whose or ' it'}: {{}}",
    }
    parts = [words[side].format(listed(sizes)) for side, sizes in groups.items() if sizes]
    return listed(parts) if parts else ""


def _gain(results: Results, corpus: str) -> Iterator[str]:
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
            f"Over {counted(2 * results.n_layer(model), 'sub-layer')} a stream can grow by a "
            f"factor of {listed(parts)} (composite gain, the largest in training)."
        )


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


def _product(results: Results, corpus: str) -> Iterator[str]:
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
    said = f"After {iterations} of Sinkhorn-Knopp the row sums of mHC's product are off by {own}"
    lite = values(results, corpus, model, "mhc_lite", column)
    if lite:
        said += f", those of mHC-lite's by {significant(max(lite.values()), 1)} at most"
    yield f"{said} (99 % quantile)."


def _aged(results: Results, corpus: str) -> Iterator[str]:
    """The same where mixing learns faster, at the deepest model that was so trained."""
    for condition in conditions_that_change(results, "mixing_rate_factor"):
        settings = results.settings["conditions"][condition]["connections"]
        for model in deepest_first(results):
            at = (results, corpus, model, "mhc")
            hard = [100 * x for x in values(*at, "sinkhorn_share_above_30", condition).values()]
            single, product = (
                _factor(values(*at, column, condition), results.confidence)
                for column in ("single_deviation_99", "product_deviation_99")
            )
            if hard and single and product:
                yield (
                    f"Where mixing learns {settings['mixing_rate_factor']:g} times as fast "
                    f"({results.model_label(model)}), which stands in for longer training, "
                    f"{sum(hard) / len(hard):.0f} % of the inputs of mHC's Sinkhorn-Knopp "
                    f"({min(hard):.0f} to {max(hard):.0f} % by seed) have log(1/ν) above 30, and "
                    f"its row sums are off by {single} in single matrices and {product} in the "
                    "product."
                )
                break


def _use(results: Results, corpus: str) -> Iterator[str]:
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
        yield f"Without its mixing (H_res = I) a trained model loses {listed(parts)} nats."


def _speed(results: Results, findings: Sequence[Finding]) -> Iterator[str]:
    """The step time of mHC-lite in that of mHC, in the authors' way of computing."""
    for finding in findings:
        comparison = finding.row.comparison
        if finding.claim.id == "lite_faster_than_mhc" and comparison is not None:
            interval = comparison.interval
            if interval.low is not None and interval.high is not None:
                low, high = (fixed(math.exp(end), 2) for end in (interval.low, interval.high))
                ends = low if low == high else f"{low} to {high}"
                yield (
                    f"A training step of mHC-lite takes {ends} times as long as one of mHC, "
                    "computed as the authors do."
                )


def _diverged(results: Results, corpus: str) -> Iterator[str]:
    runs = results.runs[results.runs["corpus"] == corpus]
    failed = runs[runs["status"] == "diverged"]
    if len(failed):
        counts = Counter(map(str, failed["variant"]))
        each = listed([f"{results.label(v)}: {counts[v]}" for v in results.variants if counts[v]])
        yield f"{len(failed)} of {counted(len(runs), 'run')} diverged ({each})."
    for condition, settings in results.settings["conditions"].items():
        table = results.all_runs
        runs = table[(table["corpus"] == corpus) & (table["condition"] == condition)]
        failed = runs[runs["status"] == "diverged"]
        if len(failed):
            own = Counter(map(str, failed["variant"]))
            all_of = Counter(map(str, runs["variant"]))
            each = listed(
                [
                    f"{own[v]} of {all_of[v]} of {results.label(v)}"
                    for v in results.variants
                    if own[v]
                ]
            )
            yield f"Of the runs with a changed setting ({settings['title']}) {each} diverged."


# --- what became of the claims --------------------------------------------------------------


def short(statement: str) -> str:
    """A claim's statement without what stands in brackets."""
    return re.sub(r" \([^()]*\)", "", statement)


def _verdicts(findings: Sequence[Finding]) -> Iterator[str]:
    """The confirmatory claims: those that are decided one by one, the others counted."""
    first = [finding for finding in findings if finding.claim.family == "confirmatory"]
    if not first:
        return
    counts = Counter(finding.verdict for finding in first)
    order = [verdict for verdict in (*DECIDED, *UNDECIDED) if counts[verdict]]
    shares = listed([f"{counts[one]} {'is' if counts[one] == 1 else 'are'} {one}" for one in order])
    yield f"Of the {counted(len(first), 'claim')} of the paper that are tested first, {shares}."
    for verdict in DECIDED:
        parts = [
            f"{short(one.claim.statement)} ({effect_text(claim_rows(one)[0])})"
            for one in first
            if one.verdict == verdict
        ]
        if parts:
            heading = verdict.capitalize() + " at this size" * (verdict == "contradicted")
            yield f"{heading}: {'; '.join(parts)}."


# --- what cannot be said --------------------------------------------------------------------


def _bigram(results: Results, corpus: str) -> Iterator[str]:
    """Variants that have not learned as much as a table of bigrams."""
    model = deepest_first(results)[0]
    bigram = results.counting_models[corpus]["bigram"]
    losses = {
        variant: sum(found.values()) / len(found)
        for variant in results.variants
        if (found := values_by_seed(results, corpus, model, variant, "validation_loss"))
    }
    above = [variant for variant, loss in losses.items() if not loss < bigram]
    if not above:
        return
    if len(above) == len(losses):
        yield (
            f"No loss is below the {bigram:.3f} nats of a model that only counts pairs of tokens "
            f"(the lowest: {min(losses.values()):.3f}): which variant learns better cannot be said."
        )
        return
    each = listed([f"{results.label(v)} ({losses[v]:.3f})" for v in above])
    yield (
        f"{each} {'is' if len(above) == 1 else 'are'} not below the {bigram:.3f} nats of a model "
        "that only counts pairs of tokens."
    )


def _kind(reason: str) -> str:
    """A requirement without its number and variant: what fell short."""
    return re.sub(r"of [\w-]+ |[\w-]+'s ", "", re.split(r" \d| was not measured", reason)[0])


def _answered(findings: Sequence[Finding]) -> Iterator[str]:
    """How many claims have which verdict, and of what the study falls short most often."""
    if not findings:
        return
    counts = Counter(finding.verdict for finding in findings)
    shares = listed([f"{counts[one]} {one}" for one in get_args(Verdict) if counts[one]])
    said = f"Verdicts of {counted(len(findings), 'claim')}: {shares}."
    if counts["not tested"]:
        said += " Not tested: the study lacks a variant, a setting or a measurement."
    reasons = [finding.row.unmet for finding in findings if finding.verdict == "not reached"]
    if reasons:
        kinds = Counter(kind for unmet in reasons for kind in {_kind(reason) for reason in unmet})
        kind, count = kinds.most_common(1)[0]
        example = next(reason for unmet in reasons for reason in unmet if _kind(reason) == kind)
        said += (
            " Not reached: it falls short of what the claim needs, most often "
            f"({count} of {len(reasons)}) in this: {example}."
        )
    yield said


def _depth_and_rate(results: Results) -> Iterator[str]:
    """What changes with depth besides depth."""
    models = sorted(results.models, key=results.n_layer)
    rates = [results.settings["models"][model]["learning_rate"] for model in models]
    tokens = {tokens_per_run(results, model) for model in models}
    if rates[0] == rates[-1]:
        return
    same = f", and each sees {tokens.pop():,} tokens" if len(tokens) == 1 else ""
    yield (
        f"From {results.model_label(models[0])} to {results.model_label(models[-1])} the peak "
        f"learning rate goes from {rates[0]:g} to {rates[-1]:g}{same}: what is said of depth is "
        "said of these together."
    )


def _clipping(results: Results, corpus: str) -> Iterator[str]:
    """Shares of steps whose gradient is clipped, where the residual's is another."""
    largest, model = results.settings["training"]["grad_clip"], deepest_first(results)[0]
    curves = results.curves
    curves = curves[(curves["corpus"] == corpus) & (curves["model"] == model)]
    norms = curves.dropna(subset=["grad_norm"])
    clipped = (norms["grad_norm"] > largest).groupby(norms["variant"]).mean()
    if not largest or BASELINE not in clipped or len(clipped) < 2:
        return
    own = float(clipped.pop(BASELINE))
    low, high = float(clipped.min()), float(clipped.max())
    if low - own < NOTEWORTHY:
        return
    least, most = f"{100 * low:.0f}", f"{100 * high:.0f}"
    others = least if least == most else f"{least} to {most}"
    said = (
        f"At {results.model_label(model)} gradients are clipped in {100 * own:.0f} % of the plain "
        f"residual's steps and in {others} % of the others'"
    )
    if low >= NEARLY_ALL:
        said += ": these train with gradients of nearly one norm, which hides spikes as well"
    yield f"{said}."


def _one_seed(results: Results) -> Iterator[str]:
    if len(results.seeds) == 1:
        yield "With one seed no difference between variants can be told from chance."
