"""`python -m mhclite ui`: the MLflow UI on the tracked results, for this machine only."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path
from typing import Any

from mhclite.arguments import positive_int
from mhclite.errors import UserError
from mhclite.files import read_json
from mhclite.tracking.content import STUDY_RUN
from mhclite.tracking.store import DEFAULT_URI, MLFLOW, artifact_root, database_of

HOST = "127.0.0.1"


def check_port(port: int) -> None:
    """`UserError` if the port cannot be listened on."""
    try:
        with socket.socket() as probe:
            # As the server does it: a port whose last connection has just been closed is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} cannot be used ({error}): another program may have it; choose another: "
            "`make ui PORT=NUMBER`, or --port NUMBER"
        ) from None


def receipts(database: Path) -> list[dict[str, Any]]:
    """The receipt of each study that `track` brought into this store."""
    found = [
        read_json(file, "the receipt of an import into MLflow")
        for file in sorted(database.parent.glob("*/mlflow.json"))
    ]
    # By its name alone: the store may have been moved since.
    ours = f"/{database.name}"
    return [one for one in found if one["uri"].startswith("sqlite") and one["uri"].endswith(ours)]


def links(database: Path, port: int) -> list[str]:
    """Lines that say where to look: for each study its report, and its variants at each size.

    Each address asks for the UI for training: it would open on its pages about agents.
    """
    url, kind = f"http://{HOST}:{port}", "workflowType=machine_learning"
    lines = [f"MLflow starts, which takes some seconds: {url}/#/experiments?{kind}"]
    for receipt in receipts(database):
        runs = f"{url}/#/experiments/{receipt['experiment']['id']}/runs"
        study = f"{runs}/{receipt['runs'][STUDY_RUN]['id']}"
        lines += [f"study {receipt['experiment']['name']}:", f"  all runs  {runs}?{kind}"]
        lines += [f"  report  {study}/artifacts/report.html?{kind}"]
        for model in receipt.get("views", ()):
            lines += [f"  {model}  {runs}?{kind}&viewStateShareKey={model}&compareRunsMode=CHART"]
    return [*lines, "Ctrl-C stops MLflow."]


def server_command(database: Path, port: int) -> list[str]:
    """The server, for this machine alone."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", f"sqlite:///{database}"),
        *("--artifacts-destination", artifact_root(database).as_uri()),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),  # else the links are soon out of sight
    ]


def serve(database: Path, port: int) -> None:
    """Say where to look, then become the server: Ctrl-C and `kill` reach it without a detour."""
    if not database.is_file():
        raise UserError(
            f"there is no MLflow store {database}: run `make replicate` first; of a study that is "
            "complete, `python -m mhclite track --results results/STUDY` makes it"
        )
    check_port(port)
    print("\n".join(links(database, port)), flush=True)
    command = server_command(database, port)
    environment = {**os.environ, **MLFLOW, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    os.execve(command[0], command, environment)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite ui`."""
    parser.add_argument("--uri", default=DEFAULT_URI, help="MLflow store (default: %(default)s)")
    parser.add_argument(
        "--port", type=positive_int, default=5000, help="port (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Serve the UI until Ctrl-C."""
    database = database_of(args.uri)
    if database is None:
        print(f"The tracking server shows its own UI: {args.uri}")
    else:
        serve(database, args.port)
