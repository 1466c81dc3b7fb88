"""A corpus in parts: what one process tokenizes at a time, and what is kept if it is killed.

How a corpus is divided depends on its files alone, so the shards are the same for any number of
processes. Each part has at most one shard per split, and a record that is written after them: a
part with a record is never done again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mhclite.data.manifest import SPLITS, Shard, Split, SplitEntry, shard_name
from mhclite.data.reading import Piece, read
from mhclite.data.tokenization import TOKENIZER, TextTokenizer, load
from mhclite.data.tokens import SHARD_DTYPE
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
    for _, found in groupby(pieces, lambda piece: piece.path):
        same = list(found)
        first, last = same[0].groups, same[-1].groups
        yield replace(
            same[0],
            documents=sum(piece.documents for piece in same),
            size=sum(piece.size for piece in same),
            groups=(first[0], last[1]) if first and last else None,
        )


# --- which documents are for validation: by hash of their text, or drawn as the authors' code does


def split_of(text: bytes, validation_fraction: float) -> Split:
    """The split of a document: the first 64 bits of its text's SHA-256, as a fraction of 2^64.

    So equal texts share a split, and neither order nor number of the other documents matter.
    """
    fraction = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return "validation" if fraction < validation_fraction else "train"


def drawn_for_validation(documents: int, fraction: float, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the documents that `datasets` would put into its test split, sorted.

    The same as `Dataset.train_test_split(test_size=fraction, seed=seed, shuffle=True)`: the first
    entries of a permutation. Takes 8 bytes a document.
    """
    permutation = np.random.default_rng(seed).permutation(documents)
    return np.sort(permutation[: math.ceil(fraction * documents)])


@dataclass(frozen=True)
class Splitter:
    """Tells the split of each document.

    Attributes:
        fraction: share for validation.
        held_out: sorted numbers of the validation documents; None: by hash.
    """

    fraction: float
    held_out: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, corpus: dict[str, Any], documents: int, cut: bool) -> Splitter:
        """The splitter of a corpus (`study.sections.Corpus` as JSON) with this many documents.

        Args:
            cut: it is one text, cut in two: the second part is for validation.
        """
        fraction, seed = corpus["validation_fraction"], corpus["split_seed"]
        if cut:
            return cls(fraction, np.array([1]))
        if seed is None:
            return cls(fraction, None)
        return cls(fraction, drawn_for_validation(documents, fraction, seed))

    def between(self, first: int, end: int) -> Splitter:
        """The splitter of documents [first, end) alone, small enough to be sent to a process."""
        if self.held_out is None:
            return self
        start, stop = np.searchsorted(self.held_out, [first, end])
        return Splitter(self.fraction, self.held_out[start:stop])

    def split(self, number: int, text: bytes) -> Split:
        """The split of the document with this number in the corpus and this text (UTF-8)."""
        if self.held_out is None:
            return split_of(text, self.fraction)
        index = np.searchsorted(self.held_out, number)
        drawn = index < len(self.held_out) and self.held_out[index] == number
        return "validation" if drawn else "train"


# --- tokenizing -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartJob:
    """A part and what is needed to make shards of it; `folder` has the tokenizer."""

    part: Part
    folder: Path
    text_field: str
    splitter: Splitter

    @property
    def record(self) -> Path:
        """The file that says that the part is finished."""
        return self.folder / WORK / f"{self.part.index:05d}.json"


def documents_of(job: PartJob) -> Iterator[tuple[str, bytes, Split]]:
    """Each document of a part: text, its UTF-8, its split."""
    texts = (text for piece in job.part.pieces for text in read(piece, job.text_field))
    for number, text in enumerate(islice(texts, job.part.documents), start=job.part.first):
        data = text.encode("utf-8")
        yield text, data, job.splitter.split(number, data)


def tokenize(job: PartJob) -> tuple[int, int]:
    """Write the shards of a part, at most one a split, then its record.

    Returns its numbers of documents and tokens.
    """
    tokenizer = _tokenizer(job.folder, sha256_of(job.folder / TOKENIZER))
    end = np.array([tokenizer.eot_id], dtype=SHARD_DTYPE).tobytes()
    counts = {split: {"documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS}
    paths = {split: job.folder / shard_name(split, job.part.index) for split in SPLITS}
    with ExitStack() as opened:  # they appear whole, under their names, or not at all
        files = {
            split: opened.enter_context(atomic_write(path, "wb")) for split, path in paths.items()
        }
        for batch in _batches(documents_of(job)):
            encoded = tokenizer.encode_batch([text for text, _, _ in batch])
            for (_, data, split), ids in zip(batch, encoded, strict=True):
                files[split].write(ids.astype(SHARD_DTYPE, copy=False).tobytes() + end)
                counts[split]["documents"] += 1
                counts[split]["bytes"] += len(data)
                counts[split]["tokens"] += len(ids) + 1
    entries = {}
    for split, path in paths.items():
        tokens = counts[split]["tokens"]
        shards = (Shard(path.name, tokens, sha256_of(path)),) if tokens else ()
        if not tokens:
            path.unlink()
        entries[split] = SplitEntry(**counts[split], shards=shards)
    write_json(job.record, to_json(entries))
    return job.part.documents, sum(count["tokens"] for count in counts.values())


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


def recorded(job: PartJob) -> dict[Split, SplitEntry] | None:
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


def assembled(jobs: Iterable[PartJob]) -> dict[Split, SplitEntry]:
    """The whole splits, from the records of all parts in order."""
    parts = []
    for job in jobs:
        record = recorded(job)
        assert record is not None, f"{job.record} went away"
        parts.append(record)
    return {
        split: SplitEntry(
            sum(part[split].documents for part in parts),
            sum(part[split].bytes for part in parts),
            sum(part[split].tokens for part in parts),
            tuple(shard for part in parts for shard in part[split].shards),
        )
        for split in SPLITS
    }
