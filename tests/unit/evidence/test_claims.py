"""Claims: the file, and what a synthetic study says of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from builder import CLAIMS, build_results, final_loss, make_study, with_columns, with_settings

from mhclite.errors import UserError
from mhclite.evidence.claims import load_claims, parse_claims
from mhclite.evidence.collect import tidy
from mhclite.evidence.findings import Finding, claims_of, evaluate
from mhclite.evidence.frame import Cell, claim_values, condition_of
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.statistics import Comparison
from mhclite.evidence.tables import markdown, rounded
from mhclite.evidence.topics.verdicts import (
    claim_rows,
    claims_data,
    claims_table,
    effect_text,
    verdicts_table,
)
from mhclite.study.sections import Condition

SEEDS = (0, 1, 2, 3, 4)
FAIR = {
    "fair": {"title": "final norm after the sum", "variants": ["mhc_lite"], "models": ["d2"],
             "connections": {"final_norm": "after_sum"}}
}  # fmt: skip
# Columns of runs.csv with which all requirements of config/claims.yaml are met.
MEASURED = {"start_distance": 0.5, "knockout_identity": 0.2, "knockout_identity_error": 0.01,
            "bigram": 9.0, "parameters": 1000}  # fmt: skip
GOOD = {"id": "a", "statement": "s", "source": "t", "kind": "difference",
        "metric": "validation_loss", "variant": "mhc", "reference": "hc"}  # fmt: skip


def wobble(seed: int, size: float = 0.001) -> float:
    """A little that differs by seed, and has mean 0 over `SEEDS`."""
    return size * (seed - 2)


def measured(results: Results, columns: Mapping[str, Any] | None = None, **more: Any) -> Results:
    """The study with columns of runs.csv set; the bigram model's loss in the manifests as well."""
    asked = {**MEASURED, **(columns or {}), **more}
    known = {"unigram": 5.25, "bigram": asked["bigram"]}
    corpora = {
        name: {**corpus, "manifest": {**corpus["manifest"], "baselines": known}}
        for name, corpus in results.study["corpora"].items()
    }
    found = with_columns(results, columns, **more)
    return replace(found, study={**found.study, "corpora": corpora})


def judge(results: Results, **claim: Any) -> Finding:
    """The finding on one claim."""
    return evaluate(results, parse_claims([{**GOOD, **claim}], "here"))[0]


def compared(finding: Finding) -> Comparison:
    """The comparison of a claim that has one."""
    assert finding.row.comparison is not None
    return finding.row.comparison


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(models={"d2": 2, "d4": 4}, seeds=SEEDS, conditions=FAIR)
    folder = build_results(tmp_path_factory.mktemp("claims"), study, diverged=())
    return measured(load_results(folder), MEASURED)


@pytest.fixture(scope="module")
def found(results: Results) -> dict[str, Finding]:
    return {finding.claim.id: finding for finding in evaluate(results, claims_of(results))}


# --- the file ---------------------------------------------------------------------------------


def test_the_docs_list_every_claim_with_what_would_make_it_fail() -> None:
    root = CLAIMS.parents[1]
    page = (root / "docs" / "evidence.md").read_text(encoding="utf-8")
    table = page[page.index("| claim | fails if |") :].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    listed = [name.strip("` ") for row in rows for name in row[0].split(", ")]
    assert listed == [claim.id for claim in load_claims(CLAIMS)]
    studies = {path.stem for path in CLAIMS.parent.glob("*.yaml")} - {"claims"}
    for names, fails, where in rows:
        assert fails, names
        known = {word.strip("`") for word in where.split(", ")} - {"none yet"}
        assert known <= studies, names
        for study in known:
            published = root / "results/published" / ("laptop" if study == "config" else study)
            if (published / "claims.csv").is_file():
                asked = pd.read_csv(published / "claims.csv").set_index("claim")["verdict"]
                for name in names.split(", "):
                    assert set(asked[[name]].dropna()) - {"not tested"}, (name, study)


def test_the_file_is_valid_and_every_claim_is_judged(found: dict[str, Finding]) -> None:
    claims = load_claims(CLAIMS)
    assert list(found) == [claim.id for claim in claims]
    first = [claim for claim in claims if claim.family == "confirmatory"]
    assert len(first) == 8
    assert all("mHC-lite, arXiv 2601.05732" in claim.source and claim.scale for claim in first)
    # What the study has no implementation, no search and no condition for is not tested.
    assert "fused" in found["lite_faster_than_mhc_fused"].reason
    assert found["lite_larger_rate_than_hc"].verdict == "not tested"
    assert "no runs of HC with freeze_mixing" in found["mixing_helps_hc"].reason
    fair = found["lite_beats_residual_norm_after_sum"]
    assert (fair.row.model, fair.verdict) == ("d2", "supported")  # the deepest that has it
    assert found["mhc_beats_residual_norm_after_sum"].verdict == "not tested"


# --- by hand ----------------------------------------------------------------------------------


def test_a_difference_is_traced_by_hand(found: dict[str, Finding]) -> None:
    finding = found["lite_beats_residual"]
    own, other = (
        np.array([final_loss("sotu", 4, variant, seed) for seed in SEEDS])
        for variant in ("mhc_lite", "residual")
    )
    assert [row.model for row in finding.rows] == ["d2", "d4"]
    assert (finding.row.model, finding.verdict) == ("d4", "supported")  # the deepest decides
    assert compared(finding).interval.mean == pytest.approx(np.mean(own - other))
    assert (finding.p or 0) > (compared(finding).p or 1)
    worse = found["jpm_beats_mhc"]  # by 0.02 in the builder
    assert worse.verdict == "contradicted"
    assert worse.reason.startswith("at this size; it was claimed at 7M")


def test_bounds_counts_and_rounds(results: Results, found: dict[str, Finding]) -> None:
    exact = found["lite_exact"]
    assert (exact.verdict, exact.reason, exact.p) == ("by construction", "holds", None)
    share = found["sinkhorn_hard_inputs"]  # 7 % in every run of the builder: five seeds are few
    assert share.verdict == "inconclusive"
    assert "above 1 % of inputs in 5 of 5 seeds" in share.row.numbers
    fewer = found["krom_fewer_parameters_than_mhc"]
    assert (fewer.verdict, fewer.reason) == ("counted", "does not hold: 24,000 against 16,000")
    slower = found["lite_faster_than_mhc"]  # later in the list: slower in the builder
    assert compared(slower).interval.mean == pytest.approx(math.log(2.0 / 1.75))
    # Without spread nothing is decided: the builder's rounds all have one ratio.
    assert (slower.verdict, slower.reason) == ("inconclusive", "no spread over seeds")


def test_a_bound_of_logarithms(results: Results) -> None:
    bound = {"kind": "bound", "metric": "gain_forward_peak", "variant": "hc", "reference": None,
             "threshold": 2.0}  # fmt: skip
    gains = measured(results, gain_forward_peak=lambda row: 4 * math.exp(wobble(row["seed"])))
    above = judge(gains, **bound, direction="higher")
    assert compared(above).interval.mean == pytest.approx(-math.log(2))
    assert above.verdict == "supported"
    assert judge(gains, **bound).verdict == "contradicted"
    assert effect_text(claim_rows(judge(gains, **bound))[0]) == "4.00 [3.99, 4.01]"


def test_trends(results: Results) -> None:
    """Slopes over 2 and 4 layers of a metric that doubles, or triples with the reference."""
    slope = {"mhc": math.log(3) / 2, "hc": math.log(2) / 2}
    grown = measured(
        results,
        gain_forward_peak=lambda row: math.exp(
            slope.get(row["variant"], 0) * row["n_layer"] + wobble(row["seed"]) * row["n_layer"]
        ),
    )
    trend = {"kind": "trend", "metric": "gain_forward_peak", "direction": "higher"}
    alone = judge(grown, **trend, reference=None)
    assert alone.row.model == "all"
    assert alone.row.values == pytest.approx({s: slope["mhc"] + wobble(s) for s in SEEDS})
    assert alone.verdict == "supported"
    paired = judge(grown, **trend)
    assert paired.row.values == pytest.approx(dict.fromkeys(SEEDS, slope["mhc"] - slope["hc"]))


def test_a_trend_at_equal_parameters(results: Results) -> None:
    """Four times the layers at half the width; the size that is no match is left out."""
    trend = {"kind": "trend", "metric": "validation_loss", "equal_parameters": True}
    for shallow, layers, verdict in ((128, 2, "not tested"), (128, 1, "inconclusive")):
        sizes = {"d2": {"n_embd": shallow, "n_layer": layers}, "d4": {"n_embd": 64}}
        models = {name: {**m, **sizes[name]} for name, m in results.settings["models"].items()}
        assert judge(with_settings(results, models=models), **trend).verdict == verdict


def test_spikes_are_counted_and_few_decide_nothing(results: Results) -> None:
    count = {"kind": "count", "metric": "loss_spikes", "variant": "mhc", "reference": "hc"}
    few = measured(results, loss_spikes=lambda row: int(row["variant"] == "hc" and not row["seed"]))
    assert judge(few, **count).verdict == "not reached"
    many = measured(results, loss_spikes=lambda row: 3 * (row["variant"] == "hc"))
    found = judge(many, **count)
    assert found.row.numbers == "0 against 15"
    judged = 60 - 10 - 16
    assert found.row.values == pytest.approx(dict.fromkeys(SEEDS, -3 * 1000 / judged))
    assert compared(found).p == 2 / 32  # five seeds cannot decide a count
    assert found.verdict == "inconclusive"


# --- requirements -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requires", "columns", "short"),
    [
        ({"functional_mixing": 8}, {}, ("functional", 7, 8)),
        ({"start_distance": 0.1}, {"start_distance": 0.03}, ("moved", 0.03, 0.1)),
        ({"start_distance": 0.1}, {"start_distance": math.nan}, ("measured", math.nan, math.nan)),
        ({"knockout_errors": 2}, {"knockout_identity": 0.012}, ("used", 1.2, 2)),
        ({"below_bigram": True}, {"bigram": 3.0}, ("learned", 3.395, 3)),
        ({"tokens_per_parameter": 2}, {"parameters": 61_440}, ("trained", 1, 2)),
    ],
)
def test_what_falls_short_is_not_reached_and_says_by_how_much(
    results: Results, requires: dict[str, Any], columns: dict[str, float], short: tuple[Any, ...]
) -> None:
    asked = judge(measured(results, columns), variant="mhc_lite", requires=requires)
    assert (asked.verdict, asked.p) == ("not reached", None)
    (unmet,) = asked.row.unmet
    kind, *numbers = short
    assert unmet.kind == kind
    assert [unmet.found, unmet.needed] == pytest.approx(numbers, rel=0.02, nan_ok=True)
    assert unmet.text in asked.reason


def test_conditions_that_set_just_what_a_claim_names(results: Results) -> None:
    """Also beside the section `connections`; with training changed too it is another one."""
    conditions: dict[str, dict[str, Any]] = {
        "wide": {"title": "w", "variants": ["residual"], "match_parameters": "mhc_lite"},
        "qk": {"title": "q", "variants": ["mhc"], "model": {"qk_norm": True}},
        "both": {"title": "b", "variants": ["hc"], "model": {"qk_norm": True},
                 "connections": {"final_norm": "after_sum"}},
        "fast": {"title": "f", "variants": ["hc"], "match_parameters": "mhc_lite",
                 "learning_rate_factor": 2.0},
    }  # fmt: skip
    dumped = {name: Condition(**about).model_dump() for name, about in conditions.items()}
    study = with_settings(results, conditions=dumped)
    wide, normed = {"match_parameters": "mhc_lite"}, {"qk_norm": True}
    assert condition_of(study, "residual", wide) == "wide"
    assert condition_of(study, "mhc", normed) == "qk"
    for setting in (normed, wide, {"final_norm": "after_sum"}):
        assert condition_of(study, "hc", setting) is None


def test_no_worse_asks_that_the_reference_leads(results: Results) -> None:
    claim = {"variant": "mhc_lite", "reference": "mhc", "margin": 0.02, "preserve": 0.5}

    def losses(lead: float, variant: float) -> Results:
        values = {"mhc": -lead, "mhc_lite": variant - lead}
        return measured(
            results,
            validation_loss=lambda row: 3 + values.get(row["variant"], 0.0)
            + wobble(row["seed"], 0.0005) * (1 + values.get(row["variant"], 0.0)),
        )  # fmt: skip

    assert judge(losses(0.03, 0.01), **claim).verdict == "supported"  # keeps two thirds
    assert judge(losses(0.012, 0.01), **claim).verdict == "inconclusive"  # keeps a sixth
    # Without a lead there is nothing to keep: equality within the margin is asked.
    for worse, verdict in (
        (0.015, "practically equal"),
        (0.02, "inconclusive"),
        (0.03, "contradicted"),
        (-0.03, "supported"),
    ):
        found = judge(losses(-0.05, worse), **claim)
        assert (worse, found.verdict) == (worse, verdict)
        assert "equality within 0.02" in found.row.numbers
    alone = judge(diverge(losses(0.0, 0.0), "mhc_lite", (0,)), **claim)
    assert alone.verdict != "practically equal"


@pytest.mark.parametrize(
    ("far", "decides", "verdict"),
    [({2, 4}, "d4", "supported"), ({2}, "d2", "supported"), (set(), "d4", "not reached")],
)
def test_the_deepest_model_that_meets_the_requirements_decides(
    results: Results, far: set[int], decides: str, verdict: str
) -> None:
    claim = {"variant": "mhc_lite", "reference": "residual", "requires": {"start_distance": 0.1}}
    found = judge(
        measured(results, start_distance=lambda row: float(row["n_layer"] in far)), **claim
    )
    assert (found.row.model, found.verdict) == (decides, verdict)


@pytest.mark.parametrize(
    ("variant", "reference", "asked"), [("identity", "mhc", "mhc"), ("hc", "mhc", "hc")]
)
def test_the_arm_that_mixes_has_moved_or_is_used(
    results: Results, variant: str, reference: str, asked: str
) -> None:
    requires = {"start_distance": 0.1, "knockout_errors": 2}
    for distance, cost, reached in ((0.2, 0.0, True), (0.0, 0.2, True), (0.05, 0.01, False)):
        for rival in (0.0, 1.0):  # which is not asked
            of = {asked: {"start_distance": distance, "knockout_identity": cost}}
            columns = {
                name: lambda row, of=of, name=name, x=rival: of.get(row["variant"], {}).get(name, x)
                for name in of[asked]
            }
            found = judge(
                measured(results, columns), variant=variant, reference=reference, requires=requires
            )
            assert (found.verdict != "not reached") == reached


@pytest.mark.parametrize("apart", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("mean", [3.4, 3.6])
def test_the_bigram_bar_does_not_see_the_difference(
    results: Results, mean: float, apart: float
) -> None:
    """Whoever is ahead, and by how much: the mean of the two decides."""
    shift = {"mhc": apart / 2, "hc": -apart / 2}
    study = measured(
        results,
        bigram=3.5,
        validation_loss=lambda row: mean + shift.get(row["variant"], 0.0) + wobble(row["seed"]),
    )
    reached = judge(study, requires={"below_bigram": True}).verdict != "not reached"
    assert reached == (mean < 3.5)


def test_no_claim_leaves_the_family_for_what_was_found(results: Results) -> None:
    """Corrected p values are those of all claims that the study can test, reached or not."""

    def ask(*more: dict[str, Any]) -> list[Finding]:
        first = {**GOOD, "variant": "mhc_lite", "reference": "residual"}
        claims = [first, *({**GOOD, "id": f"b{at}"} | one for at, one in enumerate(more))]
        return evaluate(results, parse_claims(claims, "here"))

    def corrected(*more: dict[str, Any]) -> float:
        p = ask(*more)[0].p
        assert p is not None
        return p

    alone = corrected()
    out = [
        {"requires": {"functional_mixing": 99}},
        {"requires": {"below_bigram": True, "tokens_per_parameter": 1e9}},
        {"kind": "count", "metric": "diverged"},  # no events
    ]
    assert {one.verdict for one in ask(*out)[1:]} == {"not reached"}
    assert all(one.p is None for one in ask(*out)[1:])
    assert corrected(*out) == pytest.approx(4 * alone)
    assert corrected({}, {}, {}) == pytest.approx(4 * alone)
    # What the study's file cannot test is in no family.
    absent = {"setting": {"final_norm": "head"}}
    unmeasured = {"metric": "critical_rate"}
    fixed = {"kind": "bound", "metric": "product_max_deviation", "reference": None,
             "threshold": 1.0, "by_construction": True}  # fmt: skip
    counted = {"kind": "parameters", "metric": None}
    assert corrected(absent, unmeasured, fixed, counted) == pytest.approx(alone)
    # Nor does it leave where all runs of an arm diverged, and have no value.
    gap = {"kind": "bound", "metric": "gap_growth", "threshold": 1.0, "reference": None}
    lead = {**GOOD, "variant": "mhc_lite", "reference": "residual"}
    asked = parse_claims([lead, {**GOOD, **gap, "id": "b"}], "here")
    first, gone = evaluate(diverge(results, "mhc", SEEDS), asked)
    assert (gone.verdict, gone.p) == ("not reached", None)
    assert first.p == pytest.approx(2 * alone)


def test_equalities_are_corrected_for_all_that_ask_for_one(results: Results) -> None:
    same = measured(results, validation_loss=lambda row: 3 + wobble(
        row["seed"] * (row["variant"] == "mhc"), 0.0001))  # fmt: skip
    for_one = judge(same).p_equal
    far = {**GOOD, "id": "b", "requires": {"functional_mixing": 99}}
    three = evaluate(same, parse_claims([GOOD, far, {**far, "id": "c", "margin": 0.01}], "here"))
    assert for_one is not None
    assert three[0].p_equal == pytest.approx(2 * for_one)  # a margin asks for none


def test_a_cost_that_other_windows_could_turn_is_not_shown(results: Results) -> None:
    claim = {"kind": "bound", "metric": "knockout_identity", "variant": "mhc", "reference": None,
             "direction": "higher", "threshold": 0.005}  # fmt: skip
    for error, verdict in ((0.001, "supported"), (0.01, "inconclusive")):
        study = measured(
            results,
            knockout_identity=lambda row: 0.015 + wobble(row["seed"], 0.0005),
            knockout_identity_error=error,
        )
        found = judge(study, **claim)
        assert (error, found.verdict) == (error, verdict)
    assert found.reason == "other text could turn it"


# --- divergence and documents -----------------------------------------------------------------


def diverge(results: Results, variant: str, seeds: tuple[int, ...]) -> Results:
    """The study in which some runs of a variant diverged."""
    runs = results.all_runs.copy()
    hit = (runs["variant"] == variant) & runs["seed"].isin(seeds)
    runs.loc[hit, "status"] = "diverged"
    runs.loc[hit, "diverged"] = 1
    return replace(results, all_runs=runs, values=tidy(runs))


def test_a_diverged_run_has_the_unigram_models_loss(results: Results) -> None:
    hit, cell = diverge(results, "hc", (1, 3)), Cell("sotu", "d4", "hc")
    losses = claim_values(hit, cell, "validation_loss")
    assert losses[1] == losses[3] == 5.25
    assert losses[0] == final_loss("sotu", 4, "hc", 0)
    assert claim_values(hit, cell, "grad_norm_mean")[1] == math.inf
    costs = claim_values(hit, cell, "knockout_identity")
    assert sorted(costs) == [0, 2, 4]  # there is no trained model whose mixing could be knocked out
    assert claim_values(hit, cell, "critical_rate") == {}  # of no run
    assert claim_values(hit, cell, "diverged") == {0: 0, 1: 1, 2: 0, 3: 1, 4: 0}


@pytest.mark.parametrize("metric", ["validation_loss", "grad_norm_mean"])
def test_half_diverged_is_never_better(results: Results, metric: str) -> None:
    """Far better where they survive: the survivors alone would be called better."""
    better = measured(
        results,
        {metric: lambda row: (3 if row["variant"] == "hc" else 4) + wobble(row["seed"]) * (
            1 + (row["variant"] == "hc"))},
    )  # fmt: skip
    claim = {"metric": metric, "variant": "hc", "reference": "identity"}
    assert judge(better, **claim).verdict == "supported"
    for seeds in ((0, 4), SEEDS):
        found = judge(diverge(better, "hc", seeds), **claim)
        assert found.verdict in ("inconclusive", "contradicted")
        assert found.row.numbers == f"diverged: {len(seeds)} against 0 runs"
    both = diverge(diverge(better, "hc", SEEDS), "identity", SEEDS)
    assert judge(both, **claim).verdict == "inconclusive"  # a tie is no equality


# --- for readers ------------------------------------------------------------------------------


def test_tables_for_readers(results: Results, found: dict[str, Finding]) -> None:
    data = claims_data(results)
    assert data[data["decides"]]["claim"].tolist() == list(found)
    text = markdown(claims_table(results))
    row = data[(data["claim"] == "mhc_beats_residual") & data["decides"]].iloc[0]
    assert f"{rounded(row['effect'], row['half_width'])} nats/token" in text
    assert "27.9 % (L)" in text  # of the paper
    main = verdicts_table(results).data.set_index("claim")["verdict"].to_dict()
    confirmatory = (one for one in found.values() if one.claim.family == "confirmatory")
    assert main == {one.claim.id: one.verdict for one in confirmatory}


def test_missing_variants_and_single_seeds(results: Results) -> None:
    study = with_settings(results, variants=["residual", "hc"])
    study = replace(study, values=study.values[study.values["seed"] == 3])
    found = {f.claim.id: f for f in evaluate(study, claims_of(study))}
    for name in ("mhc_beats_residual", "krom_fewer_parameters_than_mhc"):
        assert found[name].verdict == "not tested"
    one = found["hc_beats_residual"]
    assert (one.verdict, one.reason) == ("inconclusive", "one seed")
    assert "not tested: mHC is not in this study" in markdown(claims_table(study))


# --- bad files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "loss"}, "metric"),
        ({"variant": "mch"}, "mch"),
        ({"kind": "bound"}, "kind bound"),
        ({"extra": 1}, "extra"),
        ({"id": "A b"}, "id"),
        ({"metric": "loss_spikes"}, "kind count"),
        ({"preserve": 0.5}, "margin"),
        ({"requires": {"functional_mixing": 0}}, "requires.functional_mixing"),
    ],
)
def test_bad_claims_are_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([{**GOOD, **change}]))
    with pytest.raises(UserError, match=said) as caught:
        load_claims(path)
    assert "\n" not in str(caught.value)
    assert f"{path}: claim {change.get('id', 'a')}" in str(caught.value)


def test_a_list_of_different_claims_is_expected() -> None:
    with pytest.raises(UserError, match="two claims have the id 'a'"):
        parse_claims([GOOD, GOOD], "here")
    with pytest.raises(UserError, match="a list of claims is expected"):
        parse_claims({"a": 1}, "here")
