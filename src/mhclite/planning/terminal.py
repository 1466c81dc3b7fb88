"""What Snakemake says on the terminal: a line for each job as it ends, and in short why jobs run.

Snakemake's own words, eleven lines a job, are in its log file as ever (`.snakemake/log`), and with
`--verbose` on the terminal. This is no logger plug-in: those are imported before the Snakefile says
which checkout's source is used, and Snakemake does not start where one is named and not installed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.jobs import SWEEP, TRAIN
from mhclite.measure.files import read_sweep
from mhclite.runs.folder import RunFolder
from mhclite.runs.status import duration, last_words, tail
from mhclite.study.sections import BASE

# What is in Snakemake's reasons -> in few words. A job has the first of those that it has.
WHY = {
    "Forced": "asked for, outdated or lost",
    "Missing output": "not there yet",
    "Incomplete output": "begun and not finished",
    "have changed": "other settings or code",
    "Code has changed": "other settings or code",
    "Set of input": "made from other files",
    "Updated input": "made from a file that is newer",
    "updated by another job": "follows from these",
}
EXPECTED = {"not there yet", "follows from these"}  # of a study that has not been run
NOISE = (  # what is not shown; a job's command that failed is said again, as the job's error
    "RuleException:\nCalledProcessError",
    *("Assuming unrestricted", "Building DAG", "Using shell", "Select jobs", "Processed "),
    *("Some jobs were triggered", "Rules with provenance", "Removing output", "Exiting because"),
    *("SLURM run ID", "Job "),
)
NAMED = 3  # jobs of a rule
TAIL = 20  # lines shown of a log that does not end with an error of ours


class Job(NamedTuple):
    """A job that has begun."""

    rule: str
    item: str  # what it makes: its wildcard
    begun: float  # seconds of `time.monotonic`


class Terminal(logging.Formatter):
    """Formatter and filter of Snakemake's handler for the terminal.

    Args:
        default: Snakemake's own formatter.
        out: the study's folder.
        runs: of the study.
        dryrun: jobs are shown to begin, and do not end.
    """

    def __init__(
        self, default: logging.Formatter, out: Path, runs: Mapping[str, RunConfig], dryrun: bool
    ) -> None:
        super().__init__()
        self.default, self.out, self.runs, self.dryrun = default, out, runs, dryrun
        self.jobs: dict[int, Job] = {}
        self.ended: list[int] = []
        self.failures: set[int] = set()
        self.why: dict[str, dict[str, list[str]]] = {}  # reason -> rule -> its jobs
        self.left: set[str] = set()  # runs that are to be trained
        self.began = 0.0  # the first training of this session
        self.done = 0.0  # `work` in it

    def filter(self, record: Any) -> bool:
        """Whether a record is shown; notes which jobs begin and end."""
        match getattr(record, "event", None):
            case "job_info":
                item = next(iter(record.wildcards.values()), "")
                self.jobs[record.jobid] = Job(record.rule_name, item, time.monotonic())
                self.began = self.began or time.monotonic() * (record.rule_name == TRAIN.name)
                if self.dryrun:
                    self.expect([(record.rule_name, item, record.reason)])
                return False
            case "job_finished":
                self.ended.append(record.job_id)
                return record.job_id not in self.jobs
            case "run_info":  # a dry run says it twice
                return not (self.dryrun and self.why)
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
            self.failures.difference_update(self.ended)
            ended = [self.jobs.pop(number) for number in self.ended if number in self.jobs]
            self.ended.clear()
            shown = [self.end_of(job) for job in ended if job.rule != "all"]
            return "\n".join(f"{place}  {line}" for line in shown)
        said = self.default.format(record)
        if self.failures and "At least one job did not complete" in said:
            count = f"{len(self.failures)} job{'s' * (len(self.failures) > 1)} failed"
            return (
                f"error: {count}, with the reason above: mend it and run the same command again; "
                "what is finished stays"
            )
        return self.reasons() if said.startswith("Reasons:") else said

    def end_of(self, job: Job) -> str:
        """The line of a job that has ended."""
        seconds, said, after = time.monotonic() - job.begun, "", ""
        try:
            if job.rule == TRAIN.name:
                summary = RunFolder(self.out / "runs" / job.item).summary()
                self.left.discard(job.item)
                here = min(seconds / summary.seconds, 1) if summary.seconds else 0
                self.done += here * work(self.runs[job.item], summary.steps)
                seconds, said = summary.seconds, f"diverged at step {summary.diverged_step}"
                if summary.validation_loss is not None:
                    said = f"loss {summary.validation_loss:.3f}"
                if left := self.seconds_left():
                    after = f"  about {duration(left)} of training left"
            elif job.rule == SWEEP.name:
                rate = read_sweep(self.out / SWEEP.output.format(arm=job.item)).rate
                said = f"learning rate {rate:g}" if rate else "no learning rate"
        except UserError as error:
            said = str(error)
        return (
            f"{job.rule:<10}  {self.name_of(job.item):<36}  {said:<10}  {duration(seconds)}{after}"
        )

    def name_of(self, item: str) -> str:
        """A run in the words of its study; of all else its name."""
        run = self.runs.get(item)
        if run is None:
            return item
        several = len({other.corpus for other in self.runs.values()}) > 1
        parts = [run.corpus] * several + [run.model.name, run.connection.variant]
        parts += [run.condition] * (run.condition != BASE)
        return f"{' '.join(parts)} seed {run.seed}"

    def failure(self, record: Any) -> str:
        """What is said of a job that failed: its error, or the end of its log, and where it is."""
        self.failures.add(record.jobid)
        job = self.jobs.get(record.jobid)
        name = f"FAILED  {record.rule_name} {self.name_of(job.item) if job else ''}".rstrip()
        logs = [path for path in map(Path, record.log) if path.is_file()]
        words = [last_words(path) for path in logs]
        found = [said for said in words if said.startswith(("error:", "interrupted:"))]
        lines = [f"{name}: {found[0] if found else 'it did not say why (killed?)'}"]
        if not found:
            lines += [f"  {line}" for path in logs for line in tail(path)[-TAIL:]]
        lines += [str(record.rule_msg)] * bool(record.rule_msg)
        return "\n  ".join([*lines, *(f"log: {path}" for path in logs)])

    def expect(self, jobs: Iterable[tuple[str, str, str]]) -> None:
        """Note jobs that will run: rule, wildcard, and Snakemake's reason."""
        for rule, item, reason in jobs:
            if rule == TRAIN.name:
                self.left.add(item)
            why = next((said for words, said in WHY.items() if words in reason), None)
            if why and rule != "all":
                self.why.setdefault(why, {}).setdefault(rule, []).append(self.name_of(item))

    def reasons(self) -> str:
        """Why jobs run: a line for each reason. Empty if all is new."""
        if self.why.keys() <= EXPECTED and not self.dryrun:
            return ""
        lines = ["Why they run:"]
        for why in dict.fromkeys(said for said in WHY.values() if said in self.why):
            rules = []
            for rule, items in self.why[why].items():
                names = ", ".join(items[:NAMED]) + ", ..." * (len(items) > NAMED)
                rules.append(f"{rule} {len(items)} ({names})" if names else rule)
            lines.append(f"  {why}: {', '.join(rules)}")
        return "\n".join(lines)

    def seconds_left(self) -> float:
        """Until all runs are trained, if it goes on as since the first began; 0: not known.

        A run that is under way counts as half done.
        """
        under_way = {job.item for job in self.jobs.values() if job.rule == TRAIN.name}
        works = {name: work(run, run.training.steps) for name, run in self.runs.items()}
        half = sum(works[name] for name in under_way) / 2
        left = sum(works[name] for name in self.left) - half
        done = self.done + half
        return left * (time.monotonic() - self.began) / done if self.done else 0.0


def work(run: RunConfig, steps: int) -> float:
    """What the time of so many steps of a run is taken to grow with."""
    return float(steps * run.tokens_per_step * run.model.n_layer * run.model.n_embd)


def attach(out: Path, runs: Mapping[str, RunConfig], dryrun: bool) -> Terminal | None:
    """Give Snakemake's handler for the terminal these words; None where the user chose another."""
    for handler in logging.getLogger("snakemake.logging").handlers:
        if handler.name == "DefaultStreamHandler" and handler.formatter is not None:
            terminal = Terminal(handler.formatter, out, runs, dryrun)
            handler.setFormatter(terminal)
            handler.addFilter(terminal)
            return terminal
    return None
