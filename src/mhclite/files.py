"""Small files written so that a reader never sees half of one."""

from __future__ import annotations

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


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    with atomic_write(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def read_json(path: Path, what: str = "file") -> Any:
    """Read JSON; a missing or damaged file is a `UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
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
                records.append(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path} line {number} is not JSON: {error}") from None
    return records


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """The first place where a JSON `value` does not fit `shape`, in words; None if it fits.

    A shape is a type or a union of types (`float | None`), a dict of shapes (further keys are
    allowed), or a list that holds the shape of its entries.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{where or 'its content'} is not an object"
        for key, inner in shape.items():
            place = f"{where}.{key}" if where else key
            problem = misfit(value[key], inner, place) if key in value else f"{place!r} is missing"
            if problem:
                return problem
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where} is not a list"
        return next(filter(None, (misfit(entry, shape[0], where) for entry in value)), None)
    # JSON may write a float without a decimal point.
    wanted = shape | int if shape is float or float in getattr(shape, "__args__", ()) else shape
    name = getattr(shape, "__name__", str(shape))
    return None if isinstance(value, wanted) else f"{where} is {value!r:.60}, expected {name}"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex; the file is read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
