"""A study's small files as one Parquet file, and back, byte for byte.

One row is one file: `path`, `run` (null of files of the study), `text`. Of `metrics.jsonl` the text
is null and each column is a list, in the order of the lines; `keys` has each list of keys that a
line has, and `line` which of them. What would not come back in the same bytes is kept as text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mhclite.errors import UserError
from mhclite.files import atomic_write

SERIES = "metrics.jsonl"
STUDY = "study.parquet"
Columns = dict[str, Any]


def _columns(text: str) -> Columns:
    """Lines of JSON objects -> a list of values for each key, and how the lines are laid out."""
    lines = [json.loads(line) for line in text.splitlines()]
    layouts = list(dict.fromkeys(json.dumps(list(line)) for line in lines))
    found: Columns = {
        "keys": layouts,
        "line": [layouts.index(json.dumps(list(line))) for line in lines],
    }
    for line in lines:
        for key, value in line.items():
            found.setdefault(f"series.{key}", []).append(value)
    return found


def _text(columns: Columns) -> str:
    """The reverse of `_columns`."""
    values = {
        name.removeprefix("series."): iter(column)
        for name, column in columns.items()
        if name.startswith("series.") and column is not None
    }
    layouts = [json.loads(layout) for layout in columns["keys"]]
    lines = [{key: next(values[key]) for key in layouts[line]} for line in columns["line"]]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def _kinds(columns: Columns) -> dict[str, type]:
    """Of each series: int, float, or object where it has more than one kind of value."""
    kinds: dict[str, type] = {}
    for name, values in columns.items():
        if name.startswith("series."):
            found = {type(value) for value in values}
            kinds[name] = found.pop() if found in ({int}, {float}) else object
    return kinds


def _type(kind: type, columns: Iterable[list[Any] | None]) -> pa.DataType:
    """The smallest type that holds every value of a series exactly."""
    if kind is int:
        return pa.int64()
    exact = np.array([value for column in columns if column is not None for value in column])
    with np.errstate(over="ignore"):  # too large for float32: not the same
        same = np.array_equal(exact, exact.astype(np.float32), equal_nan=True)
    return pa.float32() if same else pa.float64()


def pack(files: Mapping[str, Path], out: Path) -> None:
    """Write files into one Parquet file.

    Args:
        files: by the path that they are to have; those of runs are runs/<run>/<file>.
    """
    rows: list[Columns] = []
    kinds: dict[str, type] = {}  # as the first run has them
    for path, source in files.items():
        parts = Path(path).parts
        row: Columns = {"path": path, "run": parts[1] if parts[0] == "runs" else None}
        text = source.read_bytes().decode()
        columns = _columns(text) if parts[-1] == SERIES else {}
        own = _kinds(columns)
        plain = all(kind is kinds.get(name, kind) is not object for name, kind in own.items())
        if columns and plain and _text(columns) == text:
            row |= columns
            kinds |= own
        else:
            row["text"] = text
        rows.append(row)
    types = {"path": pa.string(), "run": pa.string(), "text": pa.string()}
    types |= {"keys": pa.list_(pa.string()), "line": pa.list_(pa.int8())}
    for name, kind in kinds.items():
        types[name] = pa.list_(_type(kind, (row.get(name) for row in rows)))
    table = {name: pa.array([row.get(name) for row in rows], of) for name, of in types.items()}
    encodings = {int: "DELTA_BINARY_PACKED", float: "BYTE_STREAM_SPLIT"}
    with atomic_write(out, "wb") as file:
        pq.write_table(
            pa.table(table),
            file,
            compression="zstd",
            compression_level=19,
            use_dictionary=["run", "keys.list.element"],
            column_encoding={
                f"{name}.list.element": encodings[kind] for name, kind in kinds.items()
            },
            data_page_size=1 << 26,  # one page a column: zstd sees what runs share
            write_statistics=False,
        )


def unpack(packed: Path, folder: Path) -> None:
    """Write the files of a Parquet file that `pack` made into a folder.

    Raises:
        UserError: it is no such file, or names a place outside of the folder.
    """
    try:
        table = pq.read_table(packed)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{packed} is not a published study: {reason}") from None
    if missing := {"path", "text", "keys", "line"} - {*table.column_names}:
        names = ", ".join(sorted(missing))
        raise UserError(f"{packed} is not a published study: it has no column {names}")
    for name in table["path"].to_pylist():  # it may come from somebody else
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(
                f"{packed}: {name!r:.200} leads out of the folder: do not use this file"
            )
    for row in table.to_pylist():
        path = folder / row["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        text = row["text"] if row["text"] is not None else _text(row)
        path.write_bytes(text.encode())
