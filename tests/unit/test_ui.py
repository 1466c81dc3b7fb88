"""The MLflow UI: the real server on a free port, asked through its REST API, and stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_tracking import DIVERGED, ROOT, finish, make_study, study_of, track
from test_tracking import build_results as build

from mhclite import cli
from mhclite.errors import UserError
from mhclite.files import read_json
from mhclite.tracking import server as ui
from mhclite.tracking import track as tracking

pytestmark = pytest.mark.slow  # its fixtures alone take ten seconds

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Running:
    """A UI that is up, on the store under `results`."""

    results: Path
    port: int
    process: subprocess.Popen[str]
    printed: list[str]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """The server's answer to a GET, or to a POST of `body`."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with OPENER.open(request, timeout=30) as answer:
            return bytes(answer.read())


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(process: subprocess.Popen[Any], port: int) -> None:
    """Wait until the server answers."""
    deadline = time.monotonic() + 300
    while True:
        assert process.poll() is None
        assert time.monotonic() < deadline
        try:
            OPENER.open(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`python -m mhclite ui` on a study that was imported, and moved since."""
    made = tmp_path_factory.mktemp("tracked") / "results"
    finish(build(made, study_of()))
    track(made)
    results = made.rename(tmp_path_factory.mktemp("moved ü%20#1") / "results")
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "mhclite", "ui", "--port", str(port)],
        cwd=results.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        printed = []
        for line in process.stdout:
            printed.append(line.rstrip())
            if "Ctrl-C" in line:
                break
        wait_until_up(process, port)
        yield Running(results, port, process, printed)
    finally:
        process.terminate()
        process.wait(timeout=60)
        process.stdout.close()


def test_prints_where_to_look(running: Running) -> None:
    receipt = read_json(running.results / "synthetic/mlflow.json")
    text = "\n".join(running.printed)
    experiment, study = receipt["experiment"]["id"], receipt["runs"]["study"]["id"]
    page = f"http://127.0.0.1:{running.port}/#/experiments/{experiment}/runs"
    assert "study synthetic:" in text
    assert receipt["views"]
    for model in receipt["views"]:
        assert f"{page}?workflowType=machine_learning&viewStateShareKey={model}" in text
    assert f"{page}/{study}/artifacts/report.html" in text
    # The page itself is there.
    assert b"<title>MLflow</title>" in running.ask("")


def test_it_has_the_runs_and_their_files(running: Running) -> None:
    receipt = read_json(running.results / "synthetic/mlflow.json")
    body = {"experiment_ids": [receipt["experiment"]["id"]], "filter": "tags.status = 'diverged'"}
    answer = json.loads(running.ask("api/2.0/mlflow/runs/search", body))
    assert [run["info"]["run_name"] for run in answer["runs"]] == [DIVERGED]
    study = receipt["runs"]["study"]["id"]
    report = running.ask(f"get-artifact?path=report.html&run_uuid={study}")
    assert report == (running.results / "synthetic/report.html").read_bytes()


def test_a_study_is_imported_into_a_server(running: Running, tmp_path: Path) -> None:
    """Over HTTP, as into one elsewhere. A second import makes nothing twice; one that is cut off:
    test_tracking.py."""
    study = make_study(variants=("hc", "mhc"), seeds=(0, 1), name="imported")
    folder = build(tmp_path / "results", study)
    finish(folder)
    for _ in range(2):
        tracking.track(folder, f"http://127.0.0.1:{running.port}", tmp_path / "receipt.json")
        experiment = read_json(tmp_path / "receipt.json")["experiment"]["id"]
        answer = json.loads(
            running.ask("api/2.0/mlflow/runs/search", {"experiment_ids": [experiment]})
        )
        names = sorted(run["info"]["run_name"] for run in answer["runs"])
        assert names == sorted(["study", *study.runs()])
        tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in answer["runs"]]
        assert {tag["status"] for tag in tags} == {"completed", "diverged"}


def test_port_of_a_running_ui_is_refused(running: Running) -> None:
    with pytest.raises(UserError, match=f"port {running.port} cannot be used .*--port"):
        ui.serve(running.results / "mlflow.db", running.port)


def test_ctrl_c_leaves_no_process_behind(running: Running) -> None:
    servers = psutil.Process(running.process.pid).children(recursive=True)
    assert servers  # the web server that MLflow starts
    os.kill(running.process.pid, signal.SIGINT)
    assert running.process.wait(timeout=30) == 0
    assert running.process.stdout is not None
    # The links stay in sight: the requests above are not logged.
    assert len(running.process.stdout.read().splitlines()) <= 2
    assert psutil.wait_procs(servers, timeout=5)[1] == []
    ui.check_port(running.port)  # it is free again


# --- without a server --------------------------------------------------------------------------


def test_without_a_store_it_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server elsewhere shows its own UI."""
    assert cli.main(["ui", "--uri", f"sqlite:///{tmp_path}/mlflow.db"]) == cli.EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert "run `make replicate` first" in line
    assert cli.main(["ui", "--uri", "https://host/"]) == 0
    assert "https://host/" in capsys.readouterr().out
