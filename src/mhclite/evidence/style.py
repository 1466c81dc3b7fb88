"""One look for all figures, and files that are the same bytes each time.

Figures are made for print: 7 inches is a page's width, text is 8 points. Each variant keeps its
colour, marker and dashes in every figure; the colours (Okabe and Ito's, without their yellow) can
be told apart with any of the common colour-vision deficiencies, and in grey by marker and dashes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mhclite.connections.registry import VARIANTS
from mhclite.files import atomic_write

mpl.use("Agg")

PAGE_WIDTH = 7.0  # inches
PNG_DPI = 200
FORMATS = ("png", "svg")

INK = "#222222"  # text and axes
FAINT = "#8a8a8a"  # reference lines and notes

# Colour, marker, dashes (on, off in points; empty: solid), for the registry's variants in order.
_LOOKS: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("#000000", "o", ()),
    ("#56B4E9", "s", (4, 1.2)),
    ("#E69F00", "^", (1.2, 1.2)),
    ("#0072B2", "D", (6, 1.2, 1.2, 1.2)),
    ("#D55E00", "v", ()),
    ("#009E73", "P", (3, 1.2)),
    ("#CC79A7", "X", (6, 1.5)),
    ("#7F7F7F", "<", (2, 1)),
    ("#8C564B", ">", (8, 1.5)),
    ("#332288", "p", (4, 1, 1, 1, 1, 1)),
)
_PLACES = {variant: place % len(_LOOKS) for place, variant in enumerate(VARIANTS)}


def colour(variant: str) -> str:
    """The variant's colour."""
    return _LOOKS[_PLACES[variant]][0]


def marker(variant: str) -> str:
    """The variant's marker."""
    return _LOOKS[_PLACES[variant]][1]


def line_style(variant: str) -> tuple[float, Sequence[float]]:
    """The variant's dashes, as matplotlib's `linestyle`."""
    return (0, _LOOKS[_PLACES[variant]][2])


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this context; nothing outside it changes."""
    settings: Any = {
        **sns.axes_style("ticks"),
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.5,
        "text.color": INK,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "xtick.minor.size": 1.5,
        "ytick.minor.size": 1.5,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "legend.handlelength": 2.4,
        "lines.linewidth": 1.3,
        "lines.markersize": 4,
        "savefig.dpi": PNG_DPI,
        "svg.hashsalt": "mhclite",  # else ids in the SVG are random
        "svg.fonttype": "path",
        "path.simplify": True,
    }
    with mpl.rc_context(settings):
        yield


def grid(
    rows: int, columns: int, height: float, **options: Any
) -> tuple[Figure, np.ndarray[tuple[int, int], np.dtype[np.object_]]]:
    """A page-wide figure and its (rows, columns) axes; `height` in inches is that of one row."""
    figure = Figure(figsize=(PAGE_WIDTH, height * rows), dpi=PNG_DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def variant_legend(
    figure: Figure,
    variants: Iterable[str],
    labels: dict[str, str],
    *,
    markers: bool = False,
    extra: Iterable[Line2D] = (),
) -> None:
    """One legend for all panels, above them."""
    handles = [
        Line2D(
            [],
            [],
            color=colour(variant),
            linestyle="none" if markers else line_style(variant),
            marker=marker(variant) if markers else "none",
            label=labels[variant],
        )
        for variant in variants
    ]
    handles += extra
    if handles:
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=min(len(handles), 9),
            columnspacing=1.1,
            handletextpad=0.5,
        )


def plain_log(axes: Axes) -> None:
    """Logarithmic y axis with plain numbers, also where it spans less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 4:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
    elif high / low < 100:
        digits = (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 5, 7)
        axes.yaxis.set_major_locator(LogLocator(subs=digits))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def remark(axes: Axes, text: str) -> None:
    """Add lines of text below the x label, where they hide no data; nothing if empty."""
    if text:
        axes.set_xlabel("\n".join([axes.get_xlabel(), *textwrap.wrap(text, 54)]))


def wrapped_grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` equal panels, two beside each other."""
    columns = min(2, panels)
    figure, axes = grid(-(-panels // columns), columns, height)
    for spare in axes.flat[panels:]:
        spare.set_axis_off()
    return figure, list(axes.flat[:panels])


def empty_state(axes: Axes, reason: str) -> None:
    """A panel without data: says in words why."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", wrap=True, color=INK
    )


def empty_figure(reason: str) -> Figure:
    """A figure without any data."""
    figure, axes = grid(1, 1, 1.6)
    empty_state(axes[0, 0], reason)
    return figure


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `<stem>.png` (200 dpi) and `<stem>.svg`, each whole or not at all."""
    # The layout is found once, not again for each format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    written = []
    for suffix in FORMATS:
        path = stem.with_name(f"{stem.name}.{suffix}")
        # Without a date and a version in them, equal figures are equal files.
        metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        with atomic_write(path, "wb") as file:
            figure.savefig(file, format=suffix, dpi=PNG_DPI, metadata=metadata)
        written.append(path)
    return written
