"""The MLflow store: opened by one writer at a time, and cleared of what is no longer in a study.

The default store is an SQLite file with its artifacts beside it, under mlartifacts/. Our runs are
found by the tag `mhclite.run`; nothing else in a store is touched.

It is kept up to date rather than built anew: MLflow takes 0.2 s of CPU time for a run, and a store
also holds several studies, and what the user keeps there.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from mhclite.errors import UserError
from mhclite.files import locked
from mhclite.study.sections import NO_PASSWORD, has_password

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///results/mlflow.db"
RUN_TAG = "mhclite.run"
MOST_RUNS = 50_000  # that MLflow finds at once

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
WORDS = 200  # characters shown of an answer

log = logging.getLogger(__name__)


def prepare_environment() -> None:
    """Set what MLflow reads when it is imported, where the user has not."""
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)


def reason(error: Exception) -> str:
    """Why a server failed, as part of a line: what MLflow says last, without the tags of a page."""
    said = str(error).rpartition("(Caused by ")[2].removesuffix(")")
    plain = re.sub(r"(?s)<(style|script)\b.*?</\1>|<[^>]*>", " ", said)
    return shorten(plain, WORDS, placeholder=" ...")


def database_of(uri: str) -> Path | None:
    """The file of an SQLite store, None for a server's URI; `UserError` for any other."""
    if has_password(uri):
        raise UserError(f"tracking URI: {NO_PASSWORD}")
    scheme = urlsplit(uri).scheme
    if scheme == "sqlite":
        path = uri.removeprefix("sqlite:///")
        if path and path != uri and not re.search(r":memory:|[?]", path):
            return Path(path).absolute()
    elif scheme in ("http", "https") and urlsplit(uri).hostname:
        return None
    raise UserError(
        f"tracking URI {uri!r}: expected a file as sqlite:///results/mlflow.db "
        "or an MLflow server as http(s)://host:port"
    )


def held(file: IO[str]) -> None:
    """What is said while another process has the lock of a store."""
    log.info("another process is writing to the same store (lock %s): waiting", file.name)


def artifact_root(database: Path) -> Path:
    """Where an SQLite store keeps artifacts: beside it, in one folder per study."""
    return database.parent / "mlartifacts"


class Store:
    """An open store: MLflow's client, and what the client cannot do by itself.

    `database` is the file of an SQLite store, None for a server.
    """

    def __init__(self, uri: str, client: MlflowClient, database: Path | None) -> None:
        self.uri, self.client, self.database = uri, client, database

    def experiment(self, name: str, tags: dict[str, str]) -> str:
        """Id of the experiment, which is made, or taken back from the trash, where needed."""
        found = self.client.get_experiment_by_name(name)
        if found is not None and not found.experiment_id:
            raise UserError(f"{self.uri} answers, but not as an MLflow server does")
        if found is None:
            # Relative to what the UI serves, so that a store can be moved with its folder.
            location = None if self.database is None else f"mlflow-artifacts:/{name}"
            return str(self.client.create_experiment(name, location, tags))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        for key, value in tags.items():
            if found.tags.get(key) != value:
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def runs(self, experiment: str) -> list[Run]:
        """All runs of an experiment; an SQLite store's deleted ones too: they can be purged."""
        from mlflow.entities import ViewType

        view = ViewType.ACTIVE_ONLY if self.database is None else ViewType.ALL
        return list(self.client.search_runs([experiment], "", view, MOST_RUNS))

    def add_artifact(self, experiment: str, run_id: str, path: str, file: Path) -> None:
        """Keep a copy of a file as `path` of a run, in the experiment of that name."""
        if self.database is None:
            folder = Path(path).parent.as_posix()
            self.client.log_artifact(run_id, str(file), None if folder == "." else folder)
        else:
            copy = artifact_root(self.database) / experiment / run_id / "artifacts" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)

    def purge(self, experiment: str, run: Run) -> None:
        """Delete a run of the experiment of that name for good; a server only marks it as deleted,
        until `mlflow gc` there."""
        if run.info.lifecycle_stage != "deleted":
            self.client.delete_run(run.info.run_id)
        if self.database is not None:
            # What `mlflow gc` does, whose import takes 4 s: the client only marks it as deleted.
            self.client._tracking_client.store._hard_delete_run(run.info.run_id)
            folder = artifact_root(self.database) / experiment / run.info.run_id
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Let go of the database file."""
        if self.database is not None:
            self.client._tracking_client.store.engine.dispose()


def _failure(uri: str, database: Path | None, error: Exception) -> str:
    """A line for what MLflow raised."""
    if database is None:
        return (
            f"the MLflow server {uri} failed ({reason(error)}); the results are complete without "
            "it: run the same command again, it goes on where it stopped"
        )
    return (
        f"{database} cannot be used as an MLflow store ({reason(error)}): run the same command "
        "again when no other program writes to it; if it is damaged, delete it and mlartifacts/ "
        "first: everything of mhclite in it is rebuilt from results/"
    )


@contextmanager
def open_store(uri: str, lock: Path) -> Iterator[Store]:
    """The store at `uri`, for this process alone; made if it is a file that does not exist yet.

    Args:
        lock: the lock file to use for a server: two imports of one study must not clash.

    Raises:
        UserError: for what MLflow raises, now or while the store is used.
    """
    prepare_environment()
    database = database_of(uri)
    if database is not None:
        lock = database.with_name(f".{database.name}.lock")
    with locked(lock, held):
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            opened = uri if database is None else f"sqlite:///{database}"
            store = Store(uri, MlflowClient(opened), database)
            try:
                yield store
            finally:
                store.close()
        except (MlflowException, SQLAlchemyError) as error:
            raise UserError(_failure(uri, database, error)) from error
