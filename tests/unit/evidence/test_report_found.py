"""What was found, in words: each sentence is there if its numbers are, and says them."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builder import build_results, make_study

from mhclite.evidence.findings import Finding, claims_of, evaluate
from mhclite.evidence.report_found import found, short
from mhclite.evidence.report_limits import limits
from mhclite.evidence.report_matrix import MARKS, matrix
from mhclite.evidence.report_scale import (
    PAPER_BATCH,
    PAPER_CLIP,
    PAPER_CONTEXT,
    PAPER_MODELS,
    PAPER_PRECISION,
    PAPER_STEPS,
    PAPER_VOCABULARY,
    PAPER_WARMUP,
    settings,
)
from mhclite.evidence.results import Results, load_results

CONFIG = Path(__file__).parents[3] / "config"
FAIR = {
    "fair": {
        "title": "final norm after the sum",
        "variants": ["identity", "mhc_lite"],
        "models": ["d2"],
        "connections": {"final_norm": "after_sum"},
    },
    "aged": {
        "title": "mixing learns 3 times as fast",
        "variants": ["mhc"],
        "models": ["d2"],
        "seeds": [0, 2, 4],
        "connections": {"mixing_rate_factor": 3},
    },
}
Change = Callable[[dict[str, Any]], Any]


def wobble(row: dict[str, Any]) -> float:
    """A little that differs by seed, -1 to 1 with mean 0, and in another way by variant."""
    return (int(row["seed"]) - 2) / 2


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(seeds=(0, 1, 2, 3, 4), conditions=FAIR)
    return load_results(build_results(tmp_path_factory.mktemp("found"), study, diverged=()))


@pytest.fixture(scope="module")
def findings(bare: Results) -> list[Finding]:
    return evaluate(bare, claims_of(bare))


def changed(results: Results, bigram: float = 4.5, **columns: Change) -> Results:
    """The study with columns made from each row."""
    runs = results.all_runs.copy()
    for name, value in columns.items():
        runs[name] = [value(row) for row in runs.to_dict("records")]
    study = dict(results.study)
    manifest = study["corpora"]["sotu"]["manifest"]
    baselines = {"unigram": 5.25, "bigram": bigram}
    study["corpora"] = {"sotu": {"manifest": {**manifest, "baselines": baselines}}}
    base = runs[runs["condition"] == "base"].reset_index(drop=True)
    return replace(results, study=study, all_runs=runs, runs=base)


def said(results: Results, findings: Sequence[Finding] = ()) -> dict[str, str]:
    """Title -> text of what was found."""
    points = found(results, findings, "sotu")
    assert len(dict(points)) == len(points)
    return dict(points)


def unsaid(results: Results, findings: Sequence[Finding] = ()) -> dict[str, str]:
    """Title -> text of what cannot be said."""
    points = limits(results, findings, "sotu")
    assert len(dict(points)) == len(points)
    return dict(points)


# What a comparison of losses asks for, beside the losses: few parameters, matrices that have moved.
ASKED: dict[str, Change] = {"parameters": lambda _: 1000, "start_distance": lambda _: 0.5}


def loss(**lead: float) -> Change:
    """Losses at a distance from 3.5 by variant, with a spread of the differences of 0.001."""

    def of(row: dict[str, Any]) -> float:
        own = 0.001 * wobble(row) * (row["variant"] not in ("residual", "identity"))
        own += 0.0005 * (row["seed"] % 2) * (row["variant"] == "identity")
        after = 0.15 if row["condition"] == "fair" else 0.0
        return 3.5 + lead.get(row["variant"], 0.0) + own + after

    return of


def test_losses_are_below_above_or_within_chance(bare: Results) -> None:
    lead = {"identity": -0.1, "hc": 0.2, "mhc": 0.0, "mhc_lite": -0.15}
    results = changed(bare, **ASKED, validation_loss=loss(**lead))
    # sd 0.00079 over five seeds: half-width 2.776 x 0.00079 / sqrt(5) = 0.001
    text = said(results)["Loss"]
    assert text.startswith("At 4 layers, with the final norm per stream, compared with the plain")
    assert "(corrected for 6 comparisons), the loss is lower by 0.100 to 0.150 nats in " in text
    assert "Identity HC and mHC-lite, higher by 0.200 nats in HC and indistinguishable in " in text
    assert "mHC, KromHC and JPmHC (all intervals within 0.001 nats of 0)" in text
    # Of the condition: at the only size that has it, and of the variants that have it.
    text = said(results)["Fairer norm"]
    assert text.startswith("With one final norm, after the sum (2 layers), compared with ")
    assert "higher by 0.050 nats in Identity HC and indistinguishable in mHC-lite" in text
    assert "the sum of 4 normed streams, and one in the plain residual." in text


LEADING = {"identity": -0.1, "hc": -0.2, "mhc_lite": -0.15}


@pytest.mark.parametrize(
    ("bigram", "columns", "reason"),
    [
        (4.5, {}, ""),
        (3.0, {}, "below the bigram model's"),
        (4.5, {"parameters": lambda _: 10**9}, "too few tokens"),
        (4.5, {"start_distance": lambda _: 0.01}, ""),  # it is used
        (4.5, {"knockout_identity": lambda _: 0.0001}, ""),  # it has moved
        (4.5, {"start_distance": lambda _: 0.01, "knockout_identity": lambda _: 0.0001}, "moved"),
        (4.5, {"start_distance": lambda _: 0.01, "knockout_identity": lambda _: math.nan}, "moved"),
    ],
)
def test_nothing_is_lower_where_a_verdict_would_not_be_given(
    bare: Results, bigram: float, columns: dict[str, Change], reason: str
) -> None:
    """Mixing against no mixing; every requirement that is missed takes the verb away."""
    asked = {**ASKED, **columns, "validation_loss": loss(**LEADING)}
    text = said(changed(bare, bigram, **asked))["Mixing"]
    assert ("lower in HC" in text) == (not reason)
    assert ("no verdict" in text) == bool(reason)
    assert reason in text


def test_two_seeds_say_nothing_is_lower(tmp_path: Path) -> None:
    study = make_study(seeds=(0, 4), models={"d2": 2}, variants=("residual", "identity", "hc"))
    results = load_results(build_results(tmp_path, study, diverged=()))
    points = said(changed(results, **ASKED, validation_loss=loss(identity=-0.1, hc=-0.9)))
    for title in ("Loss", "Mixing"):
        assert "lower" not in points[title]
        assert "no verdict" not in points[title] or "2 seeds" in points[title]


def test_what_a_mean_hides_is_said(bare: Results) -> None:
    """One sign in all seeds; one run far off, with the rest."""

    def of(row: dict[str, Any]) -> float:
        seed, variant = int(row["seed"]), row["variant"]
        small = 0.001 * seed if variant == "identity" else 0.0
        same = -0.01 * (seed + 1) ** 2 if variant == "kromhc" else 0.0
        far = 5.0 if (variant, seed) == ("jpmhc", 3) else 0.1 if variant == "jpmhc" else 0.0
        return 3.5 + small + same + far

    text = said(changed(bare, **ASKED, validation_loss=of))["Mixing"]
    assert "It is lower in every seed of KromHC." in text
    assert "JPmHC is higher in 5 of 5 seeds; without seed 3, which ends far" in text
    assert "it differs by 0.098 ± " in text
    assert "lower in KromHC" not in text


def test_a_lead_that_another_rate_would_give_is_not_the_norms(
    bare: Results, tmp_path: Path
) -> None:
    twice = {"title": "twice the rate", "variants": ["residual"], "learning_rate_factor": 2}
    fair = {**FAIR["fair"], "variants": ["identity", "mhc_lite"], "models": ["d2", "d4"]}
    study = make_study(seeds=(0, 1, 2), conditions={"fair": fair, "twice": twice})
    results = load_results(build_results(tmp_path, study, diverged=()))
    for gain, expected in ((0.2, True), (0.0, False)):
        losses = {"twice": -gain, "fair": -0.2}

        def of(row: dict[str, Any], losses: dict[str, float] = losses) -> float:
            own = 0.001 * int(row["seed"]) * (row["variant"] == "residual")
            return 3.5 + own + losses.get(str(row["condition"]), 0.0)

        text = said(changed(results, **ASKED, validation_loss=of))["Fairer norm"]
        assert ("cannot be told from the rate" in text) == expected
        assert ("twice the rate" in text) == expected


def test_no_sentence_without_its_numbers(bare: Results) -> None:
    nothing = changed(
        bare,
        **dict.fromkeys(
            ("gain_forward_peak", "product_deviation_99", "knockout_identity"), lambda _: math.nan
        ),
    )
    needed = {"Growth", "Sinkhorn-Knopp", "Use of mixing"}
    assert not {*needed, "Diverged"} & said(nothing).keys()
    assert needed <= said(bare).keys()


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        (0.001, "mHC-lite and mHC differ by less than 0.005 nats: 0.0010 ± 0.0000 nats."),
        (0.02, "mHC-lite minus mHC is 0.0200 ± 0.0000 nats."),
        (-0.02, "mHC-lite minus mHC is -0.0200 ± 0.0000 nats."),
    ],
)
def test_mhc_lite_against_mhc(bare: Results, apart: float, expected: str) -> None:
    results = changed(bare, validation_loss=loss(mhc_lite=apart))
    # At 2 layers the same: said as well, since no interval there includes 0 either.
    text = said(results)["Loss"]
    assert expected.rstrip(".") in text
    assert f"; it is {apart:.4f} ± 0.0000 at 2 layers." in text


def test_a_wide_interval_is_said_to_include_zero(bare: Results) -> None:
    def of(row: dict[str, Any]) -> float:
        return 3.5 + (0.05 * wobble(row) if row["variant"] == "mhc_lite" else 0.0)

    text = said(changed(bare, validation_loss=of))["Loss"]
    assert ". mHC-lite minus mHC is 0.0000 ± 0.0491 nats, an interval that includes 0." in text


def test_gain_product_and_use_are_numbers_of_the_deepest_model(bare: Results) -> None:
    by_variant = {"hc": 50.0, "mhc": 1.2, "mhc_lite": 1.0}
    results = changed(
        bare,
        gain_forward_peak=lambda row: (
            by_variant.get(row["variant"], 1.0)
            * (1.1 ** wobble(row) if row["variant"] == "hc" else 1)
            * (1 if row["model"] == "d4" else 1000)
        ),
        product_deviation_99=lambda row: {"mhc": 0.4}.get(row["variant"], 3e-7),
        knockout_identity=lambda row: (
            {"hc": 0.5, "mhc": 0.01}.get(row["variant"], 0.0005) + 0.001 * wobble(row)
        ),
        knockout_identity_error=lambda _: 0.0,
    )
    points = said(results)
    low, high = (50 * 1.1 ** (end * 2.776445 * np.sqrt(0.625 / 5)) for end in (-1, 1))
    growth = points["Growth"]
    assert growth.startswith("Over 8 sub-layers the composite gain is, at its largest in training,")
    assert (
        f" 50.0 [{low:.1f}, {high:.1f}] in HC, 1.20 in mHC and 1.00 in mHC-lite, KromHC and JPmHC "
        in growth
    )
    assert "At the end it is 8.16 in HC." in growth  # 1.3 ** 8, less than at its peak
    assert points["Sinkhorn-Knopp"] == (
        "After 20 iterations the row sums of mHC's product over all sub-layers are off by 0.400, "
        "those of mHC-lite's by 3.0e-07 in the worst run (99 % quantile over tokens and rows)."
    )
    # An interval with 0 is no rise.
    assert points["Use of mixing"].startswith(
        "Where H_res is set to I in models trained at 4 layers, the loss rises by 0.5000 ± 0.0010 "
        "in HC and 0.0100 ± 0.0010 in mHC; the change is indistinguishable from 0 in mHC-lite, "
        "KromHC and JPmHC "
    )


@pytest.mark.parametrize(("error", "told"), [(0.0001, True), (0.01, False)])
def test_a_cost_is_told_over_windows_of_text_as_well(
    bare: Results, error: float, told: bool
) -> None:
    costs = {"knockout_identity": lambda row: 0.01 + 0.0001 * wobble(row)}
    results = changed(bare, **costs, knockout_identity_error=lambda _: error)
    text = said(results)["Use of mixing"]
    assert ("rises by" in text) == told
    assert ("indistinguishable from 0" in text) != told


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.6, 0.5, 0.4, 0.3], "All streams shrink in JPmHC (that product's largest"),
        ([100.0, 0.001, 0.0, 0.0], "In JPmHC that product is of rank one"),
        ([1.0, 1.0, 1.0, 1.0], "In JPmHC all its singular values are 1"),
        ([1.1, 1.0, 0.9, 0.4], ""),
    ],
)
def test_what_a_gain_hides_is_said(bare: Results, values: list[float], expected: str) -> None:
    probes = dict(bare.probes)
    for run, probe in probes.items():
        if "-jpmhc-" in run and probe.mixing is not None:
            geometry = replace(probe.mixing.geometry, singular_values=[values] * 8)
            probes[run] = replace(probe, mixing=replace(probe.mixing, geometry=geometry))
    text = said(replace(bare, probes=probes))["Growth"]
    assert expected in text
    assert bool(expected) == ("JPmHC" in text.partition("tokens).")[2])


def test_inputs_and_gaps_where_mixing_learns_faster(bare: Results) -> None:
    results = changed(
        bare,
        sinkhorn_share_above_30=lambda row: 0.2 + 0.1 * wobble(row),
        single_deviation_99=lambda row: 0.5 if row["condition"] == "aged" else 0.01,
        product_deviation_99=lambda row: 0.9 if row["condition"] == "aged" else 0.01,
    )
    assert said(results)["Faster mixing"].startswith(
        "With mixing 3 times as fast (2 layers, 3 seeds), 20 % of mHC's "
        "Sinkhorn-Knopp inputs (10 to 30 % by seed) have log(1/ν) above 30, and row sums are off "
        "by 0.500 in single matrices and 0.900 in the product. With mixing as fast as the rest and "
        "3 times (2 layers), the loss minus Identity HC's is "
    )


def test_diverged_runs_are_counted(bare: Results) -> None:
    results = changed(
        bare,
        status=lambda row: (
            "diverged" if row["variant"] == "hc" and row["seed"] == 1 else row["status"]
        ),
    )
    assert said(results)["Diverged"] == (
        "1 of 5 runs of HC (2 layers) and 1 of 5 runs of HC (4 layers)."
    )
    failed = {("mhc_lite", 0), ("mhc_lite", 3), ("identity", 1)}
    results = changed(
        bare,
        status=lambda row: (
            "diverged"
            if row["condition"] == "fair" and (row["variant"], row["seed"]) in failed
            else row["status"]
        ),
    )
    assert said(results)["Diverged"] == (
        "1 of 5 runs of Identity HC (2 layers, final norm after the sum) and 2 of 5 runs of "
        "mHC-lite (2 layers, final norm after the sum)."
    )


@pytest.mark.parametrize(
    ("bigram", "start"),
    [
        (9.0, ""),
        (3.45, "At 4 layers Residual (3.500), HC (3.500)"),
        (
            2.0,
            "At 4 layers no loss is below the 2.000 nats of a model that only counts pairs",
        ),
    ],
)
def test_losses_beside_the_bigram_model(bare: Results, bigram: float, start: str) -> None:
    results = changed(
        bare, bigram, validation_loss=loss(**dict.fromkeys(("identity", "mhc", "mhc_lite"), -0.1))
    )
    text = unsaid(results).get("Little learned", "")
    assert text.startswith(start)
    assert bool(text) == bool(start)


def test_verdicts_are_counted_and_decided_ones_named(
    bare: Results, findings: list[Finding]
) -> None:
    first = [one for one in findings if one.claim.family == "confirmatory"]
    words = said(bare, findings)["The paper's claims"]
    assert words.startswith(f"Of the paper's {len(first)} main claims ")
    for verdict in ("supported", "contradicted", "practically equal"):
        members = [one for one in first if one.verdict == verdict]
        text = words.partition(f" {verdict.capitalize()}")[2]
        assert bool(text) == bool(members), verdict
        for one in members:
            assert short(one.claim.statement) in text
    counts = Counter(one.verdict for one in findings)
    text = unsaid(bare, findings)["Verdicts"]
    assert text.startswith(f"Of {len(findings)} claims: ")
    for verdict, count in counts.items():
        assert f"{count} {verdict}" in text
    assert ("Not reached: the study falls short" in text) == bool(counts["not reached"])
    assert ("Not tested: the study lacks" in text) == bool(counts["not tested"])


def test_claims_of_growth_are_said_where_they_are_decided(
    bare: Results, findings: list[Finding]
) -> None:
    trends = [one for one in findings if one.claim.kind == "trend" and one.verdict != "not tested"]
    assert trends
    undecided = [replace(one, verdict="inconclusive") for one in trends]
    assert "Over depth" not in said(bare, undecided)
    one = replace(trends[0], verdict="supported")
    text = said(bare, [one, *undecided[1:]])["Over depth"]
    assert text.startswith(f"{short(one.claim.statement)}: supported. At 2 and 4 layers it is ")
    assert "from 2 to 4 layers it changes by " in text


def test_the_step_of_mhc_lite_beside_that_of_mhc(bare: Results, findings: list[Finding]) -> None:
    one = next(one for one in findings if one.claim.id == "lite_faster_than_mhc")
    assert one.row.comparison is not None
    interval = one.row.comparison.interval
    assert interval.mean is not None
    text = said(bare, [one])["Speed"]
    assert text.startswith(
        f"Computed as the authors do, a training step of mHC-lite takes "
        f"{math.exp(interval.mean):.2f} times"
    )
    assert text.endswith("times as long as one of mHC (4 layers).")


def test_what_mixing_itself_buys(bare: Results) -> None:
    lead = {"identity": -0.1, "hc": -0.3, "mhc": -0.1, "mhc_lite": 0.0, "kromhc": -0.1}
    results = changed(bare, **ASKED, validation_loss=loss(**lead, jpmhc=-0.2))
    text = said(results)["Mixing"]
    assert text.startswith("Compared with Identity HC, whose streams never mix (corrected for 5 ")
    assert "the loss is lower in HC (-0.200 ± 0.001) and JPmHC (-0.100 ± 0.001), higher in " in text
    assert "mHC-lite (0.100 ± 0.001) and indistinguishable in mHC and KromHC" in text
    assert text.endswith("HC and JPmHC also read and write the streams in another way.")


def test_what_else_changes_with_depth(bare: Results) -> None:
    assert "Depth" not in unsaid(bare)  # the same rate at both
    study = copy.deepcopy(bare.study)
    study["study"]["models"]["d4"]["learning_rate"] /= 2
    text = unsaid(replace(bare, study=study))["Depth"]
    assert text.startswith("From 2 to 4 layers the peak")
    assert "goes from 0.001 to 0.0005, and each sees 61,440 tokens" in text


def test_what_another_rate_does(bare: Results, tmp_path: Path) -> None:
    assert "Learning rate" not in unsaid(bare)
    rates = {
        "half": {
            "title": "half the learning rate",
            "variants": ["residual", "mhc"],
            "models": ["d2"],
            "seeds": [0],
            "learning_rate_factor": 0.5,
        },
        "other": {  # changes something else too
            "title": "another batch",
            "variants": ["mhc"],
            "learning_rate_factor": 2,
            "training": {"batch_size": 8},
        },
    }
    study = make_study(conditions=rates, variants=("residual", "mhc"), seeds=(0, 1))
    results = changed(
        load_results(build_results(tmp_path, study, diverged=())),
        validation_loss=lambda row: (
            3.5 + {"half": 0.1, "other": 9}.get(row["condition"], 0) * (row["variant"] == "mhc")
        ),
    )
    assert unsaid(results)["Learning rate"] == (
        "It is the same for all variants. What another adds to the loss: "
        "half the learning rate (2 layers, 1 seed) 0.000 in Residual and 0.100 in mHC."
    )


@pytest.mark.parametrize("others", [0.95, 2.0])
def test_shares_of_clipped_steps(bare: Results, others: float) -> None:
    """Clipped at 1: no step of the residual, all of the others or none."""
    curves = bare.curves.copy()
    curves["grad_norm"] = np.where(curves["variant"] == "residual", 0.5, others)
    text = unsaid(replace(bare, curves=curves)).get("Clipping", "")
    assert bool(text) == (others > 1)
    if text:
        assert "in 0 % of the plain residual's steps and in 100 % of the others': all their" in text


def test_gradients_clipped_now_and_then_are_not_said_to_have_one_norm(bare: Results) -> None:
    curves = bare.curves.copy()
    often = (curves["variant"] != "residual") & (curves["step"] % 2 == 0)
    curves["grad_norm"] = np.where(often, 2.0, 0.5)
    text = unsaid(replace(bare, curves=curves))["Clipping"]
    assert text.endswith("of the others'.")


def test_a_seed_that_ends_far_from_all_others_is_named(bare: Results) -> None:
    assert "One seed far off" not in unsaid(bare)

    def of(row: dict[str, Any]) -> float:
        far = 0.7 if (row["variant"], row["seed"]) == ("jpmhc", 3) else 0.0
        return 3.6 + 0.01 * wobble(row) + far

    assert unsaid(changed(bare, validation_loss=of))["One seed far off"] == (
        "At 4 layers one run of JPmHC ends at 4.305, its others at 3.590 to 3.610: mean and "
        "interval say little of the rest."
    )


def test_decided_claims_with_a_lowered_bar_are_named(
    bare: Results, findings: list[Finding]
) -> None:
    low = [f for f in findings if f.claim.requires.start_distance == 0.02]
    assert low
    assert len(low) < len(findings)
    undecided = [replace(f, verdict="inconclusive") for f in findings]
    assert "A lower bar" not in unsaid(bare, undecided)
    one = [replace(low[0], verdict="supported"), *undecided]
    text = unsaid(bare, one)["A lower bar"]
    assert text.startswith("1 verdict is given where H_res moved by 0.02 or more")
    assert "study" not in text  # how the bar came about is no result of this study


def test_cost_is_that_of_the_deepest_model(bare: Results) -> None:
    timed = bare.throughput["d4"].variants
    ratios = {variant: one.ratio_quartiles.median for variant, one in timed.items()}
    low, *_, high = sorted(ratio for variant, ratio in ratios.items() if variant != "residual")
    assert said(bare)["Cost"] == (
        f"At 4 layers a training step takes {low:.2f} to {high:.2f} times as long as the plain "
        f"residual's: {ratios['mhc']:.2f} in mHC and {ratios['mhc_lite']:.2f} in mHC-lite."
    )


def test_one_seed_tells_nothing_from_chance(tmp_path: Path) -> None:
    study = make_study(seeds=(0,), models={"d2": 2}, variants=("residual", "mhc", "mhc_lite"))
    results = load_results(build_results(tmp_path, study, diverged=()))
    assert not {"Loss", "Mixing"} & said(results).keys()
    assert unsaid(results)["One seed"].startswith("No difference between variants")


def test_statement_without_its_brackets() -> None:
    assert short("A is lower (by 1) than B (x)") == "A is lower than B"


# --- claims against models ----------------------------------------------------------------------


def test_matrix_has_every_claim_once_and_its_verdict(
    bare: Results, findings: list[Finding]
) -> None:
    found = matrix(bare, findings)
    rows = [row for group in found.groups for row in group.rows]
    folded = [(claim, "not tested") for group in found.groups for claim, _ in group.untested]
    assert folded
    assert sorted([(r.statement, r.overall.word) for r in rows] + folded) == sorted(
        (f.claim.statement, f.verdict) for f in findings
    )
    assert found.models == ["4 layers", "2 layers"]  # the one that decides comes first
    assert all(len(row.cells) == 2 for row in rows)
    assert found.groups[0].title == "The paper's main claims"


def test_a_model_has_no_verdict_but_its_own_mark(bare: Results) -> None:
    results = changed(bare, 9.0, validation_loss=loss(identity=-0.1), parameters=lambda _: 1000)
    claims = [one for one in claims_of(results) if one.id == "streams_help"]
    found = matrix(results, evaluate(results, claims))
    rows = {row.statement: row for group in found.groups for row in group.rows}
    row = next(
        row for said, row in rows.items() if said.startswith("Streams") and "per stream" in said
    )
    assert row.overall == MARKS["supported"]
    assert [cell.mark.word for cell in row.cells] == ["for", "for"]
    assert row.cells[0].effect == "-0.0998 ± 0.0003 nats/token"
    assert ("Claim", "streams_help") in row.details


def test_marks_are_told_apart_without_colour() -> None:
    assert len({mark.symbol for mark in MARKS.values()}) == len(MARKS)
    assert all(mark.word == verdict for verdict, mark in MARKS.items())


# --- this size and the paper's -------------------------------------------------------------------


def test_the_papers_settings_are_those_of_its_study() -> None:
    paper = yaml.safe_load((CONFIG / "paper.yaml").read_text(encoding="utf-8"))
    sizes = [
        (model["n_layer"], model["n_embd"], model["learning_rate"])
        for model in paper["models"].values()
    ]
    assert sizes == [values[1:] for values in PAPER_MODELS.values()]
    training = paper["training"]
    assert (training["steps"], training["warmup_steps"]) == (PAPER_STEPS, PAPER_WARMUP)
    assert (training["batch_size"], training["precision"]) == (PAPER_BATCH, PAPER_PRECISION)
    assert training["grad_clip"] == PAPER_CLIP
    assert {model["block_size"] for model in paper["models"].values()} == {PAPER_CONTEXT}
    assert paper["tokenizer"]["vocab_size"] == PAPER_VOCABULARY
    for parameters, layers, width, _ in PAPER_MODELS.values():
        tables = (PAPER_VOCABULARY + PAPER_CONTEXT) * width
        assert parameters == tables + layers * (12 * width**2 + 2 * width) + width


def test_settings_are_computed_from_the_study(bare: Results) -> None:
    rows = {row.name: row for row in settings(changed(bare, parameters=lambda _: 1000))}
    assert rows["Tokens per parameter"].here == "61"  # 60 steps of 16 x 64 tokens
    assert rows["Tokens per parameter"].paper == "3.7 to 29"
    assert rows["Share of warm-up"].here == "16.7 %"
    assert rows["Share of warm-up"].paper == "2 %"
    assert (rows["Layers"].here, rows["Layers"].paper) == ("2, 4", "6, 12, 24")
    assert "smaller here than at the paper's 24" in rows["Layers"].meaning
    assert rows["Peak learning rate"].here == "0.001"
    assert rows["Parameters"].paper == "45.2 million to 355 million"
