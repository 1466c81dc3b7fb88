"""The tables of settings in the docs, generated from the study's pydantic models.

`python -m mhclite.study.docs docs/configuration.md` writes them; a test keeps the two in step.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mhclite.files import write_text
from mhclite.study.sections import Settings
from mhclite.study.settings import Study
from mhclite.study.wording import settings_in

MARK = "configuration.md`. -->\n"  # what stands above it is written by hand


def settings_classes() -> Iterator[tuple[str, type[Settings]]]:
    """(where it stands in the file, class), the study itself first, in the study's order."""
    yield "", Study
    for name, field in Study.model_fields.items():
        inner = settings_in(field.annotation)
        if isinstance(inner, type) and issubclass(inner, Settings):
            by_name = typing.get_origin(field.annotation) is dict
            yield (f"{name}.<name>" if by_name else name), inner


def _type(annotation: Any) -> str:
    """A type as a user would say it."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"{len(arguments)} x {_type(arguments[0])}"
    if origin is dict:
        return "mapping by name"
    if arguments:  # X | None
        return _type(next(a for a in arguments if a is not type(None)))
    names = {bool: "`true`, `false`", int: "integer", float: "number", str: "text"}
    return names.get(annotation, "section" if isinstance(annotation, type) else str(annotation))


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None or isinstance(field.default, Settings):
        return "–"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    # As YAML writes it.
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def page(before: str) -> str:
    """The whole page, Markdown, from what it was before."""
    heading, mark, _ = before.partition(MARK)
    assert mark, f"the page has no line that ends with {MARK!r}"
    parts = [heading, mark]
    for where, settings in settings_classes():
        parts.append(f"\n## {f'`{where}`' if where else 'The study'}\n\n{settings.__doc__}\n")
        parts.append("\n| key | value | default | meaning |\n|---|---|---|---|\n")
        for name, field in settings.model_fields.items():
            # Pydantic takes a constraint such as `gt` out of the annotation; the type stays.
            meaning = field.description or "see the section of that name"
            row = (f"`{name}`", _type(field.annotation), _default(field), meaning)
            parts.append(f"| {' | '.join(row)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, page(path.read_text(encoding="utf-8")))
