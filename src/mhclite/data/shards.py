"""Token shards and their manifest: what `prepare` writes and training reads.

A prepared corpus is a folder of raw little-endian uint16 files and a `manifest.json`, written last,
that counts them and holds their SHA-256. Only numpy is needed to read it.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import numpy as np
import numpy.typing as npt

from mhclite.errors import UserError
from mhclite.files import atomic_write, digest_of, misfit, read_json, sha256_of, write_json

SCHEMA = 1
MANIFEST = "manifest.json"
VERIFIED = "verified.json"  # which shards were compared with the manifest, as they are now
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


def shard_name(split: Split, index: int) -> str:
    """File of a shard."""
    return f"{split}-{index:05d}.bin"


class ShardWriter:
    """Writes tokens as one shard, which appears whole, under its name, or not at all.

    Used as a context manager. No token, no file: `shards` then stays empty. After a `with` block
    that ended without an exception it has the shard's entry in the manifest.
    """

    def __init__(self, path: Path) -> None:
        self.shards: list[dict[str, Any]] = []
        self._path = path
        self._stack = ExitStack()
        self._file: IO[bytes] | None = None
        self._tokens = 0
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)
        if error is None and self._file is not None:
            entry = {"tokens": self._tokens, "sha256": self._hash.hexdigest()}
            self.shards.append({"file": self._path.name, **entry})

    def append(self, ids: Ids) -> None:
        """Add tokens."""
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self._path, "wb"))
        data = ids.astype(SHARD_DTYPE, copy=False).tobytes()
        self._file.write(data)
        self._hash.update(data)
        self._tokens += len(ids)


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class TokenSplit:
    """The tokens of one split as one stream, mapped into memory shard by shard."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self._maps = [_mapped(path) for path in paths]
        self._shards: list[Ids] = [np.frombuffer(pages, SHARD_DTYPE) for pages in self._maps]
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

    def windows(self, starts: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
        """`read` for each of the starts: (len(starts), length) int64."""
        tokens = np.empty((len(starts), length), dtype=np.int64)
        for row, start, (index, offset) in zip(
            tokens, starts.tolist(), self._places(starts), strict=True
        ):
            part = self._shards[index][offset : offset + length]
            row[:] = part if len(part) == length else self.read(start, length)
        return tokens

    def chunks(self, length: int, size: int) -> Iterator[npt.NDArray[np.int64]]:
        """The first `length` tokens in order, in arrays of at most `size`.

        Read as files: pages of the maps would stay in this process's memory.
        """
        for path in self._paths:
            with open(path, "rb") as file:
                while length:
                    tokens = np.fromfile(file, SHARD_DTYPE, min(size, length))
                    if not len(tokens):
                        break
                    yield tokens.astype(np.int64)
                    length -= len(tokens)

    def expect(self, starts: npt.NDArray[np.int64], length: int) -> None:
        """Have windows brought into memory meanwhile that will be read soon; does not wait.

        Args:
            starts: (n,) where they begin.
            length: tokens a window.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for index, offset in self._places(starts):
            first = offset * SHARD_DTYPE.itemsize
            page = first - first % mmap.PAGESIZE
            # What a window has in the next shard is not worth a second look.
            end = min(first + length * SHARD_DTYPE.itemsize, len(self._maps[index]))
            self._maps[index].madvise(mmap.MADV_WILLNEED, page, end - page)

    def _places(self, starts: npt.NDArray[np.int64]) -> Iterable[tuple[int, int]]:
        """(shard, token within it) of each start."""
        index = np.searchsorted(self._bounds, starts, side="right") - 1
        return zip(index.tolist(), (starts - self._bounds[index]).tolist(), strict=True)


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
    verify_sizes(folder, manifest, split)
    for shard in manifest[split]["shards"]:
        _verify_content(folder, shard)


def verify_sizes(folder: Path, manifest: dict[str, Any], split: Split) -> None:
    """Compare the size of every shard of a split with the manifest.

    Raises:
        UserError: for the first file that is missing or differs.
    """
    for shard in manifest[split]["shards"]:
        path = Path(folder) / shard["file"]
        if not path.is_file():
            raise UserError(f"shard {path} is missing; {_again(folder)}")
        size, expected = path.stat().st_size, shard["tokens"] * SHARD_DTYPE.itemsize
        if size != expected:
            raise UserError(
                f"shard {path} has {size} bytes, its manifest says {expected}: it is damaged; "
                f"{_again(folder)}"
            )


def _verify_content(folder: Path, shard: dict[str, Any]) -> None:
    path = Path(folder) / shard["file"]
    if sha256_of(path) != shard["sha256"]:
        raise UserError(
            f"shard {path} does not have the sha256 of its manifest: it is damaged; "
            f"{_again(folder)}"
        )


def _again(folder: Path) -> str:
    return f"delete {Path(folder) / MANIFEST} and prepare the corpus again"


def _verify_once(folder: Path, manifest: dict[str, Any], split: Split) -> None:
    """`verify_split`, but a shard is not read again that has not been written since it was.

    Reading all of a large corpus takes minutes, and every run of a study begins here.
    """
    verify_sizes(folder, manifest, split)
    shards = manifest[split]["shards"]
    known = _verified(folder)
    new = [shard for shard in shards if known.get(shard["file"]) != _state(folder, shard)]
    for shard in new:
        _verify_content(folder, shard)
    if new:
        remember_verified(folder, new)


def remember_verified(folder: Path, shards: list[dict[str, Any]]) -> None:
    """Note that these shards have the SHA-256 that the manifest says, if the folder can be written.

    Args:
        folder: the prepared corpus.
        shards: entries of its manifest.
    """
    with suppress(OSError):
        states = {shard["file"]: _state(folder, shard) for shard in shards}
        write_json(Path(folder) / VERIFIED, _verified(folder) | states)


def _state(folder: Path, shard: dict[str, Any]) -> dict[str, Any]:
    """What changes when somebody writes the file, or the manifest."""
    return {
        "sha256": shard["sha256"],
        "mtime_ns": (Path(folder) / shard["file"]).stat().st_mtime_ns,
    }


def _verified(folder: Path) -> dict[str, Any]:
    """shard -> its state when its SHA-256 was last compared; empty if that is not known."""
    try:
        known = read_json(Path(folder) / VERIFIED)
    except (UserError, OSError):
        return {}
    return known if isinstance(known, dict) else {}


def open_split(folder: Path, split: Split, verify: bool = True) -> TokenSplit:
    """Open a split of a prepared corpus, without reading its tokens.

    Args:
        folder: the prepared corpus.
        split: "train" or "validation".
        verify: compare the shards with the manifest: sizes always, content if a file was written
            since that was last done. Processes that start together need only one of them to do it.

    Raises:
        UserError: the manifest or a shard is missing or damaged.
    """
    manifest = load_manifest(folder)
    if verify:
        _verify_once(folder, manifest, split)
    return TokenSplit([Path(folder) / shard["file"] for shard in manifest[split]["shards"]])


def bits_per_byte(loss: float, manifest: dict[str, Any]) -> float:
    """A validation loss in nats per token as bits per byte of the validation text."""
    validation = manifest["validation"]
    return float(loss * validation["tokens"] / validation["bytes"] / math.log(2))
