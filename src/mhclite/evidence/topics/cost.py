"""What a user pays: time, memory and parameters, and tokens to the plain residual's loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mhclite.errors import UserError
from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, of
from mhclite.evidence.style import (
    INK,
    colour,
    empty_figure,
    line_style,
    marker,
    plain_log,
    variant_legend,
    wrapped_grid,
)
from mhclite.evidence.table_format import Rows, fixed, quartiles, significant, sparse
from mhclite.measure.files import Measured, Quartiles, Throughput

MIB = 2**20


QUARTILES = ("median", "q1", "q3")


# How it was measured: the same for all variants of a model.
SETTINGS = (
    "device",
    "threads",
    "precision",
    "compile",
    "implementation",
    "batch_size",
    "block_size",
    "rounds",
    "warmup_rounds",
)


def _speed(measured: Measured | None) -> dict[str, float]:
    """Speed and memory of a variant; NaN where it did not fit."""
    nothing = Quartiles(math.nan, math.nan, math.nan)
    speed, ratio = (
        (measured.tokens_per_second, measured.ratio_quartiles) if measured else (nothing, nothing)
    )
    return {
        **{f"tokens_per_second_{q}": getattr(speed, q) for q in QUARTILES},
        **{f"ratio_{q}": getattr(ratio, q) for q in QUARTILES},
        "peak_memory_bytes": measured.peak_memory_bytes if measured else math.nan,
    }


def parameters_data(results: Results) -> pd.DataFrame:
    """One row per model and variant.

    `tokens_per_second_*` and `ratio_*` are median and quartiles over the timed rounds; the ratio is
    the step time over the plain residual's in the same round. `<name>_ratio_*` are those of another
    implementation than the study's, `free_ratio_*` those without deterministic algorithms. What
    did not fit in the device's memory has no speed and no `peak_memory_bytes`.
    """
    rows: list[dict[str, Any]] = []
    for model in results.models:
        measured = results.throughput[model]
        for variant in results.variants_of(model):
            counted = measured.counted(variant)
            if counted is None:
                raise UserError(
                    f"the throughput of model {model} was measured without variant {variant}: "
                    f"delete {results.folder / 'throughput' / model}.json and run "
                    "`snakemake --cores all`"
                )
            extra = counted.extra_parameters
            others = {**measured.others, "free": measured.free}
            rows.append(
                {
                    "model": model,
                    "n_layer": results.n_layer(model),
                    "variant": variant,
                    "label": results.label(variant),
                    "parameters": counted.parameters,
                    "extra_parameters": extra,
                    "extra_percent": 100 * extra / (counted.parameters - extra),
                    "flops_per_token": counted.flops_per_token,
                    **_speed(measured.variants.get(variant)),
                    **{
                        f"{other}_ratio_{q}": getattr(by_variant[variant].ratio_quartiles, q)
                        for other, by_variant in others.items()
                        if variant in by_variant
                        for q in QUARTILES
                    },
                    **{name: getattr(measured, name) for name in SETTINGS},
                }
            )
    return pd.DataFrame(rows)


def how_measured(results: Results) -> str:
    """Device and settings of the throughput measurement, said once where all models agree."""
    models_of: dict[str, list[str]] = {}
    for model in results.models:
        measured = results.throughput[model]
        where = measured.device
        if where == "cpu":
            threads = measured.threads
            where = f"{measured.hardware['cpu']}, {threads} thread" + "s" * (threads != 1)
        how = (
            f"{where}, {measured.precision}{', compiled' * measured.compile}"
            f"{', deterministic algorithms' * measured.deterministic}, "
            f"batch {measured.batch_size} × context {measured.block_size}, "
            f"{measured.rounds} rounds"
        )
        models_of.setdefault(how, []).append(model)
    if len(models_of) == 1:
        return next(iter(models_of))
    return "; ".join(f"{', '.join(models)}: {how}" for how, models in models_of.items())


def _implementations(results: Results) -> str:
    """Which implementation the columns are of."""
    own = results.throughput[results.models[0]].implementation
    others = list(dict.fromkeys(o for m in results.models for o in results.throughput[m].others))
    if not own or not others:
        return ""
    return f"it is that of the {own} implementation, and beside it of {' and '.join(others)}. "


@exhibits.table(
    "parameters",
    title="Parameters, arithmetic and speed",
    caption=(
        "Parameters, FLOPs per token, throughput, step time relative to the plain residual "
        "(with the study's implementation and with others) and peak memory of every variant; "
        "medians and quartiles over {rounds} timed rounds. Source: the files in throughput/."
    ),
    heading="cost",
)
def parameters_table(results: Results) -> Rows:
    """Parameters, FLOPs, throughput and memory of every model and variant."""
    data = parameters_data(results)

    def spread(row: dict[Any, Any], name: str, decimals: int) -> str:
        values = {q: row.get(f"{name}_{q}", math.nan) for q in QUARTILES}
        return "" if math.isnan(values["median"]) else quartiles(values, decimals)

    files = [results.throughput[model] for model in results.models]
    others = {f"Step time, {other}": other for file in files for other in file.others}
    if any(file.free for file in files):
        others["Step time, not deterministic"] = "free"
    display = pd.DataFrame(
        {
            "Model": row["model"],
            "Layers": fixed(row["n_layer"], 0),
            "Variant": row["label"],
            "Parameters": fixed(row["parameters"], 0),
            "Extra over residual": fixed(row["extra_parameters"], 0),
            "Extra (%)": significant(row["extra_percent"]),
            "FLOPs per token (millions)": fixed(row["flops_per_token"] / 1e6, 2),
            "Throughput (tokens/s)": spread(row, "tokens_per_second", 0),
            "Step time (residual = 1)": spread(row, "ratio", 2),
            **{title: spread(row, f"{other}_ratio", 2) for title, other in others.items()},
            "Peak memory (MiB)": (
                "did not fit"
                if math.isnan(row["peak_memory_bytes"])
                else fixed(row["peak_memory_bytes"] / MIB, 1)
            ),
        }
        for row in data.to_dict("records")
    )
    return Rows(
        notes=(
            "Throughput and step time are median [first, third quartile] over the timed rounds. "
            "Each round takes one training step of every variant; the step time is relative to the "
            "plain residual's in the same round, above 1 is slower; "
            f"{_implementations(results)}FLOPs are those of the matrix "
            "products of a forward and backward pass. Peak memory is what a training step holds "
            "at its worst: parameters, optimizer state, gradients, activations. Measured on "
            f"{how_measured(results)}."
        ),
        data=data,
        display=sparse(display, ["Model", "Layers"]),
        numeric=tuple(display.columns[3:]),
    )


def _throughput_panel(axes: Axes, results: Results, measured: Throughput) -> None:
    """Bars of one model size: median, quartiles as whiskers, every round as a point.

    What other implementations reach is a dash across the bar.
    """
    variants = [variant for variant in results.variants if variant in measured.variants]
    tokens = measured.batch_size * measured.block_size
    highest = 0.0
    for place, variant in enumerate(variants):
        row = measured.variants[variant]
        speed, rounds = row.tokens_per_second, tokens / np.array(row.step_seconds)
        axes.barh(
            place,
            speed.median,
            height=0.72,
            color=colour(variant),
            alpha=0.75,
            xerr=[[speed.median - speed.q1], [speed.q3 - speed.median]],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": INK},
        )
        # Spread over the bar's height, so that equal rounds do not hide each other.
        heights = place + np.linspace(-0.25, 0.25, len(rounds))
        axes.plot(
            rounds, heights, ".", color=INK, markersize=2.2, markeredgewidth=0, alpha=0.7, zorder=3
        )
        end = max(float(rounds.max()), speed.q3)
        for rows in measured.others.values():
            if variant in rows:
                other = rows[variant].tokens_per_second.median
                axes.plot([other] * 2, [place - 0.42, place + 0.42], color=INK, linewidth=1.4)
                end = max(end, other)
        highest = max(highest, end)
        axes.annotate(
            f"{1 / row.ratio_quartiles.median:.2f}×",
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(variants)), [results.label(variant) for variant in variants])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * highest)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.locator_params(axis="x", nbins=5)


@exhibits.figure(
    "throughput",
    title="Training throughput",
    caption=(
        "Training tokens per second, measured alone on the device. Bar: median of {rounds} timed "
        "rounds; whiskers: first and third quartile; dots: the rounds. In each round every variant "
        "takes one training step; the number at a bar is the throughput relative to the plain "
        "residual in the same round (median). The variants are computed by the {implementation} "
        "implementation{others:; a long dash across a bar is another one, timed in the same "
        "rounds}. Source: the files in throughput/."
    ),
    alt="Horizontal bars, one for each variant, a panel for each depth.",
    heading="cost",
)
def throughput(results: Results) -> Figure:
    """Training tokens per second, and how many times the plain residual's."""
    figure, panels = wrapped_grid(len(results.models), 0.6 + 0.24 * len(results.variants))
    for panel, model in zip(panels, results.models, strict=True):
        measured = results.throughput[model]
        _throughput_panel(panel, results, measured)
        panel.set(
            title=f"{results.model_label(model)} on {measured.device}, "
            f"{measured.precision}, {measured.batch_size} sequences a step",
            xlabel="training tokens per second",
        )
    return figure


@exhibits.figure(
    "loss_against_time",
    title="Validation loss against training time",
    caption=(
        "What a user pays: validation loss (mean over the completed runs of {seeds}) against "
        "the time that so many tokens take at the measured median throughput; the marker is the"
        " end of training. The throughput was measured alone on the device, with each variant "
        "computed by the {implementation} implementation: another one moves its curve along the"
        " axis. Source: curves.csv and throughput/."
    ),
    alt=(
        "Falling curves over seconds, one colour and line style for each variant; those of "
        "costly variants reach further right."
    ),
    heading="cost",
)
def loss_against_time(results: Results) -> Figure:
    """Mean validation loss against the time that the tokens take at the measured throughput."""
    curves = results.curves.dropna(subset=["validation_loss"])
    curves = curves[curves["run"].isin(results.completed) & (curves["step"] > 0)]
    if curves.empty:
        return empty_figure("No run reached its last step.")
    figure, panels = wrapped_grid(len(results.panels()), 2.0)
    for panel, (corpus, model) in zip(panels, results.panels(), strict=True):
        measured = results.throughput[model].variants
        for variant in results.variants:
            own = of(curves, corpus, model, variant)
            if own.empty or variant not in measured:
                continue
            mean = own.groupby("tokens")["validation_loss"].mean()
            seconds = mean.index.to_numpy(float) / measured[variant].tokens_per_second.median
            panel.plot(
                seconds, mean, color=colour(variant), linestyle=line_style(variant), linewidth=1.2
            )
            panel.plot(
                seconds[-1], mean.iloc[-1], marker(variant), color=colour(variant), markersize=4.5
            )
        plain_log(panel)
        panel.set(
            title=results.panel_title(corpus, model),
            xlabel=f"training time on {results.throughput[model].device} (s)",
            ylabel="validation loss (nats/token)",
        )
    variant_legend(figure, results.variants, results.labels)
    return figure
