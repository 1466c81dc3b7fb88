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
from mhclite.evidence.statistics import (
    BASELINE,
    CONTROL,
    Comparison,
    compare,
    compare_counts,
    compare_equal,
    compare_preserved,
    compare_share,
    knockout_interval,
    t_interval,
    worst_case,
)
from mhclite.evidence.tables import counted, significant
from mhclite.measure.measured import Throughput, Timing

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
    """What a model size shows of a claim; of a trend, all of them together (`ALL_MODELS`)."""
    if missing := _absent(results, claim):
        return Row(model, missing=missing)
    if claim.kind == "parameters":
        return _count(results, claim, model)
    if claim.kind == "throughput":
        return _throughput(results, claim, model)
    sizes = [model]
    if claim.kind == "trend":
        sizes = trend_models(results, claim)
        if len({results.n_layer(size) for size in sizes}) < 2:
            alike = " with as many weights" if claim.equal_parameters else ""
            missing = f"one depth has no trend: two model sizes{alike} are needed"
            return Row(model, missing=missing)
    row = _compared(results, claim, corpus, sizes)
    short = unmet(results, claim, corpus, sizes[0])  # the deepest
    return replace(row, model=model, unmet=(*row.unmet, *short))


def _count(results: Results, claim: Claim, model: str) -> Row:
    counts = []
    for variant, _ in claim.arms:
        known = results.throughput[model].counted(variant)
        if known is None:
            return Row(model, missing=f"{VARIANTS[variant].label} was not counted")
        counts.append(known.extra_parameters)
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
    measured = measured_in(results.throughput[model], claim.implementation)
    if measured is None:
        return Row(model, missing=f"the {claim.implementation} implementation was not measured")
    for variant, _ in claim.arms:
        if variant not in measured:
            return Row(model, missing=f"{VARIANTS[variant].label} was not timed: it did not fit")
    # Each over the plain residual's step of its round.
    own, other = (np.array(measured[variant].ratio) for variant, _ in claim.arms)
    return Row(model, compare(list(np.log(own / other)), 0.0, FASTER, 1e-4))


# --- values seed by seed --------------------------------------------------------------------


def _compared(results: Results, claim: Claim, corpus: str, sizes: list[str]) -> Row:
    """Differences to the reference or to the threshold, seed by seed; of slopes for a trend.

    Args:
        sizes: the model size, or all of a trend, the deepest first.
    """
    assert claim.metric is not None
    metric, size = METRICS[claim.metric], sizes[0]
    cells = [arm(results, corpus, size, *one) for one in claim.arms]
    if claim.kind == "trend":
        arms = [slopes(results, claim.metric, cell, sizes) for cell in cells]
    else:
        arms = [claim_values(results, cell, claim.metric) for cell in cells]
    own, other = arms[0], arms[1] if len(arms) > 1 else dict.fromkeys(arms[0], claim.bar)
    d = {seed: worst_case(own[seed], other[seed]) for seed in sorted(own.keys() & other.keys())}
    turned = [claim.sign * value for value in d.values()]
    if not d:
        return _no_value(results, claim, cells)
    if claim.kind == "count":
        counts = [int(sum(values(results, cell, claim.metric).values())) for cell in cells]
        found, numbers = compare_counts(turned), f"{counts[0]} against {counts[1]}"
        text = f"{counted(sum(counts), 'event')} (needed: {FEWEST_EVENTS})"
        few = Unmet("events", text, "", sum(counts), FEWEST_EVENTS)
        short = (few,) if few.found < few.needed else ()
        return Row(size, found, unmet=short, values=d, numbers=numbers)
    if claim.kind == "difference":
        return _difference(results, claim, cells, d, other)
    if metric.share:
        return _share(results, claim, turned, own)
    layers = [results.n_layer(one) for one in sizes]
    resolution = metric.resolution / (max(layers) - min(layers) or 1)
    found = compare(turned, 0.0, resolution=resolution)
    if claim.by_construction:
        found = replace(found, p=None)
    windows = None
    if metric.error:
        errors = values(results, cells[0], metric.error)
        interval = knockout_interval(turned, errors.values())
        if interval.low is not None and interval.high is not None:
            windows = interval.low, interval.high
    return Row(size, found, values=d, windows=windows)


def _no_value(results: Results, claim: Claim, cells: list[Cell]) -> Row:
    """No run has a value: the study measures none, or the runs that would have one diverged.

    The latter is an outcome, and takes no claim out of the family.
    """
    assert claim.metric is not None
    said = f"{METRICS[claim.metric].label} ({claim.metric}) was not measured"
    ran = all(values(results, cell, "diverged") for cell in cells)
    if ran and is_measured(results, claim.metric):
        unmeasured = (Unmet("measured", said),)
        return Row(cells[0].model, compare([], 0.0), unmet=unmeasured)
    return Row(cells[0].model, missing=said)


def _share(results: Results, claim: Claim, turned: list[float], shares: Mapping[int, float]) -> Row:
    """In how many seeds a share lies beyond the threshold."""
    assert claim.metric is not None
    assert claim.threshold is not None
    unit = f"% {METRICS[claim.metric].unit}"
    found, words = compare_share([value < 0 for value in turned])
    side = "above" if claim.direction == "higher" else "below"
    words = f"{side} {100 * claim.threshold:g} {unit} {words}"
    middle = sum(shares.values()) / len(shares)
    if math.isfinite(middle):
        words = f"{significant(100 * middle)} {unit} on average; {words}"
    return Row("", found, numbers=words)


def _difference(
    results: Results,
    claim: Claim,
    cells: list[Cell],
    d: Mapping[int, float],
    reference: Mapping[int, float],
) -> Row:
    assert claim.metric is not None
    failed = [int(sum(values(results, cell, "diverged").values())) for cell in cells]
    # Two runs that both diverged are a tie, and no sign that the variants are equal.
    equal = None if any(failed) else METRICS[claim.metric].equal
    resolution = METRICS[claim.metric].resolution
    turned = [claim.sign * value for value in d.values()]
    found = compare(turned, claim.margin, equal, resolution)
    words = [f"diverged: {failed[0]} against {failed[1]} runs"] if any(failed) else []
    if claim.preserve is not None:
        cell = arm(results, cells[0].corpus, cells[0].model, CONTROL, claim.reference_setting)
        control = claim_values(results, cell, claim.metric)
        lead = {seed: control[seed] - reference[seed] for seed in d if seed in control}
        low = t_interval(lead.values()).low
        if low is not None and low > 0:
            # Keeping the share f of r - i means v - r < (1 - f) (i - r).
            kept = [d[seed] - (1 - claim.preserve) * ahead for seed, ahead in lead.items()]
            found = compare_preserved(found, compare(kept, 0.0, resolution=resolution))
        else:
            found = compare_equal(turned, claim.margin, resolution)
            found = replace(found, p_equal=None) if any(failed) else found
            words.append(
                f"{VARIANTS[cells[1].variant].label} has no lead over streams that are never "
                f"mixed, of which a share could be kept: equality within {claim.margin:g} is asked"
            )
    return Row(cells[0].model, found, values=d, numbers="; ".join(words))


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


def slopes(results: Results, metric: str, cell: Cell, sizes: list[str]) -> dict[int, float]:
    """seed -> least-squares slope of a metric over the number of layers, per layer.

    Of the seeds that have the metric at every model size.
    """
    found = [claim_values(results, cell._replace(model=size), metric) for size in sizes]
    layers = np.array([results.n_layer(size) for size in sizes], np.float64)
    centred = layers - layers.mean()
    slope_of = {}
    for seed in sorted(set.intersection(*(set(one) for one in found))):
        y = np.array([one[seed] for one in found])
        # A diverged run has no place on a line: the slope is as steep as can be.
        slope = float(centred @ y / (centred @ centred)) if np.isfinite(y).all() else math.inf
        slope_of[seed] = slope
    return slope_of
