"""The local files that a study names by a glob: which they are, each once, or why not."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from mhclite.errors import UserError
from mhclite.study.sections import RESULTS

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".parquet")
READABLE = ", ".join(SUFFIXES)
MAKE_IT_SO = (
    "name plain text .txt, unpack what is packed, and write tables as parquet (datasets: "
    '`dataset.to_parquet("x.parquet")`, pandas: `frame.to_parquet("x.parquet")`)'
)


def matching(pattern: str) -> list[Path]:
    """The files that a glob names, in the order of their names.

    `~` and environment variables are filled in. Brackets that match nothing as a set of characters
    stand for themselves. Of several links to one file the first counts.

    Raises:
        UserError: none matches, or one of them cannot be read.
    """
    found = _globbed(pattern)
    for path in found:
        if os.path.islink(path) and not os.path.exists(path):
            raise UserError(
                f"{path} is a link to {os.readlink(path)!r}, which is not there: fetch what "
                "it stands for, or remove the link"
            )
    files = [path for path in found if not path.is_dir()]
    if not files:
        raise UserError(_why_none(pattern, found))
    readable(files, f"the glob {pattern!r}")
    return _once(files, pattern)


def readable(paths: Iterable[Path], chosen_by: str) -> None:
    """`UserError` for the first file that cannot be read as text, by its kind, suffix or rights.

    Args:
        chosen_by: what named the files, for the message.
    """
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is no regular file: narrow {chosen_by}")
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"{path} is none of {READABLE}: narrow {chosen_by}, or {MAKE_IT_SO}")
        if not os.access(path, os.R_OK):
            raise UserError(f"{path} may not be read by this user: change its permissions")


def _globbed(pattern: str) -> list[Path]:
    """What matches the pattern as it stands, or else with more and more of it read otherwise."""
    filled = os.path.expandvars(os.path.expanduser(pattern))
    for attempt in dict.fromkeys((pattern, filled, filled.replace("[", "[[]"))):
        found = sorted(glob.glob(attempt, recursive=True))
        if found:
            return [Path(name) for name in found]
    return []


def _why_none(pattern: str, folders: list[Path]) -> str:
    """What to tell somebody whose glob matches no file."""
    if folders:
        example = f"{pattern.rstrip('/')}/**/*{SUFFIXES[0]}"
        return (
            f"no file matches {pattern!r}, only a folder: name the files in it, for example "
            f"{example!r}; of {READABLE}: {MAKE_IT_SO}"
        )
    unset = re.search(r"\$\{?(\w+)", os.path.expandvars(pattern))
    if unset:
        return f"no file matches {pattern!r}: the environment has no variable {unset[1]}"
    return f"no file matches {pattern!r} (looked in {Path.cwd()})"


def _once(paths: list[Path], pattern: str) -> list[Path]:
    """Without further links to a file that is among them; hard links are files of their own."""
    results = RESULTS.resolve()
    seen: dict[tuple[int, int], set[Path]] = {}
    kept = []
    for path in paths:
        state, real = path.stat(), path.resolve()
        if real.is_relative_to(results):
            raise UserError(
                f"{pattern!r} matches {str(path)!r}: a corpus cannot be made of results/, which "
                "studies write; move the files elsewhere"
            )
        names = seen.setdefault((state.st_dev, state.st_ino), set())
        if real not in names:
            names.add(real)
            kept.append(path)
    return kept
