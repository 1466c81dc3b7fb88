"""Critical learning rates, sensitivity to the rate, and when training becomes unstable."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MultipleLocator

from mhclite.evidence import exhibits, style
from mhclite.evidence.critical import (
    GROUP,
    MARGINS,
    all_tries,
    compare,
    compare_times,
    critical_rates,
)
from mhclite.evidence.results import Results, of
from mhclite.evidence.statistics import BASELINE, t_interval
from mhclite.evidence.style import FAINT, INK, colour, grid, line_style, marker, variant_legend
from mhclite.evidence.survival import median_time
from mhclite.evidence.table_format import NONE, Rows, fixed, missing, plus_minus, sparse
from mhclite.measure.files import RISE, SMOOTHING
from mhclite.study.sections import BASE

REFERENCES = (BASELINE, "mhc")
KEYS = [*GROUP, "variant"]


def title_of(results: Results, condition: str) -> str:
    """A condition for readers."""
    if condition == BASE:
        return "none"
    return str(results.settings["conditions"][condition]["title"])


def by_variant(table: pd.DataFrame) -> dict[tuple[Any, ...], dict[Any, Any]]:
    """(corpus, model, condition, variant) -> row."""
    return {tuple(row[k] for k in KEYS): row for row in table.to_dict("records")}


def references(results: Results) -> list[str]:
    """The variants that others are compared with."""
    return [name for name in REFERENCES if name in results.variants]


def times(octaves: float) -> str:
    """A factor of the learning rate, from its log2."""
    return f"x {2**octaves:.3g}"


def stress_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, condition and variant: its critical rates, and comparisons.

    `critical_rate`, `half_width`, `low`, `high`: mean of log2 and its interval; `below`, `above`,
    `holds_above`: seeds; `minus_<reference>` with `_half_width`, `_p_holm`, `_verdict`.
    """
    rates, level = critical_rates(results), results.confidence
    against = {
        name: by_variant(compare(rates, "critical_rate", name, level))
        for name in references(results)
    }
    rows = []
    for key, own in rates.groupby(KEYS, observed=True, sort=True):
        interval = t_interval(own["critical_rate"], level)
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True)) | {
            "seeds": len(own),
            "critical_rate": interval.mean,
            "half_width": interval.half_width,
            "low": interval.low,
            "high": interval.high,
            "below": int((own["beyond"] == "below").sum()),
            "above": int((own["beyond"] == "above").sum()),
            "holds_above": int(own["holds_above"].sum()),
        }
        for name, found in against.items():
            pair = found.get(tuple(key), {})
            row[f"minus_{name}"] = pair.get("mean")
            for field in ("half_width", "p_holm", "verdict"):
                row[f"minus_{name}_{field}"] = pair.get(field)
        rows.append(row)
    return pd.DataFrame(rows)


@exhibits.table(
    "stress",
    title="Critical learning rates",
    caption=(
        "The multiple of the study's learning rate at which each variant ceases to learn, found "
        "by bisection for each of {seeds}, and its difference from others', paired by seed. "
        "Source: the files in critical/."
    ),
    heading="stability",
    needs="critical_rate",
)
def stress_table(results: Results) -> Rows:
    """Critical rate of every variant, and what it comes to against two references."""
    data = stress_data(results)
    rows = []
    for row in data.to_dict("records"):
        shown = times(row["critical_rate"])
        if not missing(row["low"]):
            shown += f" ({times(row['low'])} to {times(row['high'])})"
        display: dict[str, str] = {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Changed": title_of(results, row["condition"]),
            "Variant": results.label(row["variant"]),
            "Critical rate": shown,
            "Below, above the rates tried": f"{row['below']}, {row['above']} of {row['seeds']}",
            "A larger rate holds": f"{row['holds_above']} of {row['seeds']}",
        }
        for name in references(results):
            mean, half = row[f"minus_{name}"], row[f"minus_{name}_half_width"]
            word = row[f"minus_{name}_verdict"]
            text = NONE if missing(mean) else f"{plus_minus(mean, half, 2)}, {word}"
            display[f"Octaves above {results.label(name)}"] = text
        rows.append(display)
    display_table = pd.DataFrame(rows)
    settings = results.settings["critical_rate"]
    rates = ", ".join(
        f"{name} {model['learning_rate']:g}" for name, model in results.settings["models"].items()
    )
    tried = ", ".join(f"{factor:g}" for factor in settings["factors"])
    return Rows(
        notes=(
            f"Multiples of the study's own learning rate ({rates}). A run fails, of whatever "
            "variant, if it diverges or its final validation loss is not "
            f"{settings['below_unigram']:g} nats below the unigram model's. Tried are x {tried}, "
            "then the stretch from the smallest rate that fails to the one below it is halved "
            f"{settings['halvings']} time{'s' * (settings['halvings'] != 1)}, in logarithms. "
            "Critical rate: geometric mean over "
            f"seeds with its {100 * results.confidence:.6g} % Student t interval; a seed all of "
            "whose rates fail (below) or hold (above) counts with the end, so that differences "
            "are too small rather than too large. A larger rate holds: seeds in which failing is "
            "not monotone. Octaves (factors of 2) above: mean of the paired differences ± "
            "half-width of its interval. Higher or lower: p of exchanging the two variants within "
            "each seed, corrected after Holm over the variants of the same model and settings, is "
            f"at most {1 - results.confidence:.3g}. Practically equal: within "
            f"{MARGINS['critical_rate']:g} octaves by two one-sided t tests, with every rate off "
            "by half its interval to the worse side; never said where a rate lies beyond those "
            "tried."
        ),
        data=data,
        display=sparse(display_table, ["Corpus", "Model", "Changed"]),
        numeric=tuple(display_table.columns[4:]),
    )


def sensitivity_data(results: Results) -> pd.DataFrame:
    """One row per corpus, model, condition and variant, over the common rates.

    `rate_sensitivity`, `half_width`; `seeds` in it; `minus_residual` and its verdict;
    `unstable_<factor>` runs and `median_<factor>`, their median step (Kaplan-Meier);
    `logrank_p_holm` against the plain residual.
    """
    rates, tries, level = critical_rates(results), all_tries(results), results.confidence
    compared = by_variant(compare(rates, "rate_sensitivity", BASELINE, level))
    ranked = by_variant(compare_times(tries, BASELINE))
    common = tries[tries["common"]]
    rows = []
    for key, own in rates.groupby(KEYS, observed=True, sort=True):
        interval = t_interval(own["rate_sensitivity"].dropna(), level)
        pair = compared.get(tuple(key), {})
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True)) | {
            "runs": len(own),
            "seeds": interval.n,
            "rate_sensitivity": interval.mean,
            "half_width": interval.half_width,
            **{f"minus_residual_{k}": pair.get(k) for k in ("mean", "half_width", "verdict")},
            "logrank": ranked.get(tuple(key), {}).get("statistic"),
            "logrank_p_holm": ranked.get(tuple(key), {}).get("p_holm"),
        }
        of_runs = common[common["run"].isin(own["run"])]
        for factor, at in of_runs.groupby("factor"):
            unstable = at["unstable_step"].notna()
            row[f"unstable_{factor:g}"] = int(unstable.sum())
            step = at["unstable_step"].fillna(at["steps"])
            row[f"median_{factor:g}"] = median_time(list(step), list(unstable))
        rows.append(row)
    return pd.DataFrame(rows)


@exhibits.table(
    "sensitivity",
    title="Sensitivity to the learning rate, and time to instability",
    caption=(
        "How much a wrong learning rate costs, and at which step training becomes unstable, at "
        "rates that are the same for all variants, over {seeds}. Source: the files "
        "in critical/."
    ),
    heading="stability",
    needs="critical_rate",
)
def sensitivity_table(results: Results) -> Rows:
    """Sensitivity after arXiv 2309.14322, unstable runs and their times at the common rates."""
    data = sensitivity_data(results)
    factors = [f"{factor:g}" for factor in results.settings["critical_rate"]["factors"]]
    rows = []
    for row in data.to_dict("records"):
        word, p = row["minus_residual_verdict"], row["logrank_p_holm"]
        difference = plus_minus(row["minus_residual_mean"], row["minus_residual_half_width"], 3)
        display = {
            "Corpus": row["corpus"],
            "Model": row["model"],
            "Changed": title_of(results, row["condition"]),
            "Variant": results.label(row["variant"]),
            "Sensitivity": plus_minus(row["rate_sensitivity"], row["half_width"], 3),
            "Minus Residual": NONE if missing(word) else f"{difference}, {word}",
        }
        for factor in factors:
            median, unstable = row[f"median_{factor}"], row[f"unstable_{factor}"]
            step = "" if missing(median) else f", step {median:.0f}"
            display[f"Unstable, x {factor}"] = f"{unstable} of {row['runs']}{step}"
        # 0 where no run of either is unstable: there is nothing to rank.
        if missing(p) or row["logrank"] == 0:
            display["Log-rank p"] = NONE
        else:
            display["Log-rank p"] = fixed(p, 3) + (" more" if row["logrank"] > 0 else " less")
        rows.append(display)
    display_table = pd.DataFrame(rows)
    return Rows(
        notes=(
            "Sensitivity: mean over these rates of the smaller of final and initial validation "
            "loss, minus the best of them (arXiv 2309.14322), in nats per token; mean over seeds ± "
            "half-width of the interval. Verdicts as in the table of critical rates, practically "
            f"equal within {MARGINS['rate_sensitivity']:g} nats. Unstable: the mean training loss "
            f"of {SMOOTHING} steps rises more than {RISE:g} nats above its smallest value so far, "
            "or the run diverges; runs, and the median step after Kaplan and Meier where half of "
            "them do. Runs that do not are censored at their last step. Log-rank p: stratified by "
            "rate, against the plain residual; by exchange of the two variants within each seed, "
            "since its runs at several rates are not independent; corrected after Holm; more and "
            f"less say in which direction; {NONE} where no run of either is unstable."
        ),
        data=data,
        display=sparse(display_table, ["Corpus", "Model", "Changed"]),
        numeric=tuple(display_table.columns[4:]),
    )


ABOVE = 0.4  # nats above the unigram model at which the axis ends; diverged runs stand there


@exhibits.figure(
    "stress_rates",
    title="Final loss against the learning rate, and critical rates",
    caption=(
        "Left: final validation loss at multiples of the study's learning rate; lines are means "
        "over {seeds} at the rates that all were given, points are all runs, crosses those that "
        "failed; losses far above the unigram model (dotted) are drawn at the upper end. Right: "
        "the critical rate of each seed, its mean and the Student t interval of it; triangles lie "
        "beyond the rates tried. Source: the files in critical/."
    ),
    alt=(
        "Rising curves over the learning rate, one colour, marker and line style for each variant; "
        "beside them one row of points for each variant with a bar for the interval."
    ),
    heading="stability",
    needs="critical_rate",
)
def stress_rates(results: Results) -> Figure:
    """Final loss against the learning rate; critical rate of every seed with its interval."""
    tries, rates = all_tries(results), critical_rates(results)
    places = [
        (corpus, model, condition)
        for corpus, model in results.panels()
        for condition in [BASE, *results.settings["conditions"]]
        if (of(rates, corpus, model)["condition"] == condition).any()
    ]
    titles = {name: style.title_of(results, name) for name in results.settings["conditions"]}
    figure, axes = grid(len(places), 2, 2.8)
    octave = FuncFormatter(lambda value, _: f"x {2**value:g}")
    for (left, right), (corpus, model, condition) in zip(axes, places, strict=True):
        unigram = results.counting_models[corpus]["unigram"]
        cell, found = of(tries, corpus, model), of(rates, corpus, model)
        cell, found = (one[one["condition"] == condition] for one in (cell, found))
        shown = [v for v in results.variants if (found["variant"] == v).any()]
        for row, variant in enumerate(shown):
            own = cell[cell["variant"] == variant]
            top = unigram + ABOVE
            loss, octaves = (
                own["validation_loss"].fillna(top).clip(upper=top),
                np.log2(own["factor"]),
            )
            means = loss[own["common"]].groupby(octaves[own["common"]]).mean()
            left.plot(
                means.index,
                means,
                color=colour(variant),
                linestyle=line_style(variant),
                linewidth=1,
                marker=marker(variant),
                markersize=3.6,
            )
            for failed, shape in ((False, "."), (True, "x")):
                part = own["failed"] == failed
                left.plot(
                    octaves[part], loss[part], shape, color=colour(variant), markersize=3, alpha=0.5
                )
            values = found[found["variant"] == variant]
            for beyond, shape in (("", "o"), ("below", "<"), ("above", ">")):
                seeds = values.loc[values["beyond"] == beyond, "critical_rate"]
                spread = row + np.linspace(-0.25, 0.25, len(seeds))
                right.plot(seeds, spread, shape, color=colour(variant), markersize=3, alpha=0.6)
            interval = t_interval(values["critical_rate"], results.confidence)
            right.errorbar(
                [interval.mean],
                [row],
                xerr=[[interval.half_width or 0.0]] * 2,
                color=colour(variant),
                marker="|",
                markersize=12,
                capsize=3,
            )
        left.axhline(unigram, color=FAINT, linewidth=0.8, ls=":")
        title = results.panel_title(corpus, model)
        if condition != BASE:
            title += f", {titles[condition]}"
        rate = f"learning rate ({results.settings['models'][model]['learning_rate']:g} x)"
        left.set(title=title, xlabel=rate, ylabel="final validation loss (nats/token)")
        right.set(title="critical rate", xlabel=rate, ylim=(len(shown) - 0.5, -0.5))
        right.set_yticks(range(len(shown)), [results.label(variant) for variant in shown])
        for axis in (left, right):
            axis.xaxis.set_major_locator(MultipleLocator(1))
            axis.xaxis.set_major_formatter(octave)
    cross = Line2D([], [], color=INK, linestyle="none", marker="x", label="failed")
    variant_legend(figure, results.variants, results.labels, extra=[cross])
    return figure
