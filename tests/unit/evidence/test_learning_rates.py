"""Losses against the rate: of a sweep whose sizes have unlike variants, and of a stress study."""

from __future__ import annotations

import re
from typing import Any

import pytest
from builder import build_results, make_study

from mhclite.evidence.evidence import found_text
from mhclite.evidence.frame import Cell, cells, values
from mhclite.evidence.results import Results, critical_rates, load_results
from mhclite.evidence.statistics import t_interval
from mhclite.evidence.style import colour, style
from mhclite.evidence.tables import markdown
from mhclite.evidence.topics.rates import (
    KEYS,
    grid_of,
    learning_rates,
    loss_against_rate,
    stress_data,
    stress_table,
)
from mhclite.study.load import parse_study

VARIANTS = ("residual", "hc", "mhc", "mhc_lite")
SMALL = ("residual", "mhc_lite")  # those of d4
RULE = {"steps": 30, "final_seeds": [8, 9], "band": 0.05}


def trials(rate: float) -> list[dict[str, Any]]:
    """A grid whose best is `rate`, one that diverges, and two finalists."""
    grid = [(rate / 2, 0, 3.2), (rate, 0, 3.0), (2 * rate, 0, 3.1), (4 * rate, 0, None)]
    final = [(rate, 8, 2.9), (rate, 9, 2.8), (2 * rate, 8, 2.95), (2 * rate, 9, None)]
    return [
        {"rate": rate, "seed": seed, "steps": 60 if seed else 30, "loss": loss}
        for rate, seed, loss in grid + final
    ]


def arm(model: str, variant: str, rate: float, **more: Any) -> dict[str, Any]:
    swept = {"bracketed": True, "shared_rate": 1e-3, "band": [rate, rate], "trials": trials(rate)}
    return {"corpus": "sotu", "model": model, "variant": variant, "rate": rate, **swept, **more}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Results:
    settings = make_study(variants=VARIANTS).model_dump(mode="json")
    settings["models"]["d4"]["variants"] = list(SMALL)
    settings["conditions"] = {
        "aged": {"title": "3 x", "variants": ["mhc"], "connections": {"mixing_rate_factor": 3}},
        "twice": {"title": "2 x", "variants": ["mhc_lite"], "learning_rate_factor": 2},
    }
    arms = [arm("d2", variant, 1e-3 * (1 + i)) for i, variant in enumerate(VARIANTS)]
    arms += [arm("d4", variant, 2e-3) for variant in SMALL]
    arms += [arm("d2", "mhc", 5e-4, condition="aged")]
    # Of no arm of this study.
    arms += [arm("d4", "hc", 0.5), arm("d9", "hc", 0.5), arm("d2", "hc", 0.5, condition="else")]
    by_hand = {"bracketed": None, "shared_rate": None, "band": None, "trials": []}
    arms[1] = arm("d2", "hc", 7e-3, **by_hand)
    # Arms for which the sweep came to no rate are left out of a study by name.
    arms.append(arm("d4", "mhc", 1e-3) | {"rate": None, "bracketed": False, "band": None})
    settings["learning_rates"] = {"study": "swept", "rule": RULE, "arms": arms}
    study = parse_study(settings)
    return load_results(build_results(tmp_path_factory.mktemp("rates"), study, diverged=[]))


def test_the_table_has_each_arm_of_the_study_once(swept: Results) -> None:
    data = learning_rates(swept).data
    found = {tuple(row[key] for key in KEYS): row["rate"] for row in data.to_dict("records")}
    assert len(found) == len(data) == len(VARIANTS) + len(SMALL) + 1
    for config in swept.study["runs"].values():
        model, variant = config["model"], config["connection"]["variant"]
        if config["condition"] != "twice":
            key = (config["corpus"], model["name"], config["condition"], variant)
            assert found[key] == model["learning_rate"]
    assert cells(swept) == [
        *(Cell("sotu", "d2", variant) for variant in VARIANTS),
        *(Cell("sotu", "d4", variant) for variant in SMALL),
    ]
    assert re.search(r"^mHC .*–$", found_text(swept), re.MULTILINE)
    aged = data[data["condition"] == "aged"].iloc[0]
    assert (aged["grid_at_rate"], aged["inside"]) == (3.0, True)
    assert data[data["variant"] == "hc"].iloc[0]["inside"] is None  # by hand


def test_the_figure_has_a_line_for_each_arm_that_was_swept(
    swept: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that diverged leaves no mean; a loss far above is a cross at the top of the others."""
    grid = grid_of(swept, arm("d2", "mhc", 1e-3))
    assert list(grid.values()) == [3.2, 3.0, 3.1, None]
    with style():
        left, right = loss_against_rate(swept).axes
    for panel, variants in ((left, ("residual", "mhc", "mhc", "mhc_lite")), (right, SMALL)):
        lines = [line for line in panel.lines if len(line.get_xdata()) == 3]
        assert sorted(line.get_color() for line in lines) == sorted(map(colour, variants))
    monkeypatch.setattr(
        "mhclite.evidence.topics.rates.grid_of", lambda *_: {1e-3: 3.0, 2e-3: 3.1, 4e-3: 5.0}
    )
    drawn = [y for line in loss_against_rate(swept).axes[0].lines for y in line.get_ydata()]
    assert max(drawn) == 3.1


# --- rates at which runs cease to learn -----------------------------------------------------


@pytest.fixture(scope="module")
def stressed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Variants that cease to learn at known rates."""
    two = ["residual", "hc"]
    study = make_study(
        models={"d2": 2},
        variants=(*two, "mhc", "mhc_lite", "jpmhc"),
        seeds=range(8),
        critical_rate={"factors": [2, 6, 20, 64], "halvings": 3, "below_unigram": 0.1},
        conditions={"c": {"title": "no clipping", "variants": two, "training": {"grad_clip": 0}}},
    )
    return load_results(build_results(tmp_path_factory.mktemp("stress"), study, diverged=[]))


def test_rates_beyond_those_tried_are_no_metric(stressed: Results) -> None:
    rates = critical_rates(stressed.critical, stressed.all_runs)
    assert len(rates) == 8 * (5 + 2)
    for row in rates.to_dict("records"):
        cell = Cell(row["corpus"], row["model"], row["variant"], row["condition"])
        claimed = values(stressed, cell, "critical_rate").get(row["seed"])
        assert (row["beyond"] == "above") == (row["variant"] == "jpmhc")
        assert claimed == (None if row["beyond"] else row["critical_rate"])


def test_octaves_are_paired_by_seed(stressed: Results) -> None:
    rates = critical_rates(stressed.critical, stressed.all_runs)
    by_arm = rates.set_index(["condition", "variant", "seed"])["critical_rate"]
    data = stress_data(stressed).set_index(["condition", "variant"])
    expected = t_interval(by_arm["base", "mhc"] - by_arm["base", "residual"])
    assert data.loc[("base", "mhc"), "minus_residual"] == pytest.approx(expected.mean)
    assert data.loc[("base", "mhc_lite"), "minus_mhc"] == 0
    assert data.loc[("base", "jpmhc"), "above"] == 8
    text = markdown(stress_table(stressed))
    assert "no clipping" in text
    assert "0, 8 of 8" in text
