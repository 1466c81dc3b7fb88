"""The curves of a run in an MLflow server while it trains.

    python -m mhclite.training.live RUN KEY STEPS METRICS.jsonl

follows metrics.jsonl beside training and sends what is new in it. So training waits neither for a
server nor for MLflow's client, whose import takes 3 s of CPU time and, in a thread, would hold the
interpreter's lock. What could not be sent is sent later, by this job or by the next attempt. At the
end of the study `track` replaces these runs by complete ones.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

from mhclite.training import torchrun

# Set by the workflow where a study's tracking.uri is a server.
URI, EXPERIMENT = "MHCLITE_LIVE_URI", "MHCLITE_LIVE_EXPERIMENT"

# What MLflow reads when it is imported. By default it would wait minutes for a server that is down,
# and as long as one says that is busy, which may be hours.
MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}

RUN_TAG = "mhclite.run"
KEY_TAG = "mhclite.live"  # of the run's key: another configuration or code is another live run
CURVE_POINTS = 250  # training steps sent or kept of a run; metrics.jsonl has all
# Metric in MLflow -> key in metrics.jsonl. The UI makes one section of charts of each prefix.
TRAINING_CURVES = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
}
VALIDATION_CURVES = {
    "validation/loss": "validation_loss",
    "validation/bits_per_byte": "validation_bits_per_byte",
    "validation/attention_logit": "attention_logit",
}
CURVES = {**TRAINING_CURVES, **VALIDATION_CURVES}

LINES = 200  # in one message: MLflow takes 1000 metrics
SECONDS, RETRY_SECONDS = 5.0, 30.0  # between two messages, and after a failure
LAST_SECONDS = 10.0  # that the end of a job waits at most for what is still to be sent
WORDS = 200  # characters shown of an answer

log = logging.getLogger(__name__)


def environment(uri: str | None, experiment: str) -> dict[str, str]:
    """Environment of training jobs: where they send their curves, if the store is a server."""
    return {} if uri is None or uri.startswith("sqlite") else {URI: uri, EXPERIMENT: experiment}


def reason(error: Exception) -> str:
    """Why a server failed, as part of a line: what MLflow says last, without the tags of a page."""
    said = str(error).rpartition("(Caused by ")[2].removesuffix(")")
    plain = re.sub(r"(?s)<(style|script)\b.*?</\1>|<[^>]*>", " ", said)
    return shorten(plain, WORDS, placeholder=" ...")


@contextmanager
def live_metrics(run: str, steps: int, folder: Path) -> Iterator[Callable[[str], None]]:
    """Send the curves of a run while it trains, if the workflow named a server.

    Gives what `train` must call, with the run's key, when its files are open: from then on they
    only grow.
    """
    followers: list[subprocess.Popen[bytes]] = []

    def begin(key: str) -> None:
        arguments = [run, key[:12], str(steps), str(folder / "metrics.jsonl")]
        with suppress(OSError):  # a machine that has no room for it trains without
            follower = subprocess.Popen(
                [sys.executable, "-m", __name__, *arguments],
                env={**MLFLOW, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", **os.environ},
                stdin=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for training, which then saves
            )
            followers.append(follower)

    wanted = os.environ.get(URI) and torchrun.place().rank == 0 and find_spec("mlflow")
    try:
        yield begin if wanted else lambda key: None
    finally:
        for follower in followers:
            try:
                follower.communicate(timeout=LAST_SECONDS)  # closes its input
            except subprocess.TimeoutExpired:
                follower.kill()
                follower.wait()


class Sender:
    """Sends what is new in a run's metrics.jsonl. `client` is MLflow's, whose errors come out."""

    def __init__(self, client: Any, run: str, key: str, steps: int, metrics: Path) -> None:
        """Find the live run of this key and what it has already, or make it."""
        self.client, self.steps, self.metrics = client, steps, metrics
        self.offset = 0  # bytes of metrics.jsonl that are done with
        name, tags = os.environ.get(EXPERIMENT, "mhclite"), {RUN_TAG: run, KEY_TAG: key}
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        words = " AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        runs = client.search_runs([experiment], words, max_results=1)
        tags |= {"kind": "training", "status": "training"}
        live = runs[0] if runs else client.create_run(experiment, tags=tags, run_name=run)
        self.run_id = live.info.run_id
        client.update_run(self.run_id, "RUNNING")
        names = ("train/loss", "validation/loss")
        curves = [client.get_metric_history(self.run_id, name) for name in names]
        self.sent = max((point.step for curve in curves for point in curve), default=-1)

    def send(self, last: bool) -> None:
        """Send whole lines that are not sent yet; with the last ones the run has ended."""
        with self.metrics.open("rb") as file:
            file.seek(self.offset)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in new.splitlines()]
        for first in range(0, len(lines), LINES):
            if points := self._points(lines[first : first + LINES]):
                self.client.log_batch(self.run_id, points)
                self.sent = points[-1].step
        self.offset += len(new)
        if last:
            ended = "FINISHED" if self.sent >= self.steps else "KILLED"
            self.client.set_terminated(self.run_id, ended)

    def _points(self, lines: list[dict[str, Any]]) -> list[Any]:
        from mlflow.entities import Metric

        now, stride = round(1000 * time.time()), max(1, self.steps // CURVE_POINTS)
        points = []
        for line in lines:
            step = line["step"]
            wanted = step % stride == 0 or step == self.steps or "validation_loss" in line
            if wanted and step > self.sent:
                values = ((name, line.get(key)) for name, key in CURVES.items())
                points += [Metric(name, v, now, step) for name, v in values if v is not None]
        return points


def follow(run: str, key: str, steps: str, metrics: str) -> None:
    """Send until standard input is closed: training has ended, or was killed."""
    from mlflow import MlflowClient

    client, sender = MlflowClient(os.environ[URI]), None
    reachable, ended = True, False
    while not ended:
        wait = SECONDS if reachable else RETRY_SECONDS
        ended = bool(select.select([sys.stdin], [], [], wait)[0])
        if ended and not reachable:
            return
        try:
            sender = sender or Sender(client, run, key, int(steps), Path(metrics))
            sender.send(ended)
            reachable = True
        except Exception as error:  # whatever a server may answer
            if reachable:
                log.info("no live metrics for now (%s); training goes on", reason(error))
            # A message may have arrived though its answer did not: ask again what is there.
            sender, reachable = None, False


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    follow(*sys.argv[1:])
