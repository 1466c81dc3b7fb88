"""MLflow beyond one file: a real server, many writers, and everything that goes wrong with both."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from test_tracking import finish, study_of, track
from tiny import configuration, write_corpus

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "evidence"))
from builder import build_results

from mhclite.errors import UserError
from mhclite.files import sha256_of
from mhclite.tracking import store as tracking_store
from mhclite.tracking import track as tracking
from mhclite.training import live
from mhclite.training.loop import train

WRITERS, STEPS = 4, 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MlflowServer:
    """`mlflow server` on loopback, which can be killed and started again."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self.folder, self.port = store, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {
            **os.environ,
            **tracking_store.ENVIRONMENT,
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
        deadline = time.monotonic() + 300
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)

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
    return list(mlflow.search_runs([found.experiment_id], max_results=1000))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(f"sqlite:///{folder / 'store.db'}", folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A server over PostgreSQL, installed if need be."""
    if os.geteuid() != 0:
        pytest.skip("PostgreSQL must be installed and started as root")
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
        if not shutil.which("apt-get"):
            pytest.skip("no apt-get: PostgreSQL cannot be installed")
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "postgresql"],
        ):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode:
                pytest.skip(f"`{' '.join(command)}` failed: {done.stderr.strip()[-200:]}")
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"))
    folder = tmp_path_factory.mktemp("postgres")
    folder.chmod(0o755)
    for parent in folder.parents:  # as another user than root, it must get here
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o001)
    data = folder / "data"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    port = free_port()
    options = f"-p {port} -k {data} -h 127.0.0.1 -c fsync=off -c max_connections=50"
    control = [*as_postgres, str(programs / "pg_ctl"), "-D", str(data), "-w"]
    for command in (
        [*as_postgres, str(programs / "initdb"), "-D", str(data), "-A", "trust"],
        [*control, "-o", options, "-l", str(data / "log"), "start"],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    server = MlflowServer(f"postgresql://postgres@127.0.0.1:{port}/postgres", folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        subprocess.run([*control, "-m", "immediate", "stop"], stdout=subprocess.DEVNULL, timeout=60)


# --- live metrics -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["server", pytest.param("postgres", marks=pytest.mark.exhaustive)])
def test_many_writers_at_once(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    tell: Callable[[str], None],
) -> None:
    """Every other writer is killed half-way and continued from an earlier step, and the server
    itself is killed and comes back: nothing is missing, nothing is double."""
    server: MlflowServer = request.getfixturevalue(kind)
    script = str(Path(__file__).with_name("writer.py"))

    def start(number: int, first: int) -> subprocess.Popen[bytes]:
        folder = tmp_path / f"run{number}"
        folder.mkdir(exist_ok=True)
        arguments = [server.uri, "many", f"run{number}", str(folder), str(first), str(STEPS)]
        return subprocess.Popen([sys.executable, script, *arguments])

    def lines(number: int) -> int:
        path = tmp_path / f"run{number}" / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    writers = {number: start(number, 0) for number in range(WRITERS)}
    for number in range(0, WRITERS, 2):
        while lines(number) < 40:
            time.sleep(0.01)
        writers[number].kill()
        writers[number].wait()
        writers[number] = start(number, 30)
    server.kill()
    server.start()
    (tmp_path / "go").touch()
    assert {process.wait(timeout=300) for process in writers.values()} == {0}

    runs = runs_of(server, "many")
    names = [run.info.run_name for run in runs]
    assert Counter(names) == {f"run{number}": 1 for number in range(WRITERS)}
    mlflow, points = client(server), 0
    for run in runs:
        for name in live.CURVES:
            history = mlflow.get_metric_history(run.info.run_id, name)
            steps = [metric.step for metric in history]
            expected = range(0, STEPS + 1, 20) if name.startswith("validation") else range(1, 121)
            assert sorted(steps) == list(expected), (run.info.run_name, name)
            points += len(steps)
        assert run.info.status == "FINISHED"
    tell(f"MLflow over {kind}: {WRITERS} writers, {points:,} points, none missing, none double")


def test_a_training_run_is_seen_live(server: MlflowServer, tmp_path: Path) -> None:
    """Through the command, as a job does it; its result is that of a run without a server."""
    corpus = write_corpus(tmp_path / "corpus")
    config = configuration(steps=30, evaluation_interval=10)
    train(config, corpus, tmp_path / "alone")
    options = ["--config", json.dumps(config.to_json()), "--corpus", str(corpus)]
    command = [sys.executable, "-m", "mhclite", "train", *options, "--out", str(tmp_path / "live")]
    environment = {**os.environ, live.URI: server.uri, live.EXPERIMENT: "live"}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    for name in ("metrics.jsonl", "weights.pt"):
        assert sha256_of(tmp_path / "live" / name) == sha256_of(tmp_path / "alone" / name)
    (run,) = runs_of(server, "live")
    assert run.info.run_name == config.run
    assert run.data.tags["status"] == "training"
    history = client(server).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, 31))


PAGE = f"<!DOCTYPE html><style>{'x { color: red }' * 200}</style><h1>Sign in</h1>{'words ' * 500}"


def http(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", body]).encode()


# What a server answers to everything, and what is said of it.
ODD = {
    "down for hours": (http("503 Service Unavailable", PAGE, "Retry-After: 3600"), "503"),
    "down until 2100": (
        http("429 Too Many Requests", "", "Retry-After: Fri, 31 Dec 2100 23:59:59 GMT"),
        "429",
    ),
    "redirects for ever": (http("302 Found", "", "Location: /again"), "redirect"),
    "redirects what is sent": (http("307 Temporary Redirect", "", "Location: /x"), "edirect"),
    "a sign-in page": (http("200 OK", PAGE, "Content-Type: text/html"), "Sign in words"),
    "of several lines": (http("500 Internal Server Error", "Traceback:\n" * 500), "500"),
    "no object": (http("200 OK", "[1]"), "[1]"),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0-OpenSSH_9.6"),
    "cut off": (http("200 OK", "{}").replace(b": 2\r", b": 200\r"), "answer|Incomplete"),
}
# What comes byte by byte without an end.
SLOW = {
    "slow content": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "slow header": b"HTTP/1.1 200 OK\r\nX-Name: ",
}


class Odd:
    """A server that answers everything with the same bytes, none if it is deaf; and then drips if
    it is slow."""

    def __init__(self, answer: bytes = b"", slow: bool = False) -> None:
        self.answer, self.slow, self.heard = answer, slow, [b""]

    def __enter__(self) -> Odd:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.over = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(5)
            self.heard.append(connection.recv(100_000))
            connection.sendall(self.answer)
            if not self.answer:
                self.over.wait()
            while self.slow and not self.over.wait(0.1):
                connection.sendall(b" ")
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100_000)

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.socket.close()


@pytest.mark.parametrize("name", [*ODD, *SLOW])
def test_an_odd_server_is_one_line_while_training_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(live, "TIMEOUT", 1.0)
    monkeypatch.setattr(live, "LAST_SECONDS", 1.0)
    answer, said = ODD.get(name, (SLOW.get(name, b""), "an answer without end"))
    with Odd(answer, name in SLOW) as server:
        sender = begun(server.uri, tmp_path / "run", 5)
        # Of a slow header each byte comes in time, and only the thread waits for the end.
        while sender.reachable and not (name == "slow header" and len(server.heard) > 1):
            time.sleep(0.01)
        sender.end()  # is not waited for, whatever the thread still reads
    if name == "slow header":
        return
    (line,) = caplog.messages
    assert re.search(said, line) or said in line
    assert len(line) < 300
    assert "\n" not in line


@pytest.mark.parametrize(
    "name", ["down for hours", "redirects for ever", "a sign-in page", "cut off"]
)
def test_an_odd_server_is_one_line_of_track(name: str, complete: Path, tmp_path: Path) -> None:
    """Whatever it says of when to come again."""
    answer, said = ODD[name]
    receipt = tmp_path / "receipt.json"
    with Odd(answer) as server, pytest.raises(UserError) as caught:
        tracking.track(complete / "synthetic", server.uri, receipt)
    line = str(caught.value)
    assert server.uri in line
    assert re.search(said, line) or said in line
    assert len(line) < 500
    assert "\n" not in line
    assert not receipt.exists()


def test_what_is_secret_stays_where_it_is_meant_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes from the environment, is in no line, and does not follow a redirect."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret")
    with Odd(http("401 Unauthorized", "")) as server:
        sender = begun(server.uri, tmp_path / "run", 1)
        while sender.reachable:
            time.sleep(0.01)
        sender.end()
    assert b"Authorization: Basic bWU6czNjcmV0" in server.heard[-1]
    assert "Unauthorized" in caplog.text
    assert "s3cret" not in caplog.text
    assert "bWU6" not in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    with Odd(http("200 OK", PAGE)) as other:
        there = http("302 Found", "", f"Location: {other.uri}")
        with Odd(there) as server, pytest.raises(ValueError, match="Sign in"):
            live.Server(server.uri).call("experiments/create", name="x")
    assert b"Bearer t0ken" in server.heard[-1]
    assert b"GET / " in other.heard[-1]
    assert b"t0ken" not in other.heard[-1]


def begun(uri: str, folder: Path, lines: int, *names: str) -> live.Sender:
    """A sender of a run, by experiment and name, that has written so many lines."""
    folder.mkdir(exist_ok=True)
    content = "".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(1, lines + 1))
    (folder / "metrics.jsonl").write_text(content)
    sender = live.Sender(uri, *(names or ("late", "run")), folder, 100)
    sender.thread.start()
    sender.begin("key")
    return sender


def test_a_dead_or_deaf_server_costs_nothing_and_is_caught_up(
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(live, "TIMEOUT", 1.0)
    monkeypatch.setattr(live, "LAST_SECONDS", 20.0)
    dead = f"http://127.0.0.1:{free_port()}"
    with Odd() as deaf:
        for uri in (dead, deaf.uri):
            sender = begun(uri, tmp_path / "run", 50)
            while sender.reachable:
                time.sleep(0.01)
            # Not waited for: the server was not there.
            monkeypatch.setattr(sender.thread, "join", lambda _: pytest.fail("it waits"))
            sender.end()
    said = [line for line in caplog.messages if "no live metrics for now" in line]
    assert len(said) == 2  # once for each server, not once for each message
    assert "refused" in said[0]
    assert "timed out" in said[1]

    begun(server.uri, tmp_path / "run", 100).end()  # the next attempt
    (run,) = runs_of(server, "late")
    history = client(server).get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, 101))


# --- the import at the end -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/ of a complete study."""
    results = tmp_path_factory.mktemp("complete") / "results"
    finish(build_results(results, study_of()))
    return results


def test_server_that_dies_in_the_import_and_live_runs_that_it_replaces(
    server: MlflowServer, complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(study_of().runs())
    begun(server.uri, tmp_path / "run", 1, "synthetic", names[0]).end()
    assert [run.info.run_name for run in runs_of(server, "synthetic")] == names[:1]

    import_run, count = tracking.import_run, 0

    def dying(*arguments: Any) -> str:
        nonlocal count
        count += 1
        if count == 5:
            server.kill()
        return import_run(*arguments)

    receipt = tmp_path / "receipt.json"
    monkeypatch.setattr(tracking, "import_run", dying)
    with pytest.raises(UserError, match=r"MLflow server .* run the same command again") as caught:
        tracking.track(complete / "synthetic", server.uri, receipt)
    assert len(str(caught.value).splitlines()) == 1
    assert not receipt.exists()
    monkeypatch.undo()
    server.start()
    tracking.track(complete / "synthetic", server.uri, receipt)
    assert sorted(run.info.run_name for run in runs_of(server, "synthetic")) == sorted(
        ["study", *names]
    )


def test_sqlite_held_by_another_writer(complete: Path, tmp_path: Path) -> None:
    """For a while: it is waited for. For good: one line, and the next import completes it."""
    results = tmp_path / "results"
    shutil.copytree(complete, results)
    track(results)
    with closing(sqlite3.connect(results / "mlflow.db", check_same_thread=False)) as other:

        def hold() -> None:
            other.execute("BEGIN EXCLUSIVE")
            (results / "synthetic" / "report.html").write_text(f"report {time.monotonic()}")

        hold()
        threading.Timer(1.0, other.rollback).start()
        track(results)
        hold()
        with pytest.raises(UserError, match="locked by another program") as caught:
            track(results)
        other.rollback()
    assert "delete" not in str(caught.value)
    track(results)
