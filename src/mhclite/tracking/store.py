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
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from mhclite.errors import UserError
from mhclite.files import locked
from mhclite.study.sections import NO_PASSWORD, has_password
from mhclite.training.live import first_words

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///results/mlflow.db"

# The last three: MLflow would wait minutes for a server that is down, and as long as one says that
# is busy, which may be hours.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
}

log = logging.getLogger(__name__)


def prepare_environment() -> None:
    """Set what MLflow reads when it is imported, where the user has not."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


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


def lock_of(database: Path) -> Path:
    """The lock file of an SQLite store."""
    return database.with_name(f".{database.name}.lock")


def artifact_root(database: Path) -> Path:
    """Where an SQLite store keeps artifacts: beside it, in one folder per study.

    A second store in the same folder has its own: each removes folders that it does not know.
    """
    own = "mlartifacts" if database.name == "mlflow.db" else f"{database.stem}-artifacts"
    return database.parent / own


def _create(database: Path) -> None:
    """Make a new SQLite store under another name, then rename it: a kill leaves no half store."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = database.with_name(f".{database.name}.{os.getpid()}.tmp")
    store = SqlAlchemyStore(f"sqlite:///{temporary}", artifact_root(database).as_uri())
    store.engine.dispose()
    os.replace(temporary, database)


def relocate(database: Path) -> None:
    """Point an SQLite store that was moved or copied to the artifacts that now lie beside it.

    MLflow keeps absolute paths. An experiment is ours if its artifacts are in a folder of its name
    under one of our name.
    """
    root = artifact_root(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        found = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
        for name, old in found:
            new = (root / name).as_uri()
            if old == new or not old.endswith(f"/{root.name}/{name}"):
                continue
            log.info("the store has moved: artifacts of %s are now under %s", name, root)
            for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column} || '/', 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )


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
            location = None
            if self.database is not None:
                location = (artifact_root(self.database) / name).as_uri()
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
        found: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = self.client.search_runs([experiment], "", view, 1000, page_token=token or None)
            found += page
            token = page.token or None
        return found

    def purge(self, run: Run) -> None:
        """Delete a run for good; a server only marks it as deleted, until `mlflow gc` there."""
        if run.info.lifecycle_stage != "deleted":
            self.client.delete_run(run.info.run_id)
        if self.database is not None:
            # What `mlflow gc` does, whose import takes 4 s: the client only marks it as deleted.
            self.client._tracking_client.store._hard_delete_run(run.info.run_id)

    def remove_artifacts(self, experiment: str, known: set[str]) -> None:
        """Remove the artifacts of all runs but those `known` in the experiment of that name.

        The others were purged, or the store was deleted and its artifacts were not.
        """
        if self.database is None:
            return
        for folder in (artifact_root(self.database) / experiment).glob("*/"):
            if re.fullmatch("[0-9a-f]{32}", folder.name) and folder.name not in known:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Let go of the database file."""
        if self.database is not None:
            self.client._tracking_client.store.engine.dispose()


def _open(uri: str, database: Path | None) -> Store:
    """Connect to a store."""
    from mlflow import MlflowClient

    if database is None:
        return Store(uri, MlflowClient(uri), None)
    if database.exists():
        relocate(database)
    else:
        log.info("creating the MLflow store %s", database)
        _create(database)
    return Store(uri, MlflowClient(f"sqlite:///{database}"), database)


def _failure(uri: str, database: Path | None, error: Exception) -> str:
    """A line for what MLflow raised."""
    if database is None:
        # Of requests that were tried again the cause is said last.
        reason = first_words(str(error).rpartition("(Caused by ")[2].removesuffix(")"))
        return (
            f"the MLflow server {uri} failed ({reason}); the results are complete without it: run "
            "the same command again, it goes on where it stopped"
        )
    if "database is locked" in str(error):
        return (
            f"{database} is locked by another program that writes to it; the results are complete "
            "without it: run the same command again when that program is done"
        )
    reason = str(error).strip().splitlines()[0]
    return (
        f"{database} cannot be used as an MLflow store ({reason}); everything of mhclite in it "
        "is rebuilt from results/: move it away or delete it, then run the same command again"
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
    with locked(lock if database is None else lock_of(database), held):
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            store = _open(uri, database)
            try:
                yield store
            finally:
                store.close()
        except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
            raise UserError(_failure(uri, database, error)) from error
