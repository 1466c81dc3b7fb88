"""Manifests: one that is not ours and shards that are damaged are noticed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from mhclite.data import manifest as module
from mhclite.data.manifest import load_manifest, open_split
from mhclite.errors import UserError


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
def test_a_damaged_shard_is_named_with_the_way_out(prepared: Path, damage: Any, what: str) -> None:
    path = sorted(prepared.glob("train-*.bin"))[-1]
    damage(path)
    with pytest.raises(UserError) as error:
        open_split(prepared, "train")
    message = str(error.value)
    assert str(path) in message
    assert what in message
    assert f"delete {prepared / 'manifest.json'}" in message
    assert "\n" not in message
    open_split(prepared, "validation")


def test_shards_are_read_only_if_they_were_written_since(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    sha256_of = module.sha256_of
    monkeypatch.setattr(
        module, "sha256_of", lambda path: (read.append(path.name), sha256_of(path))[1]
    )
    names = sorted(path.name for path in prepared.glob("train-*.bin"))
    os.utime(prepared / "manifest.json")
    open_split(prepared, "train")
    assert read == []
    os.utime(prepared / names[1])  # a copy, say, or damage
    open_split(prepared, "train")
    assert read == names[1:2]


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
        (truncate, "JSON"),
        (change(schema=2), "schema 2"),
        (change(train__shards=None), "train.shards"),
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


def test_bits_per_byte_of_a_uniform_model_of_bytes(prepared: Path) -> None:
    manifest = load_manifest(prepared)
    tokens, size = manifest.validation.tokens, manifest.validation.bytes
    assert manifest.bits_per_byte(math.log(256)) == pytest.approx(8 * tokens / size)
