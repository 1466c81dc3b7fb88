"""The MLflow store: opened by one writer at a time, and told to forget what it must not keep.

The default store is an SQLite file with its artifacts beside it, under mlartifacts/. Runs of ours
are found by the tag `mhclite.run`; nothing else in a store is touched.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from mhclite.errors import UserError
from mhclite.study.settings import NO_PASSWORD, has_password
from mhclite.training.live import RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_URI = "sqlite:///results/mlflow.db"

# Short, or a server that is down would be waited for during minutes.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
CONNECT_SECONDS = 5
BUSY = (
    "{} is locked by another program that writes to it; the results are complete without it: run "
    "the same command again when that program is done"
)

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


def check_server(uri: str) -> None:
    """`UserError` within seconds if nothing answers at a server's URI."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()  # it answers; what it thinks of the request shows when it is used
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"the MLflow server {uri} cannot be reached ({reason}); the results are complete "
            "without it: run the same command again when it is up, or leave out tracking.uri to "
            "use SQLite under results/"
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait, with a message, while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process is writing to the same store (lock %s): waiting", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file, or the death of the process, gives the lock back


def is_busy(error: Exception) -> bool:
    """Whether an SQLite store could not be used because another program holds it."""
    return "database is locked" in str(error)


def lock_of(database: Path) -> Path:
    """The lock file of an SQLite store."""
    return database.with_name(f".{database.name}.lock")


def artifact_root(database: Path) -> Path:
    """Where an SQLite store keeps artifacts: beside it; each study has its own folder in there.

    A second store in the same folder has its own: none may take the other's for its orphans.
    """
    own = "mlartifacts" if database.name == "mlflow.db" else f"{database.stem}-artifacts"
    return database.parent / own


def path_of(artifact_uri: str) -> Path:
    """The folder of a file: URI. URIs, since MLflow misreads a plain path with # or % in it."""
    return Path(url2pathname(urlsplit(artifact_uri).path))


def _create(database: Path) -> None:
    """Make a new SQLite store under another name, then rename: a kill leaves no half of one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for leftover in database.parent.glob(f".{database.name}.*.tmp*"):
        leftover.unlink()
    temporary = database.with_name(f".{database.name}.{os.getpid()}.tmp")
    store = SqlAlchemyStore(f"sqlite:///{temporary}", artifact_root(database).as_uri())
    store.engine.dispose()
    os.replace(temporary, database)


def moved_from(database: Path) -> set[str]:
    """Folders that an SQLite store believes its artifacts to be under, other than the right one.

    MLflow keeps absolute paths, so a store that was moved or copied points to where it was.
    """
    with closing(sqlite3.connect(database)) as connection:
        locations = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    ours = {str(place) for name, place in locations if _is_ours(database, name, place)}
    return {place.rpartition("/")[0] for place in ours} - {artifact_root(database).as_uri()}


def _is_ours(database: Path, name: str, location: str | None) -> bool:
    """Whether an SQLite store's experiment was made here: by where its artifacts are."""
    return str(location).endswith(f"/{artifact_root(database).name}/{name}")


def relocate(database: Path) -> None:
    """Point a store that was moved or copied to the artifacts that now lie beside it.

    Call it under the store's lock.
    """
    new = artifact_root(database).as_uri()
    for old in moved_from(database):
        log.info("the store has moved: its artifacts are now under %s", artifact_root(database))
        with closing(sqlite3.connect(database)) as connection, connection:
            for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )


class Store:
    """An open store: MLflow's client, and what the client alone cannot do."""

    def __init__(self, uri: str, client: MlflowClient, database: Path | None) -> None:
        self.uri = uri
        self.client = client
        self.database = database

    def experiment(self, name: str, tags: dict[str, str]) -> str:
        """Id of the experiment, which is made, or taken back from the trash, where needed."""
        found = self.client.get_experiment_by_name(name)
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
        """Our runs of an experiment; an SQLite store's deleted ones too: they can be purged."""
        from mlflow.entities import ViewType

        view = ViewType.ACTIVE_ONLY if self.database is None else ViewType.ALL
        found: list[Run] = []
        token: str | None = ""
        while token is not None:
            page = self.client.search_runs([experiment], "", view, 1000, page_token=token or None)
            found += page
            token = page.token or None
        return [run for run in found if RUN_TAG in run.data.tags]

    def purge(self, run: Run) -> None:
        """Delete a run for good; a server only marks it as deleted, until `mlflow gc` there."""
        run_id = run.info.run_id
        if run.info.lifecycle_stage != "deleted":
            self.client.delete_run(run_id)
        if self.database is None:
            return
        # The rows last: a run whose deletion was interrupted is found again.
        location = path_of(run.info.artifact_uri)
        if location.is_relative_to(artifact_root(self.database)):
            shutil.rmtree(location.parent, ignore_errors=True)
        # As `mlflow gc` does it: the client can only mark a run as deleted.
        self.client._tracking_client.store._hard_delete_run(run_id)

    def remove_orphans(self, experiment: str) -> None:
        """Remove artifacts of runs that the store does not know: it was deleted, they were not."""
        if self.database is None:
            return
        location = path_of(self.client.get_experiment(experiment).artifact_location)
        if not (location.is_dir() and location.is_relative_to(artifact_root(self.database))):
            return
        with closing(sqlite3.connect(self.database)) as connection:
            known = {run_id for (run_id,) in connection.execute("SELECT run_uuid FROM runs")}
        for folder in location.iterdir():
            if re.fullmatch("[0-9a-f]{32}", folder.name) and folder.name not in known:
                shutil.rmtree(folder)

    def close(self) -> None:
        """Let go of the database file."""
        if self.database is not None:
            self.client._tracking_client.store.engine.dispose()


def _open(uri: str, database: Path | None) -> Store:
    """Connect to a store; a store that MLflow cannot use is a `UserError`."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if database is None:
        return Store(uri, MlflowClient(uri), None)
    try:
        if database.exists():
            relocate(database)
        else:
            log.info("creating the MLflow store %s", database)
            _create(database)
        return Store(uri, MlflowClient(f"sqlite:///{database}"), database)
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        if is_busy(error):
            raise UserError(BUSY.format(database)) from None
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{database} cannot be used as an MLflow store ({reason}); everything of mhclite in it "
            "is rebuilt from results/: move it away or delete it, then run the same command again"
        ) from None


@contextmanager
def open_store(uri: str, lock: Path) -> Iterator[Store]:
    """The store at `uri`, for this process alone; made if it is a file that does not exist yet.

    `lock` is the lock file to use for a server: what it has two writers of must not clash.
    """
    prepare_environment()
    database = database_of(uri)
    if database is None:
        check_server(uri)
    with locked(lock if database is None else lock_of(database)):
        store = _open(uri, database)
        try:
            yield store
        finally:
            store.close()


def tracked_studies(database: Path) -> list[tuple[str, str, str | None]]:
    """(study, its experiment's id, id of its run "study") of an SQLite store, by name.

    Reads the file without MLflow, whose import takes seconds.
    """
    with closing(sqlite3.connect(database)) as connection:
        experiments = connection.execute(
            "SELECT name, experiment_id, artifact_location FROM experiments "
            "WHERE lifecycle_stage = 'active' ORDER BY name"
        ).fetchall()
        reports = dict(
            connection.execute(
                "SELECT runs.experiment_id, runs.run_uuid FROM runs JOIN tags USING (run_uuid) "
                "WHERE tags.key = ? AND tags.value = 'study' AND runs.lifecycle_stage = 'active'",
                (RUN_TAG,),
            ).fetchall()
        )
    return [
        (name, str(experiment), reports.get(experiment))
        for name, experiment, location in experiments
        if _is_ours(database, name, location)
    ]
