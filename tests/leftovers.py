"""Processes that tests leave behind.

Every process that a test starts inherits `MARKER` with this pytest process's id, also through
torchrun, Snakemake and SLURM. A fork that executes nothing shows its parent's environment: it is
found as a descendant.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

PROC = Path("/proc")
MARKER = "MHCLITE_TESTS"
OF_THIS_PROCESS = str(os.getpid())
OF_SESSION = f"{OF_THIS_PROCESS}-session"  # of what a session-wide fixture starts and stops itself
# Helpers that Python and torch start once for a process, and that end with it.
HELPERS = (
    *("multiprocessing.resource_tracker", "multiprocessing.forkserver"),
    "torch._inductor.compile_worker",
)
GRACE = 30.0  # seconds in which what was stopped may go: SLURM gives its jobs 20


def _read(process: Path, name: str) -> str:
    try:
        return (process / name).read_bytes().decode(errors="replace")
    except OSError:  # it has ended
        return ""


def _command(process: Path) -> str:
    return _read(process, "cmdline").replace("\0", " ").strip()


def _state_and_parent(process: Path) -> tuple[str, int]:
    fields = _read(process, "stat").rpartition(")")[2].split()
    return (fields[0], int(fields[1])) if fields else ("X", 0)


def running(whole_session: bool) -> dict[int, str]:
    """Process id -> command of what tests of this process have started and is still there.

    Until the end of the session that leaves out what session-wide fixtures keep.
    """
    parents: dict[int, int] = {}
    marks: dict[int, str] = {os.getpid(): OF_THIS_PROCESS}
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        pid = int(process.name)
        state, parent = _state_and_parent(process)
        if state not in "ZX":
            parents[pid] = parent
            for entry in _read(process, "environ").split("\0"):
                if entry.startswith(f"{MARKER}="):
                    marks.setdefault(pid, entry.partition("=")[2])

    def mark_of(pid: int) -> str | None:
        """Its own, or that of its nearest ancestor that has one: daemons overwrite theirs."""
        while pid not in marks and pid in parents:
            pid = parents[pid]
        return marks.get(pid)

    wanted = {OF_THIS_PROCESS, OF_SESSION} if whole_session else {OF_THIS_PROCESS}
    found = {}
    for pid in parents:
        command = _command(PROC / str(pid))
        if pid == os.getpid() or mark_of(pid) not in wanted:
            continue
        if not any(helper in command for helper in HELPERS):
            found[pid] = command or "a fork of pytest"
    return found


def stop_leftovers(whole_session: bool = False) -> list[str]:
    """Kill what tests of this process have left running; returns its commands."""
    if not PROC.is_dir():
        return []
    deadline = time.monotonic() + GRACE
    while (left := running(whole_session)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return [f"{pid}: {command[:300]}" for pid, command in sorted(left.items())]
