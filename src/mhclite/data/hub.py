"""A corpus from the Hugging Face hub, always at one commit.

Which commit: the study's, else the corpora lock file's, else the newest, which is then recorded in
the lock file. With HF_HUB_OFFLINE=1 the hub's local cache is read instead, at the same commit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.data.lock import CorporaLock
from mhclite.errors import UserError

log = logging.getLogger(__name__)

REQUEST_SECONDS = 4.0  # of waiting for the connection, and for each part of the answer
WAYS_OUT = (
    "ways out: connect this machine to the network and run the same command again; correct "
    "`repository` or `revision`; for what is private or gated, set HF_TOKEN; or give the corpus "
    "`source: files` with a local copy, or `source: embedded`; or, with the dataset in the Hugging "
    "Face cache (`hf download REPOSITORY --repo-type dataset`), set HF_HUB_OFFLINE=1"
)


@dataclass(frozen=True)
class HubDataset:
    """A dataset at one commit."""

    repository: str
    subset: str | None
    revision: str  # 40 hex digits
    license: str | None
    location: str  # the repository, or its folder in the local cache

    def files(self) -> list[str]:
        """Paths of the train split's parquet files, in the order in which `datasets` has them.

        Raises:
            UserError: no such subset, files of another format, or the hub does not answer.
        """
        import datasets

        local = self.location != self.repository
        what = f"dataset {self.repository} ({self.subset or 'default'}) at {self.revision[:12]}"
        try:
            builder = datasets.load_dataset_builder(
                self.location, name=self.subset, revision=None if local else self.revision
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
    from huggingface_hub import constants

    # It logs a line for every request, with addresses that may be signed: not for our log.
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    locked = lock.entry(repository, subset).get("revision")
    if revision and locked and revision != locked:
        lock.record(repository, subset, revision=revision)  # raises
    wanted = revision or locked
    if constants.is_offline_mode():
        dataset = _from_cache(repository, subset, wanted)
    else:
        dataset = _from_hub(repository, subset, wanted)
    if wanted not in (None, dataset.revision):
        raise UserError(
            f"dataset {repository}: asked for commit {wanted}, the hub answered with "
            f"{dataset.revision}: correct `revision`"
        )
    if wanted is None:
        log.info(
            "%s: no `revision` in the study, none in %s: taking the newest, %s, and recording it "
            "there; commit that file",
            repository,
            lock.path,
            dataset.revision,
        )
    return dataset


def _from_hub(repository: str, subset: str | None, revision: str | None) -> HubDataset:
    """Ask the hub for the commit. `datasets` itself would retry for minutes without a network."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        info = api.dataset_info(repository, revision=revision, timeout=REQUEST_SECONDS)
    except Exception as error:
        raise UserError(
            f"dataset {repository} at {revision or 'its newest commit'} cannot be had from "
            f"{api.endpoint} ({in_short(error)}); {WAYS_OUT}"
        ) from error
    assert info.sha is not None
    return HubDataset(repository, subset, info.sha, _license(info.card_data), repository)


def _from_cache(repository: str, subset: str | None, revision: str | None) -> HubDataset:
    """Find the commit in the local cache of the hub's client, with all files of the subset."""
    from huggingface_hub import DatasetCard, errors, get_cached_repo_tree, snapshot_download

    def cached(patterns: list[str] | None) -> Path:
        folder = snapshot_download(
            repository,
            repo_type="dataset",
            revision=revision,
            allow_patterns=patterns,
            local_files_only=True,
        )
        return Path(folder)

    try:
        # The list of the commit's files, without which nobody can tell whether some are missing.
        tree = get_cached_repo_tree(repository, repo_type="dataset", revision=revision)
        card = None
        if "README.md" in {file.path for file in tree}:
            card = DatasetCard.load(cached(["README.md"]) / "README.md").data
        folder = cached(_file_patterns(card.to_dict() if card else {}, subset))
    except (OSError, ValueError, errors.CachedRepoTreeNotFoundError) as error:
        raise UserError(
            f"dataset {repository} at {revision or 'its newest commit'} is not, or not wholly, in "
            f"the Hugging Face cache ({type(error).__name__}), and HF_HUB_OFFLINE is set; "
            f"{WAYS_OUT}"
        ) from error
    return HubDataset(repository, subset, folder.name, _license(card), str(folder))


def _file_patterns(card: dict[str, Any], subset: str | None) -> list[str] | None:
    """The data files of a subset as the dataset's card names them; None stands for all files."""
    patterns: list[str] = []
    for config in card.get("configs") or []:
        if subset is None or config.get("config_name") == subset:
            files = config.get("data_files") or []
            for entry in [files] if isinstance(files, str) else files:
                paths = entry["path"] if isinstance(entry, dict) else entry
                patterns += [paths] if isinstance(paths, str) else paths
    return [*patterns, "README.md"] if patterns else None


def _license(card: Any) -> str | None:
    """The licence that a dataset's card states."""
    stated = getattr(card, "license", None)
    if isinstance(stated, list):
        stated = ", ".join(map(str, stated))
    return str(stated) if stated else None


def in_short(error: Exception) -> str:
    """An error's kind and HTTP status: its full text may hold signed addresses."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ValueError | RuntimeError) and status is None:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return type(error).__name__ + (f", HTTP {status}" if status else "")
