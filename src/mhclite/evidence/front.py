"""The figure of README's first screen, from the CSV files of two published studies: final losses,
each scheme at a rate of its own, and how exact the mixing is over depth."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from mhclite.connections.registry import VARIANTS
from mhclite.evidence.statistics import geometric_interval
from mhclite.evidence.style import colour, marker
from mhclite.study.sections import BASE

LOSSES, DEPTHS = "tuned_main", "depth"  # the studies
OTHERS = ("gated", "hc", "mhc", "mhc_lite", "kromhc", "mhc_v4", "ohc", "oshc", "jpmhc")
ARMS = {
    ("residual", BASE): "residual",
    ("residual", "wide_mlp"): "widened residual",
    ("identity", BASE): "4 streams, unmixed",
    **{(variant, BASE): VARIANTS[variant].label for variant in OTHERS},
}
SIZES = (("main", -0.18, "full"), ("deep", 0.18, "none"))  # size, shift of its marks, fill
SUMS = "product_max_deviation"
NOTHING = 1e-8  # a sum that is exact to the last bit has no place on a logarithmic axis


def front_figure(published: Path) -> Figure:
    """Two panels, small enough for a phone.

    Args:
        published: folder of the published studies.
    """
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    losses, sums = figure.subplots(1, 2, width_ratios=(1.15, 1))

    runs = _completed(published / LOSSES)
    for row, (variant, condition) in enumerate(ARMS):
        arm = runs[(runs["variant"] == variant) & (runs["condition"] == condition)]
        for model, shift, fill in SIZES:
            of = arm[arm["model"] == model]["validation_loss"]
            look = {"color": colour(variant), "marker": marker(variant), "fillstyle": fill}
            losses.plot(of, [row + shift] * len(of), linestyle="none", alpha=0.8, **look)
    losses.set_yticks(range(len(ARMS)), list(ARMS.values()))
    losses.set_ylim(len(ARMS) - 0.5, -0.5)
    losses.set_title("Loss of each seed", loc="left")
    losses.set_xlabel("nats per token, lower is better\n(full: 6 layers, hollow: 12)")

    runs = _completed(published / DEPTHS).query("condition == @BASE")
    layers = sorted(set(runs["n_layer"]))
    for variant in ("mhc", "mhc_v4", "mhc_lite"):
        own = runs[runs["variant"] == variant]
        of_size = own[SUMS].clip(lower=NOTHING).groupby(own["n_layer"])
        means = [geometric_interval(of_size.get_group(layer)).mean or 0.0 for layer in layers]
        sums.plot(layers, means, color=colour(variant), marker=marker(variant))
        aside = {"textcoords": "offset points", "ha": "right", "va": "top"}
        name, end = VARIANTS[variant].label, (layers[-1], means[-1])
        sums.annotate(name, end, (-2, -5), color=colour(variant), **aside)
    sums.set_xscale("log", base=2)
    sums.set_yscale("log")
    sums.set_ylim(NOTHING, 10)
    sums.set_xticks(layers, [str(layer) for layer in layers])
    sums.xaxis.set_minor_locator(NullLocator())
    sums.yaxis.set_minor_formatter(NullFormatter())
    sums.set_title("Error of the mixing", loc="left")
    sums.set_xlabel("layers\n(largest row or column sum - 1)")
    return figure


def _completed(study: Path) -> pd.DataFrame:
    runs = pd.read_csv(study / "runs.csv")
    return runs[runs["status"] == "completed"]
