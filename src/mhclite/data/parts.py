"""A corpus in parts: what one process tokenizes at a time, and what is kept if it is killed.

How a corpus is divided depends on its files alone, so the shards are the same for any number of
processes. Each part has at most one shard a split, and a record that is written after them: a part
with a record is never done again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mhclite.data.pool import Report
from mhclite.data.reading import Piece, read
from mhclite.data.shards import SHARD_DTYPE, SPLITS, ShardWriter, Split, shard_name
from mhclite.data.splits import Splitter
from mhclite.data.tokenization import TOKENIZER, TextTokenizer, load
from mhclite.errors import UserError
from mhclite.files import read_json, sha256_of, write_json

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

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Part:
        """From `asdict`, after JSON."""
        pieces = tuple(
            Piece(**{**piece, "groups": piece["groups"] and tuple(piece["groups"])})
            for piece in value["pieces"]
        )
        return cls(**{**value, "pieces": pieces})


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
    last: Piece | None = None
    for piece in pieces:
        if last and last.groups and piece.groups and last.path == piece.path:
            last = replace(
                last,
                documents=last.documents + piece.documents,
                size=last.size + piece.size,
                groups=(last.groups[0], piece.groups[1]),
            )
            continue
        if last:
            yield last
        last = piece
    if last:
        yield last


@dataclass(frozen=True)
class Job:
    """A part and what is needed to make shards of it; `folder` has the tokenizer."""

    part: Part
    folder: Path
    text_field: str
    splitter: Splitter

    @property
    def record(self) -> Path:
        """Where it is recorded that the part is finished."""
        return self.folder / WORK / f"{self.part.index:05d}.json"


def documents_of(job: Job) -> Iterator[tuple[str, bytes, Split]]:
    """Each document of a part: text, its UTF-8, its split."""
    texts = (text for piece in job.part.pieces for text in read(piece, job.text_field))
    for number, text in enumerate(islice(texts, job.part.documents), start=job.part.first):
        data = text.encode("utf-8")
        yield text, data, job.splitter.split(number, data)


def tokenize(job: Job, report: Report) -> int:
    """Write the shards of a part, then its record; returns its number of documents."""
    tokenizer = _tokenizer(job.folder, sha256_of(job.folder / TOKENIZER))
    end = np.array([tokenizer.eot_id], dtype=SHARD_DTYPE)
    counts = {split: {"documents": 0, "bytes": 0} for split in SPLITS}
    writers = {
        split: ShardWriter(job.folder / shard_name(split, job.part.index)) for split in SPLITS
    }
    with writers["train"], writers["validation"]:
        for batch in _batches(documents_of(job)):
            tokens = 0
            encoded = tokenizer.encode_batch([text for text, _, _ in batch])
            for (_, data, split), ids in zip(batch, encoded, strict=True):
                counts[split]["documents"] += 1
                counts[split]["bytes"] += len(data)
                writers[split].append(ids)
                writers[split].append(end)
                tokens += len(ids) + 1
            report(len(batch), tokens)
    write_json(
        job.record,
        {split: {**counts[split], "shards": writers[split].shards} for split in SPLITS},
    )
    return job.part.documents


@cache
def _tokenizer(folder: Path, sha256: str) -> TextTokenizer:
    """Loaded once a process; by its SHA-256, since a folder may be prepared again."""
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


def recorded(job: Job) -> dict[str, Any] | None:
    """A finished part's record, if its shards are there in their size; None otherwise."""
    try:
        record: dict[str, Any] = read_json(job.record)
        for split in SPLITS:
            for shard in record[split]["shards"]:
                size = (job.folder / shard["file"]).stat().st_size
                if size != shard["tokens"] * SHARD_DTYPE.itemsize:
                    return None
    except (UserError, OSError, KeyError, TypeError):
        return None
    return record


def assembled(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The manifest's `train` and `validation` from the records of all parts, in order."""
    splits: dict[str, dict[str, Any]] = {
        split: {"documents": 0, "bytes": 0, "tokens": 0, "shards": []} for split in SPLITS
    }
    for record in records:
        for split, whole in splits.items():
            part = record[split]
            whole["documents"] += part["documents"]
            whole["bytes"] += part["bytes"]
            whole["tokens"] += sum(shard["tokens"] for shard in part["shards"])
            whole["shards"] += part["shards"]
    return splits


def as_json(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """Parts as `Part.from_json` reads them."""
    return [asdict(part) for part in parts]
