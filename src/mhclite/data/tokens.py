"""Tokens of a prepared corpus, read as windows. In the key of every run.

Shards are files of raw little-endian uint16 tokens. Whether they are the ones that the manifest
names is checked before, in manifest.py.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

SHARD_DTYPE = np.dtype("<u2")

Ids = npt.NDArray[np.uint16]


def _mapped(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class TokenSplit:
    """The tokens of one split as one stream, mapped into memory shard by shard."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._maps = [_mapped(path) for path in paths]
        self._shards: list[Ids] = [np.frombuffer(pages, SHARD_DTYPE) for pages in self._maps]
        # Where each shard begins in the stream, and where the last one ends: (shards + 1,)
        self._bounds = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        """Number of tokens."""
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

        Reads the files instead of the maps, whose pages would stay in this process's memory.
        """
        for path in self._paths:
            with open(path, "rb") as file:
                while length:
                    tokens = np.fromfile(file, SHARD_DTYPE, min(size, length))
                    if not len(tokens):
                        break
                    yield tokens.astype(np.int64)
                    length -= len(tokens)

    def prefetch(self, starts: npt.NDArray[np.int64], length: int) -> None:
        """Ask the system to load windows that will be read soon; returns at once.

        Args:
            starts: (n,) where the windows begin.
            length: tokens per window.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        for index, offset in self._places(starts):
            first = offset * SHARD_DTYPE.itemsize
            page = first - first % mmap.PAGESIZE
            # The rest of a window that reaches into the next shard is not worth a second call.
            end = min(first + length * SHARD_DTYPE.itemsize, len(self._maps[index]))
            self._maps[index].madvise(mmap.MADV_WILLNEED, page, end - page)

    def _places(self, starts: npt.NDArray[np.int64]) -> Iterable[tuple[int, int]]:
        """(shard, token within it) of each start."""
        index = np.searchsorted(self._bounds, starts, side="right") - 1
        return zip(index.tolist(), (starts - self._bounds[index]).tolist(), strict=True)
