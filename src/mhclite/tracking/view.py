"""A named view of the MLflow UI for each model size: its variants compared, means over seeds.

The UI keeps a view ("Views" above the runs) in an experiment's tag, as JSON of its own state. The
form is that of the pinned MLflow: a UI that does not know it shows its default view.
"""

from __future__ import annotations

import json
from typing import Any

from mhclite.tracking.content import SUMMARY, TrackedRun
from mhclite.training.live import TRAINING_CURVES, VALIDATION_CURVES

TAG = "mlflow.sharedViewState."
CURVES = {**VALIDATION_CURVES, **TRAINING_CURVES}
# Sections of charts in the order of interest; the rest is in cost/.
SECTIONS = ("validation", "final", "train", "stability", "mixing", "cost")
# Without a chart: the same for every run, or close to one that has a chart.
NO_CHART = ("final/unigram_loss", "final/bigram_loss", "final/best_validation_loss")
COLUMNS = {  # of the table of runs: width in pixels
    "tags.`variant`": 100,
    "tags.`condition`": 110,
    "tags.`seed`": 70,
    "tags.`status`": 100,
    "metrics.`final/validation_loss`": 160,
    "metrics.`stability/grad_norm_spikes`": 205,
    "metrics.`mixing/product_max_deviation`": 225,
}
LINE = {  # what the UI needs for curves besides what every chart has: its own defaults
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


def charts() -> list[dict[str, Any]]:
    """One chart for each metric, in the section of its prefix."""
    return [
        {
            "uuid": name,
            "type": "LINE" if name in CURVES else "BAR",
            "metricKey": name,
            "displayName": name,
            "metricSectionId": section,
            "runsCountToCompare": 100,
            "isGenerated": True,
            "deleted": name in NO_CHART,
            **(LINE if name in CURVES else {}),
        }
        for section in SECTIONS
        for name in (*CURVES, "stability/diverged", *SUMMARY)
        if name.split("/")[0] == section
    ]


def models_of(runs: list[TrackedRun]) -> list[str]:
    """The model sizes of training runs, which name the views."""
    return list(dict.fromkeys(run.tags["model"] for run in runs if "model" in run.tags))


def views(runs: list[TrackedRun], created: int) -> dict[str, str]:
    """Tags of an experiment: a view for each model size; `created` in milliseconds."""
    found = {}
    for model in models_of(runs):
        cells = {run.tags["cell"] for run in runs if run.tags.get("model") == model}
        state = {
            "searchFilter": f"tags.kind = 'training' and tags.model = '{model}'",
            "orderByKey": "metrics.`final/validation_loss`",
            "orderByAsc": True,
            "runsHiddenMode": "SHOW_ALL",
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": "cell"}],
            },
            "groupsExpanded": {f"tag.cell.{cell}": False for cell in sorted(cells)},
            "selectedColumns": list(COLUMNS),
            "columnOrder": ["attributes.`Run Name`", *COLUMNS],
            "columnWidths": COLUMNS,
            "compareRunCharts": charts(),
            "compareRunSections": [
                {"uuid": name, "name": name, "display": True, "isReordered": True}
                | {"isGenerated": True}
                for name in SECTIONS
            ],
            "isAccordionReordered": True,
        }
        envelope = {"name": f"{model}: variants compared", "createdAt": created}
        envelope |= {"updatedAt": created, "state": json.dumps(state, separators=(",", ":"))}
        found[f"{TAG}{model}"] = json.dumps(envelope)
    return found
