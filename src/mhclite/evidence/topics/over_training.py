"""The streams while training goes on, sub-layer by sub-layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, of
from mhclite.evidence.style import empty_figure, outer_labels, wrapped_grid
from mhclite.files import read_jsonl

Values = np.ndarray[Any, Any]
ROUNDING = 1e-6  # of what is computed in float32 and exactly 0 otherwise
NOTHING = "No completed run has more than one stream that it mixes."


def over_training(
    results: Results, corpus: str, model: str, variant: str, quantity: str
) -> tuple[list[int], Values] | None:
    """(steps, values (steps, sub-layers)): mean over seeds of a quantity of mixing.jsonl."""
    series, steps = [], []
    for run in of(results.runs, corpus, model, variant)["run"]:
        if run not in results.completed:
            continue
        lines = read_jsonl(results.folder / "runs" / run / "mixing.jsonl")
        if lines:
            steps = [line["step"] for line in lines]
            series.append([line[quantity] for line in lines])
    return (steps, np.mean(np.array(series, dtype=float), axis=0)) if series else None


def _per_layer(
    results: Results, quantity: str, label: str, made: Callable[[Values], Values]
) -> Figure:
    """One panel per variant of the deepest model, one line per sub-layer, dark towards the end.

    The axis is logarithmic: what is 0, up to rounding, is not drawn.

    Args:
        quantity: of mixing.jsonl.
        label: of the y axis.
        made: what is drawn of its values.
    """
    for model in sorted(results.models, key=results.n_layer, reverse=True):
        found: dict[tuple[str, str], tuple[list[int], Values]] = {}
        for corpus in results.corpora:
            for variant in results.variants:
                series = over_training(results, corpus, model, variant, quantity)
                if series is not None and (made(series[1]) > ROUNDING).any():
                    found[corpus, variant] = series[0], made(series[1])
        if found:
            break
    else:
        return empty_figure(NOTHING)
    figure, panels = wrapped_grid(len(found), 1.9, beside=4, sharey=True)
    for panel, ((corpus, variant), (steps, values)) in zip(panels, found.items(), strict=True):
        palette = sns.color_palette("flare", values.shape[1])
        for layer, line in enumerate(values.T):
            shown = np.where(line > ROUNDING, line, np.nan)
            panel.plot(steps, shown, color=palette[layer], linewidth=1.1)
        title = results.label(variant)
        panel.set_title(title if len(results.corpora) == 1 else f"{title}, {corpus}")
        room = 0.05 * max(1, steps[-1] - steps[0])  # also of steps at which nothing is drawn
        panel.set(xlabel="training step", xlim=(steps[0] - room, steps[-1] + room))
        panel.set_yscale("log")
        panel.set_ylabel(label)
    outer_labels(figure)
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


@exhibits.figure(
    "stream_similarity",
    title="Difference of the streams over training",
    caption=(
        "1 minus the mean cosine between the residual streams after each sub-layer, over training, "
        "on held-out text, for the deepest model; mean over the completed runs of {seeds}. At 0, "
        "below every axis, the streams are multiples of each other; at 1 they are at right angles. "
        "Source: the files mixing.jsonl of the runs."
    ),
    alt="A panel for each variant with one line for each sub-layer on a logarithmic axis.",
    heading="mixing",
)
def stream_similarity(results: Results) -> Figure:
    """1 minus the cosine between the streams after each sub-layer, over training."""
    return _per_layer(results, "stream_similarity", "1 - cosine", lambda cosine: 1 - cosine)


@exhibits.figure(
    "mixing_over_training",
    title="Distance of the mixing matrices from identity over training",
    caption=(
        "Frobenius norm of H_res minus the identity in each sub-layer, over training, mean over"
        " tokens of held-out text, for the deepest model; mean over the completed runs of "
        "{seeds}. Variants whose H_res is exactly the identity are left out. Source: the files "
        "mixing.jsonl of the runs."
    ),
    alt=("A panel for each variant with one line for each sub-layer on a logarithmic axis."),
    heading="mixing",
)
def mixing_over_training(results: Results) -> Figure:
    """Distance of H_res from the identity in each sub-layer, over training."""
    return _per_layer(results, "identity_distance", "distance from identity", lambda same: same)
