"""Tar archives that come from elsewhere: extracted whole, into a folder, and nowhere else.

Python's `tarfile` takes the first header that it cannot read for the end of the archive, and then
the checksum of what it is compressed with is never compared. Its filter for what would be written
elsewhere came with 3.11.4, and Debian 12 has 3.11.2.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Mode = Literal["r:", "r:gz", "r:bz2", "r:xz"]
COMPRESSED: dict[bytes, Mode] = {  # how a file begins
    b"\x1f\x8b": "r:gz",
    b"BZh": "r:bz2",
    b"\xfd7zXZ\0": "r:xz",
    b"\x5d\0\0": "r:xz",
}
STEP = 1 << 20  # bytes


def extract(path: Path, folder: Path, wanted: Callable[[str], bool] | None = None) -> list[str]:
    """Extract files, hard links to files of the archive, and folders.

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
        with tarfile.open(path, _mode(path)) as tar:
            return _extract(tar, folder.resolve(), wanted)
    except tarfile.TarError:
        raise
    except Exception as error:  # what is damaged may lead the libraries to any
        if isinstance(error, OSError) and error.errno:
            raise
        raise tarfile.ReadError(str(error) or type(error).__name__) from None


def _mode(path: Path) -> Mode:
    with open(path, "rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    if start[257:262] == b"ustar":  # the first member's name may begin in any way
        return "r:"
    return next((mode for begin, mode in COMPRESSED.items() if start.startswith(begin)), "r:")


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
