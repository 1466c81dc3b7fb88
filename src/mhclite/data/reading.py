"""The documents of one file: text, JSON, JSONL or parquet, on this machine or on the hub.

A file is looked at once beforehand (`examine`), so that it is known how many documents it has and
where it can be divided. Reading it then needs no more memory than its largest document; a .json
file alone is held in memory as a whole.
"""

from __future__ import annotations

import gzip
import json
import unicodedata
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mhclite.errors import UserError
from mhclite.files import sha256_of

REMOTE = "hf://"
BUFFER = 1 << 22  # bytes of a parquet column read at once; bounds the memory
MARK = "\ufeff"  # the byte-order mark that some programs begin a text with; no part of it
ROWS = 256  # of a parquet file made into text at once
RECORDS = (
    "a .json file is an array of records, or an object of which each value is one (pandas: "
    '`to_json(path, orient="records")`); a .jsonl file has a record a line'
)


@dataclass(frozen=True)
class Piece:
    """Consecutive documents of one file that are read together.

    Attributes:
        path: the file; `hf://...` is on the hub.
        documents: how many.
        size: about how many bytes of text.
        groups: parquet only: row groups [first, end).
        cut: of the only file of a corpus, if that is one text: it is read as two documents, of
            which the second has about this share.
    """

    path: str
    documents: int
    size: int
    groups: tuple[int, int] | None = None
    cut: float | None = None


@dataclass(frozen=True)
class Examined:
    """A file's pieces in order, as small as they can be; its SHA-256, None on the hub."""

    pieces: list[Piece]
    sha256: str | None


def examine(path: str, text_field: str) -> Examined:
    """Look at a file as a whole.

    Raises:
        UserError: it cannot be read, or has no such field.
    """
    digest = None if path.startswith(REMOTE) else sha256_of(Path(path))
    if path.endswith(".parquet"):
        return Examined(_row_groups(path, text_field), digest)
    if path.endswith(".txt"):
        count = 1
    else:
        count = sum(1 for _ in (_entries(path) if path.endswith(".json") else _lines(path)))
    return Examined([Piece(path, count, Path(path).stat().st_size)], digest)


def look_into(path: str, text_field: str) -> None:
    """Look at the beginning of a file alone, which takes little time whatever its size.

    Raises:
        UserError: as `examine` and `read`, for what shows there.
    """
    if path.endswith(".parquet"):
        _row_groups(path, text_field)
    elif path.endswith((".jsonl", ".jsonl.gz")):
        for number, line in islice(_lines(path), 1):
            where = f"{path} line {number}"
            _text_of(_record(line, where), text_field, where)
    elif path.endswith(".txt"):
        with open(path, "rb") as file:
            start = file.read(BUFFER)
        if len(start) < BUFFER:  # else it may end within a character
            _decoded(start, path)


def read(piece: Piece, text_field: str) -> Iterator[str]:
    """The texts of a piece, in order.

    Raises:
        UserError: the file is damaged, changed since it was examined, or a text is missing.
    """
    count = 0
    for text in _texts(piece, text_field):
        count += 1
        yield text.removeprefix(MARK)
    if count != piece.documents:
        raise UserError(
            f"{piece.path} had {piece.documents:,} documents and now has {count:,}: it changed "
            "while it was read; run the same command again"
        )


def _texts(piece: Piece, text_field: str) -> Iterator[str]:
    path = piece.path
    if piece.groups is not None:
        yield from _parquet(path, piece.groups, text_field)
    elif path.endswith(".txt"):
        text = _decoded(Path(path).read_bytes(), path)
        yield from (text,) if piece.cut is None else _halves(text, piece.cut)
    elif path.endswith(".json"):
        for number, entry in _entries(path):
            yield _text_of(entry, text_field, f"{path} entry {number}")
    else:
        for number, line in _lines(path):
            where = f"{path} line {number}"
            yield _text_of(_record(line, where), text_field, where)


# --- text, JSON and JSONL -----------------------------------------------------------------------


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({error}): convert it first") from None


def _halves(text: str, share: float) -> tuple[str, str]:
    """A text cut at the end of a line, so that about `share` of its characters come after it."""
    place = round(len(text) * (1 - share))
    end = text.find("\n", place) + 1 or text.rfind("\n", 0, place) + 1 or place
    return text[:end], text[end:]


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Number and content of the lines that are not blank."""
    try:
        if path.endswith(".gz") and not Path(path).stat().st_size:
            raise EOFError("it has no bytes")  # which `gzip` takes for no text
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(MARK.encode())
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole gzip file ({error}): copy it again, or name it as what it is"
        ) from None


def _entries(path: str) -> Iterator[tuple[int, Any]]:
    """Number and content of the entries of a JSON array, or of the values of a JSON object."""
    try:
        content = json.loads(_decoded(Path(path).read_bytes(), path).removeprefix(MARK))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; {RECORDS}") from None
    if not isinstance(content, list | dict):
        raise UserError(f"{path} holds {content!r:.60}: {RECORDS}")
    yield from enumerate(content.values() if isinstance(content, dict) else content, start=1)


def _record(line: bytes, where: str) -> Any:
    try:
        return json.loads(_decoded(line, where))
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise UserError(f"{where} is not JSON: {error}; {RECORDS}") from None


def _text_of(record: Any, text_field: str, where: str) -> str:
    if not isinstance(record, dict):
        shown = "an array" if isinstance(record, list) else f"{record!r:.60}"
        raise UserError(
            f"{where}: {shown}, expected an object with a field {text_field!r}: {RECORDS}"
        )
    if text_field not in record:
        raise UserError(f"{where}: no text in field {text_field!r}; {_instead(text_field, record)}")
    text = record[text_field]
    if not isinstance(text, str):
        shown = json.dumps(text)[:60]
        raise UserError(
            f"{where}: field {text_field!r} holds {shown}, expected text: set `text_field` to "
            "another field, or remove the record"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: half of a surrogate pair, which is no character: correct the file"
        ) from None
    return text


def _instead(text_field: str, names: Collection[str]) -> str:
    """What there is, and the way out, where a field is not among the names."""
    if not names:
        return "it has none at all: correct the file"
    listed = f"it has {', '.join(names)}"
    outer = text_field.partition(".")[0]
    if outer in names:
        return f"what is within {outer!r} is not read: write it into a field of its own"
    for name in names:
        if _folded(name) == _folded(text_field):
            return f"it has {name!r}, which is spelled otherwise: `text_field: {json.dumps(name)}`"
    if all(map(str.isdigit, names)):  # numbers of rows: by columns, as pandas writes it
        return f"{listed}: {RECORDS}"
    return f"{listed}: set `text_field` to one of them, or correct the file"


def _folded(name: str) -> str:
    """What is alike to the eye: accents as characters of their own, capitals, invisible marks."""
    return "".join(filter(str.isprintable, unicodedata.normalize("NFKC", name))).casefold().strip()


# --- parquet ------------------------------------------------------------------------------------


@contextmanager
def _parquet_file(path: str) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile` that reads a little at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with (
            _opened(path) as file,
            pq.ParquetFile(
                file, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True
            ) as parquet,
        ):
            yield parquet
    except UserError:
        raise
    except Exception as error:
        # What a damaged page makes pyarrow raise is an OSError too, but one without a number.
        damaged = isinstance(error, pa.ArrowException) or (
            isinstance(error, OSError) and not error.errno and not path.startswith(REMOTE)
        )
        if damaged:
            raise UserError(
                f"{path} {_in_short(error)}: it is damaged, encrypted or of another kind; copy it "
                "again, or write it anew"
            ) from None
        if not path.startswith(REMOTE):
            raise
        from mhclite.data.hub import in_short

        raise UserError(
            f"{path}: reading it stopped ({in_short(error)}); run the same command again: what is "
            "finished is kept"
        ) from error


def _in_short(error: Exception) -> str:
    return f"cannot be read as parquet ({' '.join(str(error).split())[:200]})"


def _is_text(kind: Any) -> bool:
    """Whether values of a parquet column may be text: however it is stored."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _opened(path: str) -> IO[bytes]:
    if not path.startswith(REMOTE):
        return open(path, "rb")
    from mhclite.data.hub import open_file

    return open_file(path)


def _row_groups(path: str, text_field: str) -> list[Piece]:
    """Each row group as a piece, from the file's own description."""
    with _parquet_file(path) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            raise UserError(f"{path}: no column {text_field!r}; {_instead(text_field, names)}")
        if names.count(text_field) > 1:
            raise UserError(
                f"{path} has {names.count(text_field)} columns {text_field!r}, and which is meant "
                "cannot be said: write it anew with other names"
            )
        kind = file.schema_arrow.field(text_field).type
        if not _is_text(kind):
            raise UserError(
                f"{path}: column {text_field!r} holds {kind}, expected text: set `text_field` to "
                f"another of {', '.join(names)}, or write the text into a column of its own"
            )
        pieces = []
        for index in range(file.num_row_groups):
            group = file.metadata.row_group(index)
            columns = [group.column(i) for i in range(group.num_columns)]
            size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == text_field)
            pieces.append(Piece(path, group.num_rows, size, (index, index + 1)))
        return pieces


def _parquet(path: str, groups: tuple[int, int], text_field: str) -> Iterator[str]:
    with _parquet_file(path) as file:
        number = sum(file.metadata.row_group(index).num_rows for index in range(groups[0]))
        for index in range(*groups):
            for text in _column(file, path, index, text_field):
                number += 1
                if isinstance(text, bytes):
                    text = _decoded(text, f"{path} row {number}")
                if not isinstance(text, str):
                    raise UserError(
                        f"{path} row {number}: column {text_field!r} holds {text!r:.60}, expected "
                        "text: set `text_field`, or correct the file"
                    )
                yield text


def _column(file: Any, path: str, group: int, text_field: str) -> Iterator[Any]:
    """The values of a column in one row group, a few at a time."""
    import pyarrow as pa

    # What is within a column `a` is read with a column `a.b`, if there are both.
    batches = file.iter_batches(
        batch_size=ROWS, row_groups=[group], columns=[text_field], use_threads=False
    )
    while True:
        try:
            batch = next(batches, None)
            values = [] if batch is None else batch.column(text_field).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and (path.startswith(REMOTE) or error.errno):
                raise
            raise UserError(
                f"{path} row group {group} {_in_short(error)}: it is damaged; copy it again"
            ) from None
        if batch is None:
            return
        yield from values
