"""The corpora lock file: which revision of a hub corpus this project uses.

    {repository: {subset: {"revision", "first_used", "documents", "bytes"}}}

It is kept under version control, so that everybody who runs the project reads the same text.
`documents` and `bytes` (UTF-8) are there once the corpus was read to its end.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.files import write_json


class CorporaLock:
    """One lock file; several processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def entry(self, repository: str, subset: str | None) -> dict[str, Any]:
        """What is recorded of a corpus; empty before its first use."""
        entry: dict[str, Any] = self._read().get(repository, {}).get(subset or "default", {})
        return entry

    def record(self, repository: str, subset: str | None, **facts: Any) -> None:
        """Add facts about a corpus; those that are there already must be the same.

        Raises:
            UserError: a fact differs from what is recorded, or the file cannot be used.
        """
        with self._exclusive():
            entries = self._read()
            entry = entries.setdefault(repository, {}).setdefault(subset or "default", {})
            before = dict(entry)
            for key, value in facts.items():
                if entry.setdefault(key, value) != value:
                    raise UserError(
                        f"{repository} ({subset or 'default'}): {key} is {value}, but {self.path} "
                        f"has {entry[key]} since its first use on {entry.get('first_used')}; to "
                        "use the other one from now on, delete that entry and the prepared corpus"
                    )
            entry.setdefault("first_used", datetime.datetime.now(datetime.UTC).date().isoformat())
            if entry != before:
                write_json(self.path, entries)

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        try:
            # Empty: another process has just created it, see `_exclusive`.
            entries = json.loads(self.path.read_text(encoding="utf-8") or "{}")
            whole = all(
                isinstance(entry, dict) and isinstance(entry.get("revision"), str)
                for subsets in entries.values()
                for entry in subsets.values()
            )
        except FileNotFoundError:
            return {}
        except (AttributeError, UnicodeDecodeError, json.JSONDecodeError):
            whole = False
        except OSError as error:
            raise UserError(f"the corpora lock file {self.path}: {error.strerror}") from None
        if not whole:
            raise UserError(
                f"the corpora lock file {self.path} is damaged: expected JSON, repository -> "
                "subset -> revision and other facts; restore it from version control"
            )
        assert isinstance(entries, dict)
        return entries

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other processes from changing the file between our reading and writing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                with self.path.open("a") as file:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    # Writing replaces the file: a lock that we waited for may be on the old one.
                    if os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino:
                        yield
                        return
        except OSError as error:
            raise UserError(f"the corpora lock file {self.path}: {error.strerror}") from None
