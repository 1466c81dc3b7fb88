"""Token shards and their manifest: what `prepare` writes and training reads.

A prepared corpus is a folder of raw little-endian uint16 files and a `manifest.json`, written last,
that counts them and holds their SHA-256. Only numpy is needed to read it.
"""

from __future__ import annotations

import hashlib
import math
import re
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from mhclite.errors import UserError
from mhclite.files import atomic_write, digest_of, misfit, read_json, sha256_of, write_json

SCHEMA = 1
MANIFEST = "manifest.json"
SHARD_TOKENS = 100_000_000  # 200 MB a file
SHARD_DTYPE = np.dtype("<u2")
SHARD_NAME = re.compile(r"(train|validation)-\d{5}\.bin")

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
Ids = npt.NDArray[np.uint16]

# The manifest's shape, for `misfit`.
_SPLIT_SHAPE = {
    "documents": int,
    "bytes": int,
    "tokens": int,
    "shards": [{"file": str, "tokens": int, "sha256": str}],
}
_SHAPE: dict[str, Any] = {
    "schema": int,
    "name": str,
    "settings": {"name": str, "corpus": {}, "tokenizer": {}},
    "source": {"kind": str, "description": str, "files": [{}]},
    "tokenizer": {"kind": str, "vocab_size": int, "n_tokens": int, "sha256": str, "eot_id": int},
    "split": {"rule": str, "validation_fraction": float},
    "train": _SPLIT_SHAPE,
    "validation": _SPLIT_SHAPE,
    "baselines": {"unigram": float, "bigram": float},
    "digest": str,
}


class ShardWriter:
    """Writes the tokens of one split as shards; each appears whole, under its name, or not at all.

    The stream is cut every `shard_tokens` tokens, without regard to documents. Used as a context
    manager; `shards` is complete after a `with` block that ended without an exception.
    """

    def __init__(self, folder: Path, split: Split, shard_tokens: int = SHARD_TOKENS) -> None:
        self.shards: list[dict[str, Any]] = []
        self.tokens = 0
        self._folder, self._split, self._limit = folder, split, shard_tokens
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None
        self._filled = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._finish_shard()
        else:
            self._stack.__exit__(kind, error, traceback)

    def append(self, ids: Ids) -> None:
        """Add tokens to the stream."""
        self.tokens += len(ids)
        while len(ids):
            if self._file is None:
                name = f"{self._split}-{len(self.shards):05d}.bin"
                self._file = self._stack.enter_context(atomic_write(self._folder / name, "wb"))
            part, ids = np.split(ids, [self._limit - self._filled])
            data = part.astype(SHARD_DTYPE).tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._filled += len(part)
            if self._filled == self._limit:
                self._finish_shard()

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        self._stack.close()
        name = f"{self._split}-{len(self.shards):05d}.bin"
        self.shards.append({"file": name, "tokens": self._filled, "sha256": self._hash.hexdigest()})
        self._file, self._filled, self._hash = None, 0, hashlib.sha256()


class TokenSplit:
    """The tokens of one split as one stream, mapped into memory shard by shard."""

    def __init__(self, paths: list[Path]) -> None:
        self._shards: list[Ids] = [np.memmap(path, SHARD_DTYPE, mode="r") for path in paths]
        # Where each shard begins in the stream, and where the last one ends: (shards + 1,)
        self._bounds = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        """Tokens."""
        return int(self._bounds[-1])

    def read(self, start: int, length: int) -> npt.NDArray[np.int64]:
        """Tokens [start, start + length), also across shards: (length,) int64."""
        assert start >= 0, start
        assert 0 <= length <= len(self) - start, (start, length, len(self))
        tokens = np.empty(length, dtype=np.int64)
        filled = 0
        index = int(np.searchsorted(self._bounds, start, side="right")) - 1
        while filled < length:
            offset = start + filled - int(self._bounds[index])
            part = self._shards[index][offset : offset + length - filled]
            tokens[filled : filled + len(part)] = part
            filled += len(part)
            index += 1
        return tokens


def open_tokens(path: Path, vocab_size: int) -> TokenSplit:
    """A file of raw little-endian uint16 tokens from elsewhere, such as nanoGPT's `val.bin`.

    Raises:
        UserError: missing, empty, not whole tokens, or with ids beyond the vocabulary.
    """
    if not path.is_file():
        raise UserError(f"token file {path} does not exist")
    size = path.stat().st_size
    if size == 0 or size % SHARD_DTYPE.itemsize:
        raise UserError(f"{path} has {size} bytes: that is no file of 2-byte tokens")
    largest = int(np.memmap(path, SHARD_DTYPE, mode="r").max())
    if largest >= vocab_size:
        raise UserError(
            f"{path} has token {largest}, the model's vocabulary ends at {vocab_size - 1}: the "
            "file is of another tokenizer"
        )
    return TokenSplit([path])


def content_digest(manifest: dict[str, Any]) -> str:
    """Digest of what decides training: the tokens of both splits and the tokenizer."""
    return digest_of(
        {
            "tokenizer": manifest["tokenizer"]["sha256"],
            **{split: [shard["sha256"] for shard in manifest[split]["shards"]] for split in SPLITS},
        }
    )


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, atomically: from here on the folder counts as prepared."""
    problem = _problem(manifest)
    assert problem is None, problem
    write_json(folder / MANIFEST, manifest)


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared corpus, checked for its shape and against its own digest.

    Raises:
        UserError: missing, damaged, foreign, or of another schema.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a prepared corpus: it has no {MANIFEST}; make it with "
            "`python -m mhclite prepare` (or let snakemake do it)"
        )
    again = f"delete {path} and prepare the corpus again"
    try:
        manifest = read_json(path, "manifest")
    except UserError as error:
        raise UserError(f"{error}; {again}") from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if isinstance(schema, int) and schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}, this mhclite reads {SCHEMA}; {again}")
    problem = _problem(manifest)
    if problem:
        raise UserError(f"{path} is not a whole manifest of mhclite: {problem}; {again}")
    assert isinstance(manifest, dict)
    return manifest


def _problem(manifest: Any) -> str | None:
    """What is wrong with a manifest, None if nothing is."""
    problem = misfit(manifest, _SHAPE)
    if problem:
        return problem
    for split in SPLITS:
        shards = manifest[split]["shards"]
        if not all(SHARD_NAME.fullmatch(shard["file"]) for shard in shards):
            return f"{split}.shards names a file that is no shard"
        if not 0 < manifest[split]["tokens"] == sum(shard["tokens"] for shard in shards):
            return f"{split}.tokens is not the sum over its shards, or zero"
        if manifest[split]["bytes"] <= 0:
            return f"{split}.bytes is not positive"
    if manifest["digest"] != content_digest(manifest):
        return "its digest does not fit its content"
    return None


def verify_split(folder: Path, manifest: dict[str, Any], split: Split) -> None:
    """Compare size and SHA-256 of every shard of a split with the manifest.

    Raises:
        UserError: for the first file that is missing or differs.
    """
    for shard in manifest[split]["shards"]:
        path = Path(folder) / shard["file"]
        again = f"delete {Path(folder) / MANIFEST} and prepare the corpus again"
        if not path.is_file():
            raise UserError(f"shard {path} is missing; {again}")
        size, expected = path.stat().st_size, shard["tokens"] * SHARD_DTYPE.itemsize
        if size != expected:
            raise UserError(
                f"shard {path} has {size} bytes, its manifest says {expected}: it is damaged; "
                f"{again}"
            )
        if sha256_of(path) != shard["sha256"]:
            raise UserError(
                f"shard {path} does not have the sha256 of its manifest: it is damaged; {again}"
            )


def open_split(folder: Path, split: Split, verify: bool = True) -> TokenSplit:
    """Open a split of a prepared corpus.

    Args:
        folder: the prepared corpus.
        split: "train" or "validation".
        verify: read all shards once and compare them with the manifest. Processes that start
            together need only one of them to do it.

    Raises:
        UserError: the manifest or a shard is missing or damaged.
    """
    manifest = load_manifest(folder)
    if verify:
        verify_split(folder, manifest, split)
    return TokenSplit([Path(folder) / shard["file"] for shard in manifest[split]["shards"]])


def bits_per_byte(loss: float, manifest: dict[str, Any]) -> float:
    """A validation loss in nats per token as bits per byte of the validation text."""
    validation = manifest["validation"]
    return float(loss * validation["tokens"] / validation["bytes"] / math.log(2))
