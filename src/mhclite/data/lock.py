"""The corpora lock file: which revision of a hub corpus is read here.

    {repository: {subset: {"revision", "first_used"}}}

A study that names no `revision` takes the newest at the first use of a corpus. It is recorded here,
and later uses must match it. There is no such file before the first use of a hub corpus; commit it
then, so that everybody who runs the study reads the same text.
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

    def record(self, repository: str, subset: str | None, revision: str) -> None:
        """Fix the revision of a corpus; one that is fixed already must be the same.

        Raises:
            UserError: another is recorded, or the file cannot be used.
        """
        try:
            with locked(self.path):
                entries = self._read()
                name = subset or "default"
                entry = entries.setdefault(repository, {}).get(name)
                if entry is None:
                    today = datetime.datetime.now(datetime.UTC).date().isoformat()
                    entries[repository][name] = {"revision": revision, "first_used": today}
                    write_json(self.path, entries)
                elif entry["revision"] != revision:
                    raise UserError(
                        f"{repository} ({name}): revision is {revision}, but {self.path} has "
                        f"{entry['revision']} since its first use on {entry.get('first_used')}; to "
                        "use the other one from now on, delete that entry and the prepared corpus"
                    )
        except OSError as error:
            raise UserError(f"the corpora lock file {self.path}: {error.strerror}") from None

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
                "subset -> revision; restore it from version control"
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
