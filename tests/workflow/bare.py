"""A Python that has torch, numpy and what these two need, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path


def needed(*packages: str) -> set[str]:
    """The packages and all that they require."""
    found: set[str] = set()
    pending = list(packages)
    while pending:
        name = pending.pop()
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another platform
            continue
        if name not in found:
            found.add(name)
            plain = [entry for entry in requires if "extra ==" not in entry]
            pending += [re.split(r"[\s;<>=!~\[(]", entry)[0] for entry in plain]
    return found


def make(folder: Path) -> Path:
    """Make the environment; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    for name in needed("torch", "numpy"):
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            place = Path(str(distribution.locate_file(top)))
            if place.exists() and not (site / top).exists():
                (site / top).symlink_to(place)
    return folder / "bin" / "python"


def environment() -> dict[str, str]:
    """Environment variables without those that add to a Python's modules."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
