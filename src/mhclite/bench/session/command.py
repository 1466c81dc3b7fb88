"""`python -m mhclite gpu-session`: everything that a GPU is wanted for, in the minutes there are.

Stages in the order of what they tell: whether the kernels are right, how fast they are, how fast
training is, then a study. Each has its time, and none can end the session. What is found is kept as
it comes, so that a session on another machine of the same kind goes on with what is missing.
docs/gpu.md has the commands.

Needs torch with Triton and numpy, nothing else.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any

from mhclite.arguments import any_path, file_path, folder_path, positive_float
from mhclite.bench.session import correctness, speed, study, tools
from mhclite.bench.session.engine import Stage, in_a_child, run_stage
from mhclite.bench.session.plan import DRY, PAPER
from mhclite.bench.session.records import LOG, Session, open_session
from mhclite.cli import EXIT_INTERRUPTED
from mhclite.connections.fast.availability import INSTALLED, interpreted
from mhclite.connections.registry import VARIANTS
from mhclite.errors import Interrupted, UserError
from mhclite.files import write_json
from mhclite.runs.code import step_digest

START_SECONDS = 120.0  # for a GPU to answer
THROUGHPUT = "throughput.json"  # rows as the benchmark writes them


def few(session: Session) -> int:
    return max(1, min(4, session.cores // 2))


CHECKS = [
    Stage("limits", "rates of a copy and of a product, clocks", speed.limit_items, 0.5),
    Stage(
        "compile", "kernels, several at a time", correctness.compile_items, 2.0,
        lambda session: session.cores, ("parity", "shapes", "kernels", "launches"),
    ),
    Stage("parity", "small models and golden files", correctness.parity_items, 2.0, few),
    Stage("shapes", "boundaries of the paper's shapes", correctness.shape_items, 1.5),
    Stage("kernels", "the kernels by the GPU's clock", speed.kernel_items, 1.0),
]  # fmt: skip
STAGES = {
    stage.name: stage
    for stage in (
        *CHECKS,
        Stage("gradients", "what bf16 costs the gradient", correctness.gradient_items, 1.0),
        Stage("sanitizer", "compute-sanitizer", tools.sanitizer_items, 1.0),
        Stage("launches", "other launches of the kernels", speed.launch_items, 1.0),
        Stage("ncu", "what the kernels move and wait for", tools.profile_items, 1.0),
        Stage(
            "graphs", "first steps, compiled several at a time", speed.graph_items, 3.0,
            speed.steps_at_once, ("throughput",),
        ),
        Stage("throughput", "training steps, compiled", speed.throughput_items, 6.0),
        Stage("regime", "the authors' formulas, eagerly", speed.regime_items, 2.0),
        Stage("study", "runs of the bundle", study.study_items, 30.0),
    )
}  # fmt: skip

log = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite gpu-session`."""
    parser.add_argument(
        "--minutes", type=positive_float, required=True, help="after which nothing is begun"
    )
    parser.add_argument(
        "--out", type=folder_path, required=True, help="folder that an earlier part may be in"
    )
    parser.add_argument("--golden", nargs="*", type=file_path, default=[], help="golden files")
    parser.add_argument("--bundle", type=any_path, help="packed study: its folder or archive")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="at tiny sizes on the processor: does every stage run? (with TRITON_INTERPRET=1)",
    )


def run(args: argparse.Namespace) -> int:
    """As far as the time goes; exit code 1 if something is wrong or fails, 75 if more is left."""
    began = time.monotonic()
    end = began + 60 * args.minutes
    plan = DRY if args.dry_run else PAPER
    if args.bundle is not None and not args.bundle.exists():
        raise UserError(f"{args.bundle} does not exist: `python -m mhclite bundle pack` makes one")
    plan = replace(plan, golden=tuple(args.golden), bundle=args.bundle)
    if plan.dry and not interpreted():
        raise UserError(
            "--dry-run needs TRITON_INTERPRET=1 in the environment, which Triton reads when it is "
            "imported"
        )
    load()
    args.out.mkdir(parents=True, exist_ok=True)
    # In a child: this process must not touch the GPU (`engine`).
    found: tuple[dict[str, Any], dict[str, Any]] | None = in_a_child(
        lambda: speed.card(plan.dry), START_SECONDS, args.out / LOG
    )
    if found is None or (found[0]["gpu"] is None and not plan.dry):
        raise UserError(
            "gpu-session needs a GPU, and torch sees none; without one, --dry-run goes through "
            "all its stages on the processor"
        )
    of, where = found
    of["code"] = step_digest("bench.session.command", VARIANTS)
    cores = len(os.sched_getaffinity(0))
    session = open_session(args.out, plan, cores, of)
    session.attempts.append(
        {"began": datetime.now(UTC).isoformat(timespec="seconds"), "minutes": args.minutes,
         "cores": cores, "provenance": where, "smi": speed.smi()}
    )  # fmt: skip
    session.write()
    log.info("%s", json.dumps(of))
    logging.getLogger().addHandler(logging.FileHandler(session.log_file))
    stages = [stage for name, stage in STAGES.items() if name in args.stages]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _stop)
    try:
        go_through(session, stages, end)
    finally:
        write_throughput(session)
    return conclude(session, stages)


def load() -> None:
    """Import once what the children need, without a look at the GPU: forks could not use it."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    importlib.import_module("torch._inductor.config")  # that of deterministic algorithms: seconds
    if INSTALLED:
        importlib.import_module("mhclite.connections.fast.kernels")
    if interpreted():
        from mhclite.bench.interpreter import round_to_nearest

        round_to_nearest()


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(f"{signal.Signals(number).name}; run the same command to continue")


def go_through(session: Session, stages: list[Stage], end: float) -> None:
    """Each stage in its time; then again those that had too little, while there is some."""
    progress, again = True, False
    while progress and time.monotonic() < end:
        progress = False
        for stage in stages:
            if time.monotonic() >= end:
                break
            try:
                served = [other for other in stages if other.name in stage.serves]
                if stage.serves and (again or not any(missing(session, s) for s in served)):
                    continue
                progress |= run_stage(session, stage, end)
            # An error of ours must not cost the stages that follow.
            except (UserError, OSError, ValueError) as error:
                log.warning("%s: not measured: %s", stage.name, error)
        again = True


def missing(session: Session, stage: Stage) -> list[str]:
    """Items of a stage that have no result; of one that only serves others, none count."""
    if stage.serves:
        return []
    try:
        items = stage.items(session)
    except UserError:  # it needs the result of another
        return [stage.name]
    kept = session.results(stage.name)
    return [item.key for item in items if item.key not in kept]


def write_throughput(session: Session) -> None:
    """Rows of training steps in the benchmark's form, deterministic ones first."""
    found = [
        row
        for stage in ("throughput", "regime")
        for result in session.results(stage).values()
        for row in result.get("rows", [])
    ]
    kernels = [
        row
        for result in session.results("kernels").values()
        for row in result.get("rows", [])
    ]  # fmt: skip
    if not found and not kernels:
        return
    last = session.attempts[-1]["provenance"]
    value: dict[str, Any] = {
        "schema": 2,
        "hardware": last["hardware"],
        "provenance": last,
        "precision": "fp32" if session.plan.dry else "bf16",
        "stream_dtype": "authors",
        "rounds": session.plan.rounds,
        "limits": session.limits(),
        "kernels": kernels,
        "rows": sorted(found, key=lambda row: not row["deterministic"]),
    }
    write_json(session.folder / THROUGHPUT, value)


def conclude(session: Session, stages: list[Stage]) -> int:
    """Say what was found and what is left; returns the exit code."""
    left = {stage.name: len(keys) for stage in stages if (keys := missing(session, stage))}
    failed, wrong = session.failed(), session.wrong()
    for size, kernels in speed.fastest(dict(session.results("launches"))).items():
        for kernel, how in kernels.items():
            print(f"{size}: {kernel} is fastest with {how}")
    for title, lines in (("failed", failed), ("WRONG", wrong)):
        if lines:
            print(f"{title}:\n  " + "\n  ".join(lines))
    files = sorted(p.name for p in session.folder.iterdir() if p.is_file())
    print(f"in {session.folder}: {', '.join(files)}")
    if left:
        words = ", ".join(f"{count} of {name}" for name, count in left.items())
        print(f"left: {words}; the same command goes on")
        return 1 if wrong or failed else EXIT_INTERRUPTED
    print("nothing is left")
    return 1 if wrong or failed else 0
