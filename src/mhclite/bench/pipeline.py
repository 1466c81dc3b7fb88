"""`python -m mhclite.bench pipeline`: what the pipeline costs around training and measuring.

It runs in the checkout in which a study has run: Snakemake's own records say how long each job
took. Besides, one training process is started again, and a study of ten thousand runs is planned.
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
from typing import Any

import yaml

from mhclite.arguments import file_path, folder_path
from mhclite.errors import UserError
from mhclite.files import read_json, read_jsonl, write_json
from mhclite.records import to_json
from mhclite.runs.provenance import provenance

# The rules that train or measure; all others are the pipeline's own work.
WORK = frozenset({"train", "probe", "throughput", "sinkhorn"})
RUNS = 10_000

Interval = tuple[float, float]


def first_step_seconds(results: Path, scratch: Path) -> float:
    """From the start of a training process to the end of its first step, for one run of a study."""
    record = read_json(next(iter(sorted(results.glob("runs/*/run.json")))))
    config = record["config"]
    config["training"] |= {"steps": 1, "warmup_steps": 0, "evaluation_sequences": 1}
    command = [sys.executable, "-m", "mhclite", "train", "--config", json.dumps(config)]
    command += ["--corpus", str(Path(record["corpus"]["manifest"]).parent)]
    began = time.time()
    done = subprocess.run([*command, "--out", str(scratch / "run")], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the training process failed: {done.stderr.strip()[-500:]}")
    (step,) = read_jsonl(scratch / "run" / "timing.jsonl")
    return float(step["wall"]) - began


def covered(intervals: Iterable[Interval]) -> float:
    """Seconds covered by at least one of the intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def seconds_in_steps(results: Path) -> float:
    """Core-seconds that the runs of a study spent in training steps, of their last attempts."""
    total = 0.0
    for path in sorted(results.glob("runs/*/timing.jsonl")):
        threads = read_json(path.with_name("run.json"))["config"]["training"]["threads"]
        total += threads * sum(float(line["seconds"]) for line in read_jsonl(path))
    return total


def time_outside(results: Path) -> dict[str, float]:
    """Wall time of a study's jobs, the share of it in which none trained or measured, and the share
    of its core-seconds that were training steps."""
    jobs: dict[str, list[Interval]] = {}
    for path in Path(".snakemake/metadata").rglob("*"):
        if path.is_file():
            job = read_json(path)
            if any(f"{results}/" in str(name) for name in (job["log"], job["input"])):
                jobs.setdefault(job["rule"], []).append((job["starttime"], job["endtime"]))
    if not WORK & jobs.keys():
        raise UserError(f"no jobs of {results} are recorded here: run the study first")
    everything = [interval for intervals in jobs.values() for interval in intervals]
    working = [interval for rule in WORK for interval in jobs.get(rule, [])]
    wall = max(end for _, end in everything) - min(start for start, _ in everything)
    cores = os.cpu_count() or 1
    return {
        "wall_seconds": wall,
        "outside_share": 1 - covered(working) / wall,
        "cores": cores,
        "steps_share": seconds_in_steps(results) / (cores * wall),
    }


def planning(study: Path, scratch: Path) -> dict[str, float]:
    """Time and memory of a dry run of the study, with enough seeds to make 10,000 runs."""
    settings: dict[str, Any] = yaml.safe_load(study.read_text(encoding="utf-8"))
    for_one_seed = len(settings["corpora"]) * len(settings["models"]) * len(settings["variants"])
    settings["seeds"] = list(range(-(-RUNS // for_one_seed)))
    settings["name"] = "ten_thousand"
    path = scratch / "study.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = [sys.executable, "-m", "snakemake", "-n", "-q", "all", "--configfile", str(path)]
    began = time.perf_counter()
    with (scratch / "plan.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"planning failed: {(scratch / 'plan.log').read_text()[-500:]}")
    return {
        "runs": for_one_seed * len(settings["seeds"]),
        "seconds": time.perf_counter() - began,
        "memory_gib": usage.ru_maxrss / 2**20,
    }


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite.bench pipeline`."""
    parser.add_argument("--study", type=file_path, default=Path("config/config.yaml"))
    parser.add_argument(
        "--results", type=folder_path, default=Path("results/laptop"), help="its folder"
    )
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[str, Any] = {
            "first_step_seconds": first_step_seconds(args.results, Path(scratch)),
            "study": time_outside(args.results),
            "planning": planning(args.study, Path(scratch)),
        }
    write_json(args.out, {"schema": 1, "provenance": to_json(provenance()), **found})
    study, plan = found["study"], found["planning"]
    print(f"start of a training process to its first step: {found['first_step_seconds']:.1f} s")
    print(
        f"{args.results}: {study['wall_seconds']:.0f} s, of which "
        f"{100 * study['outside_share']:.1f} % neither train nor measure; of its core-seconds "
        f"{100 * study['steps_share']:.0f} % are training steps ({study['cores']} cores)"
    )
    print(f"planning {plan['runs']:,} runs: {plan['seconds']:.0f} s, {plan['memory_gib']:.2f} GiB")
