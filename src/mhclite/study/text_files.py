"""The local files that a study names by a glob: which they are, or why not."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from mhclite.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
READABLE = ", ".join(SUFFIXES)
MAKE_IT_SO = (
    "name plain text .txt, unpack what is packed, and write tables as parquet (datasets: "
    '`dataset.to_parquet("x.parquet")`, pandas: `frame.to_parquet("x.parquet")`)'
)


def matching(pattern: str) -> list[Path]:
    """The files that a glob names, in the order of their names.

    Raises:
        UserError: none matches, or one of them cannot be read.
    """
    found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    files = [path for path in found if not path.is_dir()]
    if not files:
        only = ", only a folder: name the files in it" if found else ""
        raise UserError(f"no file matches {pattern!r} (looked in {Path.cwd()}){only}")
    readable(files, f"the glob {pattern!r}")
    return files


def readable(paths: Iterable[Path], chosen_by: str) -> None:
    """`UserError` for the first file that cannot be read as text, by its kind, suffix or rights.

    Args:
        chosen_by: what named the files, for the message.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is no regular file, or a link to nothing: narrow {chosen_by}")
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path} is none of {READABLE}: narrow {chosen_by}, or {MAKE_IT_SO}")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} may not be read by this user: change its permissions")
