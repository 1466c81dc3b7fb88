"""Windows of tokens: what was written is read, across the ends of shards."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_shards

from mhclite.data.tokens import TokenSplit


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.lists(st.integers(0, 65535), min_size=1, max_size=50),
    shard_tokens=st.integers(1, 20),
    data=st.data(),
)
def test_reads_across_shards_equal_reads_of_one_array(
    tokens: list[int], shard_tokens: int, data: st.DataObject
) -> None:
    flat = np.array(tokens, dtype=np.int64)
    with tempfile.TemporaryDirectory() as name:
        written = write_shards(Path(name), "train", tokens, shard_tokens)
        split = TokenSplit([Path(name, shard.file) for shard in written])
        assert len(split) == len(flat)
        start = data.draw(st.integers(0, len(flat)))
        length = data.draw(st.integers(0, len(flat) - start))
        read = split.read(start, length)
        assert read.dtype == np.int64
        np.testing.assert_array_equal(read, flat[start : start + length])
        starts = np.arange(len(flat) - length + 1)[: len(flat)][::-1]
        split.prefetch(starts, length)
        windows = split.windows(starts, length)
        assert windows.dtype == np.int64
        assert windows.shape == (len(starts), length)
        for window, begin in zip(windows, starts, strict=True):
            np.testing.assert_array_equal(window, flat[begin : begin + length])


def test_a_shard_is_little_endian_uint16(tmp_path: Path) -> None:
    (tmp_path / "train-00000.bin").write_bytes(b"\x01\x00\x00\x01\xff\xff")
    split = TokenSplit([tmp_path / "train-00000.bin"])
    assert split.read(0, len(split)).tolist() == [1, 256, 65535]
