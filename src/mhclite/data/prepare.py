"""`prepare`: a corpus becomes token shards, a tokenizer and a manifest.

The manifest is written last: a folder with one is whole. The same documents and settings give the
same bytes, on every machine and with any number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mhclite.data.baselines import ngram_baselines
from mhclite.data.corpora import Source, describe_files, open_source
from mhclite.data.lock import CorporaLock
from mhclite.data.progress import progress
from mhclite.data.shards import (
    MANIFEST,
    SCHEMA,
    SHARD_TOKENS,
    SPLITS,
    ShardWriter,
    Split,
    TokenSplit,
    content_digest,
    load_manifest,
    verify_split,
    write_manifest,
)
from mhclite.data.tokenization import GPT2, ByteLevelBPE, TextTokenizer
from mhclite.errors import UserError

log = logging.getLogger(__name__)

BATCH_CHARACTERS = 1 << 20  # of text tokenized at once
LEFTOVER = re.compile(r"(train|validation)-\d{5}\.bin|\.(train|validation|tokenizer).*\.tmp")


def split_of(text: bytes, validation_fraction: float) -> Split:
    """The split of a document: the first 64 bits of its text's SHA-256, as a fraction of 2^64.

    So equal texts share a split, and neither order nor number of the other documents matter.
    """
    fraction = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64
    return "validation" if fraction < validation_fraction else "train"


def prepare(
    settings: dict[str, Any], folder: Path, lock: Path, shard_tokens: int = SHARD_TOKENS
) -> dict[str, Any]:
    """Prepare a corpus, unless the folder already holds it whole.

    Args:
        settings: `Study.corpus_settings(name)`.
        folder: where to; its own shards and manifest are replaced.
        lock: the corpora lock file.
        shard_tokens: tokens a shard.

    Returns:
        The manifest.

    Raises:
        UserError: the corpus cannot be read, is another than before, or has an empty split.
    """
    done = _already_prepared(settings, folder, lock)
    if done:
        log.info("%s is already prepared and whole: nothing to do", folder)
        return done
    source = open_source(settings["corpus"], lock)
    log.info("reading %s", source.record["description"])
    _clear(folder)

    tokenizer = _make_tokenizer(settings, source)
    tokenizer_sha256 = tokenizer.save(folder)
    splits = _write_shards(settings, source, tokenizer, folder, shard_tokens)

    log.info("counting unigrams and bigrams")
    train, validation = (
        TokenSplit([folder / shard["file"] for shard in splits[split]["shards"]])
        for split in SPLITS
    )
    manifest = {
        "schema": SCHEMA,
        "name": settings["name"],
        "settings": settings,
        "source": source.record,
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": settings["tokenizer"]["vocab_size"],
            "n_tokens": tokenizer.n_tokens,
            "sha256": tokenizer_sha256,
            "eot_id": tokenizer.eot_id,
        },
        "split": {
            "rule": "sha256 of the text",
            "validation_fraction": settings["corpus"]["validation_fraction"],
        },
        **splits,
        "baselines": ngram_baselines(train, validation, tokenizer.n_tokens, tokenizer.eot_id),
    }
    manifest["digest"] = content_digest(manifest)
    write_manifest(folder, manifest)
    return manifest


def _already_prepared(settings: dict[str, Any], folder: Path, lock: Path) -> dict[str, Any] | None:
    """The folder's manifest, if nothing has to be done."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = load_manifest(folder)
    if manifest["settings"] != settings:
        raise UserError(
            f"{folder} holds corpus {manifest['name']!r} prepared with other settings: give "
            f"another --out, or delete {folder / MANIFEST}"
        )
    try:
        for split in SPLITS:
            verify_split(folder, manifest, split)
    except UserError as error:
        log.warning("%s: doing that now", error)
        return None
    corpus = settings["corpus"]
    if (
        corpus["source"] == "files"
        and describe_files(corpus["files"]) != manifest["source"]["files"]
    ):
        log.warning("the files of %r have changed since: preparing them again", corpus["files"])
        return None
    if corpus["source"] == "hub":
        entry = CorporaLock(lock).entry(corpus["repository"], corpus["subset"])
        revision = manifest["source"]["revision"]
        if entry and entry["revision"] != revision:
            raise UserError(
                f"{folder} was prepared from {corpus['repository']} at {revision}, but {lock} has "
                f"{entry['revision']}: restore the lock file, or delete {folder / MANIFEST}"
            )
    return manifest


def _clear(folder: Path) -> None:
    """Remove what an earlier preparation left, the manifest first."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        for path in folder.iterdir():
            if LEFTOVER.fullmatch(path.name):
                path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _make_tokenizer(settings: dict[str, Any], source: Source) -> TextTokenizer:
    if settings["tokenizer"]["kind"] == "gpt2":
        return GPT2()
    fraction = settings["corpus"]["validation_fraction"]
    vocab_size = settings["tokenizer"]["vocab_size"]
    texts = progress(source.read(), "training the tokenizer, reading", source.documents)
    tokenizer = ByteLevelBPE.train(
        (text for text in texts if split_of(text.encode("utf-8"), fraction) == "train"), vocab_size
    )
    if tokenizer.n_tokens < vocab_size:
        log.warning(
            "the train split is too small for %d tokens: only %d are in use",
            vocab_size,
            tokenizer.n_tokens,
        )
    return tokenizer


def _write_shards(
    settings: dict[str, Any],
    source: Source,
    tokenizer: TextTokenizer,
    folder: Path,
    shard_tokens: int,
) -> dict[str, dict[str, Any]]:
    """Tokenize all documents in their order; the manifest's `train` and `validation`."""
    fraction = settings["corpus"]["validation_fraction"]
    documents, sizes = dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    end = np.array([tokenizer.eot_id], dtype=np.uint16)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(folder, split, shard_tokens)) for split in SPLITS
        }
        texts = progress(source.read(), "tokenizing", source.documents)
        for batch in _batches(texts, BATCH_CHARACTERS):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                data = text.encode("utf-8")
                split = split_of(data, fraction)
                documents[split] += 1
                sizes[split] += len(data)
                writers[split].append(ids)
                writers[split].append(end)
    source.accept(sum(documents.values()), sum(sizes.values()))
    for split in SPLITS:
        if sizes[split] == 0:
            raise UserError(
                f"corpus {settings['name']!r}: no text fell into the {split} split, of "
                f"{sum(documents.values())} documents with validation_fraction = {fraction}; take "
                "more documents, or another validation_fraction"
            )
    return {
        split: {
            "documents": documents[split],
            "bytes": sizes[split],
            "tokens": writers[split].tokens,
            "shards": writers[split].shards,
        }
        for split in SPLITS
    }


def _batches(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Group texts so that a group has about that many characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def parse_settings(text: str) -> dict[str, Any]:
    """`--settings` with defaults filled in, checked as a study is."""
    # By name: an edit of the study's description that matters here changes the settings, and
    # should not otherwise count as a change of this step's code (provenance.code_digest).
    study = importlib.import_module("mhclite.study")
    pydantic = importlib.import_module("pydantic")
    try:
        given = json.loads(text)
        name, corpus, tokenizer = given.pop("name"), given.pop("corpus"), given.pop("tokenizer")
        if given or not re.fullmatch(r"[a-z0-9_]{1,40}", name):
            raise ValueError(f"name {name!r}, further keys {list(given)}")
        return {
            "name": name,
            "corpus": study.Corpus.model_validate(corpus).model_dump(mode="json"),
            "tokenizer": study.Tokenizer.model_validate(tokenizer).model_dump(mode="json"),
        }
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or error.title.lower()
        raise UserError(f"--settings: {where}: {' '.join(first['msg'].split())}") from None
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(
            "--settings: expected a JSON object with `name` (a-z, 0-9, _), `corpus` and "
            f"`tokenizer` as in a study file ({type(error).__name__}: {error})"
        ) from None


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite prepare`."""
    parser.add_argument("--settings", required=True, help="the corpus and its tokenizer, JSON")
    parser.add_argument("--out", required=True, type=Path, help="folder of the prepared corpus")
    parser.add_argument(
        "--lock", required=True, type=Path, help="corpora lock file: revisions of hub corpora"
    )


def run(args: argparse.Namespace) -> int:
    """Prepare a corpus and print what it holds."""
    settings = parse_settings(args.settings)
    manifest = prepare(settings, args.out, args.lock)
    train, validation = manifest["train"], manifest["validation"]
    print(
        f"{args.out}: {train['documents']:,} + {validation['documents']:,} documents, "
        f"{train['tokens']:,} + {validation['tokens']:,} tokens (train + validation), unigram "
        f"{manifest['baselines']['unigram']:.4f}, bigram {manifest['baselines']['bigram']:.4f} "
        "nats per token"
    )
    return 0
