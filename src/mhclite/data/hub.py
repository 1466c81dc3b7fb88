"""A dataset on the Hugging Face hub: which commit is read here, and its files.

The corpora lock file says which revision of a hub corpus is read:

    {repository: {subset: {"revision"}}}

A study that names no `revision` takes the newest at the first use of a corpus. It is recorded
there, and later uses must match it. There is no such file before the first use of a hub corpus;
commit it then, so that everybody who runs the study reads the same text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.files import locked, write_json

log = logging.getLogger(__name__)

LOCK_FILE = Path("config/corpora.lock.json")  # of the pipeline, beside its studies
REQUEST_SECONDS = 4.0  # of waiting for the connection, and for each part of the answer
WAYS_OUT = (
    "ways out: connect this machine to the network and run the same command again; correct "
    "`repository` or `revision`; for what is private or gated, set HF_TOKEN; or give the corpus "
    "`source: files` with a local copy (`hf download REPOSITORY --repo-type dataset`), or "
    "`source: embedded`"
)


class CorporaLock:
    """One lock file; several processes may use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def revision(self, repository: str, subset: str | None) -> str | None:
        """What is recorded of a corpus; None before its first use."""
        return self._read().get(repository, {}).get(subset or "default", {}).get("revision")

    def record(self, repository: str, subset: str | None, revision: str) -> None:
        """Fix the revision of a corpus; one that is fixed already must be the same.

        Raises:
            UserError: another is recorded, or the file is damaged.
        """
        with locked(self.path):
            entries = self._read()
            name = subset or "default"
            entry = entries.setdefault(repository, {}).setdefault(name, {"revision": revision})
            if entry["revision"] != revision:
                raise UserError(
                    f"{repository} ({name}): revision is {revision}, but {self.path} has "
                    f"{entry['revision']} since its first use; to use the other one from now on, "
                    "delete that entry and the prepared corpus"
                )
            write_json(self.path, entries)

    def _read(self) -> dict[str, dict[str, dict[str, str]]]:
        try:
            # Empty: another process has just created it, by locking it.
            entries: Any = json.loads(self.path.read_text(encoding="utf-8") or "{}")
            whole = all(
                isinstance(entry["revision"], str)
                for subsets in entries.values()
                for entry in subsets.values()
            )
        except FileNotFoundError:
            return {}
        except (AttributeError, TypeError, KeyError, ValueError):
            whole = False
        if not whole:
            raise UserError(
                f"the corpora lock file {self.path} is damaged: expected JSON, repository -> "
                "subset -> revision; restore it from version control"
            )
        found: dict[str, dict[str, dict[str, str]]] = entries
        return found


def revision_text(corpus: Mapping[str, Any], lock: CorporaLock) -> str:
    """Which commit is read of a hub corpus (`study.sections.Corpus` as JSON)."""
    revision = corpus["revision"] or lock.revision(corpus["repository"], corpus["subset"])
    if revision:
        return f"revision {revision[:12]}"
    return f"the newest revision at first use, then recorded in {lock.path}: commit that file"


@dataclass(frozen=True)
class HubDataset:
    """A dataset at one commit."""

    repository: str
    subset: str | None
    revision: str  # 40 hex digits
    license: str | None

    def files(self) -> list[str]:
        """Paths of the train split's parquet files, in the order in which `datasets` has them.

        Raises:
            UserError: no such subset, files of another format, or the hub does not answer.
        """
        import datasets

        what = f"dataset {self.repository} ({self.subset or 'default'}) at {self.revision[:12]}"
        try:
            builder = datasets.load_dataset_builder(
                self.repository, name=self.subset, revision=self.revision
            )
        except Exception as error:  # of `datasets`, the hub's client or the network
            raise UserError(
                f"{what}: reading it stopped ({in_short(error)}); run the same command again, or "
                "correct the study"
            ) from error
        paths = [str(path) for path in (builder.config.data_files or {}).get("train", [])]
        other = next((path for path in paths if not path.endswith(".parquet")), None)
        if other or not paths:
            raise UserError(
                f"{what}: its train split is {other or 'nowhere'}, expected parquet files: take a "
                "dataset or a commit that has them, or `source: files` with a local copy"
            )
        return paths


def connect(
    repository: str, subset: str | None, revision: str | None, lock: CorporaLock
) -> HubDataset:
    """Fix a dataset's commit and find out, within seconds, whether it can be read.

    Args:
        repository: e.g. HuggingFaceFW/fineweb-edu.
        subset: name of the dataset's configuration; None for the default.
        revision: the study's commit, if it names one.
        lock: what it must agree with. A new commit is not recorded yet: the subset may not exist.

    Raises:
        UserError: no network, no such dataset or commit, or another commit than the lock file's.
    """
    from huggingface_hub import HfApi

    # It logs a line for every request, with addresses that may be signed: not for our log.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    recorded = lock.revision(repository, subset)
    if revision and recorded:
        lock.record(repository, subset, revision)  # raises if they differ
    wanted = revision or recorded
    api = HfApi()
    try:
        # First: `datasets` itself would retry for minutes without a network.
        info = api.dataset_info(repository, revision=wanted, timeout=REQUEST_SECONDS)
    except Exception as error:
        raise UserError(
            f"dataset {repository} at {wanted or 'its newest commit'} cannot be had from "
            f"{api.endpoint} ({in_short(error)}); {WAYS_OUT}"
        ) from error
    assert info.sha is not None
    if wanted not in (None, info.sha):
        raise UserError(
            f"dataset {repository}: asked for commit {wanted}, the hub answered with {info.sha}: "
            "correct `revision`"
        )
    if wanted is None:
        log.info(
            "%s: no `revision` in the study, none in %s: taking the newest, %s, and recording it "
            "there; commit that file",
            repository,
            lock.path,
            info.sha,
        )
    stated = getattr(info.card_data, "license", None)
    license = ", ".join(map(str, stated)) if isinstance(stated, list) else stated
    return HubDataset(repository, subset, info.sha, license)


def in_short(error: Exception) -> str:
    """An error's kind and HTTP status: its full text may hold signed addresses."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ValueError | RuntimeError) and status is None:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return type(error).__name__ + (f", HTTP {status}" if status else "")
