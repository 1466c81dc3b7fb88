"""`python -m mhclite ui`: the MLflow UI on the tracked results, for this machine only."""

from __future__ import annotations

import argparse
import os
import socket
import sqlite3
import sys
from pathlib import Path
from typing import Any

from mhclite.arguments import positive_int
from mhclite.errors import UserError
from mhclite.files import read_json
from mhclite.tracking.content import STUDY_RUN
from mhclite.tracking.store import (
    DEFAULT_URI,
    ENVIRONMENT,
    artifact_root,
    database_of,
    relocate,
)

HOST = "127.0.0.1"
SERVER = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


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


def check_store(database: Path) -> None:
    """`UserError` if there is no store to show; one that was moved is put right."""
    if not database.is_file():
        studies = [*receipts(database), Path("results/STUDY")]
        raise UserError(
            f"there is no MLflow store {database}: run `make replicate` first; of a study that is "
            f"complete, `python -m mhclite track --results {studies[0]}` makes it"
        )
    try:
        relocate(database)
    except sqlite3.Error as error:
        raise UserError(
            f"{database} is not an MLflow store ({error}): delete it and rebuild it with "
            "`python -m mhclite track --results results/STUDY`"
        ) from None


def receipts(database: Path) -> dict[Path, dict[str, Any]]:
    """Folder of a study -> the receipt that `track` left there when it used this store."""
    found = {
        file.parent: read_json(file, "the receipt of an import into MLflow")
        for file in sorted(database.parent.glob("*/mlflow.json"))
    }
    # By its name alone: the store may have been moved since.
    return {
        folder: receipt
        for folder, receipt in found.items()
        if receipt["uri"].startswith("sqlite") and Path(receipt["uri"]).name == database.name
    }


def links(database: Path, port: int) -> list[str]:
    """Lines that say where to look: for each study its report, and its variants at each size.

    Each address asks for the UI for training: it would open on its pages about agents.
    """
    url, kind = f"http://{HOST}:{port}", "workflowType=machine_learning"
    lines = [f"MLflow starts, which takes some seconds: {url}/#/experiments?{kind}"]
    for receipt in receipts(database).values():
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
        *("--artifacts-destination", str(artifact_root(database))),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),  # else the links are soon out of sight
    ]


def serve(database: Path, port: int) -> None:
    """Say where to look, then become the server: Ctrl-C and `kill` reach it without a detour."""
    check_store(database)
    check_port(port)
    print("\n".join(links(database, port)), flush=True)
    command = server_command(database, port)
    os.execve(command[0], command, {**os.environ, **ENVIRONMENT, **SERVER})


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
