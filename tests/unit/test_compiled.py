"""Training on a CPU through torch.compile: the same bits again, and another way without g++."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import configuration, write_corpus

from mhclite.files import read_json, read_jsonl
from mhclite.training import compiler_caches
from mhclite.training.loop import train

# Trains, and is asked to stop as soon as it has begun where a third argument is there.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from mhclite.config import RunConfig
from mhclite.errors import Interrupted
from mhclite.training.loop import StepFiles, train
config, corpus, folder, *stop = sys.argv[1:]
if stop:
    StepFiles.__enter__ = lambda files: os.kill(os.getpid(), signal.SIGTERM) or files
try:
    train(RunConfig.from_json(json.loads(config)), Path(corpus), Path(folder))
except Interrupted:
    sys.exit(75)
"""


def run(corpus: Path, folder: Path, *stop: str) -> int:
    config = configuration("identity", steps=6, compile=True)
    arguments = (json.dumps(config.to_json()), str(corpus), str(folder), *stop)
    environment = os.environ | compiler_caches.environment(corpus.parent)
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=environment)
    return done.returncode


@pytest.mark.exhaustive
@pytest.mark.slow
def test_compiled_runs_repeat_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    """In another process, with a cold and a warm cache, and from a checkpoint."""
    corpus = write_corpus(tmp_path / "corpus")
    assert run(corpus, tmp_path / "cold") == 0
    (kept,) = (tmp_path / compiler_caches.FOLDER).glob("cpu-*")
    files = set(kept.rglob("*.so"))
    assert files
    assert run(corpus, tmp_path / "warm", "stop") == 75
    assert not (tmp_path / "warm/summary.json").exists()
    assert run(corpus, tmp_path / "warm") == 0
    assert set(kept.rglob("*.so")) == files, "nothing is compiled twice"
    cold, warm = (read_json(tmp_path / name / "summary.json") for name in ("cold", "warm"))
    assert warm["attempts"] == 2
    for name in ("metrics_sha256", "weights_sha256"):
        assert cold[name] == warm[name]
    train(configuration("identity", steps=6), corpus, tmp_path / "eager")
    ours, theirs = (
        [line["loss"] for line in read_jsonl(tmp_path / name / "metrics.jsonl")[1:]]
        for name in ("cold", "eager")
    )
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_without_a_compiler_it_is_eager_after_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    config = configuration("mhc_lite", steps=6, compile=True)
    train(config, corpus, tmp_path / "asked")
    (said,) = [r.getMessage() for r in caplog.records if "/nowhere/g++" in r.getMessage()]
    assert "training.compile" in said
    train(configuration("mhc_lite", steps=6), corpus, tmp_path / "eager")
    first, second = (
        read_json(tmp_path / name / "summary.json")["metrics_sha256"] for name in ("asked", "eager")
    )
    assert first == second


def test_code_for_a_cpu_is_kept_for_that_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, and not where the user names a folder."""
    monkeypatch.setenv(compiler_caches.CACHE, "/study/compiled")
    compiler_caches.one_folder_for_each_processor()
    own = Path(os.environ[compiler_caches.CACHE])
    assert own.parent == Path("/study/compiled")
    compiler_caches.one_folder_for_each_processor()
    assert os.environ[compiler_caches.CACHE] == str(own)
    monkeypatch.setenv(compiler_caches.CACHE, "/scratch/mine")
    compiler_caches.one_folder_for_each_processor()
    assert os.environ[compiler_caches.CACHE] == "/scratch/mine"


def test_a_path_that_no_compiler_is_given_whole_keeps_nothing(tmp_path: Path) -> None:
    for name in ("a blank", "an'apostrophe", 'a"quote', "a\ttab", "a;b", "a\\b"):
        assert compiler_caches.environment(tmp_path / name) == {}
