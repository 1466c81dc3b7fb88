"""Disks that are full or read-only, damaged files, clocks that go backwards, older run folders."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import configuration, write_corpus

from mhclite import cli
from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.files import read_json, read_jsonl, sha256_of, write_json
from mhclite.training import checkpoint, loop
from mhclite.training.loop import train

CONFIG = configuration(steps=40, checkpoint_interval=5, evaluation_interval=20)


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


@pytest.mark.parametrize("spare", [0, 8192, 200_000])
def test_disk_full_in_training(
    spare: int,
    small_disk: Path,
    corpus: Path,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """However little is left: at the first file, in the metrics, in a checkpoint, at the end."""
    ballast = fill(small_disk, spare)
    folder = small_disk / "run"
    arguments = command(CONFIG, corpus, folder)
    code = cli.main(arguments)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    if code != 0:
        assert code == cli.EXIT_STORAGE
        assert said.startswith("error: No space left on device")
        assert "run the same command again" in said
        assert not (folder / "summary.json").exists()
    else:
        assert spare == 300_000, "there was room for it all"
    ballast.unlink()
    assert cli.main(arguments) == 0
    assert digests(folder) == expected


def test_disk_full_in_a_checkpoint_keeps_the_one_before(
    small_disk: Path, corpus: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_disk / "run"
    save = checkpoint.save_checkpoint
    ballast: list[Path] = []

    def crowded(where: Path, step: int, *rest: object) -> None:
        if step == 15:
            ballast.append(fill(small_disk, 6000))
        save(where, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save_checkpoint", crowded)
    with pytest.raises(OSError, match="No space left") as caught:
        train(CONFIG, corpus, folder)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
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
        "corpus": {"source": "embedded", "max_documents": 60, "validation_fraction": 0.1},
        "tokenizer": {"kind": "bpe", "vocab_size": 384},
    }
    lock = str(tmp_path / "lock.json")
    arguments = ["prepare", "--settings", json.dumps(settings), "--lock", lock, "--out"]
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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Read-only from the start; then half-way, as a server's disk is after an error."""

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", str(small_disk)], check=True)

    folder = small_disk / "run"
    arguments = command(CONFIG, corpus, folder)
    remount("ro")
    assert cli.main(arguments) == cli.EXIT_STORAGE
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    remount("rw")
    with monkeypatch.context() as patch:
        save = checkpoint.save_checkpoint

        def then_stop(*given: Any) -> None:
            save(*given)
            raise OSError(errno.EROFS, "Read-only file system", str(folder))

        patch.setattr(checkpoint, "save_checkpoint", then_stop)
        assert cli.main(arguments) == cli.EXIT_STORAGE
    remount("ro")
    assert cli.main(arguments) == cli.EXIT_STORAGE
    assert "Read-only file system" in capsys.readouterr().err.splitlines()[-1]
    remount("rw")
    assert cli.main(arguments) == 0
    assert digests(folder) == expected


# --- damage -----------------------------------------------------------------------------------


def stop_at(step: int, corpus: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train up to just after the checkpoint of a step."""
    save = checkpoint.save_checkpoint

    def then_stop(where: Path, at: int, *rest: object) -> None:
        save(where, at, *rest)  # type: ignore[arg-type]
        if at == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", then_stop)
        with pytest.raises(KeyboardInterrupt):
            train(CONFIG, corpus, folder)


@pytest.mark.parametrize("seed", range(3))
def test_damaged_checkpoints(
    seed: int,
    corpus: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One byte flipped or the file cut, at a random place: the one before is taken, and said so.
    Both damaged: an error, never a silent start from nothing."""
    stop_at(20, corpus, tmp_path, monkeypatch)
    random = np.random.default_rng(seed)
    older, newer = sorted((tmp_path / "checkpoints").glob("*.pt"))
    for state in (newer, older):
        content = bytearray(state.read_bytes())
        place = int(random.integers(len(content)))
        if seed % 2:
            content[place] ^= 1 << int(random.integers(8))
        else:
            del content[place:]
        if state is older:
            shutil.copytree(tmp_path, tmp_path / "both")
            (tmp_path / "both" / "checkpoints" / older.name).write_bytes(content)
        else:
            newer.write_bytes(content)
    before = (tmp_path / "both" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"all checkpoints .* are damaged"):
        train(CONFIG, corpus, tmp_path / "both")
    assert (tmp_path / "both" / "metrics.jsonl").read_bytes() == before
    caplog.clear()
    caplog.set_level("INFO")
    train(CONFIG, corpus, tmp_path)
    assert f"{newer} is damaged" in caplog.text
    assert "continuing at step 15" in caplog.text
    assert digests(tmp_path) == expected


def test_a_token_shard_that_was_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    shard = next(corpus.glob("train*.bin"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert cli.main(command(CONFIG, corpus, tmp_path / "run")) == cli.EXIT_USER_ERROR
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert shard.name in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


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


def test_a_clock_that_goes_backwards(
    corpus: Path, tmp_path: Path, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    back = iter(now - 3600 * k for k in range(10**6))
    monkeypatch.setattr(loop.time, "time", lambda: next(back))
    train(CONFIG, corpus, tmp_path)
    assert digests(tmp_path) == expected
    walls = [line["wall"] for line in read_jsonl(tmp_path / "timing.jsonl")]
    assert walls == sorted(walls, reverse=True)
    monkeypatch.undo()
    from mhclite.tracking.content import step_times

    assert len(step_times(tmp_path)) == 41


def test_a_run_folder_of_an_older_version(
    corpus: Path,
    tmp_path: Path,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Other code is another run: it is trained anew; what was under way is kept until that is
    finished, and found again by the code that made it."""
    caplog.set_level("INFO")
    stop_at(20, corpus, tmp_path, monkeypatch)
    old = read_json(tmp_path / "run.json")
    with monkeypatch.context() as patch:
        patch.setattr("mhclite.runs.key.code_digest", lambda config: "newer")
        patch.setattr(loop, "code_digest", lambda config: "newer")
        stop_at(10, corpus, tmp_path, monkeypatch)
        assert "it was under way: kept in" in caplog.text
        kept = tmp_path / "superseded" / old["key"][:12]
        assert len(list((kept / "checkpoints").glob("*.pt"))) == 2
    caplog.clear()
    train(CONFIG, corpus, tmp_path)  # the older code again
    assert "continuing at step 20" in caplog.text
    assert digests(tmp_path) == expected
    assert not (tmp_path / "superseded").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"key": 3}', '{"key": "../../x", "attempts": []}']
)
def test_a_run_json_that_describes_no_run(content: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match="to train this run again") as caught:
        train(CONFIG, corpus, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_summary_of_an_older_version(corpus: Path, tmp_path: Path) -> None:
    """A result without today's fields is not taken for one."""
    train(CONFIG, corpus, tmp_path)
    for name in ("summary.json", "result.json"):
        summary = read_json(tmp_path / name)
        write_json(tmp_path / name, {**summary, "schema": 0, "key": "0" * 64})
    train(CONFIG, corpus, tmp_path)
    assert read_json(tmp_path / "summary.json")["schema"] == loop.SCHEMA
