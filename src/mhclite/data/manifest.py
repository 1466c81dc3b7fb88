"""The manifest of a prepared corpus: what its shards are, and whether they still are.

`prepare` writes `manifest.json` last, so a folder that has one is whole. It counts the shards and
holds their SHA-256. Nothing here decides a number, so none of it is in a run's key. Numpy is
imported where tokens are read: `status` and the start of the DAG do without.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mhclite.errors import UserError
from mhclite.files import digest_of, sha256_of, write_json
from mhclite.records import read_record, to_json

if TYPE_CHECKING:
    from mhclite.data.tokens import TokenSplit

SCHEMA = 1
MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"(train|validation)-\d{5}\.bin")

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")


@dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    file: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class SplitEntry:
    """One split: its documents, their bytes as UTF-8, its tokens and the shards in order."""

    documents: int
    bytes: int
    tokens: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class SourceFile:
    """A file that the text was read from."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class SourceEntry:
    """Where the text comes from. `files` is empty for a hub corpus: its `revision` fixes them."""

    kind: str
    description: str
    repository: str | None = None
    revision: str | None = None
    files: tuple[SourceFile, ...] = ()
    license: str | None = None


@dataclass(frozen=True)
class TokenizerEntry:
    """The tokenizer: `n_tokens` ids are in use, of an embedding of `vocab_size`."""

    kind: str
    vocab_size: int
    n_tokens: int
    sha256: str  # of tokenizer.json
    eot_id: int


@dataclass(frozen=True)
class Baselines:
    """Validation loss of counting models, in nats per token."""

    unigram: float
    bigram: float


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        settings: `Study.corpus_settings` that it was prepared with.
        digest: `content_digest` of tokenizer and shards: what decides training.
        code: digest of the code that prepared it; None in manifests older than this field.
    """

    RETIRED = ("split", "bigram_tokens")  # what earlier versions wrote besides
    schema: int
    name: str
    settings: dict[str, Any]
    source: SourceEntry
    tokenizer: TokenizerEntry
    train: SplitEntry
    validation: SplitEntry
    baselines: Baselines
    digest: str
    code: str | None = None

    @property
    def splits(self) -> dict[Split, SplitEntry]:
        """Both splits by name."""
        return {"train": self.train, "validation": self.validation}

    def bits_per_byte(self, loss: float) -> float:
        """A validation loss in nats per token as bits per byte of the validation text (UTF-8)."""
        return loss * self.validation.tokens / self.validation.bytes / math.log(2)


def shard_name(split: Split, index: int) -> str:
    """File name of a shard."""
    return f"{split}-{index:05d}.bin"


def content_digest(tokenizer: TokenizerEntry, splits: Mapping[Split, SplitEntry]) -> str:
    """Digest of what decides training: the tokens of both splits and the tokenizer."""
    shards = {split: [shard.sha256 for shard in splits[split].shards] for split in SPLITS}
    return digest_of({"tokenizer": tokenizer.sha256, **shards})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, atomically: from here on the folder counts as prepared."""
    problem = _problem(manifest)
    assert problem is None, problem
    write_json(folder / MANIFEST, to_json(manifest))


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared corpus, checked for its shape and against its own digest.

    Raises:
        UserError: missing, damaged, foreign, or of another schema.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{folder} is not a prepared corpus: it has no {MANIFEST}; make it with "
            "`python -m mhclite prepare` (or let snakemake do it)"
        )
    again = f"delete {path} and prepare the corpus again"
    manifest = read_record(Manifest, path, "manifest", SCHEMA, again)
    problem = _problem(manifest)
    if problem:
        raise UserError(f"{path} is not what mhclite wrote: {problem}; {again}")
    return manifest


def load_if_prepared(folder: Path) -> Manifest | None:
    """`load_manifest`, or None where the folder is not prepared yet."""
    return load_manifest(folder) if (Path(folder) / MANIFEST).is_file() else None


def _problem(manifest: Manifest) -> str | None:
    """What is wrong with the values of a manifest, None if nothing is."""
    for name, split in manifest.splits.items():
        if not all(SHARD_NAME.fullmatch(shard.file) for shard in split.shards):
            return f"{name}.shards names a file that is no shard"
        if not 0 < split.tokens == sum(shard.tokens for shard in split.shards):
            return f"{name}.tokens is not the sum over its shards, or zero"
        if split.bytes <= 0:
            return f"{name}.bytes is not positive"
    if manifest.digest != content_digest(manifest.tokenizer, manifest.splits):
        return "its digest does not fit its content"
    return None


def expect_window(splits: Mapping[Split, SplitEntry], corpus: str, block_size: int) -> None:
    """See that each split has at least the tokens of one step: a context and what follows it.

    Raises:
        UserError: a split is shorter.
    """
    for name, split in splits.items():
        if split.tokens <= block_size:
            raise UserError(
                f"the {name} split of {corpus} has {split.tokens:,} tokens, fewer than one window "
                f"of block_size + 1 = {block_size + 1:,}: lower `block_size`, or take more text or "
                "another `validation_fraction`"
            )


def shard_paths(folder: Path, split: SplitEntry) -> list[Path]:
    """The files of a split, in order."""
    return [Path(folder) / shard.file for shard in split.shards]


def open_split(folder: Path, split: Split, verify: bool = True) -> TokenSplit:
    """Open a split of a prepared corpus, without reading its tokens.

    Args:
        folder: the prepared corpus.
        split: "train" or "validation".
        verify: compare the shards with the manifest: sizes always, content if a file was written
            since the manifest was. Processes that start together need only one of them to do it.

    Raises:
        UserError: the manifest or a shard is missing or damaged.
    """
    from mhclite.data.tokens import TokenSplit

    entry = load_manifest(folder).splits[split]
    if verify:
        verify_split(folder, entry, only_new=True)
    return TokenSplit(shard_paths(folder, entry))


def verify_split(folder: Path, split: SplitEntry, only_new: bool = False) -> None:
    """Compare a split with the manifest: the size of every shard, and SHA-256.

    Args:
        folder: the prepared corpus.
        split: its entry in the manifest.
        only_new: read those alone that were written after the manifest, which `prepare` writes
            last: damage, or a copy. Reading all of a large corpus takes minutes, and every run of a
            study begins with it.

    Raises:
        UserError: for the first file that is missing or differs.
    """
    prepared = (Path(folder) / MANIFEST).stat().st_mtime_ns if only_new else 0
    for shard, path in zip(split.shards, shard_paths(folder, split), strict=True):
        damage = _damage(shard, path, prepared)
        if damage:
            raise UserError(
                f"shard {path} {damage}; delete {Path(folder) / MANIFEST} and prepare the corpus "
                "again"
            )


def _damage(shard: Shard, path: Path, since: int) -> str | None:
    """What is wrong with a shard, None if nothing is; read if it was written since then (ns)."""
    from mhclite.data.tokens import SHARD_DTYPE

    if not path.is_file():
        return "is missing"
    state, expected = path.stat(), shard.tokens * SHARD_DTYPE.itemsize
    if state.st_size != expected:
        return f"has {state.st_size} bytes, its manifest says {expected}: it is damaged"
    if state.st_mtime_ns >= since and sha256_of(path) != shard.sha256:
        return "does not have the sha256 of its manifest: it is damaged"
    return None
