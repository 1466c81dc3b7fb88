"""What a study says of each claim: the main ones, and all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.findings import Finding, findings_of, main_findings
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import DECIDED, Interval
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Table,
    missing,
    places,
    rounded,
    rows_of,
    with_interval,
)

NUMBERS = (
    *("threshold", "margin", "effect", "half_width", "p", "p_corrected"),
    *("p_equal", "p_equal_corrected", "windows_low", "windows_high"),
)
FIELDS = ("kind", "metric", "log", "variant", "reference", "threshold", "direction", "margin")


def claims_data(results: Results) -> pd.DataFrame:
    """One row per claim, corpus and model size; `decides` marks the one with the verdict.

    `effect` is variant minus reference (or minus the threshold), `half_width` that of its interval:
    in the metric's own unit, or natural logarithms where `log`; of a trend, per layer. The test is
    against `margin` on the side that `direction` names. `p_corrected`, verdict and reason stand
    where the row decides. `windows_*`: interval over seeds and windows of text.
    """
    rows = [row for finding in findings_of(results) for row in claim_rows(finding)]
    return pd.DataFrame(rows).astype({**dict.fromkeys(NUMBERS, "float64"), "n": "Int64"})


def claim_rows(finding: Finding) -> list[Record]:
    """Rows of `claims_data` of one claim: that with the verdict first, other sizes below."""
    rows: list[Record] = []
    for at in sorted(range(len(finding.rows)), key=lambda at: (at != finding.decides, -at)):
        one, claim, decides = finding.rows[at], finding.claim, at == finding.decides
        if not decides and one.missing:
            continue
        interval = one.comparison.interval if one.comparison else Interval(0)
        low, high = sorted(claim.sign * end for end in one.windows or (math.nan, math.nan))
        rows.append(
            {
                "claim": claim.id,
                "statement": claim.statement,
                "family": claim.family,
                "corpus": finding.corpus,
                "model": one.model,
                "decides": decides,
                "verdict": finding.verdict if decides else "",
                "reason": finding.reason if decides else one.short,
                **{name: getattr(claim, name) for name in FIELDS},
                "numbers": one.numbers,
                "windows_low": low,
                "windows_high": high,
                "n": interval.n,
                "effect": None if interval.mean is None else claim.sign * interval.mean,
                "half_width": interval.half_width,
                "p": getattr(one.comparison, "p", None),
                "p_equal": getattr(one.comparison, "p_equal", None),
                "p_corrected": finding.p if decides else None,
                "p_equal_corrected": finding.p_equal if decides else None,
                "paper": claim.paper and claim.paper.value,
            }
        )
    return rows


def effect_text(row: Record) -> str:
    """The effect with its interval and unit, and what was counted."""
    effect = NONE if missing(row["effect"]) else _effect(row)
    said = [text for text in (effect, row["numbers"]) if text not in ("", NONE)]
    return "; ".join(said) or NONE


def _effect(row: Record) -> str:
    effect, half = row["effect"], row["half_width"]
    bound, trend = row["kind"] == "bound", row["kind"] == "trend"
    if row["log"]:
        # A bound shows the value itself, which says more than its distance to the threshold.
        scale = row["threshold"] if bound else 1
        ends = (math.nan,) * 2 if missing(half) else (effect - half, effect + half)
        mean, low, high = (scale * math.exp(value) for value in (effect, *ends))
        text = with_interval(mean, low, high, exact=0)
        times = {"throughput": "× its step time", "difference": "×", "trend": "× a layer"}
        return f"{text} {times.get(row['kind'], '')}".rstrip()
    value = effect + row["threshold"] if bound else effect
    text = rounded(value, half)
    return f"{text} {METRICS[row['metric']].unit}{' a layer' * trend}".rstrip()


def _p(value: Any) -> str:
    return NONE if missing(value) else ("< 0.0001" if value < 1e-4 else f"{value:.4f}")


def _shown(
    results: Results, rows: pd.DataFrame, effect: Callable[[Record], str], more: list[Col]
) -> Table:
    """Claims with their verdicts and effects, and further columns before the paper's figure."""
    return rows_of(
        rows,
        [
            Col("Claim", lambda row: row["statement"]),
            *places(results)[:-1],
            Col("Verdict", lambda row: ": ".join(filter(None, [row["verdict"], row["reason"]]))),
        ],
        [
            Col("Effect", effect),
            *more,
            Col("In the paper", lambda row: NONE if missing(row["paper"]) else row["paper"]),
        ],
        "Effect: variant minus reference, or its factor (×), with its "
        "95 % interval; of a bound the value itself. Verdicts and p "
        "values are corrected over all claims, intervals are not.",
        lambda row: ["Verdict"] * (row["verdict"] in DECIDED),
    )


@exhibits.table(
    "claims",
    title="Every claim",
    caption="Every claim, with effect and corrected p values, over {seeds}. Source: runs.csv.",
    heading="claims",
    printed="never",
)
def claims_table(results: Results) -> Table:
    """Every claim at every model size, the size that decides first: it alone has a verdict."""
    return _shown(
        results,
        claims_data(results),
        effect_text,
        [
            Col("n", lambda row: str(row["n"]) if row["n"] else NONE),
            Col("p", lambda row: _p(row["p_corrected"])),
            Col("p, equal", lambda row: _p(row["p_equal_corrected"])),
        ],
    )


@exhibits.table(
    "verdicts",
    title="Verdicts",
    caption="The main claims with their verdicts, over {seeds}. Source: runs.csv.",
    heading="claims",
)
def verdicts_table(results: Results) -> Table:
    """The main claims at the size that decides; no numbers where they are no answer."""
    rows = [claim_rows(finding)[0] for finding in main_findings(results)]
    found = _shown(
        results,
        pd.DataFrame(rows, columns=list(rows[0]) if rows else ["statement", "corpus", "model"]),
        lambda row: NONE if row["verdict"] == "not reached" else effect_text(row),
        [],
    )
    return replace(found, numeric=())
