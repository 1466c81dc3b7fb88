"""What pydantic finds wrong with a study, as one line for its author."""

from __future__ import annotations

import difflib
from typing import Any

from pydantic import BaseModel, ValidationError

from mhclite.errors import bounded

SHOWN = 3  # problems that are named


def one_line(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problems of a validation, as `where: what`, and how many more there are.

    Args:
        root: the settings class that was validated, for the keys that are known at each place.
    """
    problems = error.errors()
    more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
    line = "; ".join(_problem(problem, root) for problem in problems[:SHOWN]) + more
    return " ".join(line.split())


def _problem(problem: Any, root: type[BaseModel]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        owner: Any = root
        for part in problem["loc"][:-1]:
            field = owner.model_fields.get(part) if hasattr(owner, "model_fields") else None
            owner = settings_in(field.annotation) if field is not None else owner
        known = list(getattr(owner, "model_fields", {}))
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
        what = "unknown key" + (f"; did you mean {close[0]!r}?" if close else "")
        if not close and known:
            what += f"; known are {', '.join(known)}"
    elif problem["type"] == "missing":
        what = "this key is missing"
    elif problem["type"] == "value_error":
        what = str(problem["ctx"]["error"])
    elif problem["type"] == "string_pattern_mismatch":
        what = f"{problem['input']!r:.60} is not of the form {problem['ctx']['pattern']}"
    else:
        what = f"{problem['msg'][0].lower()}{problem['msg'][1:]}, not {problem['input']!r:.60}"
        if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float):
            what += ": write it in quotes"
    return bounded(f"{where}: {what}" if where else what, head=250, tail=200)


def settings_in(annotation: Any) -> Any:
    """The settings class inside an annotation such as `dict[Name, Corpus]`."""
    for part in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return annotation
