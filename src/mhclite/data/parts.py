"""A corpus in parts: what one process tokenizes at a time, and what is kept if it is killed.

How a corpus is divided depends on its files alone, so the shards are the same for any number of
processes. Each part has at most one shard per split, and a record that is written after them: a
part with a record is never done again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from mhclite.data.manifest import SPLITS, Shard, Split, SplitEntry, shard_name
from mhclite.data.reading import Piece, read
from mhclite.data.splits import Splitter
from mhclite.data.tokenization import TOKENIZER, TextTokenizer, load
from mhclite.data.tokens import SHARD_DTYPE, Ids
from mhclite.errors import UserError
from mhclite.files import atomic_write, read_json, sha256_of, write_json
from mhclite.records import Misfit, build, to_json

PART_BYTES = 1 << 28  # of text, about; larger only where a file cannot be divided
BATCH_CHARACTERS = 1 << 20  # of text tokenized at once
WORK = "parts"  # folder of the records, gone when the manifest is there


@dataclass(frozen=True)
class Part:
    """Consecutive documents of a corpus.

    Attributes:
        index: its place among the parts.
        first: number of its first document in the corpus.
        documents: how many.
        pieces: where they are; the last piece may have more.
    """

    index: int
    first: int
    documents: int
    pieces: tuple[Piece, ...]


def divide(pieces: Iterable[Piece], part_bytes: int, max_documents: int | None) -> list[Part]:
    """Group pieces, in their order, into parts of about `part_bytes`."""
    parts: list[Part] = []
    group: list[Piece] = []
    first = size = 0

    def close() -> None:
        nonlocal first, size
        documents = sum(piece.documents for piece in group)
        if max_documents is not None:
            documents = min(documents, max_documents - first)
        if documents > 0:
            parts.append(Part(len(parts), first, documents, tuple(_merged(group))))
        first, size = first + documents, 0
        group.clear()

    for piece in pieces:
        if group and size + piece.size > part_bytes:
            close()
        if max_documents is not None and first >= max_documents:
            break
        group.append(piece)
        size += piece.size
    close()
    return parts


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbouring row groups of a file as one piece."""
    for path, found in groupby(pieces, lambda piece: piece.path):
        first, *others = found
        if not others:
            yield first
            continue
        groups = [piece.groups for piece in (first, *others) if piece.groups]
        yield Piece(
            path,
            sum(piece.documents for piece in (first, *others)),
            sum(piece.size for piece in (first, *others)),
            (groups[0][0], groups[-1][1]),
        )


@dataclass(frozen=True)
class Job:
    """A part and what is needed to make shards of it; `folder` has the tokenizer."""

    part: Part
    folder: Path
    text_field: str
    splitter: Splitter

    @property
    def record(self) -> Path:
        """The file that says that the part is finished."""
        return self.folder / WORK / f"{self.part.index:05d}.json"


def documents_of(job: Job) -> Iterator[tuple[str, bytes, Split]]:
    """Each document of a part: text, its UTF-8, its split."""
    texts = (text for piece in job.part.pieces for text in read(piece, job.text_field))
    for number, text in enumerate(islice(texts, job.part.documents), start=job.part.first):
        data = text.encode("utf-8")
        yield text, data, job.splitter.split(number, data)


def train_texts(documents: Iterable[tuple[str, bytes, Split]]) -> Iterator[str]:
    """The texts of the train split: what a tokenizer may learn from."""
    return (text for text, _, split in documents if split == "train")


class ShardWriter(ExitStack):
    """Writes tokens as one shard, which appears whole, under its name, or not at all.

    Used as a context manager. Without a token there is no file, and `shards` stays empty. After a
    `with` block that ended without an exception it has the shard's entry in the manifest.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.shards: tuple[Shard, ...] = ()
        self._path = path
        self._file: IO[bytes] | None = None
        self._tokens = 0
        self._hash = hashlib.sha256()

    def __exit__(self, *raised: Any) -> bool:
        handled = super().__exit__(*raised)
        if raised[0] is None and self._file is not None:
            self.shards = (Shard(self._path.name, self._tokens, self._hash.hexdigest()),)
        return bool(handled)

    def append(self, ids: Ids) -> None:
        """Add tokens."""
        if self._file is None:
            self._file = self.enter_context(atomic_write(self._path, "wb"))
        data = ids.astype(SHARD_DTYPE, copy=False).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._tokens += len(ids)


def tokenize(job: Job) -> tuple[int, int]:
    """Write the shards of a part, then its record; returns its numbers of documents and tokens."""
    tokenizer = _tokenizer(job.folder, sha256_of(job.folder / TOKENIZER))
    end = np.array([tokenizer.eot_id], dtype=SHARD_DTYPE)
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    writers = {
        split: ShardWriter(job.folder / shard_name(split, job.part.index)) for split in SPLITS
    }
    with writers["train"], writers["validation"]:
        for batch in _batches(documents_of(job)):
            encoded = tokenizer.encode_batch([text for text, _, _ in batch])
            for (_, data, split), ids in zip(batch, encoded, strict=True):
                counts[split]["documents"] += 1
                counts[split]["bytes"] += len(data)
                writers[split].append(ids)
                writers[split].append(end)
    entries = {
        split: _entry(counts[split]["documents"], counts[split]["bytes"], writers[split].shards)
        for split in SPLITS
    }
    write_json(job.record, to_json(entries))
    return job.part.documents, sum(entry.tokens for entry in entries.values())


def _entry(documents: int, size: int, shards: tuple[Shard, ...]) -> SplitEntry:
    return SplitEntry(documents, size, sum(shard.tokens for shard in shards), shards)


@cache
def _tokenizer(folder: Path, sha256: str) -> TextTokenizer:
    """Loaded once per process and SHA-256, since a folder may be prepared again."""
    return load(folder)


def _batches(
    documents: Iterator[tuple[str, bytes, Split]],
) -> Iterator[list[tuple[str, bytes, Split]]]:
    """Group documents so that a group has about `BATCH_CHARACTERS`."""
    batch: list[tuple[str, bytes, Split]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[0])
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def recorded(job: Job) -> dict[Split, SplitEntry] | None:
    """What a finished part has of each split, if its shards are there in their size, else None."""
    try:
        record = read_json(job.record)
        entries = {split: build(SplitEntry, record[split]) for split in SPLITS}
        for entry in entries.values():
            for shard in entry.shards:
                size = (job.folder / shard.file).stat().st_size
                if size != shard.tokens * SHARD_DTYPE.itemsize:
                    return None
    except (UserError, OSError, KeyError, TypeError, Misfit):
        return None
    return entries


def assembled(records: Iterable[dict[Split, SplitEntry]]) -> dict[Split, SplitEntry]:
    """The whole splits, from the records of all parts in order."""
    parts = list(records)
    return {
        split: _entry(
            sum(part[split].documents for part in parts),
            sum(part[split].bytes for part in parts),
            tuple(shard for part in parts for shard in part[split].shards),
        )
        for split in SPLITS
    }
