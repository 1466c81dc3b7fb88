"""The parameter table of the docs, generated from the study's pydantic models.

`python -m mhclite.study.docs docs/configuration.md` writes it; a test keeps the two in step.
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
from mhclite.study.sections import TAKEN, Settings
from mhclite.study.settings import Study
from mhclite.study.wording import settings_in

HEADING = f"""# Configuration

A study is one YAML file. Unknown keys, impossible values and missing corpora stop before the DAG
starts, with one line that says what and why: `python -m mhclite check FILE` says it without
Snakemake. A value can be set on the command line, in a study with a name and so a folder of its
own: `snakemake --cores all --config name=longer 'training={{steps: 400}}'`. Settings of a section
are written like that, not as `training.steps=400`, which Snakemake refuses with an error of its
own. Without a name, `--config` may add runs to the results that are there, or change what decides
none (`'training={{processes: 2}}'`, `'tracking={{uri: URL}}'`); it stops where it would replace
some.

Names, of the study and of what is in it, have lower-case letters, digits and `_` (not first), at
most 40. No hyphen: it separates the parts of a run's name. No study has the name of a folder that
results/ has for itself: {", ".join(f"`{name}`" for name in TAKEN)}.

Numbers are plain decimal ones (`0.004`, `4e-3`), booleans `true` or `false`. What YAML 1.1 reads
otherwise than it looks (`010` as 8, `1:30` as 90, `yes` as true) is refused; a text that looks so
stands in quotes.

<!-- Generated from study/sections.py by `python -m mhclite.study.docs docs/configuration.md`. -->
"""


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


def parameter_table() -> str:
    """The whole page, Markdown."""
    parts = [HEADING]
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
    write_text(Path(sys.argv[1]), parameter_table())
