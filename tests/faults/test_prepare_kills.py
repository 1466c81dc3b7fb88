"""SIGKILL while a corpus is prepared: the same bytes in the end, nothing finished done again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mhclite.data.corpora import EMBEDDED
from mhclite.data.reading import examine, read

KILLS = 20 if "EXHAUSTIVE" in os.environ else 4
PART_BYTES = 150_000
SCRIPT = Path(__file__).with_name("preparing.py")


def write_settings(folder: Path) -> Path:
    """A corpus of real text in parquet files of several row groups."""
    (piece,) = examine(str(EMBEDDED), "text").pieces
    paragraphs = [line for text in read(piece, "text") for line in text.splitlines() if line]
    for index in range(2):
        table = pa.table({"text": paragraphs[index * 6000 : (index + 1) * 6000]})
        pq.write_table(table, folder / f"{index}.parquet", row_group_size=200)
    corpus = {"source": "files", "files": f"{folder}/*.parquet", "validation_fraction": 0.01}
    corpus |= {"text_field": "text", "split_seed": 42, "license": None}
    corpus |= {"expected_documents": 12_000, "max_documents": None}
    settings = {
        "name": "killed",
        "corpus": corpus,
        "tokenizer": {"kind": "gpt2", "vocab_size": 50304},
    }
    path = folder / "settings.json"
    path.write_text(json.dumps(settings))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Shards of recorded parts: name -> what changes if they are written again."""
    found = {}
    for record in folder.glob("parts/0*.json"):
        for split in json.loads(record.read_text()).values():
            for shard in split["shards"]:
                state = (folder / shard["file"]).stat()
                found[shard["file"]] = (state.st_ino, state.st_mtime_ns)
    return found


def test_kills_while_a_corpus_is_prepared(tmp_path: Path, tell: Callable[[str], None]) -> None:
    settings = write_settings(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(SCRIPT), str(settings), str(folder), str(PART_BYTES)]
        return subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)

    began = time.monotonic()
    process = start(whole)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    seconds = time.monotonic() - began
    parts = len(json.loads((whole / "manifest.json").read_text())["train"]["shards"])
    assert parts > 20

    random_times = random.Random(0)
    kept: dict[str, tuple[int, int]] = {}
    kills = within = 0
    while kills < KILLS:
        records = len(list(killed.glob("parts/0*")))
        process = start(killed)
        try:
            if kills % 2:  # anywhere: starting, planning, tokenizing, finishing
                process.wait(random_times.uniform(0.1, 0.9) * seconds)
            else:  # amid the parts
                while process.poll() is None and len(list(killed.glob("parts/0*"))) <= records:
                    time.sleep(0.005)
                process.wait(0)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            assert process.returncode == 0, process.communicate()[1].decode()
            assert content(killed) == content(whole)
            (killed / "manifest.json").unlink()  # from the start, for the kills that are left
            kept = {}
            continue
        finally:
            process.communicate()
        if (killed / "manifest.json").exists():  # killed while the records were removed
            kept = {}
            continue
        now = finished(killed)
        assert kept.items() <= now.items(), "a finished part was done again"
        within += 0 < len(now) < parts
        kept = now
    process = start(killed)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    assert content(killed) == content(whole)
    assert within >= KILLS // 4
    tell(
        f"preparation: {KILLS} kills of two processes, {within} of them amid its {parts} parts; "
        "the same bytes in the end, no finished part done again"
    )
