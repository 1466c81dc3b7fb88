"""Token shards: what was written is read, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_shards

from mhclite.data import shards
from mhclite.data.shards import ShardWriter, TokenSplit, bits_per_byte, load_manifest, open_split
from mhclite.errors import UserError


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
        split = TokenSplit([Path(name, shard["file"]) for shard in written])
        assert len(split) == len(flat)
        start = data.draw(st.integers(0, len(flat)))
        length = data.draw(st.integers(0, len(flat) - start))
        read = split.read(start, length)
        assert read.dtype == np.int64
        np.testing.assert_array_equal(read, flat[start : start + length])
        starts = np.arange(len(flat) - length + 1)[: len(flat)][::-1]
        split.expect(starts, length)
        windows = split.windows(starts, length)
        assert windows.dtype == np.int64
        assert windows.shape == (len(starts), length)
        for window, begin in zip(windows, starts, strict=True):
            np.testing.assert_array_equal(window, flat[begin : begin + length])


def test_every_read_of_a_small_split(tmp_path: Path) -> None:
    flat = np.arange(11)
    written = write_shards(tmp_path, "train", flat, 4)
    split = TokenSplit([tmp_path / shard["file"] for shard in written])
    for start in range(12):
        for length in range(12 - start):
            np.testing.assert_array_equal(split.read(start, length), flat[start : start + length])


def test_reading_outside_the_split_is_a_bug(prepared: Path) -> None:
    split = open_split(prepared, "train")
    for start, length in ((-1, 2), (0, len(split) + 1), (len(split), 1)):
        with pytest.raises(AssertionError):
            split.read(start, length)


def test_a_shard_is_little_endian_uint16_and_counted(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train-00000.bin") as writer:
        writer.append(np.array([1, 256], dtype=np.uint16))
        writer.append(np.array([65535], dtype=np.uint16))
    content = b"\x01\x00\x00\x01\xff\xff"
    assert (tmp_path / "train-00000.bin").read_bytes() == content
    sha256 = hashlib.sha256(content).hexdigest()
    assert writer.shards == [{"file": "train-00000.bin", "tokens": 3, "sha256": sha256}]


def test_without_a_token_there_is_no_file(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "train-00000.bin") as writer:
        pass
    assert writer.shards == []
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_no_partial_shard(tmp_path: Path) -> None:
    def fail() -> None:
        with ShardWriter(tmp_path / "train-00000.bin") as writer:
            writer.append(np.array([1, 2, 3], dtype=np.uint16))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_prepared_corpus_has_several_shards(prepared: Path) -> None:
    manifest = load_manifest(prepared)
    assert len(manifest["train"]["shards"]) > 2
    assert len(open_split(prepared, "train")) == manifest["train"]["tokens"]
    assert len(open_split(prepared, "validation")) == manifest["validation"]["tokens"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "what"),
    [(truncate, "bytes"), (flip, "sha256"), (Path.unlink, "missing")],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_shard_is_named_with_the_way_out(
    prepared: Path, damage: Any, what: str, split: Any
) -> None:
    path = sorted(prepared.glob(f"{split}-*.bin"))[-1]
    damage(path)
    with pytest.raises(UserError) as error:
        open_split(prepared, split)
    message = str(error.value)
    assert str(path) in message
    assert what in message
    assert f"delete {prepared / 'manifest.json'}" in message
    assert "\n" not in message
    other = "validation" if split == "train" else "train"
    open_split(prepared, other)  # type: ignore[arg-type]


def test_verification_can_be_left_to_another_process(prepared: Path) -> None:
    flip(prepared / "train-00000.bin")
    assert len(open_split(prepared, "train", verify=False)) > 0


def test_a_shard_is_read_once_and_again_only_after_it_was_written(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    sha256_of = shards.sha256_of
    monkeypatch.setattr(
        shards, "sha256_of", lambda path: (read.append(path.name), sha256_of(path))[1]
    )
    names = sorted(path.name for path in prepared.glob("train-*.bin"))
    open_split(prepared, "train")
    assert read == []  # `prepare` knows what it wrote
    (prepared / "verified.json").unlink()
    for expected in (names, [], []):
        open_split(prepared, "train")
        assert read == expected
        read.clear()
    os.utime(prepared / names[1], ns=(1, 1))  # a copy, say, or damage
    (prepared / "verified.json").chmod(0o400)
    open_split(prepared, "train")
    assert read == names[1:2]
    (prepared / "verified.json").write_text("[")
    open_split(prepared, "train")
    assert read[1:] == names


def test_what_was_verified_holds_for_one_manifest_only(prepared: Path) -> None:
    path = prepared / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["train"]["shards"][0]["sha256"] = "0" * 64
    manifest["digest"] = shards.content_digest(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="does not have the sha256 of its manifest"):
        open_split(prepared, "train")


def change(**changes: Any) -> Any:
    def write_changed(path: Path) -> None:
        manifest = json.loads(path.read_text())
        for key, value in changes.items():
            *parents, last = key.split("__")
            inner = manifest
            for parent in parents:
                inner = inner[parent]
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        path.write_text(json.dumps(manifest))

    return write_changed


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (truncate, "not readable as JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not readable as JSON"),
        (lambda path: path.write_text("[1]"), "its content is not an object"),
        (lambda path: path.write_text('{"packages": []}'), "'schema' is missing"),
        (change(schema=0), "schema 0, this mhclite reads 1"),
        (change(schema=2), "schema 2, this mhclite reads 1"),
        (change(train__shards=None), "'train.shards' is missing"),
        (change(validation__tokens="many"), "validation.tokens is 'many', expected int"),
        (change(train__shards={}), "train.shards is not a list"),
        (change(train__shards=[{"file": "x.bin", "tokens": 1, "sha256": ""}]), "no shard"),
        (change(train__tokens=7), "not the sum"),
        (change(validation__bytes=0), "not positive"),
        (change(tokenizer__sha256="0" * 64), "digest"),
        (Path.unlink, "no manifest.json"),
    ],
)
def test_a_manifest_that_is_not_ours_is_one_clear_line(
    prepared: Path, damage: Any, what: str
) -> None:
    damage(prepared / "manifest.json")
    with pytest.raises(UserError) as error:
        load_manifest(prepared)
    message = str(error.value)
    assert what in message
    assert str(prepared) in message
    assert "prepare" in message
    assert "\n" not in message


def test_bits_per_byte_of_a_uniform_model_of_bytes() -> None:
    manifest = {"validation": {"tokens": 1000, "bytes": 1000}}
    assert bits_per_byte(float(np.log(256)), manifest) == pytest.approx(8)
    manifest["validation"]["bytes"] = 4000
    assert bits_per_byte(float(np.log(256)), manifest) == pytest.approx(2)


def test_reading_shards_needs_numpy_alone() -> None:
    code = (
        "import sys, mhclite.data.shards; "
        "print({'torch', 'pydantic', 'datasets', 'tokenizers', 'tqdm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", shards.__file__
