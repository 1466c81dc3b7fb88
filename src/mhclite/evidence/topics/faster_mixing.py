"""What H_res comes to where it alone learns faster."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import geometric_interval, interval_columns, knockout_interval
from mhclite.evidence.table_format import (
    NEARLY_EXACT,
    NONE,
    Rows,
    fixed,
    missing,
    percent_of,
    row_sums,
    scaled_plus_minus,
    significant,
    sparse,
)
from mhclite.evidence.values import conditions_that_change, keeps_sums
from mhclite.study.sections import BASE

SETTING = "mixing_rate_factor"
SUMS = ("single_max_deviation", "product_max_deviation")
FACTORS = (*SUMS, "gain_forward_peak", "start_distance")


def faster_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, factor (1: the study's own setting) and variant.

    Over completed runs: `share_*` of Sinkhorn-Knopp's inputs with log(1/nu) above 30, mean, least
    and most; the largest log(1/nu); geometric means of `FACTORS` with their intervals; what the
    loss rises by with every H_res = I, with its interval.
    """
    about = results.settings["conditions"]
    factors = {
        name: float(about[name]["connections"][SETTING])
        for name in conditions_that_change(results, SETTING)
    }
    ordered = sorted(factors.items(), key=lambda item: item[1])
    by = ["corpus", "model", "condition", "variant"]
    runs_of = dict(iter(results.all_runs.groupby(by, observed=True, sort=False)))
    touched = {cell[1::2] for cell in runs_of if cell[2] in factors}
    rows = []
    for corpus in results.corpora:
        for model in results.models:
            for name, factor in [(BASE, 1.0), *ordered]:
                for variant in results.variants:
                    runs = runs_of.get((corpus, model, name, variant))
                    if runs is not None and (model, variant) in touched:
                        place = {"corpus": corpus, "model": model, "factor": factor}
                        rows.append(place | {"variant": variant} | _measured(results, runs))
    return pd.DataFrame(rows)


def _measured(results: Results, runs: pd.DataFrame) -> dict[str, Any]:
    """What the runs of one row come to."""
    done = runs[runs["status"] == "completed"]
    probed = [results.probes[run].mixing for run in done["run"] if run in results.probes]
    inputs = [one.sinkhorn_input.max for one in probed if one and one.sinkhorn_input]
    share = done["sinkhorn_share_above_30"].dropna()
    found: dict[str, Any] = {
        "n": len(runs),
        "n_diverged": len(runs) - len(done),
        **{f"share_{name}": getattr(share, name)() for name in ("mean", "min", "max")},
        "largest_log_inverse_nu": max(inputs, default=math.nan),
    }

    for name in FACTORS:
        ends = geometric_interval(done.loc[done[name] > 0, name], results.confidence)
        found |= {f"{name}_{end}": value for end, value in ends.items()}
    costs, errors = (
        list(done[column].dropna()) for column in ("knockout_identity", "knockout_identity_error")
    )
    lost = interval_columns(knockout_interval(costs, errors, results.confidence))
    return found | {f"knockout_identity_{key}": value for key, value in lost.items()}


@exhibits.table(
    "faster_mixing",
    title="Where the mixing learns faster",
    caption=(
        "What H_res comes to where what makes it learns several times as fast as the rest, beside "
        "the study's own runs, over up to {seeds}. Source: runs.csv and probes/."
    ),
    heading="mixing",
    needs="faster_mixing",
)
def faster_mixing_table(results: Results) -> Rows:
    """Inputs of Sinkhorn-Knopp, sums, gain and use by how fast the mixing learns."""
    data = faster_data(results)

    def share(row: dict[Any, Any]) -> str:
        if missing(row["share_mean"]):
            return NONE
        mean, least, most = (
            fixed(100 * row[f"share_{name}"], 1) for name in ("mean", "min", "max")
        )
        return f"{mean} ({least} to {most})"

    def factor(row: dict[Any, Any], name: str) -> str:
        if name in SUMS and not keeps_sums(row["variant"]):
            return NONE
        return row_sums(*(row[f"{name}_{end}"] for end in ("mean", "low", "high")))

    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Mixing learns": (
                "as fast as the rest" if row["factor"] == 1 else f"{row['factor']:g} times as fast"
            ),
            "Variant": results.label(row["variant"]),
            "Diverged runs": f"{row['n_diverged']} of {row['n']}",
            "log(1/ν) > 30 (%)": share(row),
            "Largest log(1/ν)": significant(row["largest_log_inverse_nu"]),
            "Sums off, single": factor(row, "single_max_deviation"),
            "Sums off, product": factor(row, "product_max_deviation"),
            "Largest gain": factor(row, "gain_forward_peak"),
            "Distance": factor(row, "start_distance"),
            "Lost, H_res = I": scaled_plus_minus(
                row["knockout_identity_mean"], row["knockout_identity_half_width"]
            ),
        }
        for row in data.to_dict("records")
    )
    return Rows(
        notes=(
            "Over the completed runs. log(1/ν) > 30: mean over seeds and, in brackets, least and "
            "most, of the share of Sinkhorn-Knopp's inputs whose smallest entry ν is so far below "
            "the largest; beside it the largest of all seeds. Sums off: largest "
            "deviation of a row or column sum of H_res from 1 over held-out tokens, in single "
            "sub-layers and in their product over depth, of variants whose sums are meant to be 1. "
            "Largest gain: of the product, over training. Distance: from the start, Frobenius "
            "norm, mean over sub-layers. All four are geometric means "
            f"with the {percent_of(results.confidence)} Student t interval of the logarithm, which "
            f"is left out below {NEARLY_EXACT:g}. Lost: nats per "
            f"token ± half-width over seeds and windows of text. {NONE}: does not apply, or no run "
            "completed."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Mixing learns"]),
        numeric=tuple(display.columns[4:]),
    )
