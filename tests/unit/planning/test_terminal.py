"""What Snakemake's events look like on the terminal: its own handler, with our words."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent
from tiny import configuration, run_summary

from mhclite.files import write_json
from mhclite.planning import status
from mhclite.records import to_json


class Screen:
    """Snakemake's handler with our words, and what is on it."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.stream, self.now = out, io.StringIO(), 100.0
        monkeypatch.setattr(status, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.handler = ColorizingTextHandler(stream=self.stream)
        self.handler.name = "DefaultStreamHandler"
        self.handler.setFormatter(DefaultFormatter(show_failed_logs=True))
        self.handler.addFilter(DefaultFilter(None, False, False, False, False))
        logger = logging.getLogger("snakemake.logging")
        monkeypatch.setattr(logger, "handlers", [logging.NullHandler(), self.handler])
        found = status.attach(out)
        assert found is not None
        self.terminal = found

    def says(self, event: LogEvent | None, msg: str | None = None, **fields: Any) -> None:
        level = logging.ERROR if "error" in str(event) else logging.INFO
        record = {"event": event, "msg": msg, "levelno": level, "levelname": "INFO", **fields}
        self.handler.handle(logging.makeLogRecord(record))

    def begins(self, number: int, rule: str, item: str = "") -> None:
        self.says(
            LogEvent.JOB_INFO,
            **{"jobid": number, "rule_name": rule, "wildcards": {"run": item} if item else {}},
            **{"input": ["x" * 5000], "output": [], "log": [], "rule_msg": None, "local": False},
        )
        self.says(LogEvent.SHELLCMD, "python -m ...")

    def ends(self, number: int, done: int, total: int) -> None:
        self.says(LogEvent.JOB_FINISHED, f"Finished jobid: {number}", job_id=number)
        self.says(LogEvent.PROGRESS, done=done, total=total)

    def fails(self, number: int, rule: str, log: str | None) -> None:
        path = self.out / "the.log"
        if log is not None:
            path.write_text(log)
        self.says(
            LogEvent.JOB_ERROR,
            **{"jobid": number, "rule_name": rule, "rule_msg": None, "log": [str(path)]},
            **{"input": ["x" * 5000], "output": [], "conda_env": None, "aux": {}, "shellcmd": "s"},
        )

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(tmp_path, monkeypatch)


def finish(out: Path, run: str, **changes: Any) -> None:
    """What a run leaves, as far as the terminal reads it."""
    summary = run_summary(configuration(), "key", **changes)
    write_json(out / "runs" / run / "summary.json", to_json(summary))


def test_a_study_is_one_line_a_job(screen: Screen) -> None:
    """Runs of a minute each, one after the other, and what else Snakemake says."""
    screen.says(LogEvent.WORKFLOW_STARTED, "Workflow has started!")
    for words in ("Building DAG of jobs...", "Using shell: /bin/bash", "Select jobs to execute..."):
        screen.says(None, words)
    screen.begins(0, "prepare")
    screen.ends(0, 1, 12)
    screen.terminal.left = 10
    for at in range(1, 11):
        screen.begins(at, "train", f"run-{at}")
        screen.now += 60
        finish(screen.out, f"run-{at}", validation_loss=3.5)
        screen.ends(at, at + 1, 12)
        line = screen.lines[-1]
        for part in (f"{at + 1}/12", f"run-{at} ", "loss 3.500"):
            assert part in line
        if at < 8:
            assert f"about {10 - at}.0 min of training left" in line
    assert "left" not in screen.lines[-1]
    assert len(screen.lines) == 11


@pytest.mark.parametrize("kind", ["diverged", "damaged", "gone"])
def test_a_run_that_is_odd_has_its_line(kind: str, screen: Screen) -> None:
    screen.begins(1, "train", "a")
    if kind == "diverged":
        finish(screen.out, "a", status="diverged", diverged_step=7, steps=0, validation_loss=None)
    elif kind == "damaged":
        (screen.out / "runs/a").mkdir(parents=True)
        (screen.out / "runs/a/summary.json").write_text("{")
    screen.ends(1, 1, 2)
    (line,) = screen.lines
    assert ("diverged at step 7" if kind == "diverged" else "summary.json") in line


def test_an_error_stands_first_with_its_log_and_what_next(screen: Screen) -> None:
    screen.begins(1, "train", "a")
    command = "Command 'export PATH=... python -m mhclite train' returned non-zero exit status 2."
    screen.says(LogEvent.ERROR, f"RuleException:\nCalledProcessError in file x, line 7:\n{command}")
    screen.fails(1, "train", "12:00:00 begins\nerror: no file matches 'a/*.txt': say which\n")
    screen.says(LogEvent.ERROR, "WorkflowError:\nAt least one job did not complete successfully.")
    first, second, last = screen.lines
    assert first == "FAILED  train a: error: no file matches 'a/*.txt': say which"
    assert str(screen.out / "the.log") in second
    assert last.startswith("error: ")
    assert "same command again" in last


def test_a_job_that_could_not_say_why_shows_its_end(screen: Screen) -> None:
    screen.begins(1, "probe")
    screen.fails(1, "probe", "a line\n" * 500 + "Traceback: ...\nKeyError: 'x'\n")
    assert "KeyError: 'x'" in screen.lines[0]
    assert len(screen.lines) == 2
    (screen.out / "the.log").unlink()
    screen.fails(1, "probe", None)  # it did not begin, or its log is elsewhere
    assert screen.lines[-1].startswith("FAILED  probe")


def test_another_loggers_words_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("snakemake.logging"), "handlers", [logging.NullHandler()])
    assert status.attach(tmp_path) is None
