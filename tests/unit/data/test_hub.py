"""Hub corpora: the study's commit or the newest, or one clear line; never another corpus."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import COMMIT, REPOSITORY, fake_hub
from huggingface_hub import constants
from small_corpora import documents, settings

from mhclite.data import reading
from mhclite.data.corpora import commit_of, parquet_files
from mhclite.data.prepare import prepare
from mhclite.errors import UserError

pytestmark = pytest.mark.slow  # its fixtures alone take ten seconds

TEXTS = documents(60)
CARD = """---
license: cc0-1.0
configs:
- config_name: small
  data_files:
  - split: train
    path: data/small/*
- config_name: other
  data_files: data/other/*
- config_name: rest
  data_files: a.jsonl
---
"""


def hub_settings(**corpus: Any) -> dict[str, Any]:
    return settings(**{"source": "hub", "repository": REPOSITORY, "subset": "small", **corpus})


def parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({"id": range(len(texts)), "text": texts})
    pq.write_table(table, buffer, row_group_size=7)
    return buffer.getvalue()


FILES = {
    "README.md": CARD.encode(),
    "a.jsonl": b'{"text": "x"}\n',
    "data/other/0.parquet": parquet(["another corpus"] * 9),
    "data/small/0.parquet": parquet(TEXTS[:40]),
    "data/small/1.parquet": parquet(TEXTS[40:]),
}


def command(
    out: Path, chosen: dict[str, Any], **environment: str
) -> subprocess.CompletedProcess[str]:
    """The step as the DAG calls it; the hub's client reads its environment when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "mhclite", "prepare", "--settings", json.dumps(chosen),
         "--out", str(out)],
        env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(out.parent / "hf"), **environment},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with fake_hub(FILES) as address:
        yield address


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory, address: str) -> Path:
    """A corpus prepared from the newest commit of a hub."""
    out = tmp_path_factory.mktemp("hub") / "out"
    done = command(out, hub_settings(), HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    assert f"`revision: {COMMIT}` in the study file" in done.stderr
    return out


@pytest.fixture(autouse=True)
def hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever HF_HUB_OFFLINE says where the tests run."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_a_hub_corpus_is_prepared_and_its_commit_recorded(online: Path, tmp_path: Path) -> None:
    manifest = json.loads((online / "manifest.json").read_text())
    assert manifest["source"] == {
        "kind": "hub",
        "description": f"{REPOSITORY}, subset small, split train",
        "repository": REPOSITORY,
        "revision": COMMIT,
        "files": [],
        "license": "cc0-1.0",
    }

    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    local = prepare(settings(f"{tmp_path}/a.jsonl"), tmp_path / "out")
    assert local.digest == manifest["digest"]


def test_what_is_prepared_needs_no_network(online: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    before = (online / "manifest.json").read_bytes()
    prepare(hub_settings(), online)
    assert (online / "manifest.json").read_bytes() == before


def test_what_cannot_be_a_corpus_is_one_clear_line(tmp_path: Path) -> None:
    """A subset that is not there, and files of another format."""
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    for subset, expected in (
        ("nope", "BuilderConfig 'nope' not found"),
        ("rest", r"a\.jsonl, exp"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            parquet_files(str(tmp_path), subset, COMMIT)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("repository", "revision"), [("some one/else", None), (REPOSITORY, "f" * 40)]
)
def test_what_the_hub_does_not_have_is_one_clear_line(
    address: str, repository: str, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    with pytest.raises(UserError, match="correct `repository` or `revision`") as error:
        commit_of(repository, revision)
    assert f"dataset {repository} at {revision or 'its newest commit'}" in str(error.value)
    assert str(error.value).isprintable()


def test_without_a_network_there_is_one_line(tmp_path: Path) -> None:
    token = "hf_secret"
    done = command(
        tmp_path / "out", hub_settings(), HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=token
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: dataset {REPOSITORY}")
    for way_out in ("network", "source: files", "source: embedded"):
        assert way_out in line
    assert token not in line
    assert not (tmp_path / "out").exists()


def test_a_connection_lost_while_reading_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(path: str) -> IO[bytes]:
        raise ConnectionResetError("https://cdn/x?signature=secret")

    monkeypatch.setattr(reading, "_opened", lost)
    with pytest.raises(UserError, match=r"ConnectionResetError.* run .* again") as error:
        reading.examine("hf://datasets/someone/prose@main/0.parquet", "text")
    assert "secret" not in str(error.value)
