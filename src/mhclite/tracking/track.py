"""`python -m mhclite track`: bring one study's results into MLflow.

MLflow is a view of results/: the experiment holds every run of the study once, and no other run of
ours. A run that is there with the same digest is left alone, any other is deleted and made again,
so that a second import changes nothing, an interrupted one is completed by the next, and a deleted
store is rebuilt.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from mhclite.arguments import file_path, folder_path
from mhclite.files import write_json
from mhclite.tracking.content import EXPERIMENT_TAGS, TrackedRun, models_of, tracked_runs, views
from mhclite.tracking.store import DEFAULT_URI, RUN_TAG, Store, database_of, open_store

SCHEMA = 1
DIGEST_TAG = "mhclite.digest"  # set last: a run without it was not imported to its end
BATCH = 900  # metrics sent at once: MLflow takes 1000 entities, the parameters among them

log = logging.getLogger(__name__)


def import_run(store: Store, study: str, experiment: str, run: TrackedRun) -> str:
    """Make the MLflow run of `run` in the experiment of a study; returns its id."""
    from mlflow.entities import Metric, Param, RunTag

    tags = {RUN_TAG: run.name, "mlflow.user": "mhclite", **run.tags}
    run_id = str(store.client.create_run(experiment, run.start, tags, run.name).info.run_id)
    params = [Param(key, value) for key, value in run.params.items()]
    metrics = [Metric(name, value, at, step) for name, value, at, step in run.metrics]
    for first in range(0, len(metrics), BATCH):
        store.client.log_batch(run_id, metrics[first : first + BATCH], params)
        params = []
    for path, file in run.artifacts.items():
        store.add_artifact(study, run_id, path, file)
    # FINISHED also if it diverged: that is a result. The tag `status` says so.
    store.client.set_terminated(run_id, "FINISHED", run.end)
    store.client.log_batch(run_id, tags=[RunTag(DIGEST_TAG, run.digest)])
    return run_id


def synchronise(store: Store, study: dict[str, Any], runs: list[TrackedRun]) -> dict[str, Any]:
    """Make the study's experiment hold exactly `runs`; returns the receipt."""
    name = study["name"]
    tags = EXPERIMENT_TAGS | views(runs, created=runs[0].end)
    experiment = store.experiment(name, tags)
    wanted = {run.name: run for run in runs}
    kept: dict[str, str] = {}  # run -> its id in MLflow
    for old in store.runs(experiment):
        tags = old.data.tags
        if RUN_TAG not in tags:  # not ours
            continue
        run_name = tags[RUN_TAG]
        same = run_name in wanted and tags.get(DIGEST_TAG) == wanted[run_name].digest
        if same and run_name not in kept and old.info.lifecycle_stage == "active":
            kept[run_name] = old.info.run_id
            continue
        store.purge(name, old)
    new = [run for run in runs if run.name not in kept]
    unchanged = len(kept)
    for run in new:
        kept[run.name] = import_run(store, name, experiment, run)
    log.info("%s: %d runs imported, %d unchanged; look: make ui", name, len(new), unchanged)
    return {
        "schema": SCHEMA,
        "uri": store.uri,
        "experiment": {"name": name, "id": experiment},
        "views": models_of(runs),
        "runs": {run.name: {"id": kept[run.name], "digest": run.digest} for run in runs},
    }


def track(folder: Path, uri: str, receipt: Path) -> None:
    """Bring results/<study> into the store at `uri` and write the receipt."""
    database_of(uri)  # before the runs, which take longer: is it a store?
    study, runs = tracked_runs(folder)
    with open_store(uri, folder / ".mlflow.lock") as store:
        result = synchronise(store, study, runs)
    write_json(receipt, result)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite track`."""
    parser.add_argument(
        "--results",
        required=True,
        type=folder_path,
        metavar="DIR",
        help="the study's folder: results/...",
    )
    parser.add_argument("--uri", default=DEFAULT_URI, help="MLflow store (default: %(default)s)")
    parser.add_argument(
        "--receipt",
        type=file_path,
        metavar="FILE",
        help="default: mlflow.json in the study's folder",
    )


def run(args: argparse.Namespace) -> None:
    """Track one study."""
    track(args.results, args.uri, args.receipt or args.results / "mlflow.json")
