"""The documents of one file: text, JSONL or parquet, on this machine or on the hub.

A file is looked at once beforehand (`examine`), so that it is known how many documents it has and
where it can be divided. Reading it then needs no more memory than its largest document.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mhclite.errors import UserError
from mhclite.files import sha256_of

REMOTE = "hf://"
BUFFER = 1 << 22  # bytes of a parquet column read at once; bounds the memory
MARK = "\ufeff"  # the byte-order mark that some programs begin a text with; no part of it
ROWS = 256  # of a parquet file made into text at once
RECORDS = (
    'a .jsonl file has a record a line (pandas: `to_json(path, orient="records", lines=True)`)'
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
    count = 1 if path.endswith(".txt") else sum(1 for _ in _lines(path))
    return Examined([Piece(path, count, Path(path).stat().st_size)], digest)


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
    else:
        for number, line in _lines(path):
            where = f"{path} line {number}"
            yield _text_of(_json(line, where), text_field, where)


# --- text and JSONL ----------------------------------------------------------------------------


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({error}): convert it first") from None


def _halves(text: str, share: float) -> tuple[str, str]:
    """A text cut at the end of a line, so that about `share` of its characters come after it."""
    place = round(len(text) * (1 - share))
    end = text.find("\n", place) + 1 or place
    return text[:end], text[end:]


def _lines(path: str) -> Iterator[tuple[int, bytes]]:
    """Number and content of the lines that are not blank."""
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path} is not a whole gzip file ({error}): copy it again, or name it as what it is"
        ) from None


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(_decoded(data, where).removeprefix(MARK))
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise UserError(f"{where} is not JSON: {error}; {RECORDS}") from None


def _text_of(record: Any, text_field: str, where: str) -> str:
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with a field {text_field!r}: {RECORDS}")
    if text_field not in record:
        raise UserError(f"{where}: no text in field {text_field!r}; {_instead(record)}: {RECORDS}")
    return _checked(record[text_field], text_field, where)


def _checked(text: Any, text_field: str, where: str) -> str:
    """What a field or column holds, if it is text."""
    if not isinstance(text, str):
        raise UserError(
            f"{where}: {text_field!r} holds {text!r:.60}, expected text: set `text_field` to "
            "another field, or remove the record"
        )
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(
                f"{where}: half of a surrogate pair, which is no character: correct the file"
            ) from None
    return text


def _instead(names: Iterable[str]) -> str:
    """What there is, and the way out, where the text's field is not among the names."""
    return f"it has {json.dumps([*names])}: set `text_field` to one of them, or correct the file"


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
        if path.startswith(REMOTE):
            raise UserError(
                f"{path}: reading it stopped ({in_short(error)}); run the same command again: what "
                "is finished is kept"
            ) from error
        # What a damaged page makes pyarrow raise is an OSError too, but one without a number.
        kinds = (pa.ArrowException, OSError, UnicodeDecodeError)
        if not isinstance(error, kinds) or getattr(error, "errno", None):
            raise
        raise UserError(
            f"{path} cannot be read as parquet ({' '.join(str(error).split())[:200]}): it is "
            "damaged, encrypted or of another kind; copy it again, or write it anew"
        ) from None


def in_short(error: Exception) -> str:
    """An error's kind and HTTP status: its full text may hold signed addresses."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ValueError | RuntimeError) and status is None:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return type(error).__name__ + (f", HTTP {status}" if status else "")


def _opened(path: str) -> IO[bytes]:
    if not path.startswith(REMOTE):
        return open(path, "rb")
    from huggingface_hub import HfFileSystem

    file: IO[bytes] = HfFileSystem().open(path, "rb")
    return file


def _is_text(kind: Any) -> bool:
    """Whether values of a parquet column may be text: however it is stored."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(
        is_kind(kind)
        for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _row_groups(path: str, text_field: str) -> list[Piece]:
    """Each row group as a piece, from the file's own description."""
    with _parquet_file(path) as file:
        schema = file.schema_arrow
        kinds = [field.type for field in schema if field.name == text_field]
        if len(kinds) != 1 or not _is_text(kinds[0]):
            found = " and ".join(map(str, kinds)) or "missing"
            raise UserError(
                f"{path}: column {text_field!r} is {found}, expected one column of text; "
                f"{_instead(schema.names)}"
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
        for group in range(*groups):
            # What is within a column `a` is read with a column `a.b`, if there are both.
            batches = file.iter_batches(ROWS, [group], [text_field], use_threads=False)
            values = (value for batch in batches for value in batch.column(text_field).to_pylist())
            for number, text in enumerate(values, start=1):
                yield _checked(text, text_field, f"{path} row group {group} row {number}")
