"""`python -m benchmarks pipeline`: what the pipeline costs around training and measuring.

In the checkout in which a study has run, from Snakemake's own records of its jobs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from mhclite.arguments import file_path, folder_path
from mhclite.errors import UserError
from mhclite.files import read_json, read_jsonl, write_json
from mhclite.records import to_json
from mhclite.runs.provenance import provenance

WORK = {"train", "probe", "throughput", "sinkhorn"}  # rules that train or measure


def first_step_seconds(results: Path) -> float:
    """From the start of a training process to the end of its first step, for one run of a study."""
    record = read_json(next(iter(sorted(results.glob("runs/*/run.json")))))
    config = record["config"]
    config["training"] |= {"steps": 1, "warmup_steps": 0, "evaluation_sequences": 1}
    command = [sys.executable, "-m", "mhclite", "train", "--config", json.dumps(config)]
    command += ["--corpus", str(Path(record["corpus"]["manifest"]).parent)]
    with tempfile.TemporaryDirectory() as out:
        began = time.time()
        done = subprocess.run([*command, "--out", f"{out}/run"], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"the training process failed: {done.stderr.strip()[-500:]}")
        (step,) = read_jsonl(Path(out, "run", "timing.jsonl"))
    return float(step["wall"]) - began


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Seconds covered by at least one of the intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def time_outside(results: Path) -> dict[str, float]:
    """Wall time of a study's jobs, the share of it in which none trained or measured, and the share
    of its core-seconds that were training steps (of the runs' last attempts)."""
    found, working = [], []
    for path in Path(".snakemake/metadata").rglob("*"):
        job = read_json(path) if path.is_file() else {"log": [], "input": []}
        if any(f"{results}/" in str(name) for name in (job["log"], job["input"])):
            found.append((job["starttime"], job["endtime"]))
            working += found[-1:] if job["rule"] in WORK else []
    if not working:
        raise UserError(f"no jobs of {results} are recorded here: run the study first")
    wall = max(end for _, end in found) - min(start for start, _ in found)
    in_steps = 0.0
    for path in results.glob("runs/*/timing.jsonl"):
        threads = read_json(path.with_name("run.json"))["config"]["training"]["threads"]
        in_steps += threads * sum(float(line["seconds"]) for line in read_jsonl(path))
    cores = os.cpu_count() or 1
    shares = {"outside_share": 1 - covered(working) / wall, "steps_share": in_steps / cores / wall}
    return {"wall_seconds": wall, "cores": cores, **shares}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m benchmarks pipeline`."""
    parser.add_argument("--results", type=folder_path, default=Path("results/laptop"))
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    study = time_outside(args.results)
    start = first_step_seconds(args.results)
    about = {"schema": 2, "provenance": to_json(provenance())}
    write_json(args.out, {**about, "first_step_seconds": start, "study": study})
    print(
        f"start of a training process to its first step: {start:.1f} s\n"
        f"{args.results}: {study['wall_seconds']:.0f} s, of which "
        f"{study['outside_share']:.1%} neither train nor measure; of its core-seconds "
        f"{study['steps_share']:.0%} are training steps ({study['cores']} cores)"
    )
