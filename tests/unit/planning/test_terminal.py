"""What Snakemake's events look like on the terminal: its own handler, with our words."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.jobs import Reason
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent
from tiny import run_summary

from mhclite.config import RunConfig
from mhclite.files import write_json
from mhclite.planning import terminal
from mhclite.records import to_json
from mhclite.runs.folder import Summary
from mhclite.study.reading import load_study

STUDY = load_study(Path(__file__).parents[3] / "config/depth.yaml")
RUNS = {name: run for name, run in STUDY.runs().items() if run.model.n_layer <= 6}
NEW = "Missing output files: a, b; Input files updated by another job: c"


class Screen:
    """Snakemake's handler with our words, and what is on it."""

    def __init__(self, out: Path, dryrun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.stream, self.now = out, io.StringIO(), 100.0
        monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: self.now))
        handler = ColorizingTextHandler(stream=self.stream)
        handler.name = "DefaultStreamHandler"
        handler.setFormatter(DefaultFormatter(show_failed_logs=True))
        handler.addFilter(DefaultFilter(None, False, False, dryrun, False))
        logger = logging.getLogger("snakemake.logging")
        monkeypatch.setattr(logger, "handlers", [logging.NullHandler(), handler])
        found = terminal.attach(out, RUNS, dryrun)
        assert found is not None
        self.terminal, self.handler = found, handler

    def says(self, event: LogEvent | None, msg: str | None = None, **fields: Any) -> None:
        level = logging.ERROR if "error" in str(event) else logging.INFO
        record = {"event": event, "msg": msg, "levelno": level, "levelname": "INFO", **fields}
        self.handler.handle(logging.makeLogRecord(record))

    def begins(self, number: int, rule: str, item: str = "", reason: str = NEW) -> None:
        wildcards = {"run": item} if item else {}
        self.says(
            LogEvent.JOB_INFO,
            **{"jobid": number, "rule_name": rule, "wildcards": wildcards, "reason": reason},
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
        fields = {
            "input": ["x" * 5000],
            "output": [],
            "conda_env": None,
            "aux": {},
            "shellcmd": "s",
        }
        self.says(
            LogEvent.JOB_ERROR,
            **{"jobid": number, "rule_name": rule, "rule_msg": None, "log": [str(path)]},
            **fields,
        )

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Screen]:
    return lambda dryrun=False: Screen(tmp_path, dryrun, monkeypatch)


def finish(out: Path, run: RunConfig, **changes: Any) -> Summary:
    """What a run leaves, as far as the terminal reads it."""
    summary = run_summary(run, "key", **changes)
    write_json(out / "runs" / run.run / "summary.json", to_json(summary))
    return summary


def test_a_study_is_one_line_a_job(screen: Callable[..., Screen]) -> None:
    """Two at a time, of two seconds a layer; all of it, with what else Snakemake says."""
    shown, total = screen(), len(RUNS) + 1
    shown.says(LogEvent.WORKFLOW_STARTED, "Workflow has started!")
    for words in ("Building DAG of jobs...", "Using shell: /bin/bash", "Select jobs to execute..."):
        shown.says(None, words)
    shown.terminal.expect(("train", run, NEW) for run in RUNS)
    assert shown.terminal.reasons() == "", "nothing is made again"
    shown.begins(0, "prepare")
    shown.ends(0, 1, total)
    assert len(shown.lines) == 1
    names = list(RUNS)
    shown.begins(1, "train", names[0])
    for at, name in enumerate(names, start=1):
        if at < len(names):
            shown.begins(at + 1, "train", names[at])
        seconds = 2.0 * RUNS[name].model.n_layer
        shown.now += seconds / 2
        summary = finish(shown.out, RUNS[name], seconds=seconds, steps=RUNS[name].training.steps)
        before = len(shown.lines)
        shown.ends(at, at + 1, total)
        (line,) = shown.lines[before:]
        for part in (
            RUNS[name].connection.variant,
            RUNS[name].model.name,
            f"seed {RUNS[name].seed}",
        ):
            assert part in line.split("loss")[0]
        assert f"loss {summary.validation_loss:.3f}" in line
        if 10 < at < len(names) - 1:
            number, unit = re.search(r"about ([\d.]+) (s|min) of training left", line).groups()  # type: ignore[union-attr]
            left = sum(RUNS[name].model.n_layer for name in names[at:])
            assert float(number) * {"s": 1, "min": 60}[unit] == pytest.approx(left, rel=0.2, abs=9)
    assert len(shown.lines) == total
    assert max(map(len, shown.lines)) < 150


def test_time_left_knows_that_deep_runs_take_longer(screen: Callable[..., Screen]) -> None:
    """One at a time, the shallow ones first; a run takes a second a layer."""
    shown = screen()
    order = sorted(RUNS.values(), key=lambda run: run.model.n_layer)
    shown.terminal.expect(("train", run.run, NEW) for run in order)
    for at, run in enumerate(order[:3]):
        shown.begins(at, "train", run.run)
        shown.now += run.model.n_layer
        finish(shown.out, run, seconds=float(run.model.n_layer), steps=run.training.steps)
        shown.ends(at, at + 1, len(order))
    left = sum(run.model.n_layer for run in order[3:])
    assert shown.terminal.seconds_left() == pytest.approx(left)


@pytest.mark.parametrize("kind", ["diverged", "at once", "damaged", "gone"])
def test_a_run_that_is_odd_has_its_line(kind: str, screen: Callable[..., Screen]) -> None:
    shown, run = screen(), next(iter(RUNS.values()))
    shown.terminal.expect(("train", name, NEW) for name in RUNS)
    shown.begins(1, "train", run.run)
    shown.now += 3
    steps = {"diverged": 7, "at once": 0}.get(kind)
    if steps is not None:
        finish(
            shown.out, run, status="diverged", diverged_step=7, steps=steps, validation_loss=None
        )
    elif kind == "damaged":
        (shown.out / "runs" / run.run).mkdir(parents=True)
        (shown.out / "runs" / run.run / "summary.json").write_text("{")
    shown.ends(1, 1, 2)
    (line,) = shown.lines
    assert ("diverged at step 7" if steps is not None else "summary.json") in line


def test_an_error_stands_first_with_its_log_and_what_next(screen: Callable[..., Screen]) -> None:
    shown, run = screen(), "sotu-d3-mhc-s0"
    shown.begins(1, "train", run)
    command = "Command 'export PATH=... python -m mhclite train' returned non-zero exit status 2."
    shown.says(LogEvent.ERROR, f"RuleException:\nCalledProcessError in file x, line 7:\n{command}")
    shown.fails(1, "train", "12:00:00 begins\nerror: no file matches 'a/*.txt': say which\n")
    shown.says(LogEvent.ERROR, "WorkflowError:\nAt least one job did not complete successfully.")
    first, second, last = shown.lines
    assert "mhc seed 0: error: no file matches 'a/*.txt'" in first
    assert str(shown.out / "the.log") in second
    assert last.startswith("error: 1 job failed")
    assert "same command again" in last


def test_a_job_that_could_not_say_why_shows_its_end(screen: Callable[..., Screen]) -> None:
    shown = screen()
    shown.begins(1, "probe")
    text = "".join(f"line {i}\n" for i in range(500)) + "Traceback: ...\nKeyError: 'x'\n"
    shown.fails(1, "probe", text)
    assert "KeyError: 'x'" in shown.stream.getvalue()
    assert len(shown.lines) < 30
    (shown.out / "the.log").unlink()
    shown.fails(1, "probe", None)  # it did not begin, or its log is elsewhere
    assert shown.lines[-1].startswith("FAILED  probe")


def test_a_job_that_was_tried_again_has_not_failed(screen: Callable[..., Screen]) -> None:
    shown = screen()
    for number in (1, 2):
        shown.begins(number, "probe")
        shown.fails(number, "probe", "error: x\n")
    shown.begins(1, "probe")
    shown.ends(1, 1, 2)
    shown.says(LogEvent.ERROR, "WorkflowError:\nAt least one job did not complete successfully.")
    assert shown.lines[-1].startswith("error: 1 job failed")


REASONS: dict[str, Callable[[Reason], Any]] = {
    "forced": lambda reason: setattr(reason, "forced", True),
    "missing": lambda reason: reason.missing_output.add("a"),
    "incomplete": lambda reason: reason.incomplete_output.add("a"),
    "newer": lambda reason: reason.updated_input.add("a"),
    "follows": lambda reason: (reason.updated_input_run.add("a"), reason.updated_input.add("a")),
    "inputs": lambda reason: setattr(reason, "input_changed", True),
    "code": lambda reason: setattr(reason, "code_changed", True),
    "params": lambda reason: setattr(reason, "params_changed", PARAMS),
}
PARAMS = type(
    "Change", (), {"__str__": lambda self: "x" * 200_000, "__bool__": lambda self: True}
)()


@pytest.mark.parametrize("kind", REASONS)
def test_every_reason_of_snakemake_is_a_few_words(kind: str, screen: Callable[..., Screen]) -> None:
    """As Snakemake writes them: what it says otherwise in another version would be lost here."""
    shown, reason = screen(dryrun=True), Reason()
    REASONS[kind](reason)
    shown.says(LogEvent.RUN_INFO, "Job stats: once")
    for at, run in enumerate(RUNS):
        shown.begins(at, "train", run, str(reason))
    shown.says(LogEvent.RUN_INFO, "Job stats: twice")
    shown.says(
        None, "Reasons:\n    (check individual jobs above for details)\n    x:\n        train"
    )
    shown.says(None, "This was a dry-run (flag -n).")
    text = shown.stream.getvalue()
    assert text.count("Job stats") == 1
    assert f"train {len(RUNS)} (" in text
    assert len(shown.lines) == 4
    assert max(map(len, shown.lines)) < 200


def test_another_loggers_words_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("snakemake.logging"), "handlers", [logging.NullHandler()])
    assert terminal.attach(tmp_path, RUNS, False) is None
