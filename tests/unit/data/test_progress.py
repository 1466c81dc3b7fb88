"""Progress for people at a terminal and for log files."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from mhclite.data import progress as module
from mhclite.data.progress import progress


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 10))  # ten seconds a look
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        assert list(progress(range(6), "reading", total=6)) == list(range(6))
    assert [record.getMessage() for record in caplog.records] == [
        "reading: 2 of 6 documents, 0 a second",
        "reading: 4 of 6 documents, 0 a second",
        "reading: 6 of 6 documents, 0 a second",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(iter("abc"), "reading", total=3)) == list("abc")
    assert "reading: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
