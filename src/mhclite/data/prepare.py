"""`prepare`: a corpus becomes token shards, a tokenizer and a manifest.

The corpus is divided into parts (parts.py), which several processes tokenize. What is finished is
kept: after a kill at any moment the same command goes on. The manifest is written last: a folder
that has one is whole. The same documents and settings give the same bytes, on every machine and
with any number of processes.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mhclite.arguments import folder_path, json_argument, positive_int, required
from mhclite.data.baselines import ngram_baselines
from mhclite.data.corpora import Source, changed, open_source
from mhclite.data.manifest import (
    MANIFEST,
    SCHEMA,
    SHARD_NAME,
    SPLITS,
    Manifest,
    SourceEntry,
    SourceFile,
    Split,
    SplitEntry,
    TokenizerEntry,
    content_digest,
    load_manifest,
    shard_paths,
    verify_split,
    write_manifest,
)
from mhclite.data.parts import (
    PART_BYTES,
    WORK,
    Part,
    PartJob,
    Splitter,
    assembled,
    divide,
    documents_of,
    recorded,
    tokenize,
)
from mhclite.data.pool import run_jobs
from mhclite.data.reading import examine
from mhclite.data.tokenization import TOKENIZER, TextTokenizer, load, make
from mhclite.data.tokens import TokenSplit
from mhclite.errors import UserError
from mhclite.files import digest_of, sha256_of, write_text
from mhclite.records import to_json
from mhclite.runs.code import digest_of_modules
from mhclite.runs.provenance import versions
from mhclite.study.sections import Corpus, Name, Settings, Tokenizer
from mhclite.study.wording import one_line

log = logging.getLogger(__name__)

# The code that decides the bytes of shards, tokenizer and manifest. Another digest of it, and a
# corpus is prepared again. This module is not among them: it says what is done when, what goes on
# and what is refused. What it decides besides (order and names of the files) is in the key as data.
PREPARATION = (
    "mhclite.data.baselines",
    "mhclite.data.parts",
    "mhclite.data.reading",
    "mhclite.data.tokenization",
    "mhclite.data.tokens",
)
PLAN = "plan.txt"  # a digest of what the parts are made of
HALF_WRITTEN = re.compile(r"\.(train|validation|tokenizer|manifest).*\.tmp")


def prepare(
    settings: dict[str, Any],
    folder: Path,
    processes: int = 1,
    part_bytes: int = PART_BYTES,
) -> Manifest:
    """Prepare a corpus, unless the folder already holds it whole; goes on with what was begun.

    Args:
        settings: `Study.corpus_settings(name)`.
        folder: where to write; shards and a manifest that are there are replaced. Downloads go into
            `downloads` beside it.
        processes: number of processes that tokenize side by side.
        part_bytes: about how much text a part has. Where shards end depends on it.

    Returns:
        The manifest.

    Raises:
        UserError: the corpus cannot be read, is not what the settings say, or has an empty split.
    """
    done = _already_prepared(settings, folder)
    if done:
        log.info("%s is already prepared and whole: nothing to do", folder)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        return done
    source = open_source(settings["corpus"], folder.parent / "downloads")
    entry, parts = _plan(settings, source, processes, part_bytes)
    _begin(settings, entry, parts, folder)
    documents = sum(part.documents for part in parts)

    cut = parts[0].pieces[0].cut is not None
    splitter = Splitter.of(settings["corpus"], documents, cut)
    jobs = [
        PartJob(
            part,
            folder,
            settings["corpus"]["text_field"],
            splitter.between(part.first, part.first + part.documents),
        )
        for part in parts
    ]
    tokenizer = _tokenizer(settings, folder, jobs, documents)
    splits = _tokenized(settings, jobs, processes)
    source.check()

    log.info("counting unigrams and bigrams")
    train, validation = (TokenSplit(shard_paths(folder, splits[split])) for split in SPLITS)
    described = TokenizerEntry(
        kind=tokenizer.kind,
        vocab_size=settings["tokenizer"]["vocab_size"],
        n_tokens=tokenizer.n_tokens,
        sha256=sha256_of(folder / TOKENIZER),
        eot_id=tokenizer.eot_id,
    )
    manifest = Manifest(
        schema=SCHEMA,
        name=settings["name"],
        settings=settings,
        source=entry,
        tokenizer=described,
        train=splits["train"],
        validation=splits["validation"],
        baselines=ngram_baselines(train, validation, tokenizer.n_tokens, tokenizer.eot_id),
        digest=content_digest(described, splits),
        code=digest_of_modules(PREPARATION),
    )
    write_manifest(folder, manifest)
    shutil.rmtree(folder / WORK)
    return manifest


def _already_prepared(settings: dict[str, Any], folder: Path) -> Manifest | None:
    """The folder's manifest, if nothing has to be done. Reads every shard."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    if manifest.settings != settings:
        raise UserError(
            f"{folder} holds corpus {manifest.name!r} prepared with other settings: give "
            f"another --out, or delete {folder / MANIFEST}"
        )
    if manifest.code != digest_of_modules(PREPARATION):
        log.warning("%s was prepared by other code: preparing it again", folder)
        return None
    try:
        for split in manifest.splits.values():
            verify_split(folder, split)
    except UserError as error:
        log.warning("%s: doing that now", error)
        return None
    corpus = settings["corpus"]
    if changed(corpus, folder):
        log.warning("the files of %r have changed since: preparing them again", corpus["files"])
        return None
    return manifest


def _plan(
    settings: dict[str, Any], source: Source, processes: int, part_bytes: int
) -> tuple[SourceEntry, list[Part]]:
    """The manifest's `source` and the corpus in parts."""
    entry, corpus = source.entry, settings["corpus"]
    log.info("reading %s", entry.description)
    with ThreadPoolExecutor(processes) as pool:
        examined = list(pool.map(lambda path: examine(path, corpus["text_field"]), source.paths))
    pieces = list(chain.from_iterable(file.pieces for file in examined))
    documents, expected = sum(piece.documents for piece in pieces), corpus["expected_documents"]
    if expected is not None and documents != expected:
        raise UserError(
            f"corpus {entry.description} has {documents:,} documents, "
            f"expected_documents is {expected:,}: it is not the corpus that the study means; "
            "correct one of them"
        )
    if documents == 0:
        raise UserError(f"{entry.description} hold no document: they are empty")
    if documents == 1 and pieces[0].path.endswith(".txt"):
        log.info("one text: its end, from a line's beginning, is for validation")
        pieces = [replace(pieces[0], documents=2, cut=corpus["validation_fraction"])]
    if entry.kind == "files":
        described = [
            SourceFile(path, str(file.sha256), Path(path).stat().st_size)
            for path, file in zip(source.paths, examined, strict=True)
        ]
        entry = replace(entry, files=tuple(described))
    return entry, divide(pieces, part_bytes, corpus["max_documents"])


def _begin(settings: dict[str, Any], entry: SourceEntry, parts: list[Part], folder: Path) -> None:
    """Keep what an earlier start finished of the same parts, and nothing else."""
    # Whatever would make other shards. A part is not taken over from other code or libraries.
    key = digest_of(
        {
            "settings": settings,
            "source": to_json(entry),
            "parts": to_json(parts),
            "schema": SCHEMA,
            "code": digest_of_modules(PREPARATION),
            "versions": versions("numpy", "pyarrow", "tiktoken", "tokenizers"),
        }
    )
    path = folder / WORK / PLAN
    if not (folder / MANIFEST).exists() and path.exists() and path.read_bytes() == key.encode():
        log.info("going on with what was begun in %s", folder)
        _remove(folder, HALF_WRITTEN)  # by processes that were killed
    else:
        _clear(folder)
        write_text(path, key)


def _clear(folder: Path) -> None:
    """Remove what an earlier preparation left.

    The plan goes first, so that the records beside it are not believed any more, then the manifest.
    """
    for name in (Path(WORK, PLAN), MANIFEST, TOKENIZER):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (SHARD_NAME, HALF_WRITTEN):
        _remove(folder, pattern)


def _remove(folder: Path, pattern: re.Pattern[str]) -> None:
    for path in folder.iterdir():
        if pattern.fullmatch(path.name):
            path.unlink()


def _tokenizer(
    settings: dict[str, Any], folder: Path, jobs: list[PartJob], documents: int
) -> TextTokenizer:
    """GPT-2's, or one trained on the train split; kept in the folder."""
    if (folder / TOKENIZER).exists():
        return load(folder)
    kind, vocab_size = settings["tokenizer"]["kind"], settings["tokenizer"]["vocab_size"]
    if kind == "bpe":
        log.info("training the tokenizer on %d documents", documents)
    read = chain.from_iterable(map(documents_of, jobs))
    # What a tokenizer may learn from.
    tokenizer = make(kind, vocab_size, (text for text, _, split in read if split == "train"))
    if kind == "bpe" and tokenizer.n_tokens < vocab_size:
        log.warning(
            "the train split is too small for %d tokens: only %d are in use",
            vocab_size,
            tokenizer.n_tokens,
        )
    tokenizer.save(folder)
    return tokenizer


def _tokenized(
    settings: dict[str, Any], jobs: list[PartJob], processes: int
) -> dict[Split, SplitEntry]:
    """Tokenize the parts that are not finished; returns the manifest's `train` and `validation`."""
    open_jobs = [job for job in jobs if recorded(job) is None]
    total = sum(job.part.documents for job in jobs)
    done = total - sum(job.part.documents for job in open_jobs)
    if done:
        log.info("%d of %d parts are finished already", len(jobs) - len(open_jobs), len(jobs))
    for documents, _ in run_jobs(tokenize, open_jobs, processes):
        done += documents
        log.info("tokenized %d of %d documents", done, total)
    splits = assembled(jobs)
    for split in SPLITS:
        if splits[split].bytes == 0:
            number = f"{total} document{'s' * (total != 1)}"
            raise UserError(
                f"corpus {settings['name']!r}: no text fell into the {split} split, of {number} "
                f"with validation_fraction = {settings['corpus']['validation_fraction']}; take "
                "more documents, or another validation_fraction"
            )
    return splits


class CorpusSettings(Settings):
    """What `--settings` holds: `Study.corpus_settings`."""

    name: Name
    corpus: Corpus
    tokenizer: Tokenizer


def parse_settings(text: str) -> dict[str, Any]:
    """`--settings` with defaults filled in, checked as a study is."""
    content = json_argument(text, "--settings")
    try:
        return CorpusSettings.model_validate(content).model_dump(mode="json")
    except ValidationError as error:
        raise UserError(f"--settings: {one_line(error, CorpusSettings)}") from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite prepare`."""
    required(
        parser,
        settings=(None, "what a study resolves of a corpus (JSON, or @FILE)"),
        out=(folder_path, "folder of the prepared corpus"),
    )
    parser.add_argument(
        "--processes", type=positive_int, default=os.cpu_count(), help="default: one per core"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare a corpus and print what it holds."""
    settings = parse_settings(args.settings)
    manifest = prepare(settings, args.out, args.processes)
    train, validation = manifest.train, manifest.validation
    print(
        f"{args.out}: {train.documents:,} + {validation.documents:,} documents, "
        f"{train.tokens:,} + {validation.tokens:,} tokens (train + validation), unigram "
        f"{manifest.baselines.unigram:.4f}, bigram {manifest.baselines.bigram:.4f} nats per token"
    )
    return 0
