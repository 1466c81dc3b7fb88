"""MLflow beyond one file: a real server, many writers, and everything that goes wrong with both."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_tracking import finish, study_of
from test_ui import free_port, wait_until_up
from tiny import configuration, write_corpus

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "evidence"))
from builder import build_results

from mhclite.cli import main
from mhclite.errors import UserError
from mhclite.files import sha256_of
from mhclite.tracking import store as tracking_store
from mhclite.tracking import track as tracking
from mhclite.training import live
from mhclite.training.loop import train


class MlflowServer:
    """`mlflow server` on loopback, which can be killed and started again."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self.folder, self.port = store, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,
            **live.MLFLOW,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                    *("--backend-store-uri", self.store, "--host", "127.0.0.1"),
                    *("--artifacts-destination", str(self.folder / "artifacts")),
                    *("--port", str(self.port)),
                ],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        wait_until_up(self.process, self.port)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def client(server: MlflowServer) -> Any:
    tracking_store.prepare_environment()
    from mlflow import MlflowClient

    return MlflowClient(server.uri)


def runs_of(server: MlflowServer, experiment: str) -> list[Any]:
    mlflow = client(server)
    found = mlflow.get_experiment_by_name(experiment)
    return list(mlflow.search_runs([found.experiment_id])) if found else []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(f"sqlite:///{folder / 'store.db'}", folder)
    server.start()
    yield server
    server.kill()


# --- live metrics -------------------------------------------------------------------------------

FOLLOWER = """
import sys
from mhclite.training import live
live.SECONDS, live.RETRY_SECONDS = 0.2, 0.3
live.follow(*sys.argv[1:])
"""


def lines(first: int, last: int) -> str:
    """What training writes in these steps."""
    text = ""
    for step in range(first, last + 1):
        line = {"step": step} if step == 0 else {"step": step, "loss": 5.0, "grad_norm": 1.0}
        if step % 20 == 0:
            line |= {"validation_loss": 5.0, "validation_bits_per_byte": 2.0, "attention_logit": 1}
        text += json.dumps(line) + "\n"
    return text


def begun(server: MlflowServer, run: str, metrics: Path) -> subprocess.Popen[bytes]:
    """What follows a run of 120 steps, with shorter waits."""
    return subprocess.Popen(
        [sys.executable, "-c", FOLLOWER, run, "key", "120", str(metrics)],
        env={**os.environ, **live.MLFLOW, live.URI: server.uri, live.EXPERIMENT: "several"},
        stdin=subprocess.PIPE,
    )


def steps_of(server: MlflowServer, run: Any, name: str = "train/loss") -> list[int]:
    """Steps of a curve, sorted."""
    history = client(server).get_metric_history(run.info.run_id, name)
    return sorted(metric.step for metric in history)


def test_several_runs_at_once(
    server: MlflowServer, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    """One is killed half-way and continued from an earlier step, and the server itself is killed
    and comes back: nothing is missing, nothing is double."""
    files = {name: tmp_path / name for name in ("killed", "whole", "other")}
    for path in files.values():
        path.write_text(lines(0, 60))
    followers = {name: begun(server, name, path) for name, path in files.items()}
    wait_for(lambda: len(runs_of(server, "several")) == 3)
    (run,) = (run for run in runs_of(server, "several") if run.info.run_name == "killed")
    wait_for(lambda: steps_of(server, run)[-1:] == [60])
    followers["killed"].kill()
    followers["killed"].communicate()
    files["killed"].write_text(lines(0, 30))
    followers["killed"] = begun(server, "killed", files["killed"])
    server.kill()
    for name, path in files.items():
        with path.open("a") as file:
            file.write(lines(31 if name == "killed" else 61, 120))
    server.start()
    runs, points = runs_of(server, "several"), 0
    assert sorted(run.info.run_name for run in runs) == sorted(files)
    for run in runs:
        wait_for(lambda run=run: steps_of(server, run)[-1:] == [120])  # type: ignore[misc]
        followers[run.info.run_name].communicate(timeout=120)
        for name in live.CURVES:
            expected = range(0, 121, 20) if name.startswith("validation") else range(1, 121)
            assert steps_of(server, run, name) == list(expected), (run.info.run_name, name)
            points += len(expected)
    assert {run.info.status for run in runs_of(server, "several")} == {"FINISHED"}
    tell(f"MLflow over a server: 3 runs, {points:,} points, none missing, none double")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_training_run_is_seen_live(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command, as a job does it; its result is that of a run without a server."""
    corpus = write_corpus(tmp_path / "corpus")
    config = configuration(steps=30, evaluation_interval=10)
    train(config, corpus, tmp_path / "alone")
    monkeypatch.setenv(live.URI, server.uri)
    monkeypatch.setenv(live.EXPERIMENT, "live")
    monkeypatch.setattr(live, "LAST_SECONDS", 120)
    options = ["--config", json.dumps(config.to_json()), "--corpus", str(corpus)]
    assert main(["train", *options, "--out", str(tmp_path / "live")]) == 0
    for name in ("metrics.jsonl", "weights.pt"):
        assert sha256_of(tmp_path / "live" / name) == sha256_of(tmp_path / "alone" / name)
    (run,) = runs_of(server, "live")
    assert run.info.run_name == config.run
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "training")
    assert steps_of(server, run) == list(range(1, 31))


PAGE = f"<!DOCTYPE html><style>{'x { color: red }' * 200}</style><h1>Sign in</h1>{'words ' * 500}"


def http(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", body]).encode()


# What a server answers to everything, and what is said of it.
ODD = {
    "nobody": (None, "refused"),
    "deaf": (b"", "timed out"),
    "down for hours": (http("503 Service Unavailable", PAGE, "Retry-After: 3600"), "503"),
    "a sign-in page": (http("200 OK", PAGE, "Content-Type: text/html"), "Sign in words"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.6|BadStatusLine"),
}


class Odd:
    """A server that answers everything with the same bytes, or with none."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer, self.heard = answer, b""

    def __enter__(self) -> Odd:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        if self.answer is None:
            self.socket.close()
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=self._talk, args=self.socket.accept()[:1]).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(5)
            self.heard = connection.recv(100_000)
            connection.sendall(self.answer or b"")
            if not self.answer:
                self.over.wait()

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.socket.close()


@pytest.mark.parametrize("name", ODD)
def test_an_odd_server_is_one_line(
    name: str,
    complete: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of what follows a run, and of `track`, with nothing secret in it."""
    caplog.set_level(logging.INFO)
    tracking_store.prepare_environment()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    answer, said = ODD[name]
    with Odd(answer) as server:
        with monkeypatch.context() as patch, open(os.devnull) as ended:
            patch.setattr(sys, "stdin", ended)
            patch.setenv(live.URI, server.uri)
            live.follow("run", "key", "100", str(tmp_path / "metrics.jsonl"))
        with pytest.raises(UserError) as caught:
            tracking.track(complete / "synthetic", server.uri, tmp_path / "receipt.json")
        assert answer is None or b"Bearer t0ken" in server.heard
    (live_line,) = (line for line in caplog.messages if "no live metrics" in line)
    for line in (live_line, str(caught.value)):
        assert re.search(said, line), line
        assert len(line) < 500
        assert "\n" not in line
        assert "t0ken" not in line
    assert server.uri in str(caught.value)
    assert not (tmp_path / "receipt.json").exists()


def test_the_end_of_training_does_not_wait_for_a_deaf_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor leaves it to itself: that no process is left is held for every module."""
    monkeypatch.setattr(live, "LAST_SECONDS", 0.1)
    with Odd(b"") as server:
        monkeypatch.setenv(live.URI, server.uri)
        with live.live_metrics("run", 10, tmp_path) as begin:
            begin("key")


# --- the import at the end -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ of a complete study."""
    results = tmp_path_factory.mktemp("complete") / "results"
    finish(build_results(results, study_of()))
    return results


def test_live_runs_are_replaced_by_the_import(
    server: MlflowServer, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(study_of().runs())
    (tmp_path / "metrics.jsonl").write_text(lines(0, 1))
    monkeypatch.setenv(live.EXPERIMENT, "synthetic")
    live.Sender(client(server), names[0], "key", 100, tmp_path / "metrics.jsonl").send(True)
    assert [run.info.run_name for run in runs_of(server, "synthetic")] == names[:1]
    tracking.track(complete / "synthetic", server.uri, tmp_path / "receipt.json")
    found = runs_of(server, "synthetic")
    assert sorted(run.info.run_name for run in found) == sorted(["study", *names])
    assert {run.data.tags["status"] for run in found} == {"completed", "diverged"}
