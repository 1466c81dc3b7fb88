"""`python -m benchmarks session`: what a GPU is wanted for, in the minutes there are.

Whether the kernels are right (parity), how fast they are, how fast training is, then a study. What
is found is kept as it comes, and the same command goes on with what is missing (docs/gpu.md). Needs
torch with Triton and numpy, nothing else.

A wrong kernel can end a process, hang it, or leave its GPU unusable for whatever that process does
next. So each item is done in a process of its own, and one that is lost costs that item alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import ROOT, step
from benchmarks.kernels import Case, cases, error_of, gradient, has_kernels, kernel_rows, limits
from mhclite.arguments import folder_path, positive_float
from mhclite.cli import EXIT_INTERRUPTED
from mhclite.config import ModelConfig
from mhclite.connections.fast import launch
from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.files import read_json, write_json
from mhclite.records import to_json
from mhclite.runs.code import step_digest
from mhclite.runs.provenance import provenance, versions

SCHEMA = 2
FILE, LOG, SPEEDS = "session.json", "log.txt", "throughput.json"
GRACE_SECONDS = 20.0  # of the end of a session, beyond which nothing goes on
SAVING_SECONDS = 60.0  # that a study has to save what is under way
AT_ONCE = max(1, min(4, (os.cpu_count() or 1) // 2))  # of what is not timed: compiling takes cores
FIRST = ("mhc_lite", "mhc")  # those that tell most
_OTHERS = [variant for variant in step.SEVERAL if variant not in FIRST and has_kernels(variant)]

Result = dict[str, Any]
log = logging.getLogger(__name__)


class Plan(NamedTuple):
    """What is measured: at the paper's sizes or, dry, as little as shows that it runs."""

    device: str
    sizes: dict[str, ModelConfig]  # in the order in which they tell most
    variants: tuple[str, ...]  # that have kernels
    arm: str  # implementation and mode of training steps
    bundle: Path | None = None


PAPER = Plan(
    "cuda",
    {name: step.SIZES[name] for name in ("s", "l", "m")},
    (*FIRST, *sorted(_OTHERS, key=lambda variant: VARIANTS[variant].mixes == "never")),
    "fused:compiled",
)
DRY = Plan("cpu", {"s": ModelConfig("s", 32, 1, 1, 16, 8, 1e-3)}, FIRST[:1], "fast:eager")


class NotDone(Exception):  # noqa: N818 - no error: what is left for the next time
    """An item came to no end in the time that it had; it is done again when there is more."""


class Job(NamedTuple):
    """What an item's process is told."""

    dry: bool
    end: float  # of the session, seconds since the epoch
    rates: dict[str, float]  # of a copy and of a product; empty before they are measured
    bundle: str

    @property
    def plan(self) -> Plan:
        return DRY if self.dry else PAPER

    @property
    def device(self) -> torch.device:
        return torch.device(self.plan.device)


# --- stages: the keys of their items, and what is done with the words of a key ------------------


def rates(job: Job, _: str) -> Result:
    """Of a copy and of a product; a dry run makes them up, since they take seconds."""
    made_up = {"bytes_per_second": 1e10, "flops_per_second": 1e11}
    return made_up if job.dry else dict(limits(job.device))


def parity(job: Job, variant: str) -> Result:
    """Small models, then as wide as the paper's, with a program that is not full."""
    if not job.dry:  # so that a number that no program has written shows: new tensors are of NaN
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    usual, bf16 = cases([variant]), Case(variant, precision="bf16", length=1021)
    wide = [bf16._replace(n_embd=size.n_embd) for size in job.plan.sizes.values()]
    wide += [case._replace(stream_dtype="fp32") for case in wide]
    wide.append(Case(variant, precision="bf16", compile=True))
    found, wrong = {}, []
    small = usual[0]._replace(n_embd=16, length=3)
    for case in [small] if job.dry else usual + wide:
        error = error_of(case, "fused", job.device)
        said = f"error {error.own:.2g}, the reference's {error.reference:.2g}"
        found[str(case)] = said
        print(f"{case}: {said}", flush=True)
        if not error.own <= error.allowed(case.precision):
            wrong.append(f"{case}: {said}")
    first, again = (gradient(small, "fused", job.device) for _ in range(2))
    if not torch.equal(first.gradient, again.gradient):
        wrong.append("the gradient has other bits when computed again")
    return {"errors": found, "wrong": "; ".join(wrong)}


def kernels(job: Job, variant: str) -> Result:
    """Each kernel by the GPU's own clock."""
    tokens, launches = (16, 1) if job.dry else (16384, 50)
    bandwidth, rows = job.rates["bytes_per_second"], []
    for size in job.plan.sizes.values():
        rows += kernel_rows(variant, tokens, size.n_embd, job.device, bandwidth, launches)
    return {"rows": rows, "launch": launch.settings()}


def step_keys(plan: Plan) -> list[str]:
    """By the kernels as trained, by the authors' formulas, and without deterministic algorithms."""
    first = [f"{size} {v}" for size in plan.sizes for v in plan.variants if v in FIRST]
    others = [f"{size} {v}" for size in plan.sizes for v in plan.variants if v not in FIRST]
    ours, theirs = f"{plan.arm} deterministic", "reference:eager free"
    todo = [f"{at} {how}" for how in (ours, theirs) for at in first]
    return todo + [f"{at} {ours}" for at in others] + [f"{at} {plan.arm} free" for at in first]


def steps(job: Job, size: str, variant: str, arm: str, how: str) -> Result:
    """Training steps beside the plain residual's."""
    batch_size = 1 if job.dry else step.BATCH_SIZE[size]
    if size == "l" and arm.startswith("reference"):
        batch_size //= 2  # it keeps several times as much
    rounds, repeatable = 2 if job.dry else 20, how == "deterministic"
    rows = step.group_rows(
        job.plan.sizes[size], variant, batch_size, job.device, job.rates, [arm], rounds, repeatable
    )
    print(step.table(rows), flush=True)
    return {"rows": rows}


def study(job: Job, *_: str) -> Result:
    """What is left of the bundle, by its own driver; results stay in its folder."""
    minutes = (job.end - time.time() - SAVING_SECONDS) / 60
    if minutes <= 0:
        raise NotDone("too little time is left for the study")
    command = [sys.executable, "run.py", "--minutes", f"{minutes:.2f}"]
    code = subprocess.run(command, cwd=job.bundle).returncode
    if code == EXIT_INTERRUPTED:
        raise NotDone("the time is up, and the study is saved")
    if code:
        raise UserError(f"run.py ended with exit code {code}")
    summaries = sorted(Path(job.bundle).glob("results/*/runs/*/summary.json"))
    return {"runs": {path.parent.name: read_json(path) for path in summaries}}


class Stage(NamedTuple):
    """Part of a session."""

    keys: Callable[[Plan], list[str]]
    work: Callable[..., Result]
    share: float  # of the time, after which no item is begun before the other stages had theirs
    seconds: float  # the most that an item has
    at_once: int = 1
    needs_rates: bool = False


STAGES = {
    "limits": Stage(lambda plan: ["rates"], rates, 0.05, 90),
    "parity": Stage(lambda plan: list(plan.variants), parity, 0.3, 400, AT_ONCE),
    "kernels": Stage(lambda plan: list(plan.variants), kernels, 0.15, 120, needs_rates=True),
    "steps": Stage(step_keys, steps, 0.4, 300, needs_rates=True),
    "study": Stage(lambda plan: [plan.bundle.name] if plan.bundle else [], study, 1.0, 1e6),
}


# --- the process of an item -----------------------------------------------------------------------


def done(job: Job, name: str, key: str, until: float, folder: Path) -> Result | None:
    """Do an item, if it is begun by then; None if it is not done. What it started ends with it."""
    seconds = min(STAGES[name].seconds, job.end + GRACE_SECONDS - time.time())
    if time.time() >= until:
        return None
    command = [sys.executable, "-m", "benchmarks.session", json.dumps([*job, name, key])]
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if job.dry else {})
    with (
        (folder / LOG).open("a") as file,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=file,
            start_new_session=True,
        ) as process,
    ):  # fmt: skip
        try:
            answer, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            late = {"failed": f"not done after {seconds:.0f} s"}
            return late if seconds == STAGES[name].seconds else None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code := process.returncode:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"failed": f"its process was ended by {how}; see {LOG}"}
    found: Result | None = json.loads(answer)
    return found


def child(request: str) -> None:
    """Do the item that the session asks for, and write its result where the session reads it."""
    answer, parent = os.dup(1), os.getppid()
    os.dup2(2, 1)  # all else that is said goes to the log

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os.killpg(0, signal.SIGTERM)  # a session that is killed leaves nothing behind

    threading.Thread(target=follow, daemon=True).start()
    *told, name, key = json.loads(request)
    print(f"--- {name}: {key}", flush=True)
    result: Result | None = None
    try:
        result = STAGES[name].work(Job(*told), *key.split())
    except NotDone as reason:
        print(f"not done: {reason}", flush=True)
    except Exception as error:  # whatever it is, the other items must be measured
        traceback.print_exc()
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        result = {"failed": ": ".join([type(error).__name__, *lines[:1]])[:300]}
    os.write(answer, json.dumps(result).encode())
    os._exit(0)  # a GPU that is lost must not keep it


# --- the session ----------------------------------------------------------------------------------


@dataclass
class Session:
    """Results by stage and item, kept in a folder as they come."""

    folder: Path
    plan: Plan
    of: Result  # what all results have in common: GPU, versions, code
    attempts: list[Result] = field(default_factory=list)  # each start: when, where, which commit
    stages: dict[str, dict[str, Result]] = field(default_factory=dict)

    def resume(self) -> None:
        """Take what the folder holds; a UserError if that is of another card or other code."""
        path = self.folder / FILE
        if not path.is_file():
            return
        there = read_json(path, "the session")
        if not isinstance(there, dict) or there.get("schema") != SCHEMA:
            raise UserError(f"{path} is not a session of this version: name another --out")
        for name, here in self.of.items():
            if (found := there["of"].get(name)) != here:
                raise UserError(
                    f"{self.folder} holds a session whose {name} is {found!r:.80}, and here it is "
                    f"{here!r:.80}: name another --out"
                )
        self.attempts, self.stages = there["attempts"], there["stages"]

    def write(self) -> None:
        found = {"of": self.of, "attempts": self.attempts, "stages": self.stages}
        left = {name: self.missing(name) for name in STAGES}
        write_json(self.folder / FILE, {"schema": SCHEMA, **found, "left": left})

    def result(self, stage: str, key: str) -> Result | None:
        """Of an item; None if there is none, or it failed: it is tried again by the next start."""
        found = self.stages.get(stage, {}).get(key)
        return None if found is None or "failed" in found else found

    def missing(self, stage: str) -> list[str]:
        return [key for key in STAGES[stage].keys(self.plan) if self.result(stage, key) is None]

    def having(self, what: str) -> list[str]:
        """Every result that is `wrong` or has `failed`, and how."""
        found = [(stage, *item) for stage, of in self.stages.items() for item in of.items()]
        return [f"{stage}: {key}: {of[what]}" for stage, key, of in found if of.get(what)]

    def rows(self, stage: str) -> list[Result]:
        found = self.stages.get(stage, {}).values()
        return [row for result in found for row in result.get("rows", [])]


def go_through(session: Session, job: Job, stages: list[str]) -> None:
    """Each stage in its share of the time; then what had too little, while there is some."""
    began, failed = time.time(), set[str]()
    for again, name in [(again, name) for again in (False, True) for name in stages]:
        stage = STAGES[name]
        job = job._replace(rates=session.result("limits", "rates") or {})
        if stage.needs_rates and not job.rates:
            log.warning("%s: left out, for want of the rates of the stage limits", name)
            continue
        share = 1.0 if again else stage.share
        until = min(job.end, time.time() + share * (job.end - began))
        todo = [key for key in session.missing(name) if f"{name}: {key}" not in failed]
        pool = ThreadPoolExecutor(stage.at_once)
        running = {pool.submit(done, job, name, key, until, session.folder): key for key in todo}
        for future in as_completed(running):
            if (result := future.result()) is not None:
                key = running[future]
                log.info("%s: %s: %s", name, key, result.get("failed", "done"))
                session.stages.setdefault(name, {})[key] = result
                session.write()
                failed |= {f"{name}: {key}"} if "failed" in result else set()


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m benchmarks session`."""
    parser.add_argument("--minutes", type=positive_float, required=True, help="to begin items in")
    parser.add_argument("--out", type=folder_path, required=True, help="may hold an earlier part")
    parser.add_argument("--bundle", type=folder_path, help="unpacked bundle: the study to train")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the processor")


def run(args: argparse.Namespace) -> int:
    """As far as the time goes; exit code 1 if something is wrong or failed, 75 if more is left."""
    end = time.time() + 60 * args.minutes
    if args.bundle is not None and not (args.bundle / "run.py").is_file():
        raise UserError(f"{args.bundle} is no unpacked bundle: it has no run.py")
    here: Result = to_json(provenance())
    gpu = None if args.dry_run else here["hardware"].get("gpu")
    if gpu is None and not args.dry_run:
        raise UserError(
            "a session needs a GPU, and torch sees none; without one, --dry-run goes through its "
            "stages on the processor"
        )
    own = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    code = [step_digest("measure.throughput", VARIANTS), hashlib.sha256(own).hexdigest()]
    of = {"gpu": gpu, **versions("torch", "triton", "numpy"), "code": " ".join(code)}
    plan = (DRY if args.dry_run else PAPER)._replace(bundle=args.bundle and args.bundle.resolve())
    session = Session(args.out, plan, of)
    session.resume()
    args.out.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    session.attempts.append({"began": now, "minutes": args.minutes, "provenance": here})
    session.write()
    # To be interrupted is to be killed: what is done is kept, and the item under way ends with us.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    stages = [name for name in STAGES if name in args.stages]
    go_through(session, Job(args.dry_run, end, {}, str(plan.bundle)), stages)
    return conclude(session, stages)


def conclude(session: Session, stages: list[str]) -> int:
    """Write the speeds as `describe` reads them; say what was found, and what was left out."""
    kernels, where = session.rows("kernels"), session.attempts[-1]["provenance"]
    for row in kernels:
        how = f"{1e6 * row['seconds']:,.0f} us, {row['share_of_copy']:.0%} of a copy"
        print(f"{row['variant']} C={row['width']} {row['kernel']}: {how}")
    print(step.table(session.rows("steps")))
    speeds = {"schema": 2, "hardware": where["hardware"], "provenance": where}
    speeds |= {"kernels": kernels, "rows": session.rows("steps")}
    write_json(session.folder / SPEEDS, speeds)
    for what in ("failed", "wrong"):
        print("\n  ".join([f"{what}:", *(session.having(what) or ["nothing"])]))
    print(f"in {session.folder}: {FILE}, {SPEEDS}, {LOG}")
    left = {name: len(session.missing(name)) for name in stages}
    words = [f"{count} of {name}" for name, count in left.items() if count]
    words += [f"{name} (not asked for)" for name in STAGES if name not in stages]
    words += ["study (no --bundle)"] if session.plan.bundle is None and "study" in stages else []
    again = "; the same command goes on" * any(left.values())
    print(f"left out: {', '.join(words) or 'nothing'}{again}")
    if session.having("wrong") or session.having("failed"):
        return 1
    return EXIT_INTERRUPTED if any(left.values()) else 0


if __name__ == "__main__":
    child(sys.argv[1])
