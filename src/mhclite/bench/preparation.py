"""How fast a corpus is tokenized, with one process and two, and in what memory.

The text is the embedded corpus repeated, with the paragraphs of each copy in another order, cut
into documents of about OpenWebText's length: any amount of real text on any machine. Rounds are
interleaved and medians taken, so that a slow spell of the machine falls on everything.
"""

from __future__ import annotations

import os
import resource
import statistics
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

DOCUMENT_CHARACTERS = 4900
GROUP_DOCUMENTS = 250  # per row group of a parquet file
FILES = 8
PARTS = 32
ROUNDS = 3
LONG = 4  # copies of the corpus over which memory is watched

Speeds = dict[str, float]


def documents(megabytes: float) -> Iterator[list[str]]:
    """`FILES` lists of documents with that much text in all."""
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
    """Write parquet files like those on the hub; returns the jobs that tokenize them."""
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


def timed(work: Callable[[], int]) -> float:
    """Tokens per second of `work`, which returns how many tokens it handled."""
    began = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - began)


def alone(jobs: list[Job]) -> list[Speeds]:
    """Tokens per second of the bare tokenizer (text in memory) and of preparation, per part."""
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
    """A part that was tokenized: by which process, and what it took."""

    process: int  # its id
    index: int
    tokens: int
    processor_seconds: float
    mib: float  # memory of the process afterwards


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
    """Memory of this process now, or its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def over(jobs: list[Job], processes: int) -> tuple[Speeds, list[Done]]:
    """Speeds of a whole preparation in tokens per second, and its parts.

    `whole` includes the start of the processes, `steady` begins with the first report. `processor`
    is per second of processor time: the speed of one process with a core to itself.
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
    """How far a process counts in that time: work that shares nothing but the cores."""
    end = time.perf_counter() + seconds
    reached = 0
    while time.perf_counter() < end:
        reached += 1
    return reached


def cores_ratio() -> float:
    """How much more two counting processes get done than one: the most this machine allows."""
    times = [0.5] * 4
    one, two = (
        processes * statistics.mean(run_jobs(counting, times, processes, lambda *_: None))
        for processes in (1, 2)
    )
    return two / one


def scaling(jobs: list[Job]) -> dict[str, Any]:
    """Speeds with one and with two processes, and their ratio, round by round.

    `ratio` is by the clock, and `cores_ratio` of the same round is the most it could be.
    `processor_ratio` is what it would be if each process had a core to itself and never waited.
    Where other programs keep the cores busy, these two say what the first would be without them.
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
    """Memory of two worker processes as they work through many parts."""
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
