"""Tar archives that come from elsewhere: extracted into a folder, and nowhere else.

Python's own filter for this came with 3.11.4, and Debian 12 has 3.11.2.
"""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from pathlib import Path


def extract(
    tar: tarfile.TarFile, folder: Path, members: Sequence[tarfile.TarInfo] | None = None
) -> None:
    """Extract files, hard links to files of the archive, and folders.

    Args:
        tar: an open archive.
        folder: where its content goes.
        members: of the archive; all, if none are given.

    Raises:
        tarfile.TarError: the archive is broken; or a member is of another kind, such as a symbolic
            link, or would lie outside the folder. Nothing is extracted then.
    """
    root = folder.resolve()
    chosen = tar.getmembers() if members is None else members
    for member in chosen:
        if not (member.isfile() or member.isdir() or member.islnk()):
            raise tarfile.ExtractError(f"{member.name} is neither a file nor a folder")
        for name in [member.name, *([member.linkname] if member.islnk() else [])]:
            if not (root / name).resolve().is_relative_to(root):
                raise tarfile.ExtractError(f"{name} lies outside of the archive")
    # Where there is one; without it, later versions of Python warn.
    tar.extraction_filter = getattr(tarfile, "data_filter", None)
    tar.extractall(root, chosen)
