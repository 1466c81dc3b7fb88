"""Small files: what is no JSON is refused, whoever wrote it."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import configuration, write_corpus

from mhclite import cli, files
from mhclite.cli import main
from mhclite.errors import UserError
from mhclite.files import is_locked, locked, read_jsonl, write_json
from mhclite.planning import check
from mhclite.records import read_record


@dataclass(frozen=True)
class Number:
    """A record of one number."""

    schema: int
    value: float


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999"])
def test_what_is_no_number_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"schema": 1, "value": {text}}}')
    with pytest.raises(UserError, match=r"a\.json .*; make it again"):
        read_record(Number, path, "the number", 1, "make it again")
    (tmp_path / "a.jsonl").write_text('{"loss": 1}\n{"loss": NaN}\n')
    with pytest.raises(UserError, match=r"a\.jsonl line 2 is not JSON"):
        read_jsonl(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"a": [float(text)]})
    assert not list(tmp_path.glob("*b.json*"))


def test_nobody_is_told_to_delete_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "this and that.json"
    for damaged in (None, "{", '{"schema": 2}', '{"schema": 1, "value": "x"}'):
        if damaged is not None:
            path.write_text(damaged)
        with pytest.raises(UserError) as caught:
            read_record(Number, path, "the number", 1, f"delete {path} and make it again")
        assert (f"delete {path}" in str(caught.value)) == (damaged is not None)
    path.write_bytes(b'\xef\xbb\xbf{"schema": 1, "value": 2}')  # a byte order mark is no content
    assert read_record(Number, path, "the number", 1, "").value == 2


@pytest.mark.parametrize(
    "value", ["x" * 10**6, "\x00" * 1200, "a\nb", "\x1b[31m", "\udcff", "a\u2028b\r\n c"]
)
def test_the_line_of_an_error_is_one_visible_and_bounded(value: str) -> None:
    error = UserError(f"{value} is no number: correct it")
    for line in (str(error), str(pickle.loads(pickle.dumps(error)))):
        assert line.endswith("is no number: correct it")
        assert line.isprintable()
        assert len(line) < 1500
    assert str(UserError("a  b – é")) == "a  b – é"


# --- what a file system cannot -------------------------------------------------------------------


def answering(number: int) -> Callable[..., Any]:
    def call(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return call


def test_a_file_system_without_locks_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, corpus = configuration(), write_corpus(tmp_path / "corpus")
    monkeypatch.setattr(files.fcntl, "flock", answering(errno.ENOLCK))
    out = tmp_path / "run"
    arguments = ["--config", json.dumps(config.to_json()), "--corpus", str(corpus)]
    assert main(["train", *arguments, "--out", str(out)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert str(out) in line
    assert "flock" in line
    with pytest.raises(UserError, match="cannot lock files"), locked(tmp_path / "x"):
        pass
    assert not is_locked(tmp_path / "x")


def test_a_disk_that_fails_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "fsync", answering(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_json(tmp_path / "a.json", 1)
    assert not list(tmp_path.glob("*a.json*"))
    monkeypatch.setattr(files.os, "fsync", answering(errno.EINVAL))  # it cannot sync
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").exists()


def test_what_the_system_answers_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each error that there is, but for those that are rather our mistakes. Of a pipe whose reader
    has gone nothing is said."""
    for number in set(errno.errorcode) - {errno.EPIPE, errno.ESHUTDOWN}:
        monkeypatch.setattr(check, "run", answering(number))
        if number in cli.BUGS:
            with pytest.raises(OSError, match=re.escape(os.strerror(number))):
                main(["check", "study.yaml"])
        else:
            assert main(["check", "study.yaml"]) == cli.EXIT_STORAGE
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"error: {os.strerror(number)}")
