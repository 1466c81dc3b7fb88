"""What one model size shows of a claim: the comparison, or why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.claims import Claim
from mhclite.evidence.frame import (
    Cell,
    arm,
    claim_values,
    condition_of,
    deepest_first,
    is_measured,
    values,
)
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.requirements import Unmet, unmet
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, CONTROL, knockout_interval, t_interval
from mhclite.evidence.tables import counted, significant
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
    unmet: tuple[Unmet, ...] = ()  # requirements that fell short
    values: Mapping[int, float] | None = None  # seed -> difference, not turned; of paired claims
    windows: tuple[float, float] | None = None  # interval over seeds and windows of text, turned
    numbers: str = ""  # what was counted, in words

    @property
    def short(self) -> str:
        """The requirements that fell short, in words."""
        return "; ".join(one.text for one in self.unmet)


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
    """What a model size shows of a claim of any kind but a trend."""
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


def _arms(results: Results, claim: Claim, corpus: str, model: str) -> list[Cell]:
    return [arm(results, corpus, model, *one) for one in claim.arms]


def _no_value(results: Results, claim: Claim, corpus: str, model: str) -> Row:
    """No run has a value: the study measures none, or the runs that would have one diverged.

    The latter is an outcome, and takes no claim out of the family.
    """
    assert claim.metric is not None
    said = f"{METRICS[claim.metric].label} ({claim.metric}) was not measured"
    ran = all(values(results, cell, "diverged") for cell in _arms(results, claim, corpus, model))
    if ran and is_measured(results, claim.metric):
        unmeasured = (Unmet("measured", said),)
        return Row(model, compare([], 0.0, results.confidence), unmet=unmeasured)
    return Row(model, missing=said)


def _bound(results: Results, claim: Claim, corpus: str, model: str) -> Row:
    assert claim.metric is not None
    assert claim.threshold is not None
    cell = arm(results, corpus, model, claim.variant, claim.setting)
    found_values = claim_values(results, cell, claim.metric)
    if not found_values:
        return _no_value(results, claim, corpus, model)
    threshold = math.log(claim.threshold) if claim.log else claim.threshold
    d = {seed: value - threshold for seed, value in found_values.items()}
    turned = [claim.sign * value for value in d.values()]
    metric = METRICS[claim.metric]
    if metric.share:
        found, words = compare_share([value < 0 for value in turned], results.confidence)
        side = "above" if claim.direction == "higher" else "below"
        words = f"{side} {100 * claim.threshold:g} % {metric.unit} {words}"
        middle = sum(found_values.values()) / len(found_values)
        if math.isfinite(middle):
            words = f"{significant(100 * middle)} % {metric.unit} on average; {words}"
        return Row(model, found, numbers=words)
    found = compare(turned, 0.0, results.confidence, resolution=metric.resolution)
    if claim.by_construction:
        found = replace(found, p=None)
    windows = None
    if metric.error:
        errors = values(results, cell, metric.error)
        interval = knockout_interval(turned, errors.values(), results.confidence)
        if interval.low is not None and interval.high is not None:
            windows = interval.low, interval.high
    return Row(model, found, values=d, windows=windows)


def _paired(results: Results, claim: Claim, corpus: str, model: str) -> Row:
    """Kinds `difference` and `count`."""
    assert claim.metric is not None
    assert claim.reference is not None
    arms = _arms(results, claim, corpus, model)
    own, other = (claim_values(results, cell, claim.metric) for cell in arms)
    shared = sorted(own.keys() & other.keys())
    if not shared:
        return _no_value(results, claim, corpus, model)
    d = {seed: worst_case(own[seed], other[seed]) for seed in shared}
    turned = [claim.sign * value for value in d.values()]
    if claim.kind == "count":
        counts = [int(sum(values(results, cell, claim.metric).values())) for cell in arms]
        return Row(
            model,
            compare_counts(turned, results.confidence),
            unmet=_few(sum(counts)),
            values=d,
            numbers=f"{counts[0]} against {counts[1]}",
        )
    failed = [int(sum(values(results, cell, "diverged").values())) for cell in arms]
    # Two runs that both diverged are a tie, and no sign that the variants are equal.
    equal = None if any(failed) else METRICS[claim.metric].equal
    resolution = METRICS[claim.metric].resolution
    found = compare(turned, claim.margin, results.confidence, equal, resolution)
    words = f"diverged: {failed[0]} against {failed[1]} runs" if any(failed) else ""
    if claim.preserve is not None:
        cell = arm(results, corpus, model, CONTROL, claim.reference_setting)
        control = claim_values(results, cell, claim.metric)
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
    return Row(model, found, values=d, numbers=words)


def _no_lead(claim: Claim) -> str:
    assert claim.reference is not None
    return (
        f"{VARIANTS[claim.reference].label} has no lead over streams that are never mixed, of which"
        f" a share could be kept: equality within {claim.margin:g} is asked"
    )


def _few(count: int) -> tuple[Unmet, ...]:
    text = f"{counted(count, 'event')} (needed: {FEWEST_EVENTS})"
    return () if count >= FEWEST_EVENTS else (Unmet("events", text, "", count, FEWEST_EVENTS),)


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
    cells = [Cell(corpus, model, variant) for model in models]
    found_values = [claim_values(results, cell, claim.metric) for cell in cells]
    seeds = set.intersection(*(set(one) for one in found_values))
    centred = np.array(layers, np.float64) - np.mean(layers)
    found = {}
    for seed in sorted(seeds):
        y = np.array([one[seed] for one in found_values])
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
