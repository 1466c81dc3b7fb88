"""Figures draw the numbers of the results, and say what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from builder import DIVERGED, build_results, make_study, row_sum_deviation
from matplotlib.figure import Figure
from matplotlib.text import Text

from mhclite.evidence import style
from mhclite.evidence.exhibits import FIGURES, shown
from mhclite.evidence.frame import conditions_that_change
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.topics.depth import PANELS, SHARED, frame
from mhclite.evidence.topics.losses import POINTS, thinned

TINY: dict[str, Any] = {"models": {"d1": 1}, "seeds": (0, 1), "steps": 30}
CONDITIONS = {
    "norm": {
        "title": "norm after the sum",
        "variants": ["hc", "mhc"],
        "connections": {"final_norm": "after_sum"},
    },
    "aged": {
        "title": "aged",
        "variants": ["mhc"],
        "models": ["d4"],
        "connections": {"mixing_rate_factor": 3},
    },
    "both": {
        "title": "two things at once",
        "variants": ["mhc"],
        "connections": {"mixing_rate_factor": 3},
        "learning_rate_factor": 2,
    },
}
_DRAWN: dict[tuple[Path, str], Figure] = {}


def figure_of(results: Results, name: str) -> Figure:
    """A figure, drawn once for all tests of a study."""
    key = (results.folder, name)
    if key not in _DRAWN:
        with style.style():
            _DRAWN[key] = FIGURES[name][1](results)
    return _DRAWN[key]


def texts(figure: Figure) -> str:
    """Everything written in a figure, one string."""
    return " ".join(" ".join(str(text.get_text()).split()) for text in figure.findobj(Text))


# --- over training --------------------------------------------------------------------------


def test_loss_curves_leave_diverged_runs_out_of_the_mean(results: Results) -> None:
    panel = figure_of(results, "validation_loss").axes[1]  # 4 layers
    hc = style.colour("hc")
    own_lines = [line for line in panel.lines if line.get_color() == hc]
    (mean,) = [line for line in own_lines if line.get_linewidth() > 1 and len(line.get_xdata()) > 1]
    curves = results.curves.dropna(subset=["validation_loss"])
    own = curves[(curves["model"] == "d4") & (curves["variant"] == "hc")]
    expected = own[own["run"] != DIVERGED].groupby("step")["validation_loss"].mean()
    assert list(mean.get_xdata()) == list(expected.index)
    assert list(mean.get_ydata()) == pytest.approx(list(expected))
    # The diverged run is drawn up to its end, which a cross marks.
    thin = [line for line in own_lines if line.get_linewidth() < 1]
    assert len(thin) == len(results.seeds)
    (cross,) = [line for line in panel.lines if line.get_marker() == "x"]
    assert cross.get_xdata()[0] == own[own["run"] == DIVERGED]["step"].max()
    assert "diverged: HC 1 of 3" in " ".join(panel.get_xlabel().split())


def test_thinning_keeps_the_first_and_the_last_step(results: Results) -> None:
    curves = results.curves
    long = curves[curves["run"] == curves["run"].iloc[0]]
    long = long.loc[long.index.repeat(20)].assign(step=range(20 * len(long)))
    kept = thinned(long)["step"]
    assert kept.min() == 0
    assert kept.max() == 20 * (len(long) // 20) - 1
    assert POINTS / 2 < len(kept) <= POINTS


# --- matrices --------------------------------------------------------------------


def test_both_sums_show_the_extremes_as_distance_from_one(results: Results) -> None:
    streams = [variant for variant in results.variants if variant != "residual"]
    for axes, is_product in zip(
        figure_of(results, "row_sums").axes[:2], (False, True), strict=True
    ):
        extremes = [line.get_xdata() for line in axes.lines if line.get_marker() == "."]
        for variant, rows, columns in zip(streams, extremes[::2], extremes[1::2], strict=True):
            width = row_sum_deviation(variant, product=is_product)
            assert rows == pytest.approx([-width, width], rel=1e-6), variant
            assert columns == pytest.approx([-width / 2, width / 2], rel=1e-6), variant


# --- over depth -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(variants=["residual", "hc", "mhc"], conditions=CONDITIONS)
    return load_results(build_results(tmp_path_factory.mktemp("deep"), study))


def test_every_panel_is_drawn_over_the_depths(deep: Results) -> None:
    """Variants stand beside each other: each has a place of its own, as far from the next, and
    none in a neighbour's band.
    """
    assert conditions_that_change(deep, "final_norm") == {"norm": "after_sum"}
    assert list(conditions_that_change(deep, "mixing_rate_factor")) == ["aged"]
    panels = figure_of(deep, "depth").axes[: len(PANELS)]
    assert [panel.get_title() or panel.get_title(loc="left") for panel in panels] == list(PANELS)
    assert all([int(tick) for tick in panel.get_xticks()] == [2, 4] for panel in panels)
    hollow = [line for line in panels[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 2  # hc and mhc with the norm after the sum
    at = sorted(float(x) for line in panels[1].containers for x in line.lines[0].get_xdata())
    steps = [math.log(high / low) for low, high in pairwise(at)]
    step = SHARED * math.log(4 / 2) / len(deep.variants)
    assert steps == pytest.approx([step, math.log(2) - step, step])  # the residual has no gain


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("values", [[0.3, 2.0, 9.0], [1e-8, 1e-8], [4.0]])
def test_a_frame_holds_its_values(scale: str, values: list[float]) -> None:
    axes = Figure().subplots()
    axes.set_yscale(scale)
    frame(axes, values)
    low, high = axes.get_ylim()
    assert low < min(values) <= max(values) < high


# --- pieces that are missing ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "all_diverge", "said"),
    [
        ({"variants": ("residual",), "seeds": (7,)}, False, {"row_sums": "no H_res to show"}),
        ({"variants": ("residual", "mhc")}, True, {"row_sums": "no H_res to show"}),
        ({"corpora": ("one", "two"), "variants": ("mhc", "mhc_lite")}, False, {}),
        (
            {"models": {"d1": 1, "d2": 2}, "variants": ("identity", "mhc")},
            False,
            {"depth": "nothing to compare with"},
        ),
    ],
    ids=["residual only", "all diverge", "two corpora", "no residual"],
)
def test_what_is_missing_is_said_and_the_rest_is_drawn(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    all_diverge: bool,
    said: dict[str, str],
) -> None:
    monkeypatch.setattr("builder.DIVERGED_STEP", 12)
    study = make_study(**(TINY | options))
    diverged: Sequence[str] = list(study.runs()) if all_diverge else ()
    results = load_results(build_results(tmp_path, study, diverged=diverged))
    for exhibit, draw in shown(FIGURES, results.settings):
        with style.style():
            figure = draw(results)
            figure.draw_without_rendering()  # lays it out: a panel that does not fit would warn
        assert said.get(exhibit.name, "") in texts(figure), exhibit.name
        assert exhibit.name in said or "reached its last step" not in texts(figure), exhibit.name
