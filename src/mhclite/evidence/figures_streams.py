"""Figures of the streams while training goes on, sub-layer by sub-layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhclite.evidence.figures_training import completed
from mhclite.evidence.results import Results
from mhclite.evidence.style import empty_figure, grid, wrapped_grid
from mhclite.files import read_jsonl

NOTHING = "No completed run has more than one stream that it mixes."


def over_training(
    results: Results, corpus: str, model: str, variant: str, quantity: str
) -> tuple[list[int], np.ndarray[Any, Any]] | None:
    """(steps, values (steps, sub-layers)): mean over seeds of a quantity of mixing.jsonl."""
    runs = results.runs
    cell = runs[
        (runs["corpus"] == corpus) & (runs["model"] == model) & (runs["variant"] == variant)
    ]
    series, steps = [], []
    for run in cell["run"]:
        if run not in completed(results):
            continue
        lines = read_jsonl(results.folder / "runs" / run / "mixing.jsonl")
        if lines:
            steps = [line["step"] for line in lines]
            series.append([line[quantity] for line in lines])
    return (steps, np.mean(np.array(series, dtype=float), axis=0)) if series else None


def _per_layer(results: Results, quantity: str, label: str, log: bool) -> Figure:
    """A panel a variant, of the deepest model; a line a sub-layer, light to dark from the input."""
    for model in sorted(results.models, key=results.n_layer, reverse=True):
        found = {
            (corpus, variant): series
            for corpus in results.corpora
            for variant in results.variants
            if (series := over_training(results, corpus, model, variant, quantity)) is not None
        }
        if log:  # a quantity that is exactly 0 has no place on a logarithmic axis
            found = {key: series for key, series in found.items() if series[1].any()}
        if found:
            break
    else:
        return empty_figure(NOTHING)
    figure, panels = wrapped_grid(len(found), 1.9) if len(found) < 3 else _thirds(len(found))
    for panel, ((corpus, variant), (steps, values)) in zip(panels, found.items(), strict=True):
        palette = sns.color_palette("flare", values.shape[1])
        for layer, series in enumerate(values.T):
            shown = np.where(series > 0, series, np.nan) if log else series
            panel.plot(steps, shown, color=palette[layer], linewidth=1.1)
        title = results.label(variant)
        panel.set_title(title if len(results.corpora) == 1 else f"{title}, {corpus}")
        panel.set_xlabel("training step")
        if log:
            panel.set_yscale("log")
    panels[0].set_ylabel(label)
    layers = next(iter(found.values()))[1].shape[1]
    ends = sns.color_palette("flare", layers)
    figure.legend(
        handles=[
            Line2D([], [], color=ends[0], label="first sub-layer"),
            Line2D([], [], color=ends[-1], label=f"last of {layers}, {results.model_label(model)}"),
        ],
        loc="outside upper center",
        ncols=2,
    )
    return figure


def _thirds(count: int) -> tuple[Figure, list[Any]]:
    figure, axes = grid(-(-count // 3), 3, 1.8)
    for spare in axes.flat[count:]:
        spare.set_axis_off()
    return figure, list(axes.flat[:count])


def stream_similarity(results: Results, confidence: float) -> Figure:
    """Cosine between the streams after each sub-layer, over training."""
    return _per_layer(results, "stream_similarity", "cosine between streams", log=False)


def mixing_over_training(results: Results, confidence: float) -> Figure:
    """Distance of H_res from the identity in each sub-layer, over training."""
    return _per_layer(results, "identity_distance", "distance from identity", log=True)
