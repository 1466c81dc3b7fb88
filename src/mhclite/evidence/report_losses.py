"""What a study says of its losses: who ends below whom, if what a verdict requires is met.

Differences are paired by seed, with Student t intervals; whether one differs from 0 is corrected
for the number of variants that are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.findings import claims_of
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.report_methods import Entry, counted, listed
from mhclite.evidence.requirements import unmet
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import (
    BASELINE,
    CONTROL,
    Interval,
    difference,
    far_off,
    t_interval,
)
from mhclite.evidence.table_format import fixed, plus_minus
from mhclite.evidence.values import (
    FAIR,
    completed_by_seed,
    condition_of,
    deepest_first,
    loss_difference,
)
from mhclite.evidence.verdicts import compare, holm
from mhclite.study.sections import BASE

FEWEST_SEEDS = 3  # that say more than the signs of two differences
FEWEST_SIGNS = 4  # of which one that is the same in all is worth saying


def losses(results: Results, corpus: str) -> list[Entry]:
    """Points on losses at the deepest model: against the plain residual, and against no mixing."""
    return [
        *_losses(results, corpus),
        *_mixing(results, corpus),
        *_fair_losses(results, corpus),
    ]


def place_of(results: Results, model: str, condition: str) -> str:
    """A model size for readers, with the number of seeds where a condition has others."""
    seeds = results.settings["conditions"][condition].get("seeds") or results.seeds
    few = f", {counted(len(seeds), 'seed')}" if len(seeds) != len(results.seeds) else ""
    return results.model_label(model) + few


def _losses(results: Results, corpus: str) -> Iterator[Entry]:
    """Where the variants stand against the plain residual, as the authors compute them."""
    model = deepest_first(results)[0]
    norm = results.settings["connections"]["final_norm"]
    how = {"per_stream": "with the final norm per stream", "after_sum": "after one final norm"}
    parts = []
    against = _against(results, corpus, model, BASELINE, BASE)
    if against:
        where = f"At {results.model_label(model)}, {how.get(norm, 'with a learned final read')},"
        parts.append(
            f"{where} compared with the plain residual{_corrected(against)}, {_words(against)}"
        )
    if {"mhc", "mhc_lite"} <= set(results.variants):
        parts += _lite_and_mhc(results, corpus)
    if parts:
        yield "Loss", " ".join(parts)


def _lite_and_mhc(results: Results, corpus: str) -> Iterator[str]:
    """mHC-lite minus mHC at the deepest model, and at others where the interval excludes 0."""
    deepest, *others = deepest_first(results)
    apart = loss_difference(results, corpus, deepest, "mhc_lite", "mhc")
    if apart.mean is None or apart.half_width is None:
        return
    size = f"{plus_minus(apart.mean, apart.half_width, 4)} nats"
    least = METRICS["validation_loss"].equal
    assert least is not None
    elsewhere = [
        f"{plus_minus(d.mean, d.half_width, 4)} at {results.model_label(model)}"
        for model in others
        if (d := loss_difference(results, corpus, model, "mhc_lite", "mhc")).excludes_zero()
    ]
    more = f"; it is {listed(elsewhere)}" if elsewhere else ""
    if abs(apart.mean) + apart.half_width < least and apart.n >= FEWEST_SEEDS:
        yield f"mHC-lite and mHC differ by less than {least:g} nats: {size}{more}."
    else:
        zero = "" if apart.excludes_zero() else ", an interval that includes 0"
        yield f"mHC-lite minus mHC is {size}{zero}{more}."


def _mixing(results: Results, corpus: str) -> Iterator[Entry]:
    """Where the variants that mix stand against the one that does not."""
    against = _against(results, corpus, deepest_first(results)[0], CONTROL, BASE)
    if against:
        text = (
            f"Compared with {results.label(CONTROL)}, whose streams never mix"
            f"{_corrected(against)}, {_words(against, each=True)}"
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
                    f"With one final norm, after the sum ({place_of(results, model, condition)}), "
                    f"compared with the plain residual{_corrected(against)}, "
                    f"{_words(against)} {why}"
                    f"{_rate_or_norm(results, corpus, model, condition)}".strip(),
                )
                return


def _rate_or_norm(results: Results, corpus: str, model: str, fair: str) -> str:
    """Whether the plain residual at another rate would have done as well."""
    for name, about in results.settings["conditions"].items():
        if about["connections"] or about["training"] or BASELINE not in about["variants"]:
            continue
        if about["learning_rate_factor"] == 1:  # another width, say
            continue
        column = "validation_loss"
        base = completed_by_seed(results, corpus, model, BASELINE, column, name)
        apart = {
            results.label(variant): d
            for variant in results.variants
            if (
                d := difference(
                    completed_by_seed(results, corpus, model, variant, column, fair),
                    base,
                    results.confidence,
                )
            ).half_width
            is not None
        }
        level = [label for label, d in apart.items() if not d.excludes_zero()]
        if level:
            sizes = [
                f"{plus_minus(d.mean, d.half_width, 3)} in {label}" for label, d in apart.items()
            ]
            return (
                "The lead cannot be told from the rate, which is the same for all: compared with "
                f"the plain residual under {about['title']}, the loss differs by {listed(sizes)}."
            )
    return ""


class Compared(NamedTuple):
    """The losses of a variant minus another's."""

    label: str
    differences: dict[int, float]  # by seed
    interval: Interval
    p: float | None  # corrected for the number of variants
    level: float
    short: str  # of what a verdict requires, in words; empty if of nothing
    far: int | None  # a seed that ends far from all others

    @property
    def side(self) -> str:
        """`lower`, `higher`, `indistinguishable`, or `short` where nothing is to be said."""
        if self.p is None or self.p > self.level:
            return "indistinguishable"
        if self.short:
            return "short"
        assert self.interval.mean is not None
        return "lower" if self.interval.mean < 0 else "higher"


def _against(
    results: Results, corpus: str, model: str, other: str, condition: str
) -> list[Compared]:
    """Every variant whose loss can be compared with another's."""
    found: list[Compared] = []
    raw: list[float] = []
    column, level = "validation_loss", 1 - results.confidence
    base = completed_by_seed(results, corpus, model, other, column)
    for variant in results.variants:
        # Nothing is said of the plain residual where others are set beside the control.
        if variant in (other, BASELINE):
            continue
        own = completed_by_seed(results, corpus, model, variant, column, condition)
        apart = {seed: own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())}
        tested = compare(
            [*apart.values()], 0.0, results.confidence, resolution=METRICS[column].resolution
        )
        if tested.interval.half_width is None:
            continue
        short = _short_of(results, corpus, model, variant, other, condition)
        if len(apart) < FEWEST_SEEDS:
            short = f"there are {counted(len(apart), 'seed')}"
        raw.append(1.0 if tested.p is None else tested.p)
        far = far_off(own)
        found.append(
            Compared(results.label(variant), apart, tested.interval, None, level, short, far)
        )
    return [one._replace(p=p) for one, p in zip(found, holm(raw), strict=True)]


def _short_of(
    results: Results, corpus: str, model: str, variant: str, other: str, condition: str
) -> str:
    """What a comparison of losses lacks of that which the claims require of such a one."""
    asked = [
        claim
        for claim in claims_of(results)
        if claim.metric == "validation_loss" and claim.reference == other and not claim.preserve
    ]
    if not asked:
        return ""
    like = next((claim for claim in asked if claim.variant == variant), asked[-1])
    setting = {} if condition == BASE else results.settings["conditions"][condition]["connections"]
    asks = {"variant": variant, "setting": setting, "reference_setting": {}}
    short = unmet(results, like.model_copy(update=asks), corpus, model)
    if any(reason.startswith("loss") for reason in short):
        return "the mean of the two losses is not below the bigram model's"
    if any(reason.startswith("tokens") for reason in short):
        return "there are too few tokens for each parameter"
    return "H_res has hardly moved and does hardly anything" if short else ""


def _corrected(against: Sequence[Compared]) -> str:
    return f" (corrected for {len(against)} comparisons)" if len(against) > 1 else ""


def _words(against: Sequence[Compared], each: bool = False) -> str:
    """`the loss is lower by 0.1 to 0.2 nats in A and B and indistinguishable in C.`, and the rest.

    With `each`, every difference that is told gets its number.
    """
    sides = {
        side: [one for one in against if one.side == side]
        for side in ("lower", "higher", "indistinguishable", "short")
    }
    parts = []
    for side in ("lower", "higher"):
        if each and sides[side]:
            parts.append(f"{side} in {listed([_size(one) for one in sides[side]])}")
        elif sides[side]:
            parts.append(f"{side} by {_range(sides[side], abs)} nats in {_labels(sides[side])}")
    same = sides["indistinguishable"]
    alike = []
    if close := [one for one in same if one.far is None]:
        ends = max(abs(end or 0) for one in close for end in (one.interval.low, one.interval.high))
        within = f" (all intervals within {fixed(ends, 3)} nats of 0)" if len(close) > 1 else ""
        alike.append(f"in {_labels(close)}{within}")
    alike += [f"in {_size(one)}" for one in same if one.far is not None]
    if alike:
        parts.append(f"indistinguishable {listed(alike)}")
    said = [f"the loss is {listed(parts)}."] if parts else []
    said += [text for side in ("lower", "higher") if (text := _signs(close, side))]
    said += [_without(one) for one in same if one.far is not None]
    if short := sides["short"]:
        why = " or ".join(dict.fromkeys(one.short for one in short))
        the = "The" if said else "the"
        said.append(
            f"{the} difference is {_range(short)} nats in {_labels(short)}: no verdict, since "
            f"{why}."
        )
    return " ".join(said)


def _labels(members: Sequence[Compared]) -> str:
    return listed([one.label for one in members])


def _size(one: Compared) -> str:
    return f"{one.label} ({plus_minus(one.interval.mean, one.interval.half_width, 3)})"


def _range(members: Sequence[Compared], of: Callable[[float], float] = float) -> str:
    means = sorted(of(one.interval.mean or 0.0) for one in members)
    return " to ".join(dict.fromkeys(fixed(end, 3) for end in (means[0], means[-1])))


def _signs(members: Sequence[Compared], side: str) -> str:
    """Which of them have one sign in all seeds, where that says more than chance."""
    alike = [
        one
        for one in members
        if len(one.differences) >= FEWEST_SIGNS
        and all((value < 0) == (side == "lower") and value for value in one.differences.values())
    ]
    return f"It is {side} in every seed of {_labels(alike)}." if alike else ""


def _without(one: Compared) -> str:
    """What one run far off hides."""
    higher = sum(value > 0 for value in one.differences.values())
    n = len(one.differences)
    side, count = ("higher", higher) if 2 * higher > n else ("lower", n - higher)
    rest = [value for seed, value in one.differences.items() if seed != one.far]
    without = t_interval(rest, 1 - one.level)
    return (
        f"{one.label} is {side} in {count} of {n} seeds; without seed {one.far}, which ends far "
        f"from all others, it differs by {plus_minus(without.mean, without.half_width, 3)}."
    )
