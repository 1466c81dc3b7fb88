"""Triton's interpreter, for tests that import the fixture."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.language.core import is_builtin
from triton.runtime import interpreter

from mhclite.connections.fast import launch

_cut = interpreter.InterpreterBuilder.cast_impl


def _nearest(builder: Any, source: Any, to: Any) -> Any:
    """As a GPU rounds. Triton 3.7.1 cuts bits off when it makes float32 a bf16 number: at every
    boundary, streams shrink with depth."""
    if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
        return _cut(builder, source, to)
    bits = np.ascontiguousarray(source.data).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # ties to even
    finite = np.isfinite(source.data)
    kept = np.where(finite, rounded, bits >> 16 | np.isnan(source.data) << 6)
    return interpreter.TensorHandle(kept.astype(np.uint16), to.scalar)


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
    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", _nearest)
    monkeypatch.setattr(interpreter, "_patch_builtin", _patch_builtin)
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(launch, name, getattr(launch, name)._replace(tokens=32))
