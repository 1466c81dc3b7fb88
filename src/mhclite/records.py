"""Dataclasses to JSON and back: every file that one step writes for another has named fields.

`build` checks a value once, where it is read; from then on mypy knows what it holds. Standard
library only: training reads its configuration with it.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from mhclite.errors import UserError
from mhclite.files import read_schema

T = TypeVar("T")


class Misfit(Exception):  # noqa: N818 - says what a value lacks; becomes a UserError where it is read
    """A value does not have the fields of a dataclass; the message says where and how."""


def to_json(value: Any) -> Any:
    """A dataclass as JSON objects, lists and numbers; fields that hold None stay, as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(entry) for entry in value]
    return value


def build(kind: type[T], value: Any, where: str = "") -> T:
    """A dataclass from what JSON gives, checked field by field.

    Args:
        kind: the dataclass. Its fields may be dataclasses, lists, tuples, dicts with text keys,
            literals, unions, numbers, text; an integer will do for a float.
        value: an object with exactly the fields; those with a default may be missing, and names
            in the class attribute `RETIRED`, which earlier versions wrote, are passed over.
        where: the path of `value`, for the message.

    Raises:
        Misfit: for the first field that is missing, unknown or of another type.
    """
    if not isinstance(value, dict):
        raise Misfit(f"{where or 'its content'} is not an object")
    hints = _hints(typing.cast(Any, kind))
    fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, kind))}
    prefix = f"{where}." if where else ""
    for name in value:
        if name not in fields and name not in getattr(kind, "RETIRED", ()):
            raise Misfit(f"{prefix}{name:.60} is not known")
    made = {}
    for name, field in fields.items():
        if name in value:
            made[name] = _convert(hints[name], value[name], prefix + name)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise Misfit(f"{prefix}{name} is missing")
    return kind(**made)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return build(kind, value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        others = [a for a in arguments if a is not type(None)]
        if len(others) == 1:
            return _convert(others[0], value, where)
        for argument in others:
            try:
                return _convert(argument, value, where)
            except Misfit:
                continue
    elif origin is typing.Literal:
        if value in arguments and type(value) in map(type, arguments):
            return value
    elif origin is list and isinstance(value, list):
        return [_convert(arguments[0], entry, where) for entry in value]
    elif origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], entry, where) for entry in value)
        if len(arguments) == len(value):
            return tuple(_convert(a, entry, where) for a, entry in zip(arguments, value))
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {
            key: _convert(arguments[1], entry, f"{where}.{key}") for key, entry in value.items()
        }
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) < math.inf:  # JSON's 1e999 is infinite
            return value
    elif kind is int and isinstance(value, bool):
        pass
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    expected = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
    raise Misfit(f"{where} is {value!r:.60}, expected {expected}")


def read_record(kind: type[T], path: Path, what: str, schema: int, again: str = "") -> T:
    """Read a file whose content is a dataclass with a field `schema`: `files.read_schema`.

    Raises:
        UserError: missing, damaged, of another schema, or not what was written.
    """
    value = read_schema(Path(path), what, schema, again)
    try:
        return build(kind, value)
    except Misfit as problem:
        again = again or f"delete {path} and run `snakemake --cores all`"
        raise UserError(f"{path} is not what mhclite wrote: {problem}; {again}") from None
