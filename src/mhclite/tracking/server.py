"""`python -m mhclite ui`: the MLflow UI on the tracked results, for this machine only."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import FrameType

from mhclite.errors import UserError
from mhclite.tracking.store import (
    DEFAULT_URI,
    artifact_root,
    database_of,
    lock_of,
    locked,
    moved_from,
    prepare_environment,
    relocate,
    tracked_studies,
)
from mhclite.tracking.view import RUNS_VIEW, VARIANTS_VIEW

HOST = "127.0.0.1"
START_SECONDS = 120  # until the server answers, on a slow machine
# Ctrl-C (which a shell's background job would ignore), `kill`, and a closed terminal: none of them
# may leave the server behind.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS = 10  # from asking the server to stop until it is killed

log = logging.getLogger(__name__)


def check_port(port: int) -> None:
    """`UserError` if the port cannot be listened on."""
    if not 0 < port < 65536:
        raise UserError(f"port {port}: expected a number from 1 to 65535, for example --port 5001")
    try:
        with socket.socket() as probe:
            # As the server does it: a port whose last connection has just been closed is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except OSError as error:
        raise UserError(
            f"port {port} cannot be used ({error.strerror}): another "
            "program may have it; choose another with --port, for example --port 5001"
        ) from None


def check_store(database: Path) -> None:
    """`UserError` if there is nothing to show yet; a store that was moved is put right."""
    if database.is_file():
        try:
            if moved_from(database):
                with locked(lock_of(database)):
                    relocate(database)
        except sqlite3.Error as error:
            raise UserError(
                f"{database} is not an MLflow store ({error}): delete it and rebuild it with "
                "`python -m mhclite track --results results/STUDY`"
            ) from None
        return
    studies = sorted(file.parent for file in database.parent.glob("*/mlflow.json"))
    if studies:  # the store was deleted: Snakemake does not know of it
        raise UserError(
            f"there is no MLflow store {database}, but tracked results: rebuild it with "
            f"`python -m mhclite track --results {studies[0]}`"
        )
    raise UserError(f"there is no MLflow store {database}: run `make replicate` first")


def server_command(database: Path, port: int) -> list[str]:
    """The command of a server for this machine, with one worker."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{database}"),
        *("--artifacts-destination", str(artifact_root(database))),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]


def wait_until_up(server: subprocess.Popen[bytes], port: int, output: Path) -> None:
    """Return when the server answers; `UserError` with its last words if it ends or is too slow."""
    deadline = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # this machine: no proxy
    while server.poll() is None and time.monotonic() < deadline:
        try:
            opener.open(f"http://{HOST}:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    lines = output.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    raise UserError(f"the MLflow server did not start: {lines[-1].strip()} (all of it: {output})")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which are a process group of their own."""
    for sign in (signal.SIGTERM, signal.SIGKILL):  # the second also if a worker outlives the first
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(server.pid, sign)
            server.wait(STOP_SECONDS)


def links(database: Path, port: int) -> list[str]:
    """Lines that say where to look: for each study the comparison, the runs and the report.

    Each address asks for the UI for training: it would open on its pages about agents.
    """
    url, kind = f"http://{HOST}:{port}", "workflowType=machine_learning"
    lines = [f"MLflow is at {url}/#/experiments?{kind}"]
    for name, experiment, report in tracked_studies(database):
        runs = f"{url}/#/experiments/{experiment}/runs"
        view = f"{runs}?{kind}&viewStateShareKey"
        lines += [
            f"study {name}:",
            f"  variants compared  {view}={VARIANTS_VIEW}&compareRunsMode=CHART",
            f"  all training runs  {view}={RUNS_VIEW}",
        ]
        if report is not None:
            lines.append(f"  report             {runs}/{report}/artifacts/report.html?{kind}")
    return [*lines, "To compare otherwise: chart view, then Group by a tag. Ctrl-C stops MLflow."]


def serve(database: Path, port: int) -> None:
    """Run the server until it ends or this process is asked to stop."""
    check_store(database)
    check_port(port)
    prepare_environment()
    output = database.with_name("mlflow-ui.log")
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    print("starting the MLflow UI (some seconds) ...", flush=True)
    with output.open("wb") as log_file:
        # A session of its own: Ctrl-C reaches this process alone, which then ends all of the group.
        server = subprocess.Popen(
            server_command(database, port),
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_until_up(server, port, output)
        print("\n".join(links(database, port)), flush=True)
        code = server.wait()
    finally:
        for sign in ENDING:
            signal.signal(sign, signal.SIG_IGN)  # a second Ctrl-C must not leave the server behind
        stop(server)
    raise UserError(f"the MLflow server ended by itself with code {code}; see {output}")


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite ui`."""
    parser.add_argument("--uri", default=DEFAULT_URI, help="MLflow store (default: %(default)s)")
    parser.add_argument("--port", type=int, default=5000, help="port (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Serve the UI until Ctrl-C."""
    database = database_of(args.uri)
    if database is None:
        print(f"The tracking server shows its own UI: {args.uri}")
        return 0
    before = {sign: signal.signal(sign, _interrupt) for sign in ENDING}
    try:
        serve(database, args.port)
    except KeyboardInterrupt:
        print("\nThe MLflow UI has stopped.")
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    return 0
