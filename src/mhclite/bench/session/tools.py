"""NVIDIA's tools on a boundary: compute-sanitizer and ncu, where they are there.

    python -m mhclite.bench.session.tools VARIANT WIDTH TOKENS STREAMS DEVICE

is what they watch: the kernels of one boundary, forward and backward.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from mhclite.bench.session.correctness import boundary_of, by_kernels
from mhclite.bench.session.engine import Item, NotDone
from mhclite.bench.session.records import Result, Session
from mhclite.runs.code import PACKAGE_ROOT

CHECKS = ("memcheck", "initcheck")
FOUND_EXIT = 9  # of the sanitizer, if it has found something
METRICS = {
    "dram__bytes_read.sum": "bytes read",
    "dram__bytes_write.sum": "bytes written",
    "lts__t_sector_hit_rate.pct": "L2 hits, %",
    "gpu__time_duration.sum": "ns",
    "sm__inst_issued.avg.pct_of_peak_sustained_active": "issue slots, %",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "stalled at a barrier",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "stalled by memory",
    "launch__registers_per_thread": "registers",
}
LAST_CHARACTERS = 1500  # of what a tool says that are kept


def tool(name: str) -> str | None:
    """Path of a tool of the CUDA toolkit."""
    there = sorted(Path("/usr/local").glob(f"cuda*/bin/{name}"))
    return shutil.which(name) or (str(there[-1]) if there else None)


def watched(
    command: list[str], variant: str, C: int, N: int, n: int, device: str, end: float
) -> tuple[int, str]:
    """(exit code, output) of a tool that watches a boundary.

    Raises:
        NotDone: the time is over before it ends.
    """
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT.parent)}
    # Each tensor by itself, so that one does not hide what is read beyond another.
    environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    once = [sys.executable, "-m", __name__, variant, str(C), str(N), str(n), device]
    try:
        done = subprocess.run(
            [*command, *once],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(1.0, end - time.monotonic()),
        )
    except subprocess.TimeoutExpired:
        raise NotDone(f"{command[0]} needs more time") from None
    print(done.stdout, flush=True)
    return done.returncode, done.stdout


def sanitizer_items(session: Session) -> list[Item]:
    """Reads and writes out of bounds, and of memory that nothing was written to."""
    program = tool("compute-sanitizer")
    if program is None:
        return []
    plan = session.plan

    def work(check: str, variant: str, n: int, end: float) -> Result:
        command = [program, "--tool", check, "--error-exitcode", str(FOUND_EXIT)]
        code, said = watched(command, variant, *plan.checked, n, plan.device, end)
        wrong = {0: "", FOUND_EXIT: f"{check} found errors"}.get(code)
        last = said[-LAST_CHARACTERS:]
        if wrong is None:
            return {"failed": f"{check} ended with exit code {code}", "said": last}
        return {"wrong": wrong, "said": last}

    todo = [(check, *case) for check in CHECKS for case in (("hc", 2), ("mhc", 4))]
    return [
        Item(
            f"{check} {variant} n={n}",
            lambda end, check=check, variant=variant, n=n: work(check, variant, n, end),  # type: ignore[misc]
        )
        for check, variant, n in todo[: plan.checks]
    ]


def profile_items(session: Session) -> list[Item]:
    """What a boundary of the largest size moves and waits for."""
    program = tool("ncu")
    if program is None:
        return []
    plan = session.plan

    def work(variant: str, end: float) -> Result:
        command = [program, "--clock-control", "none", "--csv", "--kernel-name", "regex:boundary"]
        command += ["--metrics", ",".join(METRICS)]
        C = list(plan.sizes.values())[-1].n_embd
        code, said = watched(command, variant, C, plan.tokens[0], 4, plan.device, end)
        kernels = profiled(said)
        if code or not kernels:
            return {"failed": f"ncu ended with exit code {code}", "said": said[-LAST_CHARACTERS:]}
        return {"kernels": kernels}

    return [
        Item(variant, lambda end, variant=variant: work(variant, end))  # type: ignore[misc]
        for variant in plan.variants[:2]
    ]  # fmt: skip


def profiled(said: str) -> list[dict[str, str]]:
    """Metrics of each kernel in ncu's CSV, which may have other lines before it."""
    lines = said.splitlines()
    first = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[first:]))):
        if (name := METRICS.get(row.get("Metric Name") or "")) is not None:
            kernel = found.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
            kernel[name] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def main(argv: list[str]) -> None:
    variant, C, N, n, device = argv
    where = torch.device(device)
    by_kernels(boundary_of(variant, int(C), int(N), "bf16", where, int(n)))
    if where.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1:])
