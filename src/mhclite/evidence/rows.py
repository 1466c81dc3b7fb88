"""What one model size shows of a claim: the comparison, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.claims import Claim
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.requirements import unmet
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import (
    BASELINE,
    CONTROL,
    Interval,
    crossed_interval,
    knockout_interval,
    t_interval,
    tokens_to_reach,
)
from mhclite.evidence.table_format import significant
from mhclite.evidence.values import (
    condition_of,
    deepest_first,
    events,
    is_measured,
    runs_of,
    values_by_seed,
)
from mhclite.evidence.verdicts import (
    Comparison,
    compare,
    compare_counts,
    compare_equal,
    compare_preserved,
    compare_share,
    worst_case,
)
from mhclite.measure.files import Throughput, Timing
from mhclite.study.sections import BASE

FASTER = 0.02  # smallest effect of interest of a step time: 2 %
FEWEST_EVENTS = 5  # a rate from fewer is no rate
ALL_MODELS = "all"  # model of a trend's only row


@dataclass(frozen=True)
class Row:
    """What one model size shows of a claim.

    The comparison is of d: variant minus reference (or threshold), turned so that lower supports.
    """

    model: str
    comparison: Comparison | None = None
    missing: str = ""  # why there is no comparison
    unmet: tuple[str, ...] = ()  # requirements that fell short
    values: Mapping[int, float] | None = None  # seed -> difference, not turned; of paired claims
    crossed: tuple[float, float] | None = None  # interval over seeds and text, turned
    tokens: Interval | None = None  # see `token_difference`
    numbers: str = ""  # what was counted, in words


def _absent(results: Results, claim: Claim) -> str:
    """Why a claim cannot be tested in this study, in words; empty if it can."""
    needed = [variant for variant, _ in claim.arms] + [CONTROL] * (claim.preserve is not None)
    for variant in needed:
        if variant not in results.variants:
            return f"{VARIANTS[variant].label} is not in this study"
    for variant, setting in claim.arms:
        if condition_of(results, variant, setting) is None:
            wanted = ", ".join(f"{key}: {value}" for key, value in setting.items())
            return f"no runs of {VARIANTS[variant].label} with {wanted} alone"
    return ""


def row_of(results: Results, claim: Claim, corpus: str, model: str) -> Row:
    if missing := _absent(results, claim):
        return Row(model, missing=missing)
    if claim.kind == "parameters":
        return _count(results, claim, model)
    if claim.kind == "throughput":
        return _throughput(results, claim, model)
    row = _bound(results, claim, corpus, model) if claim.kind == "bound" else None
    row = row or _paired(results, claim, corpus, model)
    return replace(row, unmet=(*row.unmet, *unmet(results, claim, corpus, model)))


def _count(results: Results, claim: Claim, model: str) -> Row:
    assert claim.reference is not None
    counts = []
    for variant in (claim.variant, claim.reference):
        counted = results.throughput[model].counted(variant)
        if counted is None:
            return Row(model, missing=f"{VARIANTS[variant].label} was not counted")
        counts.append(counted.extra_parameters)
    own, other = counts
    holds = "holds" if own < other else "does not hold"
    return Row(model, numbers=f"{holds}: {own:,} against {other:,}")


def measured_in(throughput: Throughput, implementation: str) -> Mapping[str, Timing] | None:
    """variant -> its timing in a throughput file by an implementation; None if not measured."""
    if throughput.implementation == implementation:
        return throughput.variants
    others = throughput.others.get(implementation)
    # The plain residual is the same in all.
    plain = {name: row for name, row in throughput.variants.items() if name == BASELINE}
    return None if others is None else plain | others


def _throughput(results: Results, claim: Claim, model: str) -> Row:
    assert claim.implementation is not None
    assert claim.reference is not None
    measured = measured_in(results.throughput[model], claim.implementation)
    if measured is None:
        return Row(model, missing=f"the {claim.implementation} implementation was not measured")
    for variant in (claim.variant, claim.reference):
        if variant not in measured:
            return Row(model, missing=f"{VARIANTS[variant].label} was not timed: it did not fit")
    # Each over the plain residual's step of its round: on a GPU whose memory does not hold all
    # variants at once, two of them may not have been timed in the same rounds.
    own, other = (np.array(measured[name].ratio) for name in (claim.variant, claim.reference))
    ratios = list(np.log(own / other))
    return Row(model, compare(ratios, 0.0, results.confidence, FASTER, 1e-4))


def _no_value(results: Results, claim: Claim, corpus: str, model: str) -> Row:
    """No run has a value: the study measures none, or the runs that would have one diverged.

    The latter is an outcome, and takes no claim out of the family.
    """
    assert claim.metric is not None
    said = f"{METRICS[claim.metric].words} ({claim.metric}) was not measured"
    ran = all(len(runs_of(results, corpus, model, *arm)) for arm in claim.arms)
    if ran and is_measured(results, claim.metric):
        return Row(model, compare([], 0.0, results.confidence), unmet=(said,))
    return Row(model, missing=said)


def _bound(results: Results, claim: Claim, corpus: str, model: str) -> Row:
    assert claim.metric is not None
    assert claim.threshold is not None
    values = values_by_seed(results, corpus, model, claim.variant, claim.metric, claim.setting)
    if not values:
        return _no_value(results, claim, corpus, model)
    threshold = math.log(claim.threshold) if claim.log else claim.threshold
    d = {seed: value - threshold for seed, value in values.items()}
    turned = [claim.sign * value for value in d.values()]
    metric = METRICS[claim.metric]
    if metric.share:
        found, words = compare_share([value < 0 for value in turned], results.confidence)
        side = "above" if claim.direction == "higher" else "below"
        words = f"{side} {100 * claim.threshold:g} % {metric.unit} {words}"
        mean = sum(values.values()) / len(values)
        if math.isfinite(mean):
            words = f"{significant(100 * mean)} % {metric.unit} on average; {words}"
        return Row(model, found, numbers=words)
    found = compare(turned, 0.0, results.confidence, resolution=metric.resolution)
    if claim.by_construction:
        found = replace(found, p=None, p_flip=None, flip_floor=None)
    crossed = None
    if claim.metric == "knockout_identity":
        runs = runs_of(results, corpus, model, claim.variant, claim.setting)
        errors = runs["knockout_identity_error"].dropna()
        interval = knockout_interval(turned, list(errors), results.confidence)
        if interval.low is not None and interval.high is not None:
            crossed = interval.low, interval.high
    return Row(model, found, values=d, crossed=crossed)


def _paired(results: Results, claim: Claim, corpus: str, model: str) -> Row:
    """Kinds `difference` and `count`."""
    assert claim.metric is not None
    assert claim.reference is not None
    own = values_by_seed(results, corpus, model, claim.variant, claim.metric, claim.setting)
    other = values_by_seed(
        results, corpus, model, claim.reference, claim.metric, claim.reference_setting
    )
    shared = sorted(own.keys() & other.keys())
    if not shared:
        return _no_value(results, claim, corpus, model)
    d = {seed: worst_case(own[seed], other[seed]) for seed in shared}
    turned = [claim.sign * value for value in d.values()]
    tables = [runs_of(results, corpus, model, variant, setting) for variant, setting in claim.arms]
    if claim.kind == "count":
        counts = [events(table, claim.metric) for table in tables]
        return Row(
            model,
            compare_counts(turned, results.confidence),
            unmet=_few(sum(counts)),
            values=d,
            numbers=f"{counts[0]} against {counts[1]}",
        )
    failed = [int((table["status"] == "diverged").sum()) for table in tables]
    # Two runs that both diverged are a tie, and no sign that the variants are equal.
    equal = None if any(failed) else METRICS[claim.metric].equal
    resolution = METRICS[claim.metric].resolution
    found = compare(turned, claim.margin, results.confidence, equal, resolution)
    words = f"diverged: {failed[0]} against {failed[1]} runs" if any(failed) else ""
    if claim.preserve is not None:
        control = values_by_seed(
            results, corpus, model, CONTROL, claim.metric, claim.reference_setting
        )
        lead = {seed: control[seed] - other[seed] for seed in shared if seed in control}
        low = t_interval(lead.values(), results.confidence).low
        if low is not None and low > 0:
            # Keeping the share f of r - i means v - r < (1 - f) (i - r).
            kept = [d[seed] - (1 - claim.preserve) * ahead for seed, ahead in lead.items()]
            found = compare_preserved(
                found, compare(kept, 0.0, results.confidence, resolution=resolution)
            )
        else:
            found = compare_equal(turned, claim.margin, results.confidence, resolution)
            found = replace(found, p_equal=None) if any(failed) else found
            words = "; ".join(filter(None, [words, _no_lead(claim)]))
    row = Row(model, found, values=d, numbers=words)
    if claim.metric != "validation_loss":
        return row
    crossed = None if any(failed) else _crossed(results, claim, corpus, model)
    return replace(row, crossed=crossed, tokens=token_difference(results, claim, corpus, model))


def _no_lead(claim: Claim) -> str:
    assert claim.reference is not None
    return (
        f"{VARIANTS[claim.reference].label} has no lead over streams that are never mixed, of which"
        f" a share could be kept: equality within {claim.margin:g} is asked"
    )


def _few(count: int) -> tuple[str, ...]:
    plural = "s" * (count != 1)
    return () if count >= FEWEST_EVENTS else (f"{count} event{plural} (needed: {FEWEST_EVENTS})",)


def _crossed(results: Results, claim: Claim, corpus: str, model: str) -> tuple[float, float] | None:
    """Interval of the difference over seeds and documents, where the probe has their losses."""
    tables = [
        runs_of(results, corpus, model, variant, setting).set_index("seed")["run"]
        for variant, setting in claim.arms
    ]
    differences = []
    tokens: list[int] = []
    for seed in sorted(set(tables[0].index) & set(tables[1].index)):
        own, other = (results.probes[t[seed]].evaluation for t in tables)
        if own is None or other is None:
            return None
        tokens = own.document_tokens
        differences.append(np.subtract(own.document_losses, other.document_losses))
    if not differences:
        return None
    return crossed_interval(
        claim.sign * np.array(differences), np.array(tokens, np.float64), results.confidence
    )


def token_difference(results: Results, claim: Claim, corpus: str, model: str) -> Interval | None:
    """Tokens that the variant needs beyond the reference's for the same loss: a log ratio by seed.

    The better run of a seed is followed to where it reaches the other's final loss, after a share s
    of its tokens: the variant needs s times the tokens if it is the better one (log s), else 1 / s
    times (-log s). As the learning rate falls only at the end, a shorter run planned as such would
    save more. Of the study's own settings alone: curves of conditions are not kept.
    """
    assert claim.reference is not None
    if any(condition_of(results, *arm) != BASE for arm in claim.arms):
        return None
    cell = of(results.curves.dropna(subset=["validation_loss"]), corpus, model)
    ratios = []
    for seed in results.seeds:
        own, other = (
            cell[(cell["variant"] == name) & (cell["seed"] == seed)]
            for name in (claim.variant, claim.reference)
        )
        if own.empty or other.empty:
            continue
        spent = own["tokens"].iloc[-1]
        if not spent or spent != other["tokens"].iloc[-1]:
            continue  # one of them diverged
        ends = own["validation_loss"].iloc[-1], other["validation_loss"].iloc[-1]
        better, target, sign = (own, ends[1], 1) if ends[0] <= ends[1] else (other, ends[0], -1)
        reached = tokens_to_reach(
            better["tokens"].to_numpy(float), better["validation_loss"].to_numpy(float), target
        )
        assert reached is not None
        ratios.append(sign * math.log(reached / float(spent)))
    return t_interval(ratios, results.confidence) if ratios else None


# --- over model sizes -----------------------------------------------------------------------


def trend_models(results: Results, claim: Claim) -> list[str]:
    """The model sizes of a trend, the deepest first."""
    models = deepest_first(results)
    settings = results.settings["models"]

    def weights(model: str) -> int:
        """Weights of the layers: proportional to this."""
        return int(results.n_layer(model) * settings[model]["n_embd"] ** 2)

    if claim.equal_parameters:
        models = [model for model in models if weights(model) == weights(models[0])]
    return models


def slopes(results: Results, claim: Claim, corpus: str, variant: str) -> dict[int, float]:
    """seed -> least-squares slope of a metric over the number of layers, per layer.

    Of the seeds that have the metric at every model size.
    """
    assert claim.metric is not None
    models = trend_models(results, claim)
    layers = [results.n_layer(model) for model in models]
    values = [values_by_seed(results, corpus, model, variant, claim.metric) for model in models]
    seeds = set.intersection(*(set(one) for one in values))
    centred = np.array(layers, np.float64) - np.mean(layers)
    found = {}
    for seed in sorted(seeds):
        y = np.array([one[seed] for one in values])
        # A diverged run has no place on a line: the slope is as steep as can be.
        slope = float(centred @ y / (centred @ centred)) if np.isfinite(y).all() else math.inf
        found[seed] = slope
    return found


def trend_row(results: Results, claim: Claim, corpus: str) -> Row:
    """The slope over depth, of a variant or of a variant minus a reference, paired by seed."""
    assert claim.metric is not None
    if missing := _absent(results, claim):
        return Row(ALL_MODELS, missing=missing)
    models = trend_models(results, claim)
    depths = {results.n_layer(model) for model in models}
    if len(depths) < 2:
        alike = " with as many weights" if claim.equal_parameters else ""
        return Row(ALL_MODELS, missing=f"one depth has no trend: two model sizes{alike} are needed")
    own = slopes(results, claim, corpus, claim.variant)
    if claim.reference is not None:
        other = slopes(results, claim, corpus, claim.reference)
        own = {s: worst_case(own[s], other[s]) for s in sorted(own.keys() & other.keys())}
    if not own:
        return _no_value(results, claim, corpus, models[0])
    found = compare(
        [claim.sign * value for value in own.values()],
        0.0,
        results.confidence,
        resolution=METRICS[claim.metric].resolution / (max(depths) - min(depths)),
    )
    short = tuple(unmet(results, claim, corpus, models[0]))
    return Row(ALL_MODELS, found, values=own, unmet=short)
