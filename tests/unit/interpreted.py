"""Triton's interpreter, for tests that import the fixture."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import pytest
from triton.language.core import is_builtin
from triton.runtime import interpreter

from mhclite.bench.interpreter import round_to_nearest
from mhclite.connections.fast import launch


@cache
def builtins_of(package: Any) -> list[str]:
    """Names of Triton's language, in one of its modules or classes before it is patched."""
    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    """As the interpreter's own, which lists all members again at every call of a function: that is
    40 % of its time."""
    for name in builtins_of(package):
        if is_builtin(member := getattr(package, name)):
            interpreter._patch_attr(package, name, member, builder, scope)


@pytest.fixture(autouse=True)
def kernels_are_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With larger programs: its time goes by the number of operations, not by their size."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    round_to_nearest()
    monkeypatch.setattr(interpreter, "_patch_builtin", _patch_builtin)
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(launch, name, getattr(launch, name)._replace(tokens=32))
