"""Checkpoints that survive a kill at any moment.

A checkpoint is two files: the state, and a small JSON beside it that is written second and names
the state's SHA-256. Without its JSON a state does not count. The last two are kept; a damaged one
is passed over for the one before.
"""

from __future__ import annotations

import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from mhclite.errors import UserError
from mhclite.files import atomic_write, read_json, sha256_of, write_json

KEEP = 2
# What reading a file raises that is not what we wrote.
DAMAGED = (UserError, OSError, KeyError, TypeError, ValueError, RuntimeError, UnpicklingError)

log = logging.getLogger(__name__)


def save_tensors(path: Path, state: Any) -> str:
    """Write `state` with torch, atomically. Returns the file's SHA-256."""
    with atomic_write(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # What torch says when it closes a file that it could not write hides why it could not.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
    return sha256_of(path)


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
