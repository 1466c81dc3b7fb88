"""`python -m benchmarks data`: how fast a corpus is prepared, and in what memory.

The text is the embedded corpus repeated, with the paragraphs of each copy in another order, cut
into documents of about OpenWebText's length: any amount of real text on any machine. Medians are
taken, so that a slow spell of the machine counts little.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mhclite.arguments import file_path, positive_float
from mhclite.data.corpora import EMBEDDED
from mhclite.data.parts import WORK, PartJob, Splitter, divide, tokenize
from mhclite.data.pool import run_jobs
from mhclite.data.reading import examine, read
from mhclite.data.tokenization import GPT2
from mhclite.files import write_json
from mhclite.records import to_json
from mhclite.runs.provenance import provenance

DOCUMENT_CHARACTERS = 4900
GROUP_DOCUMENTS = 250  # per row group of a parquet file
FILES, PARTS, ROUNDS = 8, 32, 3
OPENWEBTEXT_TOKENS = 9_040_000_000  # the authors' count


def documents(megabytes: float) -> Iterator[list[str]]:
    """`FILES` lists of documents with that much text in all."""
    (piece,) = examine(str(EMBEDDED), "text").pieces
    paragraphs = [line for text in read(piece, "text") for line in text.splitlines() if line]
    random = np.random.default_rng(0)
    for _ in range(FILES):
        file: list[str] = []
        while sum(map(len, file)) < megabytes * 1e6 / FILES:
            lines, size = [], 0
            while size < DOCUMENT_CHARACTERS:
                lines.append(paragraphs[random.integers(len(paragraphs))])
                size += len(lines[-1]) + 1
            file.append("\n".join(lines))
        yield file


def write_corpus(folder: Path, megabytes: float) -> list[PartJob]:
    """Write parquet files like those on the hub; returns the jobs that tokenize them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = [folder / f"{index}.parquet" for index in range(FILES)]
    for path, texts in zip(paths, documents(megabytes), strict=True):
        pq.write_table(pa.table({"text": texts}), path, row_group_size=GROUP_DOCUMENTS)
    pieces = [piece for path in paths for piece in examine(str(path), "text").pieces]
    parts = divide(pieces, max(1, sum(piece.size for piece in pieces) // PARTS), None)
    out = folder / "out"
    (out / WORK).mkdir(parents=True)
    GPT2().save(out)
    return [PartJob(part, out, "text", Splitter(0.0005, None)) for part in parts]


def tokenizer_alone(job: PartJob) -> float:
    """Tokens per second of the bare tokenizer, with the text of a part in memory."""
    encode = GPT2()._encoding.encode_ordinary
    texts = [text for piece in job.part.pieces for text in read(piece, "text")]
    began = time.perf_counter()
    return sum(len(encode(text)) for text in texts) / (time.perf_counter() - began)


def preparation(jobs: list[PartJob], processes: int) -> float:
    """Tokens per second of a preparation, from its first finished part on: without its start."""
    told = [(time.perf_counter(), tokens) for _, tokens in run_jobs(tokenize, jobs, processes)]
    return sum(tokens for _, tokens in told[1:]) / (told[-1][0] - told[0][0])


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m benchmarks data`."""
    parser.add_argument("--out", required=True, type=file_path, help="file to write")
    parser.add_argument("--megabytes", type=positive_float, default=200, help="to prepare")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write; scratch files go beside `--out`."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.out.parent) as scratch:
        jobs = write_corpus(Path(scratch), args.megabytes)
        alone = statistics.median(map(tokenizer_alone, jobs))
        rounds = [[preparation(jobs, processes) for processes in (1, 2)] for _ in range(ROUNDS)]
        one, two = (statistics.median(speeds) for speeds in zip(*rounds, strict=True))
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
    found = {
        "tokens_per_second": {"tokenizer": alone, "one process": one, "two processes": two},
        "ratios": [second / first for first, second in rounds],
        "largest_process_mib": largest,
    }
    about = {"schema": 2, "megabytes": args.megabytes, "provenance": to_json(provenance())}
    write_json(args.out, about | found)
    print(
        f"tokenizer alone {alone / 1e6:.2f}, preparation {one / 1e6:.2f} with one process and "
        f"{two / 1e6:.2f} with two, M tokens/s; 9.04 B tokens: "
        f"{OPENWEBTEXT_TOKENS / one / 3600:.2f} and {OPENWEBTEXT_TOKENS / two / 3600:.2f} hours\n"
        f"largest process: {largest:.0f} MiB"
    )
