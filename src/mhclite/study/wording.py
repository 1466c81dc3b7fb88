"""What pydantic finds wrong with a study, as one line for its author."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError


def one_line(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem of a validation, as `where: what`, and how many more there are.

    Args:
        root: the settings class that was validated, for the keys that are known at each place.
    """
    problems = error.errors()
    first = problems[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        owner: Any = root
        for part in first["loc"][:-1]:
            field = owner.model_fields.get(part) if hasattr(owner, "model_fields") else None
            owner = settings_in(field.annotation) if field is not None else owner
        known = list(getattr(owner, "model_fields", {}))
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        what = "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
        if not close and known:
            what += f"; known are {', '.join(known)}"
    elif first["type"] == "missing":
        what = "this key is missing"
    elif first["type"] == "value_error":
        what = str(first["ctx"]["error"])
    elif first["loc"][-1:] == ("uri",):
        what = f"{first['input']!r} is neither sqlite:///FILE nor http(s)://HOST"
    elif first["type"] == "string_pattern_mismatch":
        what = (
            f"{first['input']!r} may have only lower-case letters, digits and _ (not first), at "
            "most 40"
        )
    else:
        what = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}"
        if first["type"] == "string_type" and isinstance(first["input"], bool | int | float):
            what += ": write it in quotes"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    line = f"{where}: {what}{more}" if where else f"{what}{more}"
    return " ".join(line.split())


def settings_in(annotation: Any) -> Any:
    """The settings class inside an annotation such as `dict[Name, Corpus]`."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return annotation
