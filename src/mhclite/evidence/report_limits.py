"""What a study cannot say, in words made from its results.

Each function gives a point where the numbers carry one. The deepest model speaks, as it does for
the claims.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import get_args

from mhclite.evidence.findings import Finding
from mhclite.evidence.report_methods import Entry, counted, listed, tokens_per_run
from mhclite.evidence.results import Results
from mhclite.evidence.statistics import BASELINE, far_off
from mhclite.evidence.table_format import plus_minus
from mhclite.evidence.values import deepest_first, loss_difference, values_by_seed
from mhclite.evidence.verdicts import Verdict

NEARLY_ALL = 0.9  # of the steps
NOTEWORTHY = 0.1  # by so much of all steps the others are clipped more often


def limits(results: Results, findings: Sequence[Finding], corpus: str) -> list[Entry]:
    """What cannot be said of one corpus, or only with something else in mind: point and text.

    Args:
        results: a study.
        findings: its claims on this corpus.
        corpus: its name.
    """
    return [
        *_verdicts(findings),
        *_lowered_bar(findings),
        *_bigram(results, corpus),
        *_one_run(results, corpus),
        *_depth_and_rate(results),
        *_other_rates(results, corpus),
        *_clipping(results, corpus),
        *_one_seed(results),
    ]


def _verdicts(findings: Sequence[Finding]) -> Iterator[Entry]:
    """How many claims have which verdict, and of what the study falls short most often."""
    if not findings:
        return
    counts = Counter(finding.verdict for finding in findings)
    shares = listed([f"{counts[one]} {one}" for one in get_args(Verdict) if counts[one]])
    said = f"Of {counted(len(findings), 'claim')}: {shares}."
    if counts["not tested"]:
        said += " Not tested: the study lacks a variant, a setting or a measurement."
    reasons = [finding.row.unmet for finding in findings if finding.verdict == "not reached"]
    if reasons:
        kinds = Counter(kind for unmet in reasons for kind in {_kind(reason) for reason in unmet})
        kind, count = kinds.most_common(1)[0]
        example = next(reason for unmet in reasons for reason in unmet if _kind(reason) == kind)
        said += (
            " Not reached: the study falls short of what the claim needs, so its numbers are no "
            f"answer. What falls short most often (in {count} of {len(reasons)}), for example: "
            f"{example}.{_bigram_alone(reasons)}"
        )
    yield "Verdicts", said


def _bigram_alone(reasons: Sequence[Sequence[str]]) -> str:
    """How many claims fall short of the bigram model and of nothing else, and by how much."""
    alone = [
        float(match[1]) - float(match[2])
        for unmet in reasons
        if len(unmet) == 1
        and (match := re.match(r"loss ([\d.]+) .* bigram model's ([\d.]+)\)", unmet[0]))
    ]
    if not alone:
        return ""
    ends = dict.fromkeys(f"{end:.3f}" for end in (min(alone), max(alone)))
    return f" In {len(alone)} it is the bigram model's loss alone, by {' to '.join(ends)} nats."


def _kind(reason: str) -> str:
    """A requirement without its number and variant: what fell short."""
    return re.sub(r"of [\w-]+ |[\w-]+'s ", "", re.split(r" \d| was not measured", reason)[0])


def _lowered_bar(findings: Sequence[Finding]) -> Iterator[Entry]:
    """Verdicts of claims that ask for less movement of H_res than others do."""
    bars = {f.claim.id: f.claim.requires.start_distance for f in findings}
    highest = max((bar for bar in bars.values() if bar is not None), default=0.0)
    lower = [
        (finding, bar)
        for finding in findings
        if (bar := bars[finding.claim.id]) is not None and bar < highest
    ]
    decided = [bar for finding, bar in lower if finding.verdict in ("supported", "contradicted")]
    if decided:
        yield (
            "A lower bar",
            f"{counted(len(decided), 'verdict')} {_are(len(decided))} given where H_res moved by "
            f"{min(decided):g} or more from its start, not by {highest:g} as for other claims.",
        )


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _one_run(results: Results, corpus: str) -> Iterator[Entry]:
    """Variants of which one seed ends far from all others, so that mean and interval are its."""
    model = deepest_first(results)[0]
    parts = []
    for variant in results.variants:
        found = values_by_seed(results, corpus, model, variant, "validation_loss")
        if (far := far_off(found)) is not None:
            others = sorted(loss for seed, loss in found.items() if seed != far)
            parts.append(
                f"one run of {results.label(variant)} ends at {found[far]:.3f}, its others at "
                f"{others[0]:.3f} to {others[-1]:.3f}"
            )
    if parts:
        yield (
            "One seed far off",
            f"At {results.model_label(model)} {listed(parts)}: mean and interval say little of "
            "the rest.",
        )


def _bigram(results: Results, corpus: str) -> Iterator[Entry]:
    """Variants that have not learned as much as a table of bigrams."""
    model = deepest_first(results)[0]
    bigram = results.counting_models[corpus]["bigram"]
    losses = {
        variant: sum(found.values()) / len(found)
        for variant in results.variants
        if (found := values_by_seed(results, corpus, model, variant, "validation_loss"))
    }
    above = [variant for variant, loss in losses.items() if not loss < bigram]
    counting = f"the {bigram:.3f} nats of a model that only counts pairs of tokens"
    if not above:
        return
    place = results.model_label(model)
    if len(above) == len(losses):
        yield (
            "Little learned",
            f"At {place} no loss is below {counting} (the lowest: {min(losses.values()):.3f}): "
            "which variant learns better cannot be said.",
        )
        return
    each = listed([f"{results.label(v)} ({losses[v]:.3f})" for v in above])
    verb = _are(len(above))
    yield "Little learned", f"At {place} {each} {verb} not below {counting}."


def _depth_and_rate(results: Results) -> Iterator[Entry]:
    """What changes with depth besides depth."""
    models = sorted(results.models, key=results.n_layer)
    rates = [results.settings["models"][model]["learning_rate"] for model in models]
    tokens = {tokens_per_run(results, model) for model in models}
    if rates[0] == rates[-1]:
        return
    same = f", and each sees {tokens.pop():,} tokens" if len(tokens) == 1 else ""
    yield (
        "Depth",
        f"From {results.n_layer(models[0])} to {results.model_label(models[-1])} the peak learning "
        f"rate goes from {rates[0]:g} to {rates[-1]:g}{same}: what is said of depth is said of "
        "these together.",
    )


def _other_rates(results: Results, corpus: str) -> Iterator[Entry]:
    """What another learning rate does to each variant: the study's is best for some at most."""
    parts = []
    for name, about in results.settings["conditions"].items():
        if about["learning_rate_factor"] == 1 or about["connections"] or about["training"]:
            continue
        for model in deepest_first(results):
            changes, seeds = [], 0
            for variant in about["variants"]:
                d = loss_difference(results, corpus, model, variant, variant, name)
                if d.mean is not None:
                    size = plus_minus(d.mean, d.half_width, 3)
                    changes.append(f"{size} in {results.label(variant)}")
                    seeds = max(seeds, d.n)
            if changes:
                place = f"{results.model_label(model)}, {counted(seeds, 'seed')}"
                parts.append(f"{about['title']} ({place}) {listed(changes)}")
                break
    if parts:
        yield (
            "Learning rate",
            f"It is the same for all variants. What another adds to the loss: {'; '.join(parts)}.",
        )


def _clipping(results: Results, corpus: str) -> Iterator[Entry]:
    """Shares of steps whose gradient is clipped, where the residual's is another."""
    largest, model = results.settings["training"]["grad_clip"], deepest_first(results)[0]
    curves = results.curves
    curves = curves[(curves["corpus"] == corpus) & (curves["model"] == model)]
    norms = curves.dropna(subset=["grad_norm"])
    clipped = (norms["grad_norm"] > largest).groupby(norms["variant"]).mean()
    if not largest or BASELINE not in clipped or len(clipped) < 2:
        return
    own = float(clipped.pop(BASELINE))
    low, high = float(clipped.min()), float(clipped.max())
    if low - own < NOTEWORTHY:
        return
    least, most = f"{100 * low:.0f}", f"{100 * high:.0f}"
    others = least if least == most else f"{least} to {most}"
    said = (
        f"At {results.model_label(model)} gradients are clipped in {100 * own:.0f} % of the plain "
        f"residual's steps and in {others} % of the others'"
    )
    if low >= NEARLY_ALL:
        steps = "all" if least == "100" else "nearly all"
        said += f": {steps} their steps are of one gradient norm, which hides spikes as well"
    yield "Clipping", f"{said}."


def _one_seed(results: Results) -> Iterator[Entry]:
    if len(results.seeds) == 1:
        yield "One seed", "No difference between variants can be told from chance."
