"""What a study says of each claim, and the papers' own figures beside ours."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.findings import Finding, claims_of, evaluate, metric_by_seed
from mhclite.evidence.results import Results
from mhclite.evidence.style import FAINT, INK, empty_figure, grid, seeds_and_interval
from mhclite.evidence.table_format import (
    NONE,
    Rows,
    fixed,
    missing,
    percent_of,
    significant,
    sparse,
)

UNITS = {
    "validation_loss": "nats/token",
    "sinkhorn_share_above_30": "share",
    "gain_growth": "log gain",
}


HOW = {
    "verbatim": "read in the paper",
    "second-hand": "quoted by a reader of the paper",
    "figure": "read off a figure by a reader",
    "code": "counted from the authors' code",
}


def claims_data(results: Results) -> pd.DataFrame:
    """One row per claim, corpus and model size.

    `effect_*` is variant minus reference (or minus the threshold) in the metric's own unit, for
    throughput the logarithm of the ratio of step times; the test is against `margin` on the side
    that `direction` names.
    """
    rows: list[dict[str, Any]] = []
    for finding in evaluate(results, claims_of(results)):
        claim, comparison = finding.claim, finding.comparison
        row: dict[str, Any] = {
            "claim": claim.id,
            "statement": claim.statement,
            "corpus": finding.corpus,
            "model": finding.model,
            "verdict": finding.verdict,
            "reason": finding.reason,
            "kind": claim.kind,
            "metric": claim.metric,
            "variant": claim.variant,
            "reference": claim.reference,
            "threshold": claim.threshold,
            "direction": claim.direction,
            "margin": claim.margin,
            "n": 0,
            "effect": None,
            "half_width": None,
            "p": None,
            "p_flip": None,
            "flip_floor": None,
            "p_holm": finding.p_holm,
            "tokens_percent": finding.tokens_percent,
            "seeds_needed": finding.seeds_needed,
            "numbers": finding.numbers,
        }
        if comparison is not None:
            interval = comparison.interval
            row |= {
                "n": interval.n,
                "effect": None if interval.mean is None else finding.sign * interval.mean,
                "half_width": interval.half_width,
                "p": comparison.p,
                "p_flip": comparison.p_flip,
                "flip_floor": comparison.flip_floor,
            }
        rows.append(row)
    numbers = ("threshold", "effect", "half_width", "p", "p_flip", "flip_floor", "p_holm")
    types = dict.fromkeys((*numbers, "margin", "tokens_percent"), "float64")
    return pd.DataFrame(rows).astype({**types, "n": "Int64", "seeds_needed": "Int64"})


def effect_text(row: dict[Any, Any]) -> str:
    """The effect with its interval and unit."""
    if row["numbers"]:
        return str(row["numbers"])
    if missing(row["effect"]):
        return NONE
    if row["kind"] == "throughput":
        low, high = row["effect"] - row["half_width"], row["effect"] + row["half_width"]
        ratio = f"{math.exp(row['effect']):.3f}"
        return f"{ratio} × its step time [{math.exp(low):.3f}, {math.exp(high):.3f}]"
    if row["kind"] == "bound":  # the value itself says more than its distance to the threshold
        return _with_interval(row["effect"] + row["threshold"], row["half_width"], row["metric"])
    return _with_interval(row["effect"], row["half_width"], row["metric"])


def _with_interval(value: float, half_width: float, metric: str) -> str:
    unit = UNITS.get(metric, "")
    scale = max(abs(value), 0 if missing(half_width) else half_width)
    if 1e-3 <= scale < 1e4:
        text = fixed(value, 4)
        text += "" if missing(half_width) else f" ± {fixed(half_width, 4)}"
    else:
        text = significant(value, 2)
        text += "" if missing(half_width) else f" ± {significant(half_width, 2)}"
    return f"{text} {unit}".rstrip()


def _p(value: Any) -> str:
    return NONE if missing(value) else ("< 0.0001" if value < 1e-4 else f"{value:.4f}")


@exhibits.table(
    "claims",
    title="What this study says of each claim",
    caption=(
        "Verdict for every claim of config/claims.yaml over {seeds}: supported, contradicted or"
        " inconclusive, with effect, {level} % Student t interval, Holm-corrected and sign-flip"
        " p values. Source: runs.csv, the files in probes/ and throughput/."
    ),
    heading="claims",
    row_head="Claim",
)
def claims_table(results: Results) -> Rows:
    """The verdicts for readers."""
    data = claims_data(results)
    rows = []
    for row in data.to_dict("records"):
        needed = row["seeds_needed"]
        open_question = row["verdict"] == "inconclusive"
        rows.append(
            {
                "Claim": row["statement"],
                "Corpus": row["corpus"],
                "Model": row["model"],
                "Verdict": row["verdict"] + (f": {row['reason']}" if row["reason"] else ""),
                "Effect": effect_text(row),
                "n": str(row["n"]) if row["n"] else NONE,
                "p, Holm": _p(row["p_holm"]),
                "p, sign flip": _p(row["p_flip"]),
                "Tokens (%)": fixed(round(row["tokens_percent"], 1) + 0.0, 1),  # no minus zero
                "Seeds to decide": (
                    NONE if not open_question else "> 10,000" if missing(needed) else f"{needed:,}"
                ),
            }
        )
    display = pd.DataFrame(rows)
    level = percent_of(results.confidence)
    return Rows(
        notes=(
            f"Effect: variant minus reference, paired by seed, mean ± half-width of the {level} "
            "Student t interval over n seeds; for a bound the value itself; for throughput the "
            "ratio of step times over n timed rounds. A claim is supported if the t test against "
            "its margin (0 unless it says otherwise) rejects on its side, contradicted if on the "
            "other, else inconclusive. p values are two-sided and corrected by Holm's method over "
            f"all tests of this table, so that the chance of even one wrong verdict is at most "
            f"{percent_of(1 - results.confidence)}; the intervals are not corrected. The sign-flip "
            "p value is exact and assumes no normality, but cannot fall below 2 / 2^n. Tokens: "
            "training tokens that the variant needs beyond its reference for the same loss. Seeds "
            "to decide: with 80 % power at the mean and spread observed, and at the level that the "
            "correction asks of the smallest p value. "
            "Counts of parameters need no test. config/claims.yaml says where each claim is made."
        ),
        data=data,
        display=sparse(display, ["Claim"]),
        numeric=tuple(display.columns[4:]),
        bold=frozenset(
            (at, "Verdict")
            for at, row in enumerate(data.to_dict("records"))
            if row["verdict"] in ("supported", "contradicted")
        ),
    )


def paper_data(findings: list[Finding], data: pd.DataFrame) -> pd.DataFrame:
    """The rows of `claims_data` whose claim has a figure of the paper, with that figure."""
    rows = []
    for finding, row in zip(findings, data.to_dict("records"), strict=True):
        if finding.claim.paper is not None:
            rows.append(
                {
                    "claim": finding.claim.id,
                    "statement": finding.claim.statement,
                    "paper": finding.claim.paper.value,
                    "source": finding.claim.source,
                    "how": finding.claim.paper.how,
                    "corpus": finding.corpus,
                    "model": finding.model,
                    "ours": effect_text(row),
                    "verdict": finding.verdict,
                }
            )
    columns = ["claim", "statement", "paper", "source", "how", "corpus", "model", "ours", "verdict"]
    return pd.DataFrame(rows, columns=columns)


@exhibits.table(
    "paper",
    title="The papers' own figures beside ours",
    caption=(
        "Figures that the papers are known to give, with how they are known, and what this "
        "study measures for the same quantity over {seeds}. Source: config/claims.yaml and "
        "runs.csv."
    ),
    heading="claims",
    row_head="Quantity",
)
def paper_table(results: Results) -> Rows:
    """The papers' own figures beside ours, where they are known."""
    data = paper_data(evaluate(results, claims_of(results)), claims_data(results))
    display = pd.DataFrame(
        {
            "Quantity": data["statement"],
            "In the paper": data["paper"],
            "Source": data["source"],
            "Known from": [HOW[how] for how in data["how"]],
            "Corpus": data["corpus"],
            "Model": data["model"],
            "Here": data["ours"],
        }
    )
    return Rows(
        notes=(
            "Their models are hundreds to hundred thousands of times as large as those of a study "
            "on a laptop, and were trained on other text: the figures show the size of an effect "
            "there, not what ought to be found here. Here: variant minus reference, or the value "
            "itself, as in the table of claims. Figures that could not be read in the paper itself "
            "say so."
        ),
        data=data,
        display=sparse(display, ["Quantity", "In the paper", "Source", "Known from"]),
        numeric=("Here",),
    )


ROW = 0.27  # inches per claim


LABEL = 44  # characters of a line


def loss_findings(results: Results) -> list[Finding]:
    """The findings that compare final losses."""
    return [
        finding
        for finding in evaluate(results, claims_of(results))
        if finding.claim.kind == "difference"
        and finding.claim.metric == "validation_loss"
        and finding.comparison is not None
    ]


@exhibits.figure(
    "forest",
    title="Paired differences of final losses, with verdicts",
    caption=(
        "Each row is a claim that compares final validation losses: the first variant's minus "
        "the second's of the same seed. Marker and bar: mean with its {level} % Student t "
        "interval over {seeds}; faint points: each seed; dotted: the margin of a claim of no "
        "worse. Filled markers and black verdicts: decided, after Holm's correction over all "
        "claims; hollow and grey: inconclusive. Source: runs.csv."
    ),
    alt=(
        "Rows of points with horizontal error bars around a line at zero, a panel for each depth."
    ),
    heading="claims",
)
def forest(results: Results) -> Figure:
    """One row per claim, one panel per corpus and model; colour of the variant, its verdict."""
    findings = loss_findings(results)
    if not findings:
        return empty_figure("No claim compares the final losses of variants in this study.")
    claims = list({finding.claim.id: finding.claim for finding in findings}.values())
    place = {claim.id: at for at, claim in enumerate(claims)}
    panels = results.panels()
    height = 0.8 + ROW * len(claims)
    figure, axes = grid(1, len(panels), height, sharey=True)
    for panel, (corpus, model) in zip(axes[0], panels, strict=True):
        panel.axvline(0, color=FAINT, linewidth=0.8)
        for finding in findings:
            if (finding.corpus, finding.model) != (corpus, model):
                continue
            claim, comparison = finding.claim, finding.comparison
            assert comparison is not None
            assert claim.reference is not None
            y = place[claim.id]
            own, other = (
                metric_by_seed(results, corpus, model, name, "validation_loss")
                for name in (claim.variant, claim.reference)
            )
            values = [own[seed] - other[seed] for seed in own.keys() & other.keys()]
            if claim.margin:
                panel.plot([finding.sign * claim.margin] * 2, [y - 0.35, y + 0.35], ":", color=INK)
            assert comparison.interval.mean is not None
            decided = finding.verdict in ("supported", "contradicted")
            mean, half_width = comparison.interval.mean, comparison.interval.half_width
            seeds_and_interval(
                panel, claim.variant, y, values, finding.sign * mean, half_width, filled=decided
            )
            panel.annotate(
                finding.verdict,
                (1.0, y),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=6,
                color=INK if decided else "#666666",
            )
        low, high = panel.get_xlim()
        panel.set_xlim(low, high + 0.32 * (high - low))  # room for the verdicts
        panel.grid(visible=False, axis="y")
        panel.set(title=results.panel_title(corpus, model), xlabel="difference (nats/token)")
    labels = [
        f"{results.label(claim.variant)} - {results.label(str(claim.reference))}"
        + (f" (margin {claim.margin:g})" if claim.margin else "")
        for claim in claims
    ]
    axes[0][0].set_yticks(range(len(claims)), [textwrap.fill(label, LABEL) for label in labels])
    axes[0][0].tick_params(axis="y", length=0)
    axes[0][0].set_ylim(len(claims) - 0.4, -0.6)
    return figure
