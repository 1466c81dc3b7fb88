"""Small files written so that a reader never sees half of one."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mhclite.errors import UserError

# What a file system answers that cannot sync, as some in user space; 524 is Linux's own ENOTSUPP.
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, 524)


def sync(file: IO[Any]) -> None:
    """Force what was written to disk, where the file system can do that."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file beside `path`; on success flush it to disk and rename it into place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one path apart; the last one to rename wins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            sync(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def lock(file: IO[Any] | int, how: int = fcntl.LOCK_EX) -> None:
    """Lock an open file, or one by its number; the lock falls with the process, however it ends.

    Raises:
        BlockingIOError: another process has it, and `how` includes LOCK_NB.
        UserError: the file system has no locks.
    """
    try:
        fcntl.flock(file, how)
    except BlockingIOError:
        raise
    except OSError as error:
        where = Path.cwd() if isinstance(file, int) else Path(file.name).resolve()
        raise UserError(
            f"the file system of {where} cannot lock files ({error.strerror}): have it mounted so "
            "that it can (Lustre: `-o flock`; NFS: with lockd), or use a checkout on another"
        ) from None


@contextmanager
def locked(path: Path, held: Callable[[IO[str]], None] = lambda file: None) -> Iterator[IO[str]]:
    """Hold `path` as a lock file, and yield it.

    Where another process holds it, `held` is called with the open file before it is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held(file)
                lock(file)
            # Its folder may have been replaced meanwhile (`bundle merge`): lock the new file then.
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                yield file
                return


def is_locked(path: Path) -> bool:
    """Whether another process on this machine (or on a file system that shares locks) holds it."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def no_number(name: str) -> Any:
    """For `json.loads`, as `parse_constant`: NaN and Infinity are refused, as JSON does."""
    raise ValueError(f"{name} is no number")


def read_json(path: Path, what: str = "file") -> Any:
    """Read JSON; a missing or damaged file is a `UserError` that names it."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return json.loads(text, parse_constant=no_number)
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist") from None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise UserError(f"{what} {path} is not readable as JSON: {error}") from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line, e.g. metrics.jsonl."""
    records = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                records.append(json.loads(line, parse_constant=no_number))
            except ValueError as error:
                raise UserError(f"{path} line {number} is not JSON: {error}") from None
    return records


def read_schema(path: Path, what: str, schema: int, again: str = "") -> dict[str, Any]:
    """Read a JSON object with a field `schema`.

    Args:
        path: the file.
        what: what it is, for messages.
        schema: the number that this version writes.
        again: the way out, where the file is damaged or of another version: `delete X and Y`, or
            `Y` alone. Where it is missing, Y. Left out: Snakemake makes it.

    Raises:
        UserError: missing, damaged or of another version.
    """
    again = again or f"delete {path} and run `snakemake --cores all`"
    if not path.is_file():
        made = again.rpartition(" and ")[2]  # there is nothing to delete
        raise UserError(f"{what} is missing: {path} does not exist; {made}")
    try:
        value = read_json(path, what)
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    found = value.get("schema") if isinstance(value, dict) else None
    if found != schema:
        raise UserError(
            f"{what} is from another version of mhclite: {path} has schema {found}, expected "
            f"{schema}; {again}"
        )
    return dict(value)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex; the file is read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
