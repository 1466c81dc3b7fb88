"""One look for all figures, and files that are the same bytes each time.

Figures are made for print: 7 inches is a page's width, text is 8 points. Each variant keeps its
colour, marker and dashes in every figure; the colours (Okabe and Ito's without their yellow, three
of Paul Tol's kind, and four as far from these as can be) can be told apart with any of the common
colour-vision deficiencies, and in grey by marker and dashes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.results import Results
from mhclite.files import atomic_write

PAGE_WIDTH = 7.0  # inches
FONT = "DejaVu Sans"  # comes with matplotlib: the same everywhere
PNG_DPI = 200
FORMATS = ("png", "svg")

INK = "#222222"  # text and axes
FAINT = "#8a8a8a"  # lines to compare with, and notes
SEED_LINE = Line2D([], [], color=FAINT, linewidth=0.5, label="one seed")  # for a legend

# Colour, marker, dashes (on, off in points; empty: solid), for the registry's variants in order.
# Further ones begin again, each round with the next one's marker and dashes.
Look = tuple[str, str, tuple[float, ...]]
_LOOKS: tuple[Look, ...] = (
    ("#000000", "o", ()),
    ("#56B4E9", "s", (4, 1.2)),
    ("#E69F00", "^", (1.2, 1.2)),
    ("#0072B2", "D", (6, 1.2, 1.2, 1.2)),
    ("#D55E00", "v", ()),
    ("#009E73", "P", (3, 1.2)),
    ("#CC79A7", "X", (6, 1.5)),
    ("#882255", "<", (2, 1)),
    ("#B5A642", ">", (8, 1.5)),
    ("#332288", "p", (4, 1, 1, 1, 1, 1)),
    ("#EE0055", "*", (10, 2)),
    ("#553311", "d", (1, 2)),
    ("#9977FF", "h", (3, 1, 1, 1)),
    ("#666644", "8", (8, 1, 2, 1)),
)


def look(place: int) -> Look:
    """That of the variant at a place in the registry."""
    round_, row = divmod(place, len(_LOOKS))
    return (_LOOKS[row][0], *_LOOKS[(row + round_) % len(_LOOKS)][1:])


_LOOK_OF = {variant: look(place) for place, variant in enumerate(VARIANTS)}


def colour(variant: str) -> str:
    """The variant's colour."""
    return _LOOK_OF[variant][0]


def marker(variant: str) -> str:
    """The variant's marker."""
    return _LOOK_OF[variant][1]


def line_style(variant: str) -> tuple[float, Sequence[float]]:
    """The variant's dashes, as matplotlib's `linestyle`."""
    return (0, _LOOK_OF[variant][2])


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this context; nothing outside it changes."""
    settings: Any = {
        # matplotlib's own, not those of a matplotlibrc in the folder where this runs
        **{name: value for name, value in mpl.rcParamsDefault.items() if name != "backend"},
        **sns.axes_style("ticks"),
        "font.family": [FONT],
        "font.size": 8,
        **{f"axes.{name}size": 8 for name in ("title", "label")},
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color"), INK),
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e4e4e4",
        "grid.linewidth": 0.5,
        **{f"{axis}tick.labelsize": 7 for axis in "xy"},
        **{f"{axis}tick.color": INK for axis in "xy"},
        **{f"{axis}tick.major.width": 0.6 for axis in "xy"},
        **{f"{axis}tick.major.size": 3 for axis in "xy"},
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
        # Rows of equal length on a page's width; an entry takes 28 points and 4 a letter.
        letters = sum(len(str(handle.get_label())) for handle in handles)
        beside = int(72 * PAGE_WIDTH // (28 + 4 * letters / len(handles)))
        rows = math.ceil(len(handles) / max(1, beside))
        figure.legend(
            handles=handles,
            loc="outside upper center",
            ncols=-(-len(handles) // rows),
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


def runs_and_means(axes: Axes, results: Results, table: pd.DataFrame, column: str) -> None:
    """Draw a column over training: each run thin, each variant's mean over completed runs bold.

    A diverged run ends with a cross; it is left out of the mean, which would otherwise jump where
    the run ends.
    """
    table = table.dropna(subset=[column])
    finished = table["run"].isin(results.completed)
    by = ["variant", "step"]
    means = table[finished].groupby(by, observed=True)[column].mean().reset_index()
    for variant in results.variants:
        tint = colour(variant)
        for run, line in table[table["variant"] == variant].groupby("run"):
            axes.plot(line["step"], line[column], color=tint, alpha=0.45, linewidth=0.5)
            if run not in results.completed:
                end = line.iloc[-1]
                axes.plot(end["step"], end[column], "x", color=tint, zorder=4)
        mean = means[means["variant"] == variant]
        axes.plot(mean["step"], mean[column], color=tint, linestyle=line_style(variant))


def wrapped_grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `panels` equal panels, two in a row."""
    figure, axes = grid(-(-panels // 2), min(2, panels), height)
    for spare in axes.flat[panels:]:
        spare.set_axis_off()
    return figure, list(axes.flat[:panels])


def empty_state(axes: Axes, reason: str) -> None:
    """A panel without data: says in words why."""
    axes.set_axis_off()
    axes.text(
        0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", wrap=True, color=INK
    )


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
