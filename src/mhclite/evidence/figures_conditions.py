"""Figure of what each condition changes."""

from __future__ import annotations

from matplotlib.figure import Figure

from mhclite.evidence.results import Results
from mhclite.evidence.style import FAINT, colour, empty_figure, grid, marker, variant_legend
from mhclite.evidence.table_conditions import conditions_data, losses_by_seed
from mhclite.study.settings import BASE

ROW = 0.19  # inches a line


def changes(results: Results, confidence: float) -> Figure:
    """Change of the final loss under each condition, a line a variant, every seed a point."""
    data = conditions_data(results, confidence)
    data = data[data["change_n"] > 0]
    if data.empty:
        return empty_figure("No condition has a completed run with one to compare it with.")
    losses = losses_by_seed(results)
    settings = results.settings["conditions"]
    lines = [(name, variant) for name, one in settings.items() for variant in one["variants"]]
    panels = [(corpus, model) for corpus in results.corpora for model in results.models]
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
        for row in data[(data["corpus"] == corpus) & (data["model"] == model)].to_dict("records"):
            name, variant = row["condition"], row["variant"]
            place = places[name, variant]
            changed = losses.get((corpus, model, variant, name), {})
            base = losses.get((corpus, model, variant, BASE), {})
            values = [changed[seed] - base[seed] for seed in changed.keys() & base.keys()]
            panel.plot(
                values,
                [place + 0.22] * len(values),
                linestyle="none",
                marker="o",
                markersize=2.2,
                markeredgewidth=0,
                color=colour(variant),
                alpha=0.45,
            )
            panel.errorbar(
                row["change_mean"],
                place - 0.08,
                xerr=None if row["change_n"] < 2 else row["change_half_width"],
                marker=marker(variant),
                color=colour(variant),
                markeredgecolor="white",
                markeredgewidth=0.5,
                markersize=4.5,
                elinewidth=1.1,
                capsize=2,
            )
        panel.set(
            title=f"{corpus}, {results.model_label(model)}",
            xlabel="change of final loss (nats/token)",
        )
        panel.grid(visible=False, axis="y")
    titles = {
        sum(places[name, variant] for variant in one["variants"]) / len(one["variants"]): one
        for name, one in settings.items()
    }
    first = axes[0][0]
    first.set_yticks(list(titles), [one["title"] for one in titles.values()])
    first.tick_params(axis="y", length=0)
    first.set_ylim(max(places.values()) + 0.8, -0.8)
    touched = {variant for _, variant in lines}
    shown = [variant for variant in results.variants if variant in touched]
    variant_legend(figure, shown, results.labels, markers=True)
    return figure
