"""A study file, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mhclite.errors import UserError
from mhclite.study.settings import Study
from mhclite.study.wording import one_line


def parse_study(config: Any, source: str = "study") -> Study:
    """Validate a study given as a dictionary; `UserError` in one line if it is not possible."""
    if not isinstance(config, dict):
        raise UserError(f"{source}: a study is a mapping of keys to values, not {config!r:.60}")
    try:
        return Study.model_validate(config)
    except ValidationError as error:
        raise UserError(f"{source}: {one_line(error, Study)}") from None


class _KeyTwice(Exception):  # noqa: N818 - becomes a UserError in `read_yaml`
    """The message says where and which."""


class _EachKeyOnce(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys without a word; here it is an error, at any level."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name = (key.tag, key.value)
            if name in lines:
                raise _KeyTwice(
                    f"line {key.start_mark.line + 1}: the key {key.value!r} is there already, in "
                    f"line {lines[name]}"
                )
            lines[name] = key.start_mark.line + 1
        return node


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file; `UserError` in one line if there is none, or a key twice."""
    try:
        return _EachKeyOnce(Path(path).read_text(encoding="utf-8-sig")).get_single_data()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text: {error}") from None
    except _KeyTwice as error:
        raise UserError(f"{what} {path} {error}") from None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = " ".join(f"{error.context or ''} {error.problem}".split())
        raise UserError(f"{what} {path}{line} is not YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} is not YAML: {' '.join(str(error).split())}") from None


def load_study(path: str | Path) -> Study:
    """Read and validate a study file (YAML)."""
    return parse_study(read_yaml(path, "study file"), str(path))
