"""What a study must have reached before a claim can be asked of it.

Streams that were never mixed cannot say how to mix them, and a model that has not learned as much
as a table of bigrams cannot say which architecture learns better. A claim names such requirements;
one that is not met makes it *not reached*, with the number that fell short.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from mhclite.connections.registry import VARIANTS, functional_mixing
from mhclite.evidence.claims import Claim
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import t_interval
from mhclite.evidence.table_format import significant
from mhclite.evidence.values import runs_of, values_by_seed

CONTROL = "identity"  # streams that are never mixed


def unmet(results: Results, claim: Claim, corpus: str, model: str) -> list[str]:
    """The requirements of a claim that a corpus and model size fall short of, in words."""
    return list(_unmet(results, claim, corpus, model))


def _unmet(results: Results, claim: Claim, corpus: str, model: str) -> Iterator[str]:
    requires = claim.requires
    arms = [(claim.variant, claim.setting)]
    if claim.reference is not None:
        arms.append((claim.reference, claim.reference_setting))
    tables = [runs_of(results, corpus, model, variant, setting) for variant, setting in arms]
    for (variant, setting), table in zip(arms, tables, strict=True):
        if VARIANTS[variant].mixes != "never" and not setting.get("freeze_mixing"):
            yield from _unmixed(results, claim, model, variant, setting, table)
    if requires.below_bigram:
        # The better of the two: a variant may fail to learn, and that is then the finding.
        losses = [mean_of(table, "validation_loss") for table in tables]
        loss = min((x for x in losses if not math.isnan(x)), default=math.inf)
        bigram = results.counting_models[corpus]["bigram"]
        if not loss < bigram:
            yield f"loss {loss:.3f} (needed: below the bigram model's {bigram:.3f})"
    if requires.tokens_per_parameter is not None:
        steps = results.settings["training"]["steps"]
        block = results.settings["models"][model]["block_size"]
        tokens = steps * results.settings["training"]["batch_size"] * block
        found = tokens / float(tables[-1]["parameters"].mean())
        yield from _short("tokens per parameter", found, requires.tokens_per_parameter)
    if claim.preserve is not None:
        yield from _sensitive(results, claim, corpus, model)


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
    if requires.start_distance is not None:
        found = mean_of(runs, "start_distance")
        what = f"distance of {label}'s H_res from its start"
        yield from _short(what, found, requires.start_distance)
    if requires.knockout_errors is not None:
        what = f"cost of {label} with H_res = I, in standard errors over windows of text"
        yield from _short(what, knockout_in_errors(runs), requires.knockout_errors)


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


def _sensitive(results: Results, claim: Claim, corpus: str, model: str) -> Iterator[str]:
    """A reference that is no better than no mixing has no lead of which a share could be kept."""
    assert claim.reference is not None
    assert claim.metric is not None
    name = VARIANTS[claim.reference].label
    if CONTROL not in results.variants:
        yield f"{name} against streams that are never mixed: they are not in this study"
        return
    reference, control = (
        values_by_seed(results, corpus, model, variant, claim.metric, claim.reference_setting)
        for variant in (claim.reference, CONTROL)
    )
    lead = t_interval(
        [reference[s] - control[s] for s in sorted(reference.keys() & control.keys())],
        results.confidence,
    )
    if lead.high is None or lead.high >= 0:
        said = "unknown" if lead.mean is None else f"{lead.mean:+.2g} ± {lead.half_width or 0:.2g}"
        yield f"{name} minus streams that are never mixed {said} (needed: an interval below 0)"
