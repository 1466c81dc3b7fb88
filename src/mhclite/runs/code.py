"""Digests of source code: equal as long as the code computes the same.

Comments, docstrings, layout, the words of errors, of asserts and of log lines do not count, so that
rewording a message runs nothing again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE_ROOT = Path(__file__).parent.parent
PACKAGE = PACKAGE_ROOT.name
LOGGERS = ("log", "logger", "logging")

# Modules that carry numbers from place to place and never decide one. The digest of a step leaves
# them out: what they write is checked where it is read (digests, schema numbers).
NEUTRAL = frozenset(
    f"{PACKAGE}.{name}"
    for name in (
        "arguments",
        "cli",
        "data.manifest",
        "errors",
        "files",
        "records",
        "runs.code",
        "runs.folder",
        "runs.key",
        "runs.provenance",
        "runs.progress",
        "training.checkpoint",
        "training.compiler_caches",
        "training.loop",
        "training.processes",
        "training.train",
    )
)


def path_of(module: str) -> Path | None:
    """Source file of a module of this package, None for anything else."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        return None
    base = PACKAGE_ROOT.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _is_log_call(node: ast.AST) -> bool:
    """Whether a statement is `log.info(...)` or the like."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Attribute)
        and isinstance(node.value.func.value, ast.Name)
        and node.value.func.value.id in LOGGERS
    )


def canonical(node: Any) -> Any:
    """A syntax tree as nested lists, the same in every version of Python that can parse it.

    `ast.unparse` and `ast.dump` are not: versions differ in the quotes of f-strings, in fields that
    are left empty, and in empty pieces of f-strings.
    """
    if isinstance(node, ast.JoinedStr):
        pieces = [v for v in node.values if not (isinstance(v, ast.Constant) and v.value == "")]
        return ["JoinedStr", [canonical(piece) for piece in pieces]]
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return ["Raise", canonical(node.exc.func)]  # which error, not its words
    if isinstance(node, ast.Assert):
        return ["Assert", canonical(node.test)]
    if isinstance(node, ast.AST):
        fields = [(name, canonical(value)) for name, value in ast.iter_fields(node)]
        return [type(node).__name__, *(field for field in fields if field[1] not in ("None", []))]
    if isinstance(node, list):
        return [canonical(entry) for entry in node if not _is_log_call(entry)]
    return repr(node)


def _parse(source: bytes) -> tuple[str, frozenset[str]]:
    """(what a module computes, as text; modules that it imports anywhere)."""
    tree = ast.parse(source)
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


@cache
def _parsed(path: Path) -> tuple[str, frozenset[str]]:
    """`_parse` of a file, kept beside what Python compiled: of the whole package it takes longer
    than all else that Snakemake does before its first job."""
    source = path.read_bytes()
    of = hashlib.sha256(Path(__file__).read_bytes() + source).hexdigest()
    kept = path.parent / "__pycache__" / f"{path.stem}.parsed"
    # Whatever is wrong with it, it can be made again.
    with suppress(OSError, ValueError, TypeError, LookupError, zlib.error):
        found = json.loads(zlib.decompress(kept.read_bytes()))
        if found["of"] == of:
            return found["text"], frozenset(found["imported"])
    text, imported = _parse(source)
    beside = kept.with_name(f"{kept.name}.{os.getpid()}")  # several processes start at once
    with suppress(OSError):  # a package that cannot be written to
        content = json.dumps({"of": of, "text": text, "imported": sorted(imported)})
        beside.write_bytes(zlib.compress(content.encode()))
        beside.replace(kept)
    return text, imported


def imported_modules(*modules: str) -> list[str]:
    """The given modules of this package and all that they import, `NEUTRAL` ones left out, sorted.

    Neutral modules are not followed either. Nor are imports made by name at run time (the registry
    of variants): whoever needs them names them.
    """
    found: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        path = path_of(module)
        if path is None or module in found or module in NEUTRAL:
            continue
        found.add(module)
        pending.extend(_parsed(path)[1])
    return sorted(found)


@cache
def digest_of_modules(modules: tuple[str, ...]) -> str:
    """Digest of what exactly these modules compute, whatever they import."""
    digest = hashlib.sha256()
    for module in sorted(modules):
        path = path_of(module)
        assert path is not None, module
        digest.update(f"{module}\n{_parsed(path)[0]}\n".encode())
    return digest.hexdigest()[:16]


def step_digest(entry: str, variants: Iterable[str] = ()) -> str:
    """Digest of the source of a step: its module, what that imports, and the variants it runs.

    Args:
        entry: the step's module, e.g. `measure.probe`.
        variants: residual variants whose classes it computes with.
    """
    names = (entry, *(f"connections.{variant}" for variant in variants))
    assert all(path_of(f"{PACKAGE}.{name}") for name in names), names
    return digest_of_modules(tuple(imported_modules(*(f"{PACKAGE}.{name}" for name in names))))
