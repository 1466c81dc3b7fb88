"""The corpora lock file: which revision of a hub corpus is read here.

    {repository: {subset: {"revision", "first_used", "documents", "bytes"}}}

A study that names no `revision` takes the newest at the first use of a corpus. It is recorded here,
and later uses must match it. There is no such file before the first use of a hub corpus; commit it
then, so that everybody who runs the study reads the same text. `documents` and `bytes` (UTF-8) are
there once the corpus was read to its end.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.files import locked, write_json

LOCK_FILE = Path("config/corpora.lock.json")  # of the pipeline, beside its studies


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
        try:
            self._record(repository, subset or "default", facts)
        except OSError as error:
            raise UserError(f"the corpora lock file {self.path}: {error.strerror}") from None

    def _record(self, repository: str, subset: str, facts: dict[str, Any]) -> None:
        with locked(self.path):
            entries = self._read()
            entry = entries.setdefault(repository, {}).setdefault(subset, {})
            before = dict(entry)
            for key, value in facts.items():
                if entry.setdefault(key, value) != value:
                    raise UserError(
                        f"{repository} ({subset}): {key} is {value}, but {self.path} "
                        f"has {entry[key]} since its first use on {entry.get('first_used')}; to "
                        "use the other one from now on, delete that entry and the prepared corpus"
                    )
            entry.setdefault("first_used", datetime.datetime.now(datetime.UTC).date().isoformat())
            if entry != before:
                write_json(self.path, entries)

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        try:
            # Empty: another process has just created it, by locking it.
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


def revision_text(corpus: Mapping[str, Any], lock: CorporaLock) -> str | None:
    """Which commit of a hub corpus is read, and what fixes it; None for other sources.

    Args:
        corpus: `study.sections.Corpus` as JSON.
        lock: the lock file beside which the study is used.
    """
    if corpus["source"] != "hub":
        return None
    if corpus["revision"]:
        return f"revision {corpus['revision'][:12]}, pinned in the study"
    entry = lock.entry(corpus["repository"], corpus["subset"])
    if entry:
        return f"revision {entry['revision'][:12]}, locked in {lock.path}"
    state = "has no entry for it" if lock.path.exists() else "does not exist"
    return (
        f"revision not pinned: the study names none, and {lock.path} {state}; the newest at first "
        "use is recorded there: commit that file"
    )
