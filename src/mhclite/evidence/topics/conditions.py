"""What each condition changes, numbers of streams among them: losses paired by seed.

A difference between two variants is compared before and after: what a condition takes away of it
was the setting, not the variant.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mhclite.evidence import exhibits
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import (
    INTERVAL_COLUMNS,
    Interval,
    difference,
    interval_columns,
    t_interval,
)
from mhclite.evidence.style import (
    FAINT,
    empty_figure,
    grid,
    seeds_and_interval,
    title_of,
    variant_legend,
)
from mhclite.evidence.table_format import (
    Rows,
    fixed,
    percent_of,
    plus_minus,
    quartiles,
    significant,
    sparse,
)
from mhclite.study.sections import BASE

AGED = "mixing_rate_factor"
OTHERS = ("residual", "mhc")  # whom a variant is compared with, before and after


Losses = dict[tuple[str, str, str, str], dict[int, float]]


def losses_by_seed(results: Results) -> Losses:
    """(corpus, model, variant, condition) -> seed -> final validation loss of completed runs."""
    losses: Losses = {}
    for row in results.all_runs.to_dict("records"):
        if row["status"] == "completed":
            cell = (row["corpus"], row["model"], row["variant"], row["condition"])
            losses.setdefault(cell, {})[int(row["seed"])] = row["validation_loss"]
    return losses


def _among(losses: dict[int, float], seeds: Container[int]) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if seed in seeds}


def comparable(results: Results) -> dict[str, dict[str, Any]]:
    """The conditions of tables of losses: not those whose mixing learns faster, which have a table
    of their own.
    """
    conditions: dict[str, dict[str, Any]] = results.settings["conditions"]
    return {n: one for n, one in conditions.items() if AGED not in one["connections"]}


def conditions_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, condition and variant: nats per token, paired by seed.

    `change_*`: loss under the condition minus that of the same variant under the study's own
    settings. `gap_<other>_before_*`: loss minus the other variant's under the study's own
    settings; `..._after_*`: the same with the condition applied to whichever of the two has it.
    Both are over the seeds that completed under the condition, often fewer than the study's. There
    is none with a variant that lacks a change of training, which concerns every variant.
    """
    losses, confidence = losses_by_seed(results), results.confidence
    rows: list[dict[str, Any]] = []
    for corpus in results.corpora:
        for model in results.models:
            for condition, settings in comparable(results).items():
                if model not in (settings.get("models") or results.models):
                    continue

                def under(variant: str, condition: str) -> dict[int, float]:
                    return losses.get((corpus, model, variant, condition), {})  # noqa: B023

                touched = settings["variants"]
                # A change of training concerns every variant: one without it is no comparison.
                of_all = settings["training"] or settings["learning_rate_factor"] != 1
                for variant in touched:
                    changed = under(variant, condition)
                    row: dict[str, Any] = {
                        "corpus": corpus,
                        "model": model,
                        "condition": condition,
                        "title": settings["title"],
                        "variant": variant,
                    }
                    change = difference(changed, under(variant, BASE), confidence)
                    row |= _named("change", change)
                    for against in OTHERS:
                        other = condition if against in touched else BASE
                        changed_other = under(against, other)
                        after = difference(changed, changed_other, confidence)
                        unchanged = _among(under(variant, BASE), changed.keys() & changed_other)
                        before = difference(unchanged, under(against, BASE), confidence)
                        if against == variant or (of_all and against not in touched):
                            before = after = Interval(0, None, None, None)
                        row |= _named(f"gap_{against}_before", before)
                        row |= _named(f"gap_{against}_after", after)
                    rows.append(row)
    return pd.DataFrame(rows)


def _named(prefix: str, interval: Interval) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in interval_columns(interval).items()}


@exhibits.table(
    "conditions",
    title="What each change of settings does",
    caption=(
        "Final validation loss with one setting changed, against the same variant and seed "
        "without the change, and the differences between variants before and after it; mean "
        "over the seeds of the change with the half-width of the {level} % Student t interval. "
        "Source: runs.csv."
    ),
    heading="changes",
    needs="conditions",
)
def conditions_table(results: Results) -> Rows:
    """The table for readers."""
    data = conditions_data(results)

    def text(row: dict[Any, Any], prefix: str) -> str:
        return plus_minus(row[f"{prefix}_mean"], row[f"{prefix}_half_width"])

    rows = []
    for row in data.to_dict("records"):
        cells = {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Changed": row["title"],
            "Variant": results.label(row["variant"]),
            "Seeds (n)": f"{row['change_n']:.0f}",
            "Change of loss": text(row, "change"),
        }
        for against in OTHERS:
            if against in results.variants:
                label = results.label(against)
                cells[f"Minus {label}, before"] = text(row, f"gap_{against}_before")
                cells[f"Minus {label}, after"] = text(row, f"gap_{against}_after")
        rows.append(cells)
    display = pd.DataFrame(rows)
    change = "Change of loss"
    clear = frozenset(
        (at, change)
        for at, row in enumerate(data.to_dict("records"))
        if Interval(*(row[f"change_{name}"] for name in INTERVAL_COLUMNS[:4])).excludes_zero()
    )
    return Rows(
        notes=(
            "Final validation loss in nats per token, differences paired by seed: mean ± "
            f"half-width of the {percent_of(results.confidence)} Student t interval over the n "
            "seeds. Change of loss: with the change minus without it, same variant; bold where the "
            "interval excludes 0 (each row stands alone: nothing is corrected for their number). "
            "The other columns compare the variant with another, before the change and after it, "
            "over the same seeds; the change applies to both where it touches both."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Changed"]),
        numeric=tuple(display.columns[4:]),
        bold=clear,
    )


ROW = 0.19  # inches per line


@exhibits.figure(
    "changes",
    title="What each change of settings does",
    caption=(
        "Final validation loss with one setting changed minus that without the change, of the "
        "same variant and seed. Marker and bar: mean with its {level} % Student t interval over"
        " up to {seeds}; faint points: each seed. Where one change moves the variants "
        "differently, a difference between variants is partly the setting. Source: runs.csv."
    ),
    alt=(
        "Points with horizontal error bars around a line at zero, a group for each change, a "
        "colour and marker for each variant."
    ),
    heading="changes",
    needs="conditions",
)
def changes(results: Results) -> Figure:
    """Change of the final loss under each condition: one line per variant, one point per seed."""
    data = conditions_data(results)
    data = data[data["change_n"] > 0]
    if data.empty:
        return empty_figure("No condition has a completed run with one to compare it with.")
    losses = losses_by_seed(results)
    settings = comparable(results)
    lines = [(name, variant) for name, one in settings.items() for variant in one["variants"]]
    panels = [cell for cell in results.panels() if len(of(data, *cell))]
    names = {name: title_of(results, name) for name in settings}
    height = 0.7 + ROW * (len(lines) + len(settings))
    figure, axes = grid(1, len(panels), height, sharey=True, sharex=True)
    places: dict[tuple[str, str], float] = {}
    at = 0.0
    for name, one in settings.items():
        for variant in one["variants"]:
            places[name, variant] = at
            at += 1
        at += 0.8
    for panel, (corpus, model) in zip(axes[0], panels, strict=True):
        panel.axvline(0, color=FAINT, linewidth=0.8)
        for row in of(data, corpus, model).to_dict("records"):
            name, variant = row["condition"], row["variant"]
            changed = losses.get((corpus, model, variant, name), {})
            base = losses.get((corpus, model, variant, BASE), {})
            values = [changed[seed] - base[seed] for seed in changed.keys() & base.keys()]
            mean, half_width = row["change_mean"], row["change_half_width"]
            seeds_and_interval(panel, variant, places[name, variant], values, mean, half_width)
        panel.set_title(results.panel_title(corpus, model))
        panel.grid(visible=False, axis="y")
    figure.supxlabel("change of final loss (nats/token)", fontsize=8)
    titles = {
        sum(places[name, variant] for variant in one["variants"]) / len(one["variants"]): name
        for name, one in settings.items()
    }
    first = axes[0][0]
    first.set_yticks(list(titles), [names[name] for name in titles.values()])
    first.tick_params(axis="y", length=0)
    first.set_ylim(max(places.values()) + 0.8, -0.8)
    touched = {variant for _, variant in lines}
    shown = [variant for variant in results.variants if variant in touched]
    variant_legend(figure, shown, results.labels, markers=True)
    return figure


MIB = 2**20


def streams_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, variant and number of streams, fewest first.

    `loss_*`: final validation loss; `change_*`: minus that with the study's own number, paired by
    seed. Costs are from the throughput file: step time over the plain residual's, peak memory,
    parameters over the plain residual.
    """
    losses, confidence = losses_by_seed(results), results.confidence
    usual = int(results.settings["connections"]["n_streams"])
    numbers = {
        name: int(condition["connections"]["n_streams"])
        for name, condition in results.settings["conditions"].items()
        if "n_streams" in condition["connections"]
    }
    rows: list[dict[str, Any]] = []
    for corpus in results.corpora:
        for model in results.models:
            measured = results.throughput[model]
            for variant in results.variants:
                tried = [
                    (n, name)
                    for name, n in numbers.items()
                    if variant in results.settings["conditions"][name]["variants"]
                ]
                if not tried:
                    continue
                base = losses.get((corpus, model, variant, BASE), {})
                for n, name in sorted([(usual, BASE), *tried]):
                    own = losses.get((corpus, model, variant, name), {})
                    arm = variant if name == BASE else f"{variant}-{name}"
                    cost, timed = measured.counted(arm), measured.variants.get(arm)
                    assert cost is not None
                    loss = t_interval(own.values(), confidence)
                    change = (
                        Interval(0, None, None, None)
                        if name == BASE
                        else difference(own, base, confidence)
                    )
                    rows.append(
                        {
                            "corpus": corpus,
                            "model": model,
                            "variant": variant,
                            "n_streams": n,
                            **{f"loss_{k}": v for k, v in interval_columns(loss).items()},
                            **{f"change_{k}": v for k, v in interval_columns(change).items()},
                            "extra_parameters": cost.extra_parameters,
                            "flops_per_token": cost.flops_per_token,
                            "peak_memory_bytes": timed.peak_memory_bytes if timed else math.nan,
                            **{
                                f"ratio_{q}": getattr(timed.ratio_quartiles, q)
                                if timed
                                else math.nan
                                for q in ("median", "q1", "q3")
                            },
                        }
                    )
    return pd.DataFrame(rows)


@exhibits.table(
    "streams",
    title="Numbers of streams",
    caption=(
        "Final validation loss, parameters, memory and speed of the variants with other numbers"
        " of streams; loss over {seeds} with the half-width of the {level} % Student t "
        "interval. Source: runs.csv and throughput/."
    ),
    heading="changes",
    needs="streams",
)
def streams_table(results: Results) -> Rows:
    """The table for readers."""
    data = streams_data(results)
    usual = int(results.settings["connections"]["n_streams"])
    display = pd.DataFrame(
        {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Variant": results.label(row["variant"]),
            "Streams": str(row["n_streams"]),
            "Seeds (n)": f"{row['loss_n']:.0f}",
            "Validation loss": plus_minus(row["loss_mean"], row["loss_half_width"]),
            f"Minus {usual} streams": plus_minus(row["change_mean"], row["change_half_width"]),
            "Extra parameters": fixed(row["extra_parameters"], 0),
            "Step time (residual = 1)": quartiles(
                {name: row[f"ratio_{name}"] for name in ("median", "q1", "q3")}, 2
            ),
            "Peak memory (MiB)": significant(row["peak_memory_bytes"] / MIB),
        }
        for row in data.to_dict("records")
    )
    return Rows(
        notes=(
            "Final validation loss in nats per token: mean over the completed runs ± half-width of "
            f"the {percent_of(results.confidence)} Student t interval over the n seeds; the "
            f"difference to {usual} streams is paired by seed. Extra parameters over the plain "
            "residual. Step time is relative to the plain residual's in the same round, median "
            "[quartiles], measured alone on the device."
        ),
        data=data,
        display=sparse(display, ["Corpus", "Model", "Variant"]),
        numeric=tuple(display.columns[3:]),
    )
