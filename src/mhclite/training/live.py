"""The curves of a run in an MLflow server while it trains.

metrics.jsonl is the buffer: a thread reads what is new in it and sends that, so training never
waits for the server. What could not be sent is sent later, by this job or by the next attempt. At
the end of the study `track` replaces these runs by complete ones.

MLflow's own client is not used. Its import takes 3.6 s of CPU time and 121 MB in every training
process, and in a thread it holds the interpreter's lock: a small model trained at a quarter of its
speed meanwhile (measured with MLflow 3.17: 7.5 s lost of an import of 11.4 s on a busy machine).
The calls below are of MLflow's public REST interface and need the standard library alone.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten
from typing import Any

from mhclite.training import torchrun

# Set by the workflow where a study's tracking.uri is a server.
URI, EXPERIMENT = "MHCLITE_LIVE_URI", "MHCLITE_LIVE_EXPERIMENT"

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

BATCH = 900  # metrics in one message: MLflow takes 1000
SECONDS = 5.0  # between two messages
RETRY_SECONDS = 30.0  # after a failure
TIMEOUT = 10.0  # of one request
ANSWER_BYTES = 2**24  # of one answer; MLflow's are far smaller
WORDS = 200  # characters shown of an answer
LAST_SECONDS = 5.0  # that the end of a job waits at most, if the server was there until then

log = logging.getLogger(__name__)


def environment(uri: str | None, experiment: str) -> dict[str, str]:
    """Environment of training jobs: where they send their curves, if the store is a server."""
    return {} if uri is None or uri.startswith("sqlite") else {URI: uri, EXPERIMENT: experiment}


class Server:
    """The few calls of MLflow's REST interface that are needed."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def call(self, path: str, **content: Any) -> dict[str, Any]:
        """The answer; OSError or HTTPException if there is none, ValueError for no JSON object."""
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{path}",
            json.dumps(content).encode(),
            {"Content-Type": "application/json"},
        )
        for name, value in credentials().items():
            request.add_unredirected_header(name, value)  # not for where a server sends us
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            text = _read(answer)
            with suppress(ValueError):
                found = json.loads(text or "{}")
                if isinstance(found, dict):
                    return found
            raise ValueError(f"{answer.status}, but not from MLflow: {text}")

    def experiment(self, name: str) -> str:
        """Id of an experiment, which is made if need be: of several jobs, one makes it."""
        try:
            return str(self.call("experiments/create", name=name)["experiment_id"])
        except urllib.error.HTTPError as error:
            if error.code != 400:  # it exists already
                raise
            error.close()
        found = self.call("experiments/search", filter=f"name = '{name}'", max_results=1)
        for experiment in found.get("experiments", []):
            return str(experiment["experiment_id"])
        raise OSError(f"experiment {name!r} can be neither found nor made")

    def run(self, experiment: str, name: str, key: str) -> tuple[str, int]:
        """(id, last step it has, -1 if none) of the live run of a key; made if need be."""
        tags = {RUN_TAG: name, KEY_TAG: key}
        found = self.call(
            "runs/search",
            experiment_ids=[experiment],
            filter=" AND ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items()),
            max_results=1,
        )
        if found.get("runs"):
            run = found["runs"][0]
            run_id = str(run["info"]["run_id"])
            self.call("runs/update", run_id=run_id, status="RUNNING")
            metrics = run.get("data", {}).get("metrics", [])
            return run_id, max((int(metric.get("step", 0)) for metric in metrics), default=-1)
        tags |= {"kind": "training", "status": "training"}
        made = self.call(
            "runs/create",
            experiment_id=experiment,
            run_name=name,
            start_time=milliseconds(),
            tags=[{"key": tag, "value": value} for tag, value in tags.items()],
        )
        return str(made["run"]["info"]["run_id"]), -1


def _read(answer: Any) -> str:
    """The content of an HTTP answer; OSError for one that does not end."""
    end, content = time.monotonic() + TIMEOUT, b""
    while chunk := answer.read1(2**16):
        content += chunk
        if len(content) > ANSWER_BYTES or time.monotonic() > end:
            raise OSError("an answer without end")
    return content.decode(errors="replace")


def first_words(text: str) -> str:
    """What an answer begins with, as part of a line: without the tags of a page."""
    plain = re.sub(r"(?s)<(style|script)\b.*?</\1>|<[^>]*>", " ", text)
    return shorten(plain, WORDS, placeholder=" ...")


def _reason(error: Exception) -> str:
    """Why a call failed: of an answer its status and first words."""
    said = f"an answer without {error}" if isinstance(error, KeyError) else str(error)
    if isinstance(error, urllib.error.HTTPError):
        with suppress(OSError, HTTPException):
            said += f": {_read(error)}"
    elif isinstance(error, urllib.error.URLError):
        said = str(error.reason)  # its own text stands in angle brackets, as a page's marks do
    return first_words(said)


def credentials() -> dict[str, str]:
    """MLflow's own environment variables, as a header. They are never logged."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if token:
        return {"Authorization": f"Bearer {token}"}
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if user:
        pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
        return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}
    return {}


def milliseconds() -> int:
    """Now, as MLflow counts."""
    return round(1000 * time.time())


class Sender:
    """Sends what is new in a run's metrics.jsonl."""

    def __init__(self, uri: str, experiment: str, run: str, folder: Path, steps: int) -> None:
        self.server = Server(uri)
        self.experiment, self.run, self.path = experiment, run, folder / "metrics.jsonl"
        self.stride = max(1, steps // CURVE_POINTS)
        self.steps = steps
        self.key = ""
        self.begun, self.ending = threading.Event(), threading.Event()
        self.reachable = True
        self._run_id = ""
        self._sent = -1  # last step that the server has
        self._offset = 0  # bytes of metrics.jsonl that are done with
        self.thread = threading.Thread(target=self._work, name="live metrics", daemon=True)

    def begin(self, key: str) -> None:
        """Training has opened its files: from here on they only grow."""
        self.key = key[:12]
        self.begun.set()

    def _work(self) -> None:
        self.begun.wait()
        while self.key:
            last = self.ending.is_set()  # before reading, so that nothing is left behind
            try:
                self._send_new()
                if last:
                    self._close()
                self.reachable = True
            except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
                if self.reachable:
                    log.info("no live metrics for now (%s); training goes on", _reason(error))
                self.reachable = False
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                # A message may have arrived though its answer did not: ask again what is there.
                self._run_id = ""
            if last:
                return
            self.ending.wait(SECONDS if self.reachable else RETRY_SECONDS)

    def _send_new(self) -> None:
        """Send whole lines that are not sent yet, in the order of the steps."""
        if not self._run_id:
            experiment = self.server.experiment(self.experiment)
            self._run_id, self._sent = self.server.run(experiment, self.run, self.key)
            self._offset = 0
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        batch: list[dict[str, Any]] = []
        for line in lines:
            if not line.endswith(b"\n"):
                break
            points = self._points(json.loads(line))
            if len(batch) + len(points) > BATCH:
                self._send(batch)
                batch = []
            batch += points
            self._offset += len(line)
        self._send(batch)

    def _points(self, line: dict[str, Any]) -> list[dict[str, Any]]:
        step = line["step"]
        wanted = step % self.stride == 0 or step == self.steps or "validation_loss" in line
        if step <= self._sent or not wanted:
            return []
        return [
            {"key": name, "value": line[key], "timestamp": milliseconds(), "step": step}
            for name, key in CURVES.items()
            if line.get(key) is not None
        ]

    def _send(self, batch: list[dict[str, Any]]) -> None:
        if batch:
            self.server.call("runs/log-batch", run_id=self._run_id, metrics=batch)
            self._sent = batch[-1]["step"]

    def _close(self) -> None:
        done = self._sent >= self.steps
        status = "FINISHED" if done else "KILLED"
        self.server.call("runs/update", run_id=self._run_id, status=status, end_time=milliseconds())

    def end(self) -> None:
        """Send the rest, if the server was there: it is waited for, but not for long."""
        self.ending.set()
        self.begun.set()
        if self.reachable:
            self.thread.join(LAST_SECONDS)


@contextmanager
def live_metrics(run: str, steps: int, folder: Path) -> Iterator[Callable[[str], None]]:
    """Send the curves of a run while it trains, if the workflow named a server.

    Gives what `train` must call, with the run's key, when its files are open.
    """
    uri = os.environ.get(URI)
    if not uri or torchrun.place().rank != 0:
        yield lambda key: None
        return
    sender = Sender(uri, os.environ.get(EXPERIMENT, "mhclite"), run, folder, steps)
    sender.thread.start()
    try:
        yield sender.begin
    finally:
        sender.end()
