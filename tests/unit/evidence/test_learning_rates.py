"""Rates of the arms in the report, of a study whose sizes have unlike variants."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from builder import build_results, make_study

from mhclite.evidence.evidence import terminal_table, write
from mhclite.evidence.frame import Cell, cells
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import colour, style
from mhclite.evidence.topics.rates import learning_rates, loss_against_rate, mean_losses
from mhclite.study.reading import parse_study

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
    swept = {
        "bracketed": True,
        "shared_rate": 1e-3,
        "band": [rate, rate],
        "trials": trials(rate),
    }
    return {"corpus": "sotu", "model": model, "variant": variant, "rate": rate, **swept, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    settings["learning_rates"] = {"study": "swept", "rule": RULE, "arms": arms}
    study = parse_study(settings)
    return build_results(tmp_path_factory.mktemp("rates"), study, diverged=[])


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return load_results(folder)


def test_the_table_has_each_arm_of_the_study_once(results: Results) -> None:
    table = learning_rates(results)
    found = {
        (row["model"], row["condition"], row["variant"]): row["rate"]
        for row in table.data.to_dict("records")
    }
    assert len(found) == len(table.data) == len(VARIANTS) + len(SMALL) + 1
    trained = {
        (c["model"]["name"], c["condition"], c["connection"]["variant"]): c["model"]
        for c in results.study["runs"].values()
    }
    for key, model in trained.items():
        if key[1] != "twice":
            assert found[key] == model["learning_rate"]
    hand = table.data[table.data["variant"] == "hc"].iloc[0]
    assert hand["tried"] == 0
    swept = table.data[table.data["condition"] == "aged"].iloc[0]
    assert (swept["grid_at_rate"], swept["final_loss"]) == (3.0, pytest.approx(2.85))
    assert swept["grid_at_shared_rate"] == 3.1
    assert swept["inside"]


def test_a_run_that_diverged_leaves_no_mean(results: Results) -> None:
    one = arm("d2", "mhc", 1e-3)
    assert list(mean_losses(results, one, final=False).values()) == [3.2, 3.0, 3.1, None]
    assert list(mean_losses(results, one, final=True).values()) == [pytest.approx(2.85), None]


def test_the_figure_has_a_line_for_each_arm_that_was_swept(results: Results) -> None:
    with style():
        left, right = loss_against_rate(results).axes
    for panel, variants in ((left, ("residual", "mhc", "mhc", "mhc_lite")), (right, SMALL)):
        lines = [line for line in panel.lines if len(line.get_xdata()) == 3]
        assert sorted(line.get_color() for line in lines) == sorted(map(colour, variants))


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_size_with_fewer_variants_is_shown_with_these_alone(folder: Path) -> None:
    results = write(folder)
    assert cells(results) == [
        *(Cell("sotu", "d2", variant) for variant in VARIANTS),
        *(Cell("sotu", "d4", variant) for variant in SMALL),
    ]
    text = terminal_table(results)
    assert re.search(r"^mHC .*–$", text, re.MULTILINE)
    page = (folder / "report.html").read_text()
    assert "Learning rate of each arm" in page
    for path in (folder / "tables").glob("*.md"):
        assert not re.search(r"\bnan\b", path.read_text(), re.IGNORECASE), path.name
