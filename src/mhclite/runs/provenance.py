"""Where a result comes from: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mhclite.files import read_json
from mhclite.runs.code import PACKAGE_ROOT

PACKED = "packed.json"  # in the package of a bundle: the git state of the checkout it was made from


@dataclass(frozen=True)
class GitState:
    """The commit that the code is from; None where it is not known."""

    commit: str | None
    dirty: bool | None  # whether tracked files had uncommitted changes


@dataclass(frozen=True)
class Provenance:
    """Code, versions and hardware of a process."""

    git: GitState
    versions: dict[str, str]
    hardware: dict[str, Any]
    platform: str


def git_state() -> GitState:
    """Commit of the checkout that the code is from, and whether it had uncommitted changes.

    Only of a repository that tracks this package: an unpacked archive may lie within another one.
    """
    packed = PACKAGE_ROOT / PACKED
    if packed.is_file():
        return GitState(**read_json(packed, "the git state of the bundle"))
    # GIT_DIR and the like, which git sets in its hooks, would name another repository.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE_ROOT), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py", "runs/provenance.py")
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return GitState(git("rev-parse", "HEAD"), dirty)
    except (OSError, subprocess.SubprocessError):
        return GitState(None, None)


def versions(*packages: str) -> dict[str, str]:
    """Version of Python and of each installed package named."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores, memory; GPU where torch is loaded and sees one."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count()}
    found["memory_gib"] = round(memory / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["gpus"] = torch.cuda.device_count()
    return found


def hardware_in_words(hardware: dict[str, Any]) -> str:
    """GPUs where there are any, processor, cores and memory of what `hardware` returned."""
    cores = hardware["cores"]
    parts = [f"{hardware['cpu']}, {cores} core" + "s" * (cores != 1)]
    if hardware.get("gpu"):
        parts.insert(0, f"{hardware.get('gpus', 1)} × {hardware['gpu']}")
    if hardware.get("memory_gib") is not None:
        parts.append(f"{hardware['memory_gib']:g} GiB memory")
    return ", ".join(parts)


def provenance() -> Provenance:
    """Of this process."""
    return Provenance(
        git_state(), versions("torch", "numpy", "mhclite"), hardware(), platform.platform()
    )
