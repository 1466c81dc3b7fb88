"""What a study must have reached before a claim can be asked of it.

Streams that were never mixed cannot say how to mix them, and a model that has not learned as much
as a table of bigrams cannot say which architecture learns better. A claim names such requirements;
one that is not met makes it *not reached*, with the number that fell short. None depends on the
difference that is tested: the choice of what is tested would bias the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from mhclite.connections.registry import VARIANTS, functional_mixing
from mhclite.evidence.claims import Claim
from mhclite.evidence.results import Results
from mhclite.evidence.table_format import significant
from mhclite.evidence.values import runs_of


def unmet(results: Results, claim: Claim, corpus: str, model: str) -> list[str]:
    """The requirements of a claim that a corpus and model size fall short of, in words."""
    return list(_unmet(results, claim, corpus, model))


def _unmet(results: Results, claim: Claim, corpus: str, model: str) -> Iterator[str]:
    requires, arms = claim.requires, claim.arms
    tables = [runs_of(results, corpus, model, variant, setting) for variant, setting in arms]
    for (variant, setting), table in zip(arms, tables, strict=True):
        if VARIANTS[variant].mixes != "never" and not setting.get("freeze_mixing"):
            yield from _unmixed(results, claim, model, variant, setting, table)
            break  # a rival whose mixing never moved may have lost by that
    if requires.below_bigram:
        losses = [mean_of(table, "validation_loss") for table in tables]
        known = [x for x in losses if not math.isnan(x)]
        loss = sum(known) / len(known) if known else math.inf
        bigram = results.counting_models[corpus]["bigram"]
        if not loss < bigram:
            yield f"loss {loss:.3f} (needed: below the bigram model's {bigram:.3f})"
    if requires.tokens_per_parameter is not None:
        steps = results.settings["training"]["steps"]
        block = results.settings["models"][model]["block_size"]
        tokens = steps * results.settings["training"]["batch_size"] * block
        found = tokens / float(tables[-1]["parameters"].mean())
        yield from _short("tokens per parameter", found, requires.tokens_per_parameter)


def _unmixed(
    results: Results,
    claim: Claim,
    model: str,
    variant: str,
    setting: Mapping[str, Any],
    runs: pd.DataFrame,
) -> Iterator[str]:
    """What the mixing of one variant falls short of."""
    requires, label = claim.requires, VARIANTS[variant].label
    if requires.functional_mixing is not None:
        norm = setting.get("final_norm", results.settings["connections"]["final_norm"])
        axis = setting.get(
            "stochastic_axis", results.settings["connections"].get("stochastic_axis", "rows")
        )
        count = functional_mixing(variant, results.n_layer(model), norm, axis)
        if count < requires.functional_mixing:
            yield f"{count} functional H_res of {label} (needed: {requires.functional_mixing})"
    either = []  # it has moved, or it is used
    if requires.start_distance is not None:
        what = f"distance of {label}'s H_res from its start"
        either.append([*_short(what, mean_of(runs, "start_distance"), requires.start_distance)])
    if requires.knockout_errors is not None:
        what = f"cost of {label} with H_res = I, in standard errors over windows of text"
        either.append([*_short(what, knockout_in_errors(runs), requires.knockout_errors)])
    if all(either):
        yield from (reason for short in either for reason in short)


def _short(what: str, found: float, needed: float) -> Iterator[str]:
    if math.isnan(found):
        yield f"{what} was not measured"
    elif found < needed:
        yield f"{what} {significant(found, 2)} (needed: {significant(needed, 2)})"


def mean_of(runs: pd.DataFrame, column: str) -> float:
    """Mean over the completed runs that have a value; NaN if none has, or no such column exists."""
    if column not in runs:
        return math.nan
    return float(runs.loc[runs["status"] == "completed", column].mean())


def knockout_in_errors(rows: pd.DataFrame) -> float:
    """What setting every H_res to I costs, mean over seeds, in standard errors of that mean.

    The windows are the same for every seed, so their errors are taken to be common: the mean of
    the seeds' standard errors, not divided by the root of their number.
    """
    cost, error = mean_of(rows, "knockout_identity"), mean_of(rows, "knockout_identity_error")
    if math.isnan(cost) or math.isnan(error):
        return math.nan
    return cost / error if error > 0 else 0.0
