"""What the mixing is used for: the loss of the trained models with parts of them changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import BASELINE, knockout_interval
from mhclite.evidence.style import (
    FAINT,
    INK,
    colour,
    empty_figure,
    line_style,
    outer_labels,
    paired_grid,
    remark,
    seeds_and_interval,
)
from mhclite.evidence.table_format import (
    NONE,
    Rows,
    fixed,
    percent_of,
    scaled_plus_minus,
    significant,
    sparse,
)
from mhclite.evidence.topics.mixing import NO_PROBES
from mhclite.measure.files import Probe, Use

LINEAR = 1e-3  # nats per token up to which the axes are linear, and logarithmic beyond
TICKS = (0.0, 0.001, 0.01, 0.1, 1.0, 10.0)
MOST_LABELS = 7  # with more ticks than that below a narrow panel their labels touch


def probes_of(results: Results, corpus: str, model: str, variant: str) -> list[Probe]:
    """The probes of one cell of the grid, in the order of its seeds; diverged runs are left out."""
    runs = of(results.runs, corpus, model, variant)["run"]
    return [results.probes[run] for run in runs if results.probes[run].skipped is None]


def uses_of(results: Results, corpus: str, model: str, variant: str) -> list[Use]:
    """What the runs of one cell make of their H_res; empty where it was not measured."""
    probes = probes_of(results, corpus, model, variant)
    return [probe.use for probe in probes if probe.use is not None]


def use_data(results: Results) -> pd.DataFrame:
    """One row per cell: means over seeds of what the probes say, with an interval for the two costs
    of all H_res at once. Costs are in nats per token."""
    rows: list[dict[str, Any]] = []
    for corpus, model, variant in results.cells():
        probes = probes_of(results, corpus, model, variant)

        def mean(value: Callable[[Probe], float | None], probes: list[Probe] = probes) -> float:
            found = [number for probe in probes if (number := value(probe)) is not None]
            return float(np.mean(found)) if found else math.nan

        row: dict[str, Any] = {
            "corpus": corpus,
            "model": model,
            "n_layer": results.n_layer(model),
            "variant": variant,
            "label": results.label(variant),
            "n": len(probes),
        }
        uses = uses_of(results, corpus, model, variant)
        for name, costs in (
            ("identity", [use.identity for use in uses]),
            ("token_mean", [use.token_mean for use in uses]),
        ):
            interval = knockout_interval(
                [cost.mean for cost in costs],
                [cost.error for cost in costs if cost.error is not None],
                results.confidence,
            )
            row[name] = math.nan if interval.mean is None else interval.mean
            row[f"{name}_half_width"] = interval.half_width
        by_sublayer = [[cost.mean for cost in use.identity_by_sublayer] for use in uses]
        by_stream = [[cost.mean for cost in use.stream_dropped] for use in uses]
        if uses:
            costs = np.mean(by_sublayer, axis=0)
            row["sublayer"], row["sublayer_cost"] = int(np.argmax(costs)) + 1, float(costs.max())
            # Which stream it is differs between seeds.
            row["stream_most"] = float(np.mean([max(costs) for costs in by_stream]))
            row["stream_least"] = float(np.mean([min(costs) for costs in by_stream]))
        row |= {
            "singular_largest": mean(lambda probe: _singular(probe, 0)),
            "singular_smallest": mean(lambda probe: _singular(probe, -1)),
            "effective_rank": mean(_effective_rank),
            "read_entropy": mean(lambda probe: _within(probe, "read_entropy")),
            "write_entropy": mean(lambda probe: _within(probe, "write_entropy")),
            "scale_res": mean(lambda probe: _within(probe, "scale_res")),
            "activation_norm": mean(_last_activation),
            "gradient_backbone": mean(lambda probe: _within(probe, "gradient_backbone")),
            "gradient_connection": mean(lambda probe: _within(probe, "gradient_connection")),
        }
        rows.append(row)
    columns = ["sublayer", "sublayer_cost", "stream_most", "stream_least"]
    table = pd.DataFrame(rows)
    return table.reindex(columns=list(dict.fromkeys([*table.columns, *columns])))


def _singular(probe: Probe, which: int) -> float | None:
    """A singular value of the product over the whole depth."""
    return probe.mixing.geometry.singular_values[-1][which] if probe.mixing else None


def _effective_rank(probe: Probe) -> float | None:
    """Of the streams after the last sub-layer."""
    return probe.mixing.geometry.effective_rank[-1] if probe.mixing else None


def _within(probe: Probe, name: str) -> float | None:
    """Mean over sub-layers of one of the lists in `parameters`."""
    values = probe.parameters and getattr(probe.parameters, name)
    return float(np.mean(values)) if values else None


def _last_activation(probe: Probe) -> float | None:
    """Size of the streams after the last sub-layer."""
    return probe.parameters.activation_norm[-1] if probe.parameters else None


def _display(
    data: pd.DataFrame, columns: dict[str, Callable[[dict[Any, Any]], str]]
) -> pd.DataFrame:
    """The rows as text: the cell, then the columns by their headings."""
    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Layers": fixed(row["n_layer"], 0),
            "Variant": row["label"],
            **{heading: text(row) for heading, text in columns.items()},
        }
        for row in data.to_dict("records")
    )
    return sparse(display, ["Corpus", "Model", "Layers"])


def _pair(first: str, second: str) -> Callable[[dict[Any, Any]], str]:
    """Text of two numbers of a row."""

    def text(row: dict[Any, Any]) -> str:
        texts = significant(row[first]), significant(row[second])
        return NONE if NONE in texts else " : ".join(texts)

    return text


@exhibits.table(
    "mixing_use",
    title="What the mixing is used for",
    caption=(
        "Rise of the loss on held-out text when parts of a trained model are taken away, over "
        "{seeds}. Source: the files in probes/."
    ),
    heading="mixing",
)
def mixing_use_table(results: Results) -> Rows:
    """What each variant loses without its mixing."""
    data = use_data(results)

    def cost(name: str) -> Callable[[dict[Any, Any]], str]:
        return lambda row: scaled_plus_minus(row[name], row[f"{name}_half_width"])

    display = _display(
        data,
        {
            "Lost with H_res = I": cost("identity"),
            "Lost with H_res = its mean": cost("token_mean"),
            "Most in one sub-layer": lambda row: significant(row["sublayer_cost"]),
            "Lost without a stream, most : least": _pair("stream_most", "stream_least"),
        },
    )
    return Rows(
        notes=(
            "Nats per token, on the windows of the probe; means over the completed runs, of the "
            f"first two ± half-width of the {percent_of(results.confidence)} interval over "
            "seeds and windows of text. H_res = I: every mixing matrix is the identity; its mean: "
            "every H_res is the mean over tokens of that sub-layer. One sub-layer: H_res = I in "
            "the sub-layer where that costs most. Without a stream: it is zero after the last "
            "sub-layer. "
            f"{NONE}: does not apply, or was not measured."
        ),
        data=data,
        display=display,
        numeric=tuple(display.columns[4:]),
    )


@exhibits.table(
    "streams_within",
    title="Streams, weights and gradients of the trained models",
    caption=(
        "What the streams, the weights of reads and writes, and the gradients of the trained "
        "models look like on held-out text, mean over {seeds}. Source: the files in probes/."
    ),
    heading="mixing",
)
def streams_within_table(results: Results) -> Rows:
    """Singular values, ranks, entropies and sizes."""
    data = use_data(results)
    display = _display(
        data,
        {
            "Singular values, largest : smallest": _pair("singular_largest", "singular_smallest"),
            "Effective rank of the streams": lambda row: significant(row["effective_rank"]),
            "Size of the streams": lambda row: significant(row["activation_norm"]),
            "Entropy, reads : writes": _pair("read_entropy", "write_entropy"),
            "Factor of the token": lambda row: significant(row["scale_res"]),
            "Gradient, backbone": lambda row: significant(row["gradient_backbone"]),
            "Gradient, connection": lambda row: significant(row["gradient_connection"]),
        },
    )
    return Rows(
        notes=(
            "Means over the completed runs. Singular values: of the product of all H_res; equal "
            "ones keep every direction of the streams. Effective rank: exp of the entropy of the "
            "singular values of a token's streams after the last sub-layer, 1 where they are "
            "multiples of one. Size: root mean square after the last sub-layer. Entropy (nats): of "
            "the weights with which a sub-layer reads from and writes to the streams, 0 where all "
            "is one stream's. Factor of the token: learned scale of the part of H_res that depends "
            "on the token. Gradient: norm in the weights of a sub-layer's branch, "
            "and of its connection. The last five are means over sub-layers. "
            f"{NONE}: does not apply, or was not measured."
        ),
        data=data,
        display=display,
        numeric=tuple(display.columns[4:]),
    )


def _cost_axis(axes: Axes, which: str) -> None:
    """Costs: linear near zero, logarithmic beyond, and no wider than what is drawn."""
    low, high = axes.dataLim.intervalx if which == "x" else axes.dataLim.intervaly
    low, high = 1.5 * min(low, -LINEAR / 4), 1.5 * max(high, LINEAR)
    ticks = [sign * tick for tick in TICKS for sign in (-1, 1) if low <= sign * tick <= high]
    # Those at the ends of the linear part stand too close to 0 for a label, where there are more.
    crowded = max(abs(tick) for tick in ticks) > LINEAR
    unnamed = {LINEAR} if crowded else set()
    if which == "x" and len(ticks) > MOST_LABELS:
        unnamed |= {0.1, 10.0}  # every second power that there is room for
    labels = ["" if abs(tick) in unnamed else f"{tick:g}" for tick in ticks]
    if which == "x":
        axes.set_xscale("symlog", linthresh=LINEAR)
        axes.set_xticks(ticks, labels)
        axes.set_xlim(low, high)
    else:
        axes.set_yscale("symlog", linthresh=LINEAR)
        axes.set_yticks(ticks, labels)
        axes.set_ylim(low, high)


@exhibits.figure(
    "knockouts",
    title="What is lost without the mixing",
    caption=(
        "Rise of the loss on held-out text when the mixing of a trained model is taken away. All "
        "sub-layers: every H_res is the identity (filled), or its mean over tokens (open); faint "
        "points are the runs of {seeds}, with their mean and its {level} % interval over "
        "seeds and windows of text. One sub-layer: H_res is the identity in one sub-layer at a "
        "time, mean over seeds. The axes are linear up to 0.001 nats per token and logarithmic "
        "beyond. Distance from the identity is not use: a matrix far from it may cost nothing to "
        "remove. Source: the files in probes/."
    ),
    alt=(
        "Points with intervals, a row for each variant; beside them curves over the sub-layers, "
        "one colour and line style for each variant."
    ),
    heading="mixing",
)
def knockouts(results: Results) -> Figure:
    """Cost of H_res = I and of its mean over tokens, altogether and by sub-layer."""
    variants = [variant for variant in results.variants if variant != BASELINE]
    cells = [
        cell for cell in results.panels() if any(uses_of(results, *cell, name) for name in variants)
    ]
    if not cells:
        return empty_figure(NO_PROBES)
    data = {
        (row["corpus"], row["model"], row["variant"]): row
        for row in use_data(results).to_dict("records")
    }
    figure, axes = paired_grid(len(cells), 0.9 + 0.26 * len(variants))
    for (left, right), (corpus, model) in zip(axes, cells, strict=True):
        for place, variant in enumerate(variants):
            uses = uses_of(results, corpus, model, variant)
            if not uses:
                continue
            row = data[corpus, model, variant]
            for name, filled, apart in (
                ("identity", True, (-0.05, -0.2)),
                ("token_mean", False, (0.3, 0.15)),
            ):
                seeds_and_interval(
                    left,
                    variant,
                    place,
                    [getattr(use, name).mean for use in uses],
                    row[name],
                    row[f"{name}_half_width"],
                    apart=apart,
                    filled=filled,
                )
            costs = np.mean([[c.mean for c in use.identity_by_sublayer] for use in uses], axis=0)
            places = np.arange(1, len(costs) + 1)
            right.plot(places, costs, color=colour(variant), linestyle=line_style(variant))
        left.set_yticks(range(len(variants)), [results.label(variant) for variant in variants])
        left.set_ylim(len(variants) - 0.4, -0.6)
        left.tick_params(axis="y", length=0)
        left.grid(visible=False, axis="y")
        left.axvline(0, color=FAINT, linewidth=0.8)
        right.axhline(0, color=FAINT, linewidth=0.8)
        _cost_axis(left, "x")
        _cost_axis(right, "y")
        title = results.panel_title(corpus, model)
        left.set(title=f"{title}\nall sub-layers", xlabel="rise (nats/token)")
        right.set(
            title=f"{title}\none sub-layer",
            xlabel="sub-layer (two per layer)",
            ylabel="rise of the loss (nats/token)",
        )
        right.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        remark(left, results.divergence_note(corpus, model))
    outer_labels(figure)
    figure.legend(
        handles=[
            Line2D([], [], linestyle="none", marker="o", color=INK, label="H_res = I"),
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                color=INK,
                markerfacecolor="white",
                label="H_res = its mean over tokens",
            ),
            *(
                Line2D([], [], color=colour(v), linestyle=line_style(v), label=results.label(v))
                for v in variants
            ),
        ],
        loc="outside upper center",
        ncols=4,
    )
    return figure
