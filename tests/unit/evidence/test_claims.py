"""Claims: the file, and what a synthetic study says of each."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from builder import CLAIMS, build_results, final_loss, gain, make_study

from mhclite.errors import UserError
from mhclite.evidence.claims import Claim, load_claims, parse_claims
from mhclite.evidence.findings import Finding, claims_of, evaluate, token_difference
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import save, style
from mhclite.evidence.table_format import markdown
from mhclite.evidence.topics.claims import (
    claims_data,
    claims_table,
    forest,
    loss_findings,
    paper_table,
)

SEEDS = (0, 1, 2, 3, 4)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(models={"d4": 4}, seeds=SEEDS)
    return load_results(build_results(tmp_path_factory.mktemp("claims"), study, diverged=()))


@pytest.fixture(scope="module")
def found(results: Results) -> dict[str, Finding]:
    return {finding.claim.id: finding for finding in evaluate(results, claims_of(results))}


def test_the_file_is_valid_and_every_claim_is_judged(found: dict[str, Finding]) -> None:
    claims = load_claims(CLAIMS)
    assert list(found) == [claim.id for claim in claims]
    untested = [name for name, one in found.items() if one.verdict == "not tested"]
    assert untested == ["lite_faster_than_mhc_fused"]
    assert "fused" in found["lite_faster_than_mhc_fused"].reason


def test_a_difference_is_traced_by_hand(found: dict[str, Finding]) -> None:
    finding = found["lite_beats_residual"]
    d = [
        final_loss("sotu", 4, "mhc_lite", seed) - final_loss("sotu", 4, "residual", seed)
        for seed in SEEDS
    ]
    assert finding.comparison is not None
    assert finding.comparison.interval.mean == pytest.approx(np.mean(d))
    assert finding.verdict == "supported"
    assert finding.p_holm is not None
    assert finding.comparison.p is not None
    assert finding.p_holm > finding.comparison.p
    assert found["jpm_beats_mhc"].verdict != "supported"  # 0.02 worse in the builder


def test_bounds_counts_and_rounds(found: dict[str, Finding]) -> None:
    growth = found["hc_gain_grows"]
    assert growth.comparison is not None
    expected = math.log(gain("hc", 8) / gain("hc", 1)) - 0.0953
    assert growth.sign * growth.comparison.interval.mean == pytest.approx(expected)
    assert growth.verdict == found["mhc_gain_does_not_grow"].verdict == "supported"
    assert found["lite_exact"].verdict == "supported"
    assert found["sinkhorn_gap_product"].verdict == "supported"  # 0.3 in the builder
    assert found["sinkhorn_gap_single"].verdict == "contradicted"  # 0.03
    assert found["sinkhorn_hard_inputs"].verdict == "supported"
    fewer = found["krom_fewer_parameters_than_mhc"]
    assert (fewer.verdict, fewer.numbers) == ("contradicted", "24,000 against 16,000")
    slower = found["lite_faster_than_mhc"]  # later in the list: slower in the builder
    assert slower.verdict == "contradicted"
    assert slower.comparison is not None
    assert slower.comparison.interval.mean == pytest.approx(math.log(2.0 / 1.75))


def test_tokens(results: Results) -> None:
    """Losses fall like exp(-4 x): where the better curve crosses the other's end."""
    percent = token_difference(results, "sotu", "d4", "mhc_lite", "residual")
    assert percent is not None
    assert -40 < percent < 0
    back = token_difference(results, "sotu", "d4", "residual", "mhc_lite")
    assert back == pytest.approx(-percent)


def test_missing_variants_and_single_seeds(tmp_path: Path) -> None:
    study = make_study(models={"d2": 2}, variants=("residual", "hc"), seeds=(3,))
    results = load_results(build_results(tmp_path, study, diverged=()))
    found = {f.claim.id: f for f in evaluate(results, claims_of(results))}
    assert found["mhc_beats_residual"].reason == "mHC is not in this study"
    assert found["krom_fewer_parameters_than_mhc"].verdict == "not tested"
    assert found["hc_beats_residual"].verdict == "inconclusive"  # one seed decides nothing
    text = markdown(claims_table(results))
    assert "not tested: mHC is not in this study" in text
    with style():
        assert forest(results).axes


@pytest.mark.slow
def test_tables_for_readers(results: Results, found: dict[str, Finding]) -> None:
    data = claims_data(results)
    assert len(data) == len(found)
    text = markdown(claims_table(results))
    for claim in claims_of(results):
        assert claim.statement in text.replace("\\|", "|")
    row = data[data["claim"] == "mhc_beats_residual"].iloc[0]
    assert f"{row['effect']:.4f} ± {row['half_width']:.4f} nats/token" in text
    paper = markdown(paper_table(results))
    assert "27.9 % (L)" in paper
    assert "quoted by a reader of the paper" in paper
    given = [claim for claim in claims_of(results) if claim.paper]
    assert len(paper_table(results).display) == len(given)


@pytest.mark.slow
def test_forest(results: Results, tmp_path: Path) -> None:
    with style():
        figure = forest(results)
        assert len(save(figure, tmp_path / "forest")) == 2
    rows = {finding.claim.id for finding in loss_findings(results)}
    assert len(figure.axes[0].get_yticks()) == len(rows) > 10


GOOD = {
    "id": "a",
    "statement": "s",
    "source": "t",
    "kind": "difference",
    "metric": "validation_loss",
    "variant": "mhc",
    "reference": "hc",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "loss"}, "metric 'loss' is unknown"),
        ({"variant": "mch"}, "'mch' is unknown"),
        ({"kind": "bound"}, "kind bound has metric, threshold"),
        ({"threshold": 1}, "threshold"),
        ({"margin": -1}, "margin"),
        ({"extra": 1}, "extra"),
        ({"id": "A b"}, "pattern"),
    ],
)
def test_bad_claims_are_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump([{**GOOD, **change}]))
    with pytest.raises(UserError, match=said) as caught:
        load_claims(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"
    for content, said in ((b"[unclosed", "not YAML"), (b"a: 1", "list"), (b"\xff", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=said):
            load_claims(path)
    with pytest.raises(UserError, match="two claims have the id 'a'"):
        parse_claims([GOOD, GOOD], "here")
    with pytest.raises(UserError, match="cannot be read"):
        load_claims(tmp_path / "none.yaml")
    assert Claim.model_validate(GOOD).direction == "lower"
