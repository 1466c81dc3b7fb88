"""What a study says of each claim: by numbers, by model size, and as a figure of losses."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.claims import Claim
from mhclite.evidence.findings import Finding, findings_of
from mhclite.evidence.frame import LOSS
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.results import Results
from mhclite.evidence.rows import ALL_MODELS, Row
from mhclite.evidence.style import (
    FAINT,
    INK,
    empty_figure,
    grid,
    rows_of_variants,
    seeds_and_interval,
)
from mhclite.evidence.tables import (
    NONE,
    Col,
    Record,
    Rows,
    fixed,
    missing,
    percent_of,
    rows_of,
    significant,
    with_interval,
)
from mhclite.evidence.verdicts import DECIDED

NUMBERS = (
    *("threshold", "margin", "effect", "half_width", "p", "p_corrected"),
    *("p_equal", "p_equal_corrected", "windows_low", "windows_high"),
)
ROW = 0.24  # inches per claim of the figure


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
        if decides or not one.missing:
            rows.append(
                {
                    "claim": claim.id,
                    "statement": claim.statement,
                    "family": claim.family,
                    "corpus": finding.corpus,
                    "model": one.model,
                    "decides": decides,
                    "verdict": finding.verdict if decides else "",
                    "reason": finding.reason if decides else "; ".join(one.unmet),
                    "kind": claim.kind,
                    "metric": claim.metric,
                    "log": claim.log,
                    "variant": claim.variant,
                    "reference": claim.reference,
                    "threshold": claim.threshold,
                    "direction": claim.direction,
                    "margin": claim.margin,
                    **_measured(claim, one),
                    "p_corrected": finding.p if decides else None,
                    "p_equal_corrected": finding.p_equal if decides else None,
                    "paper": claim.paper.value if claim.paper else None,
                }
            )
    return rows


def _measured(claim: Claim, row: Row) -> Record:
    low, high = sorted(claim.sign * end for end in row.windows or (math.nan, math.nan))
    found: Record = {"numbers": row.numbers, "windows_low": low, "windows_high": high, "n": 0}
    found |= dict.fromkeys(("effect", "half_width", "p", "p_equal"))
    if row.comparison is not None:
        interval = row.comparison.interval
        found |= {
            "n": interval.n,
            "effect": None if interval.mean is None else claim.sign * interval.mean,
            "half_width": interval.half_width,
            "p": row.comparison.p,
            "p_equal": row.comparison.p_equal,
        }
    return found


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
    scale = max(abs(value), 0 if missing(half) else half)
    number = fixed if 1e-3 <= scale < 1e4 else lambda value: significant(value, 2)
    text = number(value) + ("" if missing(half) else f" ± {number(half)}")
    return f"{text} {METRICS[row['metric']].unit}{' a layer' * trend}".rstrip()


def _p(value: Any) -> str:
    return NONE if missing(value) else ("< 0.0001" if value < 1e-4 else f"{value:.4f}")


@exhibits.table(
    "claims",
    title="What this study says of each claim",
    caption="Every claim, with effect and corrected p values, over {seeds}. Source: runs.csv.",
    heading="claims",
)
def claims_table(results: Results) -> Rows:
    """The verdicts for readers."""
    error = percent_of(1 - results.confidence)

    def verdict(row: Record) -> str:
        return ": ".join(filter(None, [row["verdict"], row["reason"]]))

    several = len(results.corpora) > 1
    return rows_of(
        claims_data(results),
        [
            Col("Claim", lambda row: row["statement"]),
            *([Col("Corpus", lambda row: row["corpus"])] if several else []),
            Col("Model", lambda row: row["model"]),
        ],
        [
            Col("Verdict", verdict),
            Col("Effect", effect_text),
            Col("n", lambda row: str(row["n"]) if row["n"] else NONE),
            Col("p", lambda row: _p(row["p_corrected"])),
            Col("p, equal", lambda row: _p(row["p_equal_corrected"])),
            Col("In the paper", lambda row: NONE if missing(row["paper"]) else row["paper"]),
        ],
        "Effect: variant minus reference, paired by seed, or its factor (×), with the "
        f"{percent_of(results.confidence)} Student t interval over n seeds; for a bound the value "
        "itself; for throughput over n timed rounds; for a trend per layer. The deepest model at "
        "which the claim's requirements are met decides, or all of them in a trend. p values are "
        "corrected over the confirmatory family and the secondary one behind it together, with p = "
        "1 for what is not reached, so that the chance of even one wrong supported or contradicted "
        f"is at most {error}, of even one wrong practically equal at most {error}; intervals are "
        "not corrected. The paper's figures are of models hundreds of times as large. "
        "docs/evidence.md explains the verdicts.",
        lambda row: ["Verdict"] * (row["verdict"] in DECIDED),
    )


@exhibits.table(
    "verdicts",
    title="The claims, by model size",
    caption="One verdict for each claim, and its effect at each model size. Source: runs.csv.",
    heading="claims",
)
def verdicts_table(results: Results) -> Rows:
    """Claims against model sizes: the rows of `claims_data`, one line for each claim."""
    models = sorted(results.models, key=results.n_layer, reverse=True)
    headings = {model: results.model_label(model) for model in models}
    rows: list[dict[str, str]] = []
    bold, untested = set(), 0
    for finding in findings_of(results):
        if finding.verdict == "not tested":
            untested += 1
            continue
        effects = {row["model"]: effect_text(row) for row in claim_rows(finding)}
        if finding.row.model in headings:
            bold.add((len(rows), headings[finding.row.model]))
        trend = f": {effects[ALL_MODELS]}" if ALL_MODELS in effects else ""
        rows.append(
            {
                "Claim": finding.claim.statement,
                "Corpus": finding.corpus,
                "Verdict": finding.verdict + trend,
                **{heading: effects.get(model, NONE) for model, heading in headings.items()},
            }
        )
    data = pd.DataFrame(rows, columns=["Claim", "Corpus", "Verdict", *headings.values()])
    return Rows(
        notes=(
            "The verdict is corrected for the number of claims. Effects are those of single model "
            "sizes, as in the table of claims; bold: the size that decides, the others decide "
            f"nothing. {untested} more could not be tested: the study lacks a variant, a setting "
            "or a measurement."
        ),
        data=data,
        display=data if len(results.corpora) > 1 else data.drop(columns="Corpus"),
        bold=frozenset(bold),
    )


# --- figure ---------------------------------------------------------------------------------


@exhibits.figure(
    "forest",
    title="Paired differences of final losses, with verdicts",
    caption=(
        "Each row is a claim that compares final validation losses, by its name in "
        "config/claims.yaml: variant minus reference of the same seed. Marker and bar: mean with "
        "its {level} % Student t interval over up to {seeds}; faint points: each seed; dotted: the "
        "margin of a claim of no worse. The verdicts stand beside the model that decides. Filled "
        "markers and black verdicts: decided, after correction over all claims; hollow and grey: "
        "not. Source: runs.csv."
    ),
    alt="Rows of points with error bars around a line at zero, a panel for each depth.",
    heading="claims",
)
def forest(results: Results) -> Figure:
    """One row per claim, one panel per corpus and model; colour of the variant, its verdict."""
    findings = [
        finding
        for finding in findings_of(results)
        if (finding.claim.kind, finding.claim.metric) == ("difference", LOSS)
        and finding.row.comparison is not None
    ]
    if not findings:
        return empty_figure("No claim compares the final losses of variants in this study.")
    claims = list({finding.claim.id: finding.claim for finding in findings}.values())
    place = {claim.id: at for at, claim in enumerate(claims)}
    panels = results.panels()
    figure, axes = grid(1, len(panels), 0.8 + ROW * len(claims), sharey=True)
    for panel, (corpus, model) in zip(axes[0], panels, strict=True):
        rows_of_variants(panel, list(place))
        panel.axvline(0, color=FAINT, linewidth=0.8)
        for finding in findings:
            at = next(at for at, row in enumerate(finding.rows) if row.model == model)
            row, claim, y = finding.rows[at], finding.claim, place[finding.claim.id]
            if finding.corpus != corpus or row.comparison is None or row.values is None:
                continue
            if claim.margin:
                panel.plot([claim.sign * claim.margin] * 2, [y - 0.35, y + 0.35], ":", color=INK)
            interval = row.comparison.interval
            assert interval.mean is not None  # of losses, which are finite
            decides = at == finding.decides
            decided = decides and finding.verdict in DECIDED
            seeds_and_interval(
                panel,
                claim.variant,
                y,
                list(row.values.values()),
                claim.sign * interval.mean,
                interval.half_width,
                filled=decided,
            )
            if decides:
                panel.annotate(
                    finding.verdict,
                    (1.0, y),
                    xycoords=("axes fraction", "data"),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    annotation_clip=False,
                    fontsize=7,
                    color=INK if decided else "#666666",
                )
        panel.set(title=results.panel_title(corpus, model), xlabel="nats/token")
    return figure
