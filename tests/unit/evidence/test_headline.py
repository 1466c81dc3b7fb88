"""The figure of what depth does."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest
from builder import build_results, final_loss, make_study
from matplotlib.figure import Figure

from mhclite.evidence.results import Results, load_results
from mhclite.evidence.topics.headline import (
    APART,
    PANELS,
    by_depth,
    depth,
    draw,
    every,
    frame,
    minus,
)
from mhclite.evidence.values import conditions_that_change

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


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Results:
    variants = ["residual", "hc", "mhc"]
    study = make_study(variants=variants, conditions=CONDITIONS)
    return load_results(build_results(tmp_path_factory.mktemp("deep"), study))


def test_conditions_are_known_by_what_they_change_alone(deep: Results) -> None:
    assert conditions_that_change(deep, "final_norm") == ["norm"]
    assert conditions_that_change(deep, "mixing_rate_factor") == ["aged"]


def test_values_by_depth_and_seed_leave_out_what_diverged(deep: Results) -> None:
    found = by_depth(deep, "sotu", "hc", "base", "validation_loss")
    assert {layers: sorted(seeds) for layers, seeds in found.items()} == {2: [0, 1, 2], 4: [0, 2]}
    assert found[2][1] == pytest.approx(final_loss("sotu", 2, "hc", 1), abs=0.01)
    assert list(by_depth(deep, "sotu", "mhc", "aged", "validation_loss")) == [4]


def test_differences_are_of_shared_depths_and_seeds() -> None:
    own, other = {2: {0: 3.0, 1: 4.0}, 4: {0: 1.0}}, {2: {1: 1.5, 2: 9.0}}
    assert minus(own, other) == {2: {1: 2.5}}


def test_every_panel_is_drawn_over_the_depths(deep: Results) -> None:
    figure = depth(deep)
    panels = figure.axes[: len(PANELS)]
    assert [panel.get_title() or panel.get_title(loc="left") for panel in panels] == list(PANELS)
    assert all([int(tick) for tick in panel.get_xticks()] == [2, 4] for panel in panels)
    hollow = [line for line in panels[0].lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 2  # hc and mhc with the norm after the sum
    assert any(line.get_marker() == "*" for line in panels[-1].lines)


def test_variants_stand_beside_each_other_between_their_depths_borders(deep: Results) -> None:
    """Each has a place of its own, as far from the next, and none in a neighbour's band."""
    panel = depth(deep).axes[3]
    at = sorted(float(x) for line in panel.containers for x in line.lines[0].get_xdata())
    steps = [math.log(high / low) for low, high in pairwise(at)]
    step = APART * math.log(4 / 2) / len(deep.variants)
    assert steps == pytest.approx([step, step, math.log(2) - 2 * step, step, step])
    assert [round(end / 2**0.5, 6) for end in panel.get_xlim()] == [1, 4]


def test_what_a_study_has_not_measured_is_said(tmp_path: Path) -> None:
    study = make_study(variants=["residual", "identity"], seeds=[0])
    figure = depth(load_results(build_results(tmp_path, study, diverged=())))
    said = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert "No variant here is given to Sinkhorn-Knopp." in said


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("values", [[0.3, 2.0, 9.0], [1e-8, 1e-8], [4.0]])
def test_a_frame_holds_its_values_and_little_more(scale: str, values: list[float]) -> None:
    axes = Figure().subplots()
    axes.set_yscale(scale)
    frame(axes, values)
    low, high = axes.get_ylim()
    assert low < min(values) <= max(values) < high
    if scale == "linear" and len(values) == 3:
        assert (low, high) == pytest.approx((0.3 - 0.08 * 8.7, 9.0 + 0.08 * 8.7))


def test_a_long_interval_is_cut_where_the_panel_or_what_is_possible_ends(deep: Results) -> None:
    """Of shares 0.1, 0.9 and 0.8 the 95 % interval is -0.48 to 1.68."""
    shares = {2: {0: 0.1, 1: 0.9, 2: 0.8}}
    ends = {}
    for name, possible in {"any": (-math.inf, math.inf), "share": (0.0, 1.0)}.items():
        axes = Figure().subplots()
        draw(axes, deep, "mhc", shares, possible=possible)
        (bars,) = axes.collections
        ends[name] = [float(y) for y in bars.get_segments()[0][:, 1]]
        frame(axes, every(shares))
        assert axes.get_ylim() == pytest.approx((0.1 - 0.064, 0.9 + 0.064))
    assert ends["any"] == pytest.approx([-0.4828, 1.6828], abs=1e-3)
    assert ends["share"] == [0, 1]
