"""`python -m mhclite.bench data`: how fast a corpus is prepared and read, and in what memory."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mhclite.arguments import file_path, positive_float
from mhclite.bench.preparation import alone, memory, scaling, write_corpus
from mhclite.data.tokens import TokenSplit
from mhclite.files import write_json
from mhclite.records import to_json
from mhclite.runs.provenance import provenance

OPENWEBTEXT_TOKENS = 9_040_000_000  # the authors' count
STEP_SECONDS = 0.131  # a step of 131,072 tokens at a million tokens per second
WINDOWS, WINDOW = 128, 1025
BATCHES = 20


def forget(paths: list[Path]) -> None:
    """Have the system drop the files from its cache, where it can."""
    if hasattr(os, "posix_fadvise"):
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(folder: Path, gigabytes: float) -> dict[str, float]:
    """Seconds that a step waits for its windows, from shards of `gigabytes` in all."""
    written = b"".join(path.read_bytes() for path in sorted((folder / "out").glob("train-*.bin")))
    paths = []
    for index in range(max(1, round(gigabytes * 1e9 / len(written)))):
        paths.append(folder / f"read-{index:05d}.bin")
        with paths[-1].open("wb") as file:
            file.write(written)
            os.fsync(file.fileno())
    random = np.random.default_rng(0)

    def waits(hint: bool) -> float:
        split = TokenSplit(paths)
        found = []
        for _ in range(BATCHES):
            starts = random.integers(0, len(split) - WINDOW, size=WINDOWS, endpoint=True)
            waited = 0.0
            if hint:
                began = time.perf_counter()
                split.prefetch(starts, WINDOW)
                waited = time.perf_counter() - began
                time.sleep(STEP_SECONDS)
            began = time.perf_counter()
            split.windows(starts, WINDOW)
            found.append(waited + time.perf_counter() - began)
        return statistics.median(found)

    forget(paths)
    unasked = waits(hint=False)
    forget(paths)
    asked = waits(hint=True)
    for path in paths:
        path.read_bytes()
    return {
        "gigabytes": len(paths) * len(written) / 1e9,
        "cold_unasked": unasked,
        "cold_asked_a_step_ahead": asked,
        "warm": waits(hint=True),
    }


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite.bench data`."""
    parser.add_argument("--out", required=True, type=file_path, help="file to write")
    parser.add_argument(
        "--megabytes",
        type=positive_float,
        default=200,
        help="text to prepare (default: %(default)s)",
    )
    parser.add_argument(
        "--gigabytes", type=positive_float, default=2, help="shards to read (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Measure, print and write; scratch files go beside `--out`."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        folder = Path(scratch)
        print(f"writing {args.megabytes:g} MB of text", file=sys.stderr)
        jobs = write_corpus(folder, args.megabytes)
        print("the tokenizer and the preparation, part by part", file=sys.stderr)
        rows = alone(jobs)
        print("one and two processes", file=sys.stderr)
        scaled = scaling(jobs)
        print("memory over many parts", file=sys.stderr)
        held = memory(jobs)
        print("reading windows", file=sys.stderr)
        waited = reading(folder, args.gigabytes)
    names = ("encode_ordinary", "encode_to_numpy")
    shares = {name: statistics.median(row["prepare"] / row[name] for row in rows) for name in names}
    speeds = {name: statistics.median(row[name] for row in rows) for name in (*names, "prepare")}
    write_json(
        args.out,
        {
            "schema": 1,
            "megabytes": args.megabytes,
            "provenance": to_json(provenance()),
            "seconds": time.perf_counter() - began,
            "tokens_per_second": speeds,
            "share_of_tokenizer": shares,
            "parts": rows,
            "scaling": scaled,
            "memory": held,
            "reading_seconds": waited,
        },
    )
    million = {name: f"{speed / 1e6:.2f} M tokens/s" for name, speed in speeds.items()}
    hours = {n: OPENWEBTEXT_TOKENS / scaled[n] / 3600 for n in ("one", "two")}
    print(
        f"tokenizer alone, one core: encode_ordinary {million['encode_ordinary']}, "
        f"encode_to_numpy {million['encode_to_numpy']}\n"
        f"preparation, one core: {million['prepare']}, "
        f"{shares['encode_ordinary']:.2f} and {shares['encode_to_numpy']:.2f} of these\n"
        f"one process {scaled['one'] / 1e6:.2f}, two {scaled['two'] / 1e6:.2f} M tokens/s: "
        f"x {scaled['ratio']:.2f} by the clock "
        f"(two that only count: x {scaled['cores_ratio']:.2f}), "
        f"x {scaled['processor_ratio']:.2f} by processor time\n"
        f"9.04 B tokens: {hours['one']:.2f} hours with one process, {hours['two']:.2f} with two\n"
        f"memory of a process: {held['largest_mib']:.0f} MiB at most over {held['parts']} parts, "
        f"growth {held['growth_mib']:+.1f} MiB from the first third to the last\n"
        f"wait for {WINDOWS} windows of {waited['gigabytes']:.1f} GB, of a step of "
        f"{STEP_SECONDS * 1e3:.0f} ms: "
        + ", ".join(
            f"{what} {waited[key] * 1e3:.2f} ms ({waited[key] / STEP_SECONDS:.1%})"
            for key, what in (
                ("warm", "in memory"),
                ("cold_asked_a_step_ahead", "on disk"),
                ("cold_unasked", "on disk, not asked for ahead"),
            )
        )
    )
