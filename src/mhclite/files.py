"""Small files written so that a reader never sees half of one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mhclite.errors import UserError


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
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked(path: Path, blocking: bool = True) -> Iterator[IO[str]]:
    """Hold `path` as a lock file, and yield it; the lock falls with the process, however it ends.

    Raises:
        BlockingIOError: not `blocking`, and another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            # The former holder may have replaced the file (`atomic_write`): lock the new one then.
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                yield file
                return


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


def read_schema(path: Path, what: str, step: str, schema: int) -> dict[str, Any]:
    """Read a JSON object with a field `schema` that `step` wrote.

    Raises:
        UserError: missing, damaged or of another version.
    """
    again = f"delete {path} and run `snakemake --cores all`"
    if not path.is_file():
        raise UserError(
            f"{what} is missing: {path} does not exist; run `snakemake --cores all`, or "
            f"`python -m mhclite {step}` by hand"
        )
    value = read_json(path, what)
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
