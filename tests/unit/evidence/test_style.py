"""Variants can be told apart: in colour, with a colour-vision deficiency, and in grey."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.style import (
    _LOOKS,
    colour,
    grid,
    line_style,
    look,
    marker,
    style,
    variant_legend,
)

# What linear RGB becomes without one kind of cone (Machado, Oliveira and Fernandes 2009).
SIGHT = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "tritanopia": np.array(
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]
    ),
}
XYZ = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])


def lab(colour: str, sight: str = "usual") -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """CIE L*a*b* of a colour."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_differ_and_show_on_white(sight: str) -> None:
    """By more than 10 units of CIE L*a*b*; 2 are just noticeable."""
    colours = [row[0] for row in _LOOKS]
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(lab(one, sight) - lab(other, sight)) > 10, (one, other)
    assert max(lab(one)[0] for one in colours) < 75


def test_any_number_of_variants_have_looks_of_their_own() -> None:
    """Points differ in colour or marker, lines in colour or dashes; a new variant changes none."""
    several = [look(place) for place in range(4 * len(_LOOKS))]
    assert several[: len(_LOOKS)] == list(_LOOKS)
    assert len({(c, m) for c, m, _ in several}) == len(several)
    assert len({(c, d) for c, _, d in several}) == len(several)
    # In grey, without the colour:
    assert len({row[1:] for row in _LOOKS}) == len(_LOOKS)
    shown = [(colour(v), marker(v), line_style(v)[1]) for v in VARIANTS]
    assert shown == several[: len(VARIANTS)]


@pytest.mark.parametrize("count", [2, 9, 24])
@pytest.mark.parametrize("label", ["HC", "A name of some length"])
def test_a_legend_of_many_variants_stays_on_the_page(count: int, label: str) -> None:
    names = (list(VARIANTS) * 3)[:count]
    figure, _ = grid(1, 1, 2.0)
    with style():
        variant_legend(figure, names, dict.fromkeys(names, label))
        figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
