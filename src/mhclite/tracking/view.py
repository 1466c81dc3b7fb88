"""How an experiment presents itself in the MLflow UI: what it says, and two named views.

The UI keeps a named view ("Views" above the runs) in an experiment's tag, as JSON of its own
state. The form is that of the pinned MLflow: a UI that does not know it shows its default view.
"""

from __future__ import annotations

import json
from typing import Any

from mhclite.tracking.content import SUMMARY
from mhclite.training.live import TRAINING_CURVES, VALIDATION_CURVES

VIEW_TAG = "mlflow.sharedViewState."
VARIANTS_VIEW, RUNS_VIEW = "variants", "runs"  # ids, as in the links that `ui` prints

# Metrics without a chart: the same for every run, or close to one that has a chart.
NO_CHART = ("final/unigram_loss", "final/bigram_loss", "final/best_validation_loss")
# Sections of charts in the order of interest; the rest is in cost/.
SECTIONS = ("validation", "final", "train", "stability", "mixing", "cost")
COLUMNS = {  # of the table of runs: width in pixels
    "tags.`variant`": 100,
    "tags.`depth`": 70,
    "tags.`seed`": 70,
    "tags.`status`": 100,
    "metrics.`final/validation_loss`": 160,
    "metrics.`final/validation_bits_per_byte`": 215,
    "metrics.`final/unigram_loss`": 150,
    "metrics.`final/bigram_loss`": 140,
    "metrics.`stability/grad_norm_spikes`": 205,
    "metrics.`mixing/product_max_deviation`": 225,
}
FIXED_COLUMNS = ("attributes.`Run Name`", "runDateAndNestInfo", "duration")
BEST_FIRST = {
    "searchFilter": "tags.kind = 'training'",  # without the run "study", which has no curves
    "orderByKey": "metrics.`final/validation_loss`",
    "orderByAsc": True,
    "runsHiddenMode": "SHOW_ALL",
}


# What the UI needs for a chart of curves besides what every chart has: its own defaults.
LINE = {
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "range": {},
    "xAxisKey": "step",
    "selectedXAxisMetricKey": "",
    "yAxisKey": "metric",
    "yAxisExpressions": [],
    "ignoreOutliers": False,
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


def charts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(charts, sections) of the view: one chart per metric, one section per prefix."""
    curves = {**VALIDATION_CURVES, **TRAINING_CURVES}
    names = [*curves, "stability/diverged", *SUMMARY]
    cards = [
        {
            "uuid": name,
            "type": "LINE" if name in curves else "BAR",
            "metricKey": name,
            "displayName": name,
            "metricSectionId": section,
            "runsCountToCompare": 100,
            "isGenerated": True,
            "deleted": name in NO_CHART,
            **(LINE if name in curves else {}),
        }
        for section in SECTIONS
        for name in names
        if name.split("/")[0] == section
    ]
    assert len(cards) == len(names)
    sections = [
        {"uuid": name, "name": name, "display": True, "isReordered": True, "isGenerated": True}
        for name in SECTIONS
    ]
    return cards, sections


def _view(name: str, created: int, **state: Any) -> str:
    """A named view as the UI stores it; `created` in milliseconds."""
    envelope = {"name": name, "createdAt": created, "updatedAt": created}
    return json.dumps({**envelope, "state": json.dumps(state, separators=(",", ":"))})


def experiment_tags(title: str, cells: list[str], created: int) -> dict[str, str]:
    """Tags of the study's experiment: its description and its views.

    `cells` are the values of the tag `cell`: one per group of runs that differ only in their seed.
    """
    cards, sections = charts()
    return {
        # Without it the UI asks whether this is about agents or about training.
        "mlflow.experimentKind": "custom_model_development",
        # The UI shows the first line, until the reader unfolds the rest.
        "mlflow.note.content": (
            f"{title}: every training run, and the run *study* with report, figures and tables. "
            "See *Views* (top right) for the variants compared and the table of all runs."
            "\n\nLosses are in nats per token. A *cell* is one variant of one model size: its "
            "runs differ only in their seed. A mean over them leaves out a run from the step at "
            "which it diverged (status `diverged`). All of this is a copy of the results folder: "
            "changes made here are lost when the study is tracked again."
        ),
        f"{VIEW_TAG}{VARIANTS_VIEW}": _view(
            "Variants compared (means over seeds)",
            created,
            **BEST_FIRST,
            groupBy={
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": "cell"}],
            },
            groupsExpanded={f"tag.cell.{cell}": False for cell in cells},
            compareRunCharts=cards,
            compareRunSections=sections,
            isAccordionReordered=True,
        ),
        f"{VIEW_TAG}{RUNS_VIEW}": _view(
            "All training runs (best first)",
            created,
            **BEST_FIRST,
            selectedColumns=list(COLUMNS),
            columnOrder=[*FIXED_COLUMNS, *COLUMNS],
            columnWidths=COLUMNS,
        ),
    }
