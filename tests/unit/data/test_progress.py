"""Progress for people at a terminal and for log files."""

from __future__ import annotations

import io
import logging
import sys
import threading

import pytest

from mhclite.data import progress as module
from mhclite.data.progress import alive, meter, progress


def test_a_log_file_gets_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter(range(0, 1000, 10))  # ten seconds a look
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        assert list(progress(range(6), "reading", total=6)) == list(range(6))
    assert [record.getMessage() for record in caplog.records] == [
        "reading: 2 of 6 documents, 0 a second, 0:00:40 left",
        "reading: 4 of 6 documents, 0 a second, 0:00:20 left",
        "reading: 6 of 6 documents, 0 a second, 0:00:00 left",
    ]


def test_what_was_done_before_counts_as_done_but_not_for_the_rate(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter((0, 20))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), meter("tokenizing", total=10_000, done=4000) as shown:
        shown.add(2000, 50_000_000)
    (record,) = caplog.records
    assert record.getMessage() == (
        "tokenizing: 6,000 of 10,000 documents, 100 a second, 2.50 M tokens/s, 0:00:40 left"
    )


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(iter("abc"), "reading", total=3)) == list("abc")
    assert "reading: 100%" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()


def test_what_does_not_tell_how_far_it_is_still_shows_life(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.01)
    told, before = threading.Event(), threading.active_count()
    monkeypatch.setattr(module.log, "info", lambda *_: told.set())
    with alive("learning"):
        assert told.wait(60)
    assert threading.active_count() == before
