"""Figures of what a user pays and of the streams over training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builder import build_results, make_study

from mhclite.evidence.claims import Claim
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.rows import row_of
from mhclite.evidence.statistics import tokens_to_reach
from mhclite.evidence.style import style
from mhclite.evidence.topics.cost import loss_against_time, parameters_table, throughput
from mhclite.evidence.topics.curves import token_efficiency, token_shares
from mhclite.evidence.topics.over_training import (
    mixing_over_training,
    over_training,
    stream_similarity,
)
from mhclite.measure.files import Unfit

DIVERGED = "sotu-d4-hc-s1"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return load_results(build_results(tmp_path_factory.mktemp("r"), diverged=[DIVERGED]))


def test_tokens_to_reach_interpolates() -> None:
    tokens, losses = np.array([0.0, 100.0, 200.0]), np.array([5.0, 4.0, 3.0])
    assert tokens_to_reach(tokens, losses, 3.5) == 150
    assert tokens_to_reach(tokens, losses, 6.0) == 0
    assert tokens_to_reach(tokens, losses, 3.0) == 200
    assert tokens_to_reach(tokens, losses, 2.9) is None


def test_shares_are_below_one_where_the_variant_wins(results: Results) -> None:
    shares = token_shares(results)
    assert set(shares["variant"].astype(str)) == set(results.variants) - {"residual"}
    assert (shares["share"].dropna() <= 1).all()
    row = shares[(shares["model"] == "d2") & (shares["variant"] == "mhc") & (shares["seed"] == 0)]
    curves = results.curves.dropna(subset=["validation_loss"])
    own = curves[curves["run"] == "sotu-d2-mhc-s0"]
    base = curves[curves["run"] == "sotu-d2-residual-s0"]
    target = base["validation_loss"].iloc[-1]
    by_hand = np.interp(-target, -own["validation_loss"], own["tokens"]) / base["tokens"].iloc[-1]
    assert row["share"].item() == pytest.approx(by_hand)
    diverged = shares[(shares["model"] == "d4") & (shares["variant"] == "hc")]
    assert list(diverged["seed"]) == [0, 2]


def test_time_is_tokens_over_throughput(results: Results) -> None:
    with style():
        figure = loss_against_time(results)
    panel = figure.axes[0]
    variants = results.throughput["d2"].variants
    ends = {round(float(line.get_xdata()[-1]), 6) for line in panel.lines}
    tokens = results.runs["tokens"].max()
    for row in variants.values():
        assert round(tokens / row.tokens_per_second.median, 6) in ends


def test_what_did_not_fit_is_missing_in_figures_tables_and_claims(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=("residual", "hc", "mhc"), seeds=(0, 1))
    results = load_results(build_results(tmp_path, study, diverged=()))
    whole = results.throughput["d2"]
    counts = {
        name: getattr(whole.variants["mhc"], name)
        for name in ("flops_per_token", "parameters", "extra_parameters")
    }
    unfit = Unfit("fast", "mhc", True, "out of memory", **counts)
    fitting = {name: row for name, row in whole.variants.items() if name != "mhc"}
    results.throughput["d2"] = replace(
        whole, variants=fitting, free=fitting, did_not_fit=[unfit], deterministic=True
    )
    table = parameters_table(results)
    hc, mhc = (table.display.loc[at] for at in (1, 2))
    assert mhc["Peak memory (MiB)"] == "did not fit"
    assert mhc["Step time (residual = 1)"] == mhc["Step time, not deterministic"] == ""
    assert mhc["Parameters"] == f"{counts['parameters']:,}"
    assert hc["Step time, not deterministic"] == hc["Step time (residual = 1)"] != ""
    assert "deterministic algorithms" in table.notes
    with style():
        labels = [t.get_text() for t in throughput(results).axes[0].get_yticklabels()]
        assert len(loss_against_time(results).axes[0].lines) == 4  # two curves, two ends
    assert labels == [results.label(variant) for variant in ("residual", "hc")]
    claims = {
        kind: Claim.model_validate(
            {"id": kind, "statement": "s", "source": "s", "kind": kind, "variant": "hc",
             "reference": "mhc", **more}
        )
        for kind, more in (("throughput", {"implementation": "fast"}), ("parameters", {}))
    }  # fmt: skip
    rows = {kind: row_of(results, claim, "sotu", "d2") for kind, claim in claims.items()}
    assert rows["throughput"].missing == "mHC was not timed: it did not fit"
    assert rows["parameters"].numbers  # counted all the same


def test_token_figure_names_those_that_never_reach_it(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=("residual", "mhc"), seeds=(0, 1))
    results = load_results(build_results(tmp_path, study, diverged=()))
    worse = results.curves["variant"] == "mhc"
    results.curves.loc[worse, "validation_loss"] += 1.0
    with style():
        labels = [t.get_text() for t in token_efficiency(results).axes[0].get_yticklabels()]
    assert labels == ["mHC (2 of 2 never)"]


def test_streams_over_training(results: Results) -> None:
    found = over_training(results, "sotu", "d4", "mhc", "identity_distance")
    assert found is not None
    steps, values = found
    assert steps == [0, 20, 40, 60]
    assert values.shape == (4, 8)
    assert values[0, 7] == pytest.approx(0.08)
    with style():
        figure = mixing_over_training(results)
        titles = [axes.get_title(loc="left") for axes in figure.axes if axes.lines]
        assert titles == ["HC", "mHC", "mHC-lite", "KromHC", "JPmHC"]  # identity: exactly 0
        similar = stream_similarity(results)
    assert len([axes for axes in similar.axes if axes.lines]) == 6


def test_nothing_to_draw(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=("residual",), seeds=(0,))
    results = load_results(build_results(tmp_path, study, diverged=()))
    with style():
        assert "one stream" in stream_similarity(results).axes[0].texts[0].get_text()
        assert token_efficiency(results).axes[0].texts
