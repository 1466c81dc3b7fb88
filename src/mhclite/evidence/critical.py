"""Critical learning rates and what they come to: one row per run, one per pair of variants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from mhclite.evidence.results import Results
from mhclite.evidence.statistics import CELL
from mhclite.evidence.survival import paired, paired_logrank, rate_sensitivity, verdict
from mhclite.evidence.verdicts import holm
from mhclite.measure.files import Critical, critical_rate, read_critical

GROUP = ("corpus", "model", "condition")  # within which variants are compared
# The smallest mean difference that matters, by metric.
MARGINS = {
    "critical_rate": 0.5,  # octaves: a factor of 1.41
    "rate_sensitivity": 0.05,  # nats per token
}


def read_all(results: Results) -> dict[str, Critical]:
    """run -> its search, for all runs of the study."""
    folder = results.folder / "critical"
    return {run: read_critical(folder / f"{run}.json", run) for run in results.all_runs["run"]}


def critical_rates(results: Results) -> pd.DataFrame:
    """One row per run: its coordinates and what its tries come to.

    run, corpus, model, variant, condition, seed; `critical_rate`, `low`, `high`, `beyond`;
    `holds_above`: whether a rate above the first failure holds; `rate_sensitivity` over the common
    rates, missing where every one diverged.
    """
    coordinates = results.all_runs[["run", *CELL, "condition", "seed"]]
    rows = []
    for run, found in read_all(results).items():
        common = found.tries[: len(found.settings.factors)]
        rate = critical_rate(found.tries)
        top = rate["high"]
        rows.append(
            {
                "run": run,
                **rate,
                "holds_above": top is not None
                and any(not t.failed and math.log2(t.factor) > top for t in found.tries),
                "rate_sensitivity": rate_sensitivity(
                    [t.validation_loss for t in common], common[0].initial_loss
                ),
            }
        )
    table = coordinates.merge(pd.DataFrame(rows), on="run", validate="one_to_one")
    return table.astype({"low": "float64", "high": "float64", "rate_sensitivity": "float64"})


def all_tries(results: Results) -> pd.DataFrame:
    """One row per try: coordinates of the run, the fields of `Try`, and whether it is `common`."""
    coordinates = results.all_runs[["run", *CELL, "condition", "seed"]]
    rows = [
        {"run": run, **vars(one), "common": at < len(found.settings.factors)}
        for run, found in read_all(results).items()
        for at, one in enumerate(found.tries)
    ]
    table = coordinates.merge(pd.DataFrame(rows), on="run", validate="one_to_many")
    return table.astype({"validation_loss": "float64", "unstable_step": "Int64"})


def compare(rates: pd.DataFrame, metric: str, reference: str, confidence: float) -> pd.DataFrame:
    """A metric of every variant minus the reference's, paired by seed.

    One row per corpus, model, condition and variant: n, mean, half_width, p, `p_holm` (over the
    variants of the same corpus, model and condition), verdict. Pairs with a missing value are left
    out and nothing is called equal then, nor where a critical rate lies beyond the rates tried.
    """
    rows: list[dict[str, Any]] = []
    for key, group in rates.groupby(list(GROUP), observed=True, sort=True):
        base = group[group["variant"] == reference].set_index("seed")
        found = {}
        for variant in group["variant"].unique():
            own = group[group["variant"] == variant].set_index("seed")
            if variant == reference or base.empty:
                continue
            d = (own[metric] - base[metric]).dropna()
            unknown = len(d) < len(own)
            resolution = 0.0
            if metric == "critical_rate":
                unknown |= bool((own["beyond"] != "").any() or (base["beyond"] != "").any())
                widths = pd.concat([own["high"] - own["low"], base["high"] - base["low"]])
                resolution = float(widths.mean())  # half the width of each
            found[variant] = paired(list(d), MARGINS[metric], confidence, resolution, unknown)
        adjusted = holm([1.0 if one.p is None else one.p for one in found.values()])
        for (variant, one), p in zip(found.items(), adjusted, strict=True):
            rows.append(
                dict(zip(GROUP, key, strict=True))
                | {
                    "variant": variant,
                    "n": one.interval.n,
                    "mean": one.interval.mean,
                    "half_width": one.interval.half_width,
                    "p": one.p,
                    "p_holm": p,
                    "verdict": verdict(one, p, confidence),
                }
            )
    return pd.DataFrame(rows)


def compare_times(tries: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Log-rank test of the time to instability at the common rates, against the reference.

    One row per corpus, model, condition and variant: `statistic` (above 0: unstable earlier and
    more often), p, p_holm.
    """
    rows: list[dict[str, Any]] = []
    common = tries[tries["common"]]
    for key, group in common.groupby(list(GROUP), observed=True, sort=True):

        def series(variant: str, group: pd.DataFrame = group) -> tuple[Any, Any]:
            own = group[group["variant"] == variant]
            grid = own.pivot(index="seed", columns="factor", values="unstable_step")
            end = own.pivot(index="seed", columns="factor", values="steps")
            failed = grid.notna().to_numpy()
            return grid.astype("Float64").fillna(end).to_numpy(dtype=np.float64), failed

        variants = [v for v in group["variant"].unique() if v != reference]
        if reference not in set(group["variant"]):
            continue
        base = series(reference)
        found = {}
        for variant in variants:
            own = series(variant)
            time, failed = (np.stack([one, other]) for one, other in zip(own, base, strict=True))
            found[variant] = paired_logrank(time, failed)
        adjusted = holm([p for _, p in found.values()])
        for (variant, (statistic, p)), p_holm in zip(found.items(), adjusted, strict=True):
            rows.append(
                dict(zip(GROUP, key, strict=True))
                | {"variant": variant, "statistic": statistic, "p": p, "p_holm": p_holm}
            )
    return pd.DataFrame(rows)
