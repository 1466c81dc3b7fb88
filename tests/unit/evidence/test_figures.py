"""Figures draw the numbers of the results, and say what is missing."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from builder import DIVERGED, build_results, make_study, row_sum_deviation
from matplotlib.figure import Figure

from mhclite.connections.registry import VARIANTS
from mhclite.evidence import style
from mhclite.evidence.exhibits import FIGURES
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.topics.depth import PANELS, SHARED

_DRAWN: dict[tuple[Path, str], Figure] = {}


def figure_of(results: Results, name: str) -> Figure:
    """A figure, drawn once for all tests of a study."""
    key = (results.folder, name)
    if key not in _DRAWN:
        with style.style():
            _DRAWN[key] = FIGURES[name][1](results)
    return _DRAWN[key]


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
    norm = {"title": "norm", "variants": ["hc"], "connections": {"final_norm": "after_sum"}}
    study = make_study(variants=["residual", "hc", "mhc"], conditions={"norm": norm})
    return load_results(build_results(tmp_path_factory.mktemp("deep"), study))


def test_every_panel_is_drawn_over_the_depths(deep: Results) -> None:
    """Variants stand beside each other: each has a place of its own, as far from the next."""
    panels = figure_of(deep, "depth").axes[: len(PANELS)]
    assert [panel.get_title() or panel.get_title(loc="left") for panel in panels] == list(PANELS)
    assert all([int(tick) for tick in panel.get_xticks()] == [2, 4] for panel in panels)
    hollow = [line for line in panels[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 1  # hc with the norm after the sum
    at = sorted(float(x) for line in panels[1].containers for x in line.lines[0].get_xdata())
    steps = [math.log(high / low) for low, high in pairwise(at)]
    step = SHARED * math.log(4 / 2) / len(deep.variants)
    assert steps == pytest.approx([step, math.log(2) - step, step])  # the residual has no gain
