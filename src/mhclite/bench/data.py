"""`python -m mhclite bench-data`: how fast a corpus is prepared and read, and in what memory.

The text is the embedded corpus over and over, the paragraphs of each copy in another order, cut
into documents of about OpenWebText's length: real text of any amount on any machine. Rounds are
interleaved and medians taken, so that a slow spell of the machine falls on everything.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mhclite.data.corpora import EMBEDDED
from mhclite.data.parts import WORK, Job, divide, tokenize
from mhclite.data.pool import Report, run_jobs
from mhclite.data.reading import examine, read
from mhclite.data.splits import Splitter
from mhclite.data.tokenization import GPT2
from mhclite.data.tokens import TokenSplit
from mhclite.files import write_json
from mhclite.runs.provenance import provenance

DOCUMENT_CHARACTERS = 4900
GROUP_DOCUMENTS = 250  # in a row group
FILES = 8
PARTS = 32
ROUNDS = 3
LONG = 4  # times the corpus, for the memory
OPENWEBTEXT_TOKENS = 9_040_000_000  # as the authors count them
STEP_SECONDS = 0.131  # of 131,072 tokens at a million a second
WINDOWS, WINDOW = 128, 1025
BATCHES = 20

Speeds = dict[str, float]


def documents(megabytes: float) -> Iterator[list[str]]:
    """`FILES` lists of documents that have so much text together."""
    (piece,) = examine(str(EMBEDDED), "text").pieces
    paragraphs = [line for text in read(piece, "text") for line in text.splitlines() if line]
    random = np.random.default_rng(0)
    file: list[str] = []
    document: list[str] = []
    size = in_file = files = 0
    while True:
        for index in random.permutation(len(paragraphs)):
            document.append(paragraphs[index])
            size += len(paragraphs[index]) + 1
            if size >= DOCUMENT_CHARACTERS:
                file.append("\n".join(document))
                in_file += size
                document, size = [], 0
            if in_file >= megabytes * 1e6 / FILES:
                yield file
                file, in_file, files = [], 0, files + 1
                if files == FILES:
                    return


def write_corpus(folder: Path, megabytes: float) -> list[Job]:
    """Parquet files as the hub has them, and the jobs that tokenize them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [folder / f"{index}.parquet" for index in range(FILES)]
    for path, texts in zip(paths, documents(megabytes), strict=True):
        pq.write_table(pa.table({"text": texts}), path, row_group_size=GROUP_DOCUMENTS)
    pieces = [piece for path in paths for piece in examine(str(path), "text").pieces]
    size = sum(piece.size for piece in pieces)
    parts = divide(pieces, max(1, size // PARTS), None)
    out = folder / "out"
    (out / WORK).mkdir(parents=True)
    GPT2().save(out)
    return [Job(part, out, "text", Splitter(0.0005, None)) for part in parts]


# --- tokenizing ---------------------------------------------------------------------------------


def timed(work: Callable[[], int]) -> float:
    """Tokens per second of something that returns its number of tokens."""
    began = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - began)


def alone(jobs: list[Job]) -> list[Speeds]:
    """Speeds of the tokenizer on text in memory and of the preparation, part by part."""
    encoding = GPT2()._encoding
    to_numpy = partial(encoding.encode_to_numpy, disallowed_special=())

    def encoded(encode: Callable[[str], Sized], texts: list[str]) -> int:
        return sum(len(encode(text)) for text in texts)

    def prepared(job: Job) -> int:
        tokens = []
        tokenize(job, lambda _, more: tokens.append(more))
        return sum(tokens)

    rows = []
    for job in jobs:
        texts = [text for piece in job.part.pieces for text in read(piece, "text")]
        rows.append(
            {
                "encode_ordinary": timed(partial(encoded, encoding.encode_ordinary, texts)),
                "encode_to_numpy": timed(partial(encoded, to_numpy, texts)),
                "prepare": timed(partial(prepared, job)),
            }
        )
    return rows


@dataclass(frozen=True)
class Done:
    """A part that was tokenized: where, and what it took."""

    process: int
    index: int
    tokens: int
    processor_seconds: float
    mib: float  # that the process then has


def measured(job: Job, report: Report) -> Done:
    """Tokenize a part."""
    tokens = 0

    def note(documents: int, more: int) -> None:
        nonlocal tokens
        tokens += more
        report(documents, more)

    began = time.process_time()
    tokenize(job, note)
    seconds = time.process_time() - began
    return Done(os.getpid(), job.part.index, tokens, seconds, resident_mib())


def resident_mib() -> float:
    """Memory of this process now; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def over(jobs: list[Job], processes: int) -> tuple[Speeds, list[Done]]:
    """Speeds of a whole preparation in tokens per second, and its parts.

    `whole` includes the start of the processes, `steady` begins with the first report; `processor`
    is a second of processor time, of which each process would have one on a core of its own.
    """
    reports: list[tuple[float, int]] = []
    began = time.perf_counter()

    def note(_: int, tokens: int) -> None:
        if tokens:
            reports.append((time.perf_counter(), tokens))

    parts = list(run_jobs(measured, jobs, processes, note))
    first, last = reports[0][0], reports[-1][0]
    speeds = {
        "whole": sum(tokens for _, tokens in reports) / (last - began),
        "steady": sum(tokens for _, tokens in reports[1:]) / (last - first),
        "processor": sum(p.tokens for p in parts) / sum(p.processor_seconds for p in parts),
    }
    return speeds, parts


def counting(seconds: float, report: Report) -> int:
    """How far one counts in that time: work that shares nothing but the cores."""
    end = time.perf_counter() + seconds
    reached = 0
    while time.perf_counter() < end:
        reached += 1
    return reached


def cores_ratio() -> float:
    """How much more two processes that only count get done than one: what the machine gives."""
    times = [0.5] * 4
    one, two = (
        processes * statistics.mean(run_jobs(counting, times, processes, lambda *_: None))
        for processes in (1, 2)
    )
    return two / one


def scaling(jobs: list[Job]) -> dict[str, Any]:
    """Speeds with one and with two processes, and twice over once in each round.

    `ratio` is by the clock, beside `cores_ratio` of the same round. `processor_ratio` is what it
    would be if each process had a core of its own and nothing waited. Where other programs keep
    the cores busy, the last two say what the first would be without them.
    """
    rounds: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        one, two = over(jobs, 1)[0], over(jobs, 2)[0]
        rounds.append(
            {
                "one": one,
                "two": two,
                "ratio": two["steady"] / one["steady"],
                "processor_ratio": 2 * two["processor"] / one["processor"],
                "cores_ratio": cores_ratio(),
            }
        )
    ratios = ("ratio", "processor_ratio", "cores_ratio")
    return {
        "rounds": rounds,
        **{name: statistics.median(row[name] for row in rounds) for name in ratios},
        "one": statistics.median(row["one"]["steady"] for row in rounds),
        "two": statistics.median(row["two"]["steady"] for row in rounds),
    }


def memory(jobs: list[Job]) -> dict[str, Any]:
    """Memory of two worker processes over many parts."""
    many = [
        replace(job, part=replace(job.part, index=index)) for index, job in enumerate(jobs * LONG)
    ]
    by_process: dict[int, list[float]] = defaultdict(list)
    for part in over(many, 2)[1]:
        by_process[part.process].append(part.mib)
    third = max(1, min(map(len, by_process.values())) // 3)
    first = [statistics.median(series[:third]) for series in by_process.values()]
    last = [statistics.median(series[-third:]) for series in by_process.values()]
    return {
        "parts": len(many),
        "mib_by_part": list(by_process.values()),
        "largest_mib": max(map(max, by_process.values())),
        "growth_mib": max(b - a for a, b in zip(first, last, strict=True)),
    }


# --- reading ------------------------------------------------------------------------------------


def forget(paths: list[Path]) -> None:
    """Have the system drop what it holds of the files, where it can."""
    if hasattr(os, "posix_fadvise"):
        for path in paths:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(folder: Path, gigabytes: float) -> dict[str, float]:
    """Seconds that a step waits for its windows, over shards of so many bytes."""
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
                split.expect(starts, WINDOW)
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


# --- the step -----------------------------------------------------------------------------------


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite bench-data`."""
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--megabytes", type=float, default=200, help="text that is prepared")
    parser.add_argument("--gigabytes", type=float, default=2, help="shards that are read")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write. Uses the disk on which `--out` is."""
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
            "provenance": provenance(),
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
