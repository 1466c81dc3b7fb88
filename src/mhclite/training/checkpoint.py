"""Checkpoints that survive a kill at any moment.

A checkpoint is two files: the state, and a small JSON beside it that is written second and names
the state's SHA-256. Without its JSON a state does not count. The last two are kept; a damaged one
is passed over for the one before. They are written in the background, one at a time: a kill costs
the steps since the last finished one, at most two intervals.
"""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from mhclite.errors import UserError
from mhclite.files import atomic_write, read_json, sha256_of, write_json

KEEP = 2
# What reading a file raises that is not what we wrote.
DAMAGED = (UserError, OSError, KeyError, TypeError, ValueError, RuntimeError, UnpicklingError)

log = logging.getLogger(__name__)


class Digesting:
    """A binary file for torch, which writes it from the first byte to the last; its SHA-256."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def save_tensors(path: Path, state: Any) -> str:
    """Write `state` with torch, atomically. Returns the file's SHA-256."""
    with atomic_write(path, "wb") as file:
        digesting = Digesting(file)
        try:
            torch.save(state, digesting)  # type: ignore[arg-type] # it writes and flushes
        except RuntimeError as error:
            # What torch says when it closes a file that it could not write hides why it could not.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    return digesting.sha256.hexdigest()


def save_checkpoint(folder: Path, step: int, key: str, state: dict[str, Any]) -> None:
    """Write the checkpoint of `step`, then remove all but the newest two.

    Args:
        folder: made if it does not exist.
        step: optimizer steps done.
        key: of the run (its configuration, code and corpus); a checkpoint of another key is not
            loaded.
        state: anything that `torch.load(weights_only=True)` reads back.
    """
    name = f"step_{step:09d}"
    sha256 = save_tensors(folder / f"{name}.pt", state)
    write_json(folder / f"{name}.json", {"schema": 1, "step": step, "key": key, "sha256": sha256})
    for old in sorted(folder.glob("step_*.json"))[:-KEEP]:
        old.unlink()  # the JSON first: a state without one does not count
        old.with_suffix(".pt").unlink(missing_ok=True)


def snapshot(state: Any) -> Any:
    """`state` with every tensor in it copied to the CPU's memory, where no step changes it."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: snapshot(value) for name, value in state.items()}
    if isinstance(state, list):
        return [snapshot(value) for value in state]
    return state


class Saver:
    """Saves a run in a thread while its next steps run, one checkpoint at a time.

    What the thread raises is raised by the next call. On leaving, the checkpoint under way is
    waited for: nothing is written once the folder may be another process's.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """Args as those of `save_checkpoint`."""
        self._folder, self._key = folder, key
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[None] | None = None

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy `state` and begin to write it, once the one before is finished."""
        self.wait()
        copy = snapshot(state)
        self._under_way = self._thread.submit(save_checkpoint, self._folder, step, self._key, copy)

    def check(self) -> None:
        """Raise what went wrong so far, if anything did; waits for nothing."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint under way is finished."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, *exception: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._thread.shutdown()


def load_checkpoint(folder: Path, key: str) -> dict[str, Any] | None:
    """State of the newest checkpoint that is whole; None if there is none for this key.

    Raises:
        UserError: if there are checkpoints for this key and all are damaged. Starting again from
            step 0 is then the user's decision.
    """
    damaged = []
    for path in sorted(folder.glob("step_*.json"), reverse=True):
        state = path.with_suffix(".pt")
        try:
            meta = read_json(path)
            if meta["key"] != key:
                log.info("checkpoint %s belongs to another configuration or code: left out", path)
                continue
            if sha256_of(state) != meta["sha256"]:
                raise ValueError("its SHA-256 is not the recorded one")
            loaded: dict[str, Any] = torch.load(state, map_location="cpu", weights_only=True)
            return loaded
        except DAMAGED as error:
            # What torch says of a foreign pickle includes how to run its code.
            reason = "it holds more than tensors" if isinstance(error, UnpicklingError) else error
            log.warning("checkpoint %s is damaged (%s); trying the one before", state, reason)
            damaged.append(state.name)
    if damaged:
        raise UserError(
            f"all checkpoints in {folder} are damaged ({', '.join(damaged)}); to train this run "
            f"again from the start, delete that folder"
        )
    return None
