"""The local files that a study names by a glob, or why there are none."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from mhclite.errors import UserError
from mhclite.study.sections import RESULTS

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
READABLE = ", ".join(SUFFIXES)


def matching(pattern: str) -> list[Path]:
    """The files that a glob names, in the order of their names.

    `~` and environment variables are filled in.

    Raises:
        UserError: none matches, or one of them cannot be read.
    """
    found = glob.glob(os.path.expandvars(os.path.expanduser(pattern)), recursive=True)
    files = [Path(name) for name in sorted(found) if not os.path.isdir(name)]
    if not files:
        raise UserError(
            f"no file matches {pattern!r} (looked in {Path.cwd()}): name files of {READABLE}, for "
            "example 'folder/**/*.txt'; a bracket in a name is written [[]"
        )
    if any(path.resolve().is_relative_to(RESULTS.resolve()) for path in files):
        raise UserError(f"{pattern!r}: a corpus cannot be made of results/, which studies write")
    readable(files, f"the glob {pattern!r}")
    return files


def readable(paths: Iterable[Path], chosen_by: str) -> None:
    """`UserError` for the first file that cannot be read as text, by its kind, suffix or rights.

    Args:
        chosen_by: what named the files, for the message.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is no regular file, or a link to none: narrow {chosen_by}")
        if not path.name.endswith(SUFFIXES):
            raise UserError(
                f"{path} is none of {READABLE}: narrow {chosen_by}, or unpack it, and write tables "
                "as parquet (`to_parquet` of datasets and pandas)"
            )
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} may not be read by this user: change its permissions")
