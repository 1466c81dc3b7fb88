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

from mhclite.connections.registry import VARIANTS
from mhclite.evidence import style
from mhclite.evidence.exhibits import FIGURES, shown
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.topics.depth import PANELS, SHARED

TINY: dict[str, Any] = {"models": {"d1": 1}, "seeds": (0, 1), "steps": 30}
CONDITIONS = {
    "norm": {
        "title": "norm after the sum",
        "variants": ["hc", "mhc"],
        "connections": {"final_norm": "after_sum"},
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


# --- looks --------------------------------------------------------------------------------


def test_any_number_of_variants_have_looks_of_their_own() -> None:
    """Points differ in colour or marker, lines in colour or dashes; a new variant changes none."""
    several = [style.look(place) for place in range(4 * len(style._LOOKS))]
    assert several[: len(style._LOOKS)] == list(style._LOOKS)
    assert len({(c, m) for c, m, _ in several}) == len(several)
    assert len({(c, d) for c, _, d in several}) == len(several)
    # In grey, without the colour:
    assert len({row[1:] for row in style._LOOKS}) == len(style._LOOKS)
    shown = [(style.colour(v), style.marker(v), style.line_style(v)[1]) for v in VARIANTS]
    assert shown == several[: len(VARIANTS)]


@pytest.mark.parametrize("count", [2, 24])
def test_a_legend_of_many_variants_stays_on_the_page(count: int) -> None:
    names = (list(VARIANTS) * 3)[:count]
    figure, _ = style.grid(1, 1, 2.0)
    with style.style():
        style.variant_legend(figure, names, dict.fromkeys(names, "A name of some length"))
        figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1


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
    """Variants stand beside each other: each has a place of its own, as far from the next."""
    panels = figure_of(deep, "depth").axes[: len(PANELS)]
    assert [panel.get_title() or panel.get_title(loc="left") for panel in panels] == list(PANELS)
    assert all([int(tick) for tick in panel.get_xticks()] == [2, 4] for panel in panels)
    hollow = [line for line in panels[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 2  # hc and mhc with the norm after the sum
    at = sorted(float(x) for line in panels[1].containers for x in line.lines[0].get_xdata())
    steps = [math.log(high / low) for low, high in pairwise(at)]
    step = SHARED * math.log(4 / 2) / len(deep.variants)
    assert steps == pytest.approx([step, math.log(2) - step, step])  # the residual has no gain


# --- pieces that are missing ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "all_diverge", "said"),
    [
        ({"variants": ("residual",), "seeds": (7,)}, False, {"row_sums": "no H_res to show"}),
        ({"variants": ("residual", "mhc")}, True, {"row_sums": "no H_res to show"}),
        (
            {"models": {"d1": 1, "d2": 2}, "variants": ("identity", "mhc")},
            False,
            {"depth": "nothing to compare with"},
        ),
    ],
    ids=["residual only", "all diverge", "no residual"],
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
