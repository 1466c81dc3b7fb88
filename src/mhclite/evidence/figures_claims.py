"""The forest plot: every paired difference of final losses among the claims."""

from __future__ import annotations

import textwrap

from matplotlib.figure import Figure

from mhclite.evidence.findings import Finding, claims_of, evaluate, metric_by_seed
from mhclite.evidence.results import Results
from mhclite.evidence.style import FAINT, INK, colour, empty_figure, grid, marker

ROW = 0.27  # inches a claim
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


def forest(results: Results, confidence: float) -> Figure:
    """A row a claim, a panel a corpus and model; colour of the variant, verdict beside it."""
    findings = loss_findings(results)
    if not findings:
        return empty_figure("No claim compares the final losses of variants in this study.")
    claims = list({finding.claim.id: finding.claim for finding in findings}.values())
    place = {claim.id: at for at, claim in enumerate(claims)}
    panels = [(corpus, model) for corpus in results.corpora for model in results.models]
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
            panel.plot(
                values,
                [y + 0.24] * len(values),
                "o",
                markersize=2.2,
                markeredgewidth=0,
                color=colour(claim.variant),
                alpha=0.45,
            )
            if claim.margin:
                panel.plot([finding.sign * claim.margin] * 2, [y - 0.35, y + 0.35], ":", color=INK)
            assert comparison.interval.mean is not None
            decided = finding.verdict in ("supported", "contradicted")
            panel.errorbar(
                finding.sign * comparison.interval.mean,
                y - 0.06,
                xerr=comparison.interval.half_width,
                marker=marker(claim.variant),
                markersize=5,
                color=colour(claim.variant),
                markerfacecolor=colour(claim.variant) if decided else "white",
                elinewidth=1.1,
                capsize=2,
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
        panel.set(title=f"{corpus}, {results.model_label(model)}", xlabel="difference (nats/token)")
    labels = [
        f"{results.label(claim.variant)} - {results.label(str(claim.reference))}"
        + (f" (margin {claim.margin:g})" if claim.margin else "")
        for claim in claims
    ]
    axes[0][0].set_yticks(range(len(claims)), [textwrap.fill(label, LABEL) for label in labels])
    axes[0][0].tick_params(axis="y", length=0)
    axes[0][0].set_ylim(len(claims) - 0.4, -0.6)
    return figure
