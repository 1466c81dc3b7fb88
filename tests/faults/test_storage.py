"""Disks that are full or read-only, damaged files, older run folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import configuration, write_corpus

from mhclite import cli
from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.files import read_json, sha256_of, write_json
from mhclite.training import checkpoint, loop
from mhclite.training.loop import train

CONFIG = configuration(steps=22, checkpoint_interval=5, evaluation_interval=11)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(CONFIG, corpus, folder)
    return digests(folder)


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256_of(folder / name) for name in ("metrics.jsonl", "weights.pt")}


@contextmanager
def saving(before: Callable[[int], None], after: Callable[[int], None]) -> Iterator[None]:
    """Call these with the step of each checkpoint."""

    def save(folder: Path, step: int, *rest: Any) -> None:
        before(step)
        saved(folder, step, *rest)
        after(step)

    saved = checkpoint.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", save)
        yield


def nothing(_: int) -> None:
    pass


def stop_at(step: int, corpus: Path, folder: Path) -> None:
    """Train up to just after the checkpoint of a step."""

    def stop(at: int) -> None:
        if at == step:
            raise KeyboardInterrupt

    with saving(nothing, stop), pytest.raises(KeyboardInterrupt):
        train(CONFIG, corpus, folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which `size_of` makes smaller or larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, spare: int) -> Path:
    """Leave so many bytes on a disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, free - spare))
    return ballast


def command(config: RunConfig, corpus: Path, folder: Path) -> list[str]:
    options = ["--config", json.dumps(config.to_json())]
    options += ["--corpus", str(corpus), "--out", str(folder)]
    return ["train", *options]


@pytest.mark.parametrize("spare", [0, 8192])
def test_disk_full_in_training(
    spare: int,
    small_disk: Path,
    corpus: Path,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the first file, in the metrics."""
    ballast = fill(small_disk, spare)
    folder = small_disk / "run"
    arguments = command(CONFIG, corpus, folder)
    assert cli.main(arguments) == cli.EXIT_STORAGE
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: No space left on device")
    assert "run the same command again" in said
    assert not (folder / "summary.json").exists()
    ballast.unlink()
    assert cli.main(arguments) == 0
    assert digests(folder) == expected


def test_disk_full_in_a_checkpoint_keeps_the_one_before(
    small_disk: Path, corpus: Path, expected: dict[str, str]
) -> None:
    folder = small_disk / "run"
    ballast: list[Path] = []

    def crowd(step: int) -> None:
        if step == 15:
            ballast.append(fill(small_disk, 6000))

    with saving(crowd, nothing), pytest.raises(OSError, match="No space left"):
        train(CONFIG, corpus, folder)
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step_*"))
    assert kept == [f"step_{step:09d}.{end}" for step in (5, 10) for end in ("json", "pt")]
    ballast[0].unlink()
    train(CONFIG, corpus, folder)
    assert read_json(folder / "run.json")["attempts"][1:]
    assert digests(folder) == expected


def test_disk_full_while_a_corpus_is_prepared(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "name": "sotu",
        "corpus": {"source": "embedded", "max_documents": 30, "validation_fraction": 0.1},
        "tokenizer": {"kind": "bpe", "vocab_size": 384},
    }
    arguments = ["prepare", "--settings", json.dumps(settings), "--out"]
    assert cli.main([*arguments, str(tmp_path / "whole")]) == 0
    ballast = fill(small_disk, 100_000)
    assert cli.main([*arguments, str(small_disk / "corpus")]) == cli.EXIT_STORAGE
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert not (small_disk / "corpus" / "manifest.json").exists()
    ballast.unlink()
    assert cli.main([*arguments, str(small_disk / "corpus")]) == 0
    digest = read_json(tmp_path / "whole" / "manifest.json")["digest"]
    assert read_json(small_disk / "corpus" / "manifest.json")["digest"] == digest


def test_results_read_only(
    small_disk: Path,
    corpus: Path,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half-way, as a server's disk is after an error."""

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    folder = small_disk / "run"
    arguments = command(CONFIG, corpus, folder)
    stop_at(10, corpus, folder)
    remount("ro")
    assert cli.main(arguments) == cli.EXIT_STORAGE
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    remount("rw")
    assert cli.main(arguments) == 0
    assert digests(folder) == expected


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_damaged_checkpoints(
    seed: int,
    corpus: Path,
    expected: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One byte flipped or the file cut, at a random place: the one before is taken, and said so.
    Both damaged: an error, never a silent start from nothing."""
    folder, both = tmp_path / "run", tmp_path / "both"
    stop_at(20, corpus, folder)
    random = np.random.default_rng(seed)
    older, newer = sorted((folder / "checkpoints").glob("*.pt"))
    for state in (newer, both / "checkpoints" / older.name):
        if state.parent == both / "checkpoints":
            shutil.copytree(folder, both)
        content = bytearray(state.read_bytes())
        place = int(random.integers(len(content)))
        if seed % 2:
            content[place] ^= 1 << int(random.integers(8))
        else:
            del content[place:]
        state.write_bytes(content)
    before = (both / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"all checkpoints .* are damaged"):
        train(CONFIG, corpus, both)
    assert (both / "metrics.jsonl").read_bytes() == before
    caplog.set_level("INFO")
    train(CONFIG, corpus, folder)
    assert f"{newer} is damaged" in caplog.text
    assert "continuing at step 15" in caplog.text
    assert digests(folder) == expected


# --- what Snakemake and people do to a run folder ----------------------------------------------


def test_a_deleted_summary_costs_nothing(
    corpus: Path, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snakemake deletes the declared output before it runs a job again, for instance because a
    clock went backwards and an input looks newer."""
    train(CONFIG, corpus, tmp_path)
    summary = (tmp_path / "summary.json").read_bytes()
    (tmp_path / "summary.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train", None)  # not called
        train(CONFIG, corpus, tmp_path)
    assert (tmp_path / "summary.json").read_bytes() == summary

    (tmp_path / "summary.json").unlink()
    weights = bytearray((tmp_path / "weights.pt").read_bytes())
    weights[-100] ^= 1
    (tmp_path / "weights.pt").write_bytes(weights)
    train(CONFIG, corpus, tmp_path)  # the result is not what was written: it is made again
    assert digests(tmp_path) == expected


def test_a_run_folder_of_an_older_version(
    corpus: Path,
    tmp_path: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other code is another run: it is trained from the start, whatever was under way."""
    stop_at(15, corpus, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mhclite.runs.key.code_digest", lambda config: "newer")
        patch.setattr(loop, "code_digest", lambda config: "newer")
        stop_at(10, corpus, tmp_path)
        assert "from the start" in caplog.text
        steps = [read_json(path)["step"] for path in (tmp_path / "checkpoints").glob("*.json")]
        assert max(steps) == 10
    train(CONFIG, corpus, tmp_path)  # the older code again
    assert digests(tmp_path) == expected
    # A result without today's fields is not taken for one.
    for name in ("summary.json", "result.json"):
        summary = read_json(tmp_path / name)
        write_json(tmp_path / name, {**summary, "schema": 0, "key": "0" * 64})
    train(CONFIG, corpus, tmp_path)
    assert read_json(tmp_path / "summary.json")["schema"] == loop.SCHEMA


@pytest.mark.parametrize("content", ["", '{"key": "../../x", "attempts": []}'])
def test_a_run_json_that_describes_no_run(content: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="to train this run again") as caught:
        train(CONFIG, corpus, tmp_path)
    assert "\n" not in str(caught.value)
