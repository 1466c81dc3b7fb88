"""A named view of the MLflow UI for each model size: its variants compared, means over seeds.

The UI keeps a view ("Views" above the runs) in an experiment's tag, as JSON of its own state. The
form is that of the pinned MLflow: a UI that does not know it shows its default view.
"""

from __future__ import annotations

import json
from typing import Any

from mhclite.tracking.content import MIXING_CURVES, SUMMARY, TrackedRun
from mhclite.training.live import TRAINING_CURVES, VALIDATION_CURVES

TAG = "mlflow.sharedViewState."
CURVES = {**VALIDATION_CURVES, **TRAINING_CURVES, **MIXING_CURVES}
# Sections of charts in the order of interest.
SECTIONS = ("validation", "final", "train", "mixing_in_training", "mixing", "stability", "cost")
COLUMNS = {  # of the table of runs: width in pixels, the loss in sight beside the UI's assistant
    "metrics.`final/validation_loss`": 130,
    "tags.`variant`": 90,
    "tags.`condition`": 90,
    "tags.`model`": 65,
    "tags.`seed`": 60,
    "tags.`status`": 100,
}
BEGINNING = 0.1  # of a run: what it leaves there would make the axis of the rest too long
LINE = {  # what the UI needs for curves besides what every chart has: its own defaults
    "lineSmoothness": 0,
    "xAxisScaleType": "linear",
    "scaleType": "linear",
    "xAxisKey": "step",
    "yAxisKey": "metric",
    "useGlobalXaxisKey": True,
    "useGlobalLineSmoothing": True,
}


def axis(runs: list[TrackedRun], name: str) -> dict[str, float]:
    """Where the values of a curve lie after the beginning, with a little room."""
    values = []
    for run in runs:
        points = [(step, value) for metric, value, _, step in run.metrics if metric == name]
        if run.tags["status"] != "diverged":
            values += [value for step, value in points if step >= BEGINNING * points[-1][0]]
    if not values:
        return {}
    room = 0.03 * (max(values) - min(values) or abs(values[0]))
    return {"yMin": min(values) - room, "yMax": max(values) + room}


def charts(runs: list[TrackedRun]) -> list[dict[str, Any]]:
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
            **({**LINE, "range": axis(runs, name)} if name in CURVES else {}),
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
        own = [run for run in runs if run.tags.get("model") == model]
        state = {
            "searchFilter": f"tags.kind = 'training' and tags.model = '{model}'",
            "orderByKey": "metrics.`final/validation_loss`",
            "orderByAsc": True,
            "runsHiddenMode": "SHOW_ALL",
            "groupBy": {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": "cell"}],
            },
            "groupsExpanded": {f"tag.cell.{run.tags['cell']}": False for run in own},
            "selectedColumns": list(COLUMNS),
            "columnOrder": ["attributes.`Run Name`", *COLUMNS],
            "columnWidths": COLUMNS,
            "compareRunCharts": charts(own),
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
