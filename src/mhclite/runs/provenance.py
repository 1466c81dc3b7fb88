"""Where a result comes from: source code, versions, hardware."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE_ROOT = Path(__file__).parent.parent
PACKED = "packed.json"  # in the package of a bundle: the git state of the checkout it was made from


def _path_of(module: str) -> Path | None:
    """Source file of a module of this package, None for anything else."""
    parts = module.split(".")
    if parts[0] != PACKAGE_ROOT.name:
        return None
    base = PACKAGE_ROOT.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def canonical(node: Any) -> Any:
    """A syntax tree as nested lists, the same in every version of Python that can parse it.

    `ast.unparse` and `ast.dump` are not: versions differ in the quotes of f-strings, in fields that
    are left empty, and in empty pieces of f-strings.
    """
    if isinstance(node, ast.JoinedStr):
        pieces = [v for v in node.values if not (isinstance(v, ast.Constant) and v.value == "")]
        return ["JoinedStr", [canonical(piece) for piece in pieces]]
    if isinstance(node, ast.AST):
        fields = [(name, canonical(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, *(field for field in fields if field[1] not in ("None", []))]
    if isinstance(node, list):
        return [canonical(entry) for entry in node]
    return repr(node)


@cache
def _parsed(path: Path) -> tuple[str, frozenset[str]]:
    """(source without comments, docstrings and layout, modules imported anywhere in it)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module)
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and ast.get_docstring(node, clean=False) is not None
            and isinstance(body, list)
        ):
            body[0] = ast.Pass()
    return json.dumps(canonical(tree)), frozenset(imported)


def source_modules(*modules: str) -> list[str]:
    """The given modules of this package and all of its modules they import, sorted.

    Imports made by name at run time (the registry of variants) are not followed: whoever needs
    them names them here.
    """
    found: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        path = _path_of(module)
        if path is None or module in found:
            continue
        found.add(module)
        pending.extend(_parsed(path)[1])
    return sorted(found)


@cache
def code_digest(*modules: str) -> str:
    """Digest of what `modules` and the modules they import compute.

    Comments, docstrings and layout do not count: editing them reruns nothing.
    """
    digest = hashlib.sha256()
    for module in source_modules(*modules):
        path = _path_of(module)
        assert path is not None
        digest.update(f"{module}\n{_parsed(path)[0]}\n".encode())
    return digest.hexdigest()[:16]


def git_state() -> dict[str, Any]:
    """Commit of the checkout that the code is from, and whether it had uncommitted changes."""
    packed = PACKAGE_ROOT / PACKED
    if packed.is_file():
        found: dict[str, Any] = json.loads(packed.read_text(encoding="utf-8"))
        return found

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE_ROOT), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


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
    found: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count()}
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(
            os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
        )
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


def provenance() -> dict[str, Any]:
    """Code, versions and hardware of this process."""
    return {
        "git": git_state(),
        "versions": versions("torch", "numpy", "mhclite"),
        "hardware": hardware(),
        "platform": platform.platform(),
    }
