"""What a study says of each claim, and the papers' own figures beside ours."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from mhclite.evidence import exhibits
from mhclite.evidence.claims import Claim
from mhclite.evidence.findings import Finding, claims_of, findings_of
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.results import Results
from mhclite.evidence.rows import Row
from mhclite.evidence.table_format import (
    NONE,
    Rows,
    fixed,
    missing,
    percent_of,
    significant,
    sparse,
)

HOW = {
    "verbatim": "read in the paper",
    "second-hand": "quoted by a reader of the paper",
    "figure": "read off a figure by a reader",
    "code": "counted from the authors' code",
}
NUMBERS = (
    *("threshold", "effect", "half_width", "p", "p_flip", "flip_floor", "p_corrected"),
    *("p_equal", "p_equal_corrected", "other_documents_low", "other_documents_high"),
    *("tokens_percent", "tokens_percent_low", "tokens_percent_high", "detectable", "margin"),
)


def claims_data(results: Results) -> pd.DataFrame:
    """One row per claim, corpus and model size; `decides` marks the one with the verdict.

    `effect` is variant minus reference (or minus the threshold), `half_width` that of its interval:
    in the metric's own unit, or natural logarithms where `log`; of a trend, per layer. The test is
    against `margin` on the side that `direction` names. `p_corrected`, verdict and reason stand
    where the row decides. `other_documents_*`: interval over seeds and text. `detectable`: the
    effect that is found with 80 % power, in the unit of `effect`.
    """
    rows = [row for finding in findings_of(results) for row in claim_rows(finding)]
    return pd.DataFrame(rows).astype({**dict.fromkeys(NUMBERS, "float64"), "n": "Int64"})


def claim_rows(finding: Finding) -> list[dict[str, Any]]:
    """Rows of `claims_data` of one claim: that with the verdict first, other sizes below."""
    claim = finding.claim
    rows: list[dict[str, Any]] = []
    for at in sorted(range(len(finding.rows)), key=lambda at: (at != finding.decides, -at)):
        one, decides = finding.rows[at], at == finding.decides
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
                    "detectable": finding.detectable if decides else None,
                }
            )
    return rows


def _measured(claim: Claim, row: Row) -> dict[str, Any]:
    found: dict[str, Any] = dict.fromkeys(NUMBERS[1:-1]) | {"n": 0, "numbers": row.numbers}
    del found["detectable"]
    if row.comparison is not None:
        interval = row.comparison.interval
        found |= {
            "n": interval.n,
            "effect": None if interval.mean is None else claim.sign * interval.mean,
            "half_width": interval.half_width,
            "p": row.comparison.p,
            "p_flip": row.comparison.p_flip,
            "flip_floor": row.comparison.flip_floor,
            "p_equal": row.comparison.p_equal,
        }
    if row.crossed is not None:
        low, high = sorted(claim.sign * end for end in row.crossed)
        found |= {"other_documents_low": low, "other_documents_high": high}
    if row.tokens is not None:
        for name, end in zip(
            ("", "_low", "_high"), (row.tokens.mean, row.tokens.low, row.tokens.high), strict=True
        ):
            found[f"tokens_percent{name}"] = None if end is None else 100 * math.expm1(end)
    return found


def effect_text(row: dict[Any, Any]) -> str:
    """The effect with its interval and unit."""
    if missing(row["effect"]):
        return row["numbers"] or NONE
    said = _effect(row)
    return f"{said}; {row['numbers']}" if row["numbers"] else said


def _effect(row: dict[Any, Any]) -> str:
    effect, half_width = row["effect"], row["half_width"]
    unit = "" if row["kind"] == "throughput" else METRICS[row["metric"]].unit
    if row["log"]:
        # A bound shows the value itself, which says more than its distance to the threshold.
        scale = row["threshold"] if row["kind"] == "bound" else 1
        half = 0.0 if missing(half_width) else half_width
        low, middle, high = (
            significant(scale * math.exp(value), 3)
            for value in (effect - half, effect, effect + half)
        )
        ends = "" if missing(half_width) else f" [{low}, {high}]"
        times = {"throughput": "× its step time", "difference": "×", "trend": "× a layer"}
        return " ".join(filter(None, [f"{middle}{ends}", times.get(row["kind"], "")]))
    value = effect + row["threshold"] if row["kind"] == "bound" else effect
    unit += " a layer" if row["kind"] == "trend" else ""
    return _with_interval(value, half_width, unit)


def _with_interval(value: float, half_width: float, unit: str) -> str:
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
        "Verdict for every claim of config/claims.yaml over {seeds}, with effect, {level} % "
        "Student t interval, corrected and sign-flip p values; below a verdict the model sizes "
        "that do not decide it. Source: runs.csv, the files in probes/ and throughput/."
    ),
    heading="claims",
    row_head="Model",  # below the claim and its verdict, which head a group
)
def claims_table(results: Results) -> Rows:
    """The verdicts for readers."""
    data = claims_data(results)
    rows = []
    said = ""
    for row in data.to_dict("records"):
        if row["decides"]:  # the first of its claim
            said = ": ".join(filter(None, [row["verdict"], row["reason"]]))
        at = row["threshold"] if row["kind"] == "bound" else 0.0
        rows.append(
            {
                "Claim": row["statement"] + " (confirmatory)" * (row["family"] == "confirmatory"),
                "Corpus": row["corpus"],
                "Verdict": said,
                "Model": row["model"],
                "Effect": effect_text(row),
                "Other text": _ends(
                    row["other_documents_low"] + at, row["other_documents_high"] + at, 4
                ),
                "n": str(row["n"]) if row["n"] else NONE,
                "p": _p(row["p_corrected"]),
                "p, equal": _p(row["p_equal_corrected"]),
                "p, sign flip": _p(row["p_flip"]),
                "Tokens (%)": _tokens(row),
                "Detectable": _detectable(row),
            }
        )
    display = pd.DataFrame(rows)
    return Rows(
        notes=_notes(percent_of(results.confidence), percent_of(1 - results.confidence)),
        data=data,
        display=sparse(display, ["Claim", "Corpus", "Verdict"]),
        numeric=tuple(display.columns[4:]),
        bold=frozenset(
            (at, "Verdict")
            for at, row in enumerate(data.to_dict("records"))
            if row["verdict"] in ("supported", "contradicted", "practically equal")
        ),
    )


def _ends(low: Any, high: Any, decimals: int) -> str:
    return NONE if missing(low) else f"[{fixed(low, decimals)}, {fixed(high, decimals)}]"


def _tokens(row: dict[Any, Any]) -> str:
    if missing(row["tokens_percent"]):
        return NONE
    ends = _ends(row["tokens_percent_low"], row["tokens_percent_high"], 1)
    return f"{fixed(row['tokens_percent'], 1)}{'' if ends == NONE else f' {ends}'}"


def _detectable(row: dict[Any, Any]) -> str:
    if missing(row["detectable"]):
        return NONE
    found = row["detectable"]
    return f"factor {significant(math.exp(found), 3)}" if row["log"] else significant(found, 2)


def _notes(level: str, error: str) -> str:
    return (
        f"Effect: variant minus reference, paired by seed, or its factor (×), with the {level} "
        "Student t interval over n seeds; for a bound the value itself; for throughput over n "
        "timed rounds; for a trend per layer. The deepest model at which the claim's requirements "
        "are met decides, or all of them in a trend. Supported: the t test against the margin (0 "
        "unless the claim says otherwise) rejects on its side; contradicted: on the other; "
        "practically equal: two one-sided tests put the effect below the smallest one of "
        f"interest (p, equal; {METRICS['validation_loss'].equal:g} nats for losses); "
        "inconclusive: none of these; not reached: "
        "the study lacks what the claim requires, and the number says how far. By construction "
        "and counted need no test. A run that diverged is the worst outcome: it has the unigram"
        " model's loss, and of other metrics the last rank. p values are corrected over the "
        "confirmatory family and the secondary one behind it together, with p = 1 for what is not "
        "reached, so that the chance of "
        f"even one wrong supported or contradicted is at most {error}, of even one wrong "
        f"practically equal at most {error}; intervals are not corrected. Other text: "
        "interval over seeds and validation documents, or windows for H_res = I; a verdict that "
        "it does not share is not given. The sign-flip p value is exact and cannot fall below "
        "2 / 2^n. Tokens: training tokens that the variant needs beyond its reference's for the "
        "same loss. Detectable: the effect found with 80 % power at the spread observed and the "
        "level that the correction asks of the smallest p value. docs/evidence.md explains the "
        "verdicts, config/claims.yaml says where each claim is made."
    )


def paper_data(results: Results) -> pd.DataFrame:
    """The deciding rows of `claims_data` whose claim has a paper's figure, with that figure."""
    claims = {claim.id: claim for claim in claims_of(results)}
    rows = []
    for row in claims_data(results).to_dict("records"):
        claim = claims[row["claim"]]
        if claim.paper is not None and row["decides"]:
            rows.append(
                {
                    "claim": claim.id,
                    "statement": claim.statement,
                    "paper": claim.paper.value,
                    "source": claim.source,
                    "how": claim.paper.how,
                    "corpus": row["corpus"],
                    "model": row["model"],
                    "ours": effect_text(row),
                    "verdict": row["verdict"],
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
    data = paper_data(results)
    display = pd.DataFrame(
        {
            "Quantity": data["statement"],
            "In the paper": data["paper"],
            "Source": [
                f"{source}, {HOW[how]}"
                for source, how in zip(data["source"], data["how"], strict=True)
            ],
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
        display=sparse(display, ["Quantity", "In the paper", "Source"]),
        numeric=("Here",),
    )
