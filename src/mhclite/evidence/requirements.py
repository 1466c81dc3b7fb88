"""What a study must have reached before a claim can be asked of it.

Streams that were never mixed cannot say how to mix them, and a model that has not learned as much
as a table of bigrams cannot say which architecture learns better. A claim names such requirements;
one that is not met makes it *not reached*, with the number that fell short. None depends on the
difference that is tested: the choice of what is tested would bias the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.claims import Claim
from mhclite.evidence.frame import LOSS, Cell, arm, values
from mhclite.evidence.results import Results
from mhclite.evidence.tables import significant


class Unmet(NamedTuple):
    """A requirement that was not met."""

    kind: str  # learned, moved, used, functional, trained, events or measured
    text: str  # in words, for this claim
    of: str = ""  # what fell short: variants, by their labels
    found: float = math.nan
    needed: float = math.nan


def unmet(results: Results, claim: Claim, corpus: str, model: str) -> Iterator[Unmet]:
    """The requirements of a claim that a corpus and model size fall short of."""
    requires = claim.requires
    cells = [arm(results, corpus, model, *one) for one in claim.arms]
    for (variant, setting), cell in zip(claim.arms, cells, strict=True):
        if VARIANTS[variant].mixes != "never" and not setting.get("freeze_mixing"):
            yield from _unmixed(results, claim, cell)
            break  # a rival whose mixing never moved may have lost by that
    if requires.below_bigram:
        losses = [_mean(results, cell, LOSS) for cell in cells]
        known = [x for x in losses if not math.isnan(x)]
        loss = sum(known) / len(known) if known else math.inf
        bigram = results.counting_models[corpus]["bigram"]
        if not loss < bigram:
            text = f"loss {loss:.3f} (needed: below the bigram model's {bigram:.3f})"
            yield Unmet("learned", text, found=loss, needed=bigram)
    if requires.tokens_per_parameter is not None:
        training = results.settings["training"]
        block = results.settings["models"][model]["block_size"]
        tokens = training["steps"] * training["batch_size"] * block
        found = tokens / _mean(results, cells[-1], "parameters")
        what = "tokens per parameter"
        yield from _short("trained", "", what, found, requires.tokens_per_parameter)


def _unmixed(results: Results, claim: Claim, cell: Cell) -> Iterator[Unmet]:
    """What the mixing of one variant falls short of."""
    requires, label = claim.requires, VARIANTS[cell.variant].label
    if requires.functional_mixing is not None:
        count, needed = _mean(results, cell, "functional_mixing"), requires.functional_mixing
        if count < needed:
            text = f"{count:g} functional H_res of {label} (needed: {needed})"
            yield Unmet("functional", text, label, count, needed)
    either = []  # it has moved, or it is used
    if requires.start_distance is not None:
        what = f"distance of {label}'s H_res from its start"
        found = _mean(results, cell, "start_distance")
        either.append([*_short("moved", label, what, found, requires.start_distance)])
    if requires.knockout_errors is not None:
        what = f"cost of {label} with H_res = I, in standard errors"
        found = knockout_in_errors(results, cell)
        either.append([*_short("used", label, what, found, requires.knockout_errors)])
    if all(either):
        yield from (reason for short in either for reason in short)


def _short(kind: str, of: str, what: str, found: float, needed: float) -> Iterator[Unmet]:
    if math.isnan(found):
        yield Unmet("measured", f"{what} was not measured", of)
    elif found < needed:
        text = f"{what} {significant(found, 2)} (needed: {significant(needed, 2)})"
        yield Unmet(kind, text, of, found, needed)


def _mean(results: Results, cell: Cell, metric: str) -> float:
    """Arithmetic mean over the runs that have a value; NaN if none has."""
    found = values(results, cell, metric).values()
    return sum(found) / len(found) if found else math.nan


def knockout_in_errors(results: Results, cell: Cell) -> float:
    """What setting every H_res to I costs, mean over seeds, in standard errors of that mean.

    The windows are the same for every seed, so their errors are taken to be common: the mean of
    the seeds' standard errors, not divided by the root of their number.
    """
    cost = _mean(results, cell, "knockout_identity")
    error = _mean(results, cell, "knockout_identity_error")
    if math.isnan(cost) or math.isnan(error):
        return math.nan
    return cost / error if error > 0 else 0.0
