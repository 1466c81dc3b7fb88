"""Paired differences of final losses with their verdicts, as a figure."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.claims import Claim
from mhclite.evidence.findings import Finding, findings_of
from mhclite.evidence.results import Results
from mhclite.evidence.style import FAINT, INK, empty_figure, grid, seeds_and_interval, title_of
from mhclite.evidence.values import condition_of
from mhclite.study.sections import BASE

ROW = 0.24  # inches per claim


LABEL = 48  # characters of a line
DECIDED = ("supported", "contradicted", "practically equal")


def loss_findings(results: Results) -> list[Finding]:
    """The findings that compare final losses."""
    return [
        finding
        for finding in findings_of(results)
        if finding.claim.kind == "difference"
        and finding.claim.metric == "validation_loss"
        and finding.row.comparison is not None
    ]


def label_of(results: Results, claim: Claim) -> str:
    """Who is compared with whom, e.g. `HC (final norm after the sum) - Residual`."""

    def arm(variant: str, setting: Mapping[str, Any]) -> str:
        name = condition_of(results, variant, setting)
        if name == BASE:
            return results.label(variant)
        said = ", ".join(f"{key}: {value}" for key, value in setting.items())
        if name is not None:
            said = title_of(results, name)
        return results.label(variant) + (f" ({said})" if said else "")

    own = arm(claim.variant, claim.setting)
    other = arm(str(claim.reference), claim.reference_setting)
    return f"{own} - {other}" + (f" (margin {claim.margin:g})" if claim.margin else "")


@exhibits.figure(
    "forest",
    title="Paired differences of final losses, with verdicts",
    caption=(
        "Each row is a claim that compares final validation losses: the first variant's minus "
        "the second's of the same seed. Marker and bar: mean with its {level} % Student t "
        "interval over up to {seeds}; faint points: each seed; dotted: the margin of a claim of no "
        "worse. The verdicts stand beside the "
        "model that decides, the deepest of which it can be asked; panels have scales of "
        "their own. Filled markers and black verdicts: decided, "
        "after correction over all claims; hollow and grey: not. Source: runs.csv."
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
    labels = [label_of(results, claim) for claim in claims]
    panels = results.panels()
    height = 0.8 + ROW * len(claims)
    figure, axes = grid(1, len(panels), height, sharey=True)
    for panel, (corpus, model) in zip(axes[0], panels, strict=True):
        panel.axvline(0, color=FAINT, linewidth=0.8)
        for finding in findings:
            if finding.corpus != corpus:
                continue
            at = next(at for at, row in enumerate(finding.rows) if row.model == model)
            row, claim = finding.rows[at], finding.claim
            if row.comparison is None or row.values is None:
                continue
            y = place[claim.id]
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
        panel.grid(visible=False, axis="y")
        panel.set(title=results.panel_title(corpus, model), xlabel="nats/token")
    axes[0][0].set_yticks(range(len(claims)), [textwrap.fill(label, LABEL) for label in labels])
    axes[0][0].tick_params(axis="y", length=0)
    axes[0][0].set_ylim(len(claims) - 0.4, -0.6)
    return figure
