"""Where a study stands: `python -m mhclite status STUDY`, and a line on the terminal for each job.

Snakemake's own words, eleven lines a job, are in its log file as ever (`.snakemake/log`), and with
`--verbose` on the terminal. `Terminal` is no logger plug-in: those are imported before the
Snakefile says which checkout's source is used.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.jobs import RATES, SWEEP, TRAIN
from mhclite.planning.check import add_study
from mhclite.planning.keys import corpus_digests, lost_files, lost_in_words
from mhclite.runs.folder import RunFolder
from mhclite.runs.progress import duration, last_words, report
from mhclite.study.load import load_study

# What is not shown; a job's command that failed is said again, as the job's error.
NOISE = (
    "RuleException:\nCalledProcessError",
    *("Assuming unrestricted", "Building DAG", "Using shell", "Select jobs", "Processed "),
    *("Some jobs were triggered", "Rules with provenance", "Removing output", "Exiting because"),
    *("SLURM run ID", "Job "),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite status`."""
    add_study(parser)


def run(args: argparse.Namespace) -> None:
    """Print where the study stands."""
    study = load_study(args.study)
    out, digests = args.results / study.name, corpus_digests(study, args.results)
    if study.sweep is None:
        print(report(study.name, study.runs().values(), out, digests))
    else:
        arms = study.arms()
        done = sum((out / SWEEP.output.format(arm=arm)).is_file() for arm in arms)
        print(f"study {study.name}: {done} of {len(arms)} arms finished; rates: {out / RATES}")
    if lost := lost_files(study, args.results):
        print(lost_in_words(lost))


class Terminal(logging.Formatter):
    """Formatter and filter of Snakemake's handler for the terminal.

    Args:
        default: Snakemake's own formatter.
        out: the study's folder.
    """

    def __init__(self, default: logging.Formatter, out: Path) -> None:
        super().__init__()
        self.default, self.out = default, out
        self.jobs: dict[int, tuple[str, str, float]] = {}  # rule, its wildcard, when it began
        self.ended: list[int] = []
        self.began = 0.0  # the first training of this session
        self.trained = 0  # runs in it
        self.left = 0  # runs: the start of the DAG counts them

    def filter(self, record: Any) -> bool:
        """Whether a record is shown; notes which jobs begin and end."""
        match getattr(record, "event", None):
            case "job_info":
                rule, item = record.rule_name, next(iter(record.wildcards.values()), "")
                self.jobs[record.jobid] = rule, item, time.monotonic()
                self.began = self.began or time.monotonic() * (rule == TRAIN.name)
                return False
            case "job_finished":
                self.ended.append(record.job_id)
                return False
            case "workflow_started" | "job_started" | "resources_info":
                return False
            case None | "error":
                return not str(record.msg).startswith(NOISE)
        return True

    def format(self, record: Any) -> str:
        """The text that is shown."""
        event = getattr(record, "event", None)
        if event == "job_error":
            return self.failure(record)
        if event == "progress" and self.ended:
            place = f"{record.done:>{len(str(record.total))}}/{record.total}"
            ended = [self.jobs.pop(number) for number in self.ended if number in self.jobs]
            self.ended.clear()
            return "\n".join(f"{place}  {self.end_of(*job)}" for job in ended if job[0] != "all")
        said = self.default.format(record)
        if "At least one job did not complete" in said:
            return (
                "error: jobs failed, with the reason above: mend it and run the same command "
                "again; what is finished stays"
            )
        return said

    def end_of(self, rule: str, item: str, begun: float) -> str:
        """The line of a job that has ended."""
        took, said, after = duration(time.monotonic() - begun), "", ""
        if rule == TRAIN.name:
            self.trained, self.left = self.trained + 1, self.left - 1
            if self.left > 0:
                seconds = (time.monotonic() - self.began) / self.trained * self.left
                after = f"  about {duration(seconds)} of training left"
            try:
                summary = RunFolder(self.out / "runs" / item).summary()
                said = f"diverged at step {summary.diverged_step}"
                if summary.validation_loss is not None:
                    said = f"loss {summary.validation_loss:.3f}"
            except UserError as error:
                said = str(error)
        return f"{rule:<10}  {item:<36}  {said:<10}  {took}{after}"

    def failure(self, record: Any) -> str:
        """What is said of a job that failed: its error, or how its log ends, and where that is."""
        _, item, _ = self.jobs.get(record.jobid, ("", "", 0.0))
        logs = [path for path in map(Path, record.log) if path.is_file()]
        words = next(filter(None, map(last_words, logs)), "it did not say why (killed?)")
        first = f"FAILED  {record.rule_name} {item}".rstrip()
        return "\n  ".join([f"{first}: {words}", *(f"log: {path}" for path in logs)])


def attach(out: Path) -> Terminal | None:
    """Give Snakemake's handler for the terminal these words; None where the user chose another."""
    for handler in logging.getLogger("snakemake.logging").handlers:
        if handler.name == "DefaultStreamHandler" and handler.formatter is not None:
            terminal = Terminal(handler.formatter, out)
            handler.setFormatter(terminal)
            handler.addFilter(terminal)
            return terminal
    return None
