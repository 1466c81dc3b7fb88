"""A study file, read and checked; resolved.json, in which it is spelled out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mhclite.config import RunConfig
from mhclite.errors import UserError
from mhclite.records import read_record
from mhclite.study.sections import RESULTS, LearningRates
from mhclite.study.settings import Study
from mhclite.study.text_files import matching
from mhclite.study.wording import one_line

SCHEMA = 2  # of resolved.json


def parse_study(config: Any, source: str = "study") -> Study:
    """Validate a study given as a dictionary, and find the local files that it names.

    A file of learning rates that it names is read, relative to the working folder.

    Raises:
        UserError: in one line, what is not possible.
    """
    if not isinstance(config, dict):
        raise UserError(f"{source}: a study is a mapping of keys to values, not {config!r:.60}")
    rates = config.get("learning_rates")
    if isinstance(rates, str):
        config = {**config, "learning_rates": read_learning_rates(rates, source)}
    elif not (rates is None or isinstance(rates, dict | LearningRates)):
        raise UserError(f"{source}: learning_rates: the path of a file, not {rates!r:.60}")
    try:
        study = Study.model_validate(config)
    except ValidationError as error:
        raise UserError(f"{source}: {one_line(error, Study)}") from None
    for name, corpus in study.corpora.items():
        try:
            if corpus.files is not None:
                matching(corpus.files)
        except UserError as problem:
            raise UserError(f"{source}: corpora.{name}: {problem}") from None
    return study


class _Refused(Exception):  # noqa: N818 - becomes a UserError in `read_yaml`
    """The message says where and what."""


# A number as anybody reads it. YAML 1.1 also takes 010 for 8, 1:30 for 90, 1_000, 0x10 and 0b1.
DECIMAL = re.compile(
    r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", re.IGNORECASE
)
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Careful(yaml.SafeLoader):
    """Refuses what PyYAML takes without a word: of two equal keys the last, other numbers."""

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if node.tag in NUMBERS and not DECIMAL.fullmatch(node.value):
            raise _Refused(
                f"line {node.start_mark.line + 1}: YAML reads {node.value!r} as "
                f"{self.construct_object(node)}: write a plain decimal number, or a text in quotes"
            )
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise _Refused(f"line {line}: the key {key.value!r} is there already")
                seen.add(key.value)
        return node


def read_yaml(path: str | Path, what: str) -> Any:
    """The content of a YAML file.

    `UserError` in one line if there is none, a key twice, or a number that is read otherwise than
    it looks.
    """
    try:
        return _Careful(Path(path).read_text(encoding="utf-8-sig")).get_single_data()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 text: {error}") from None
    except _Refused as error:
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


def load_planned(path: str | Path) -> tuple[Study, str]:
    """A study file, also one whose learning rates have not been found yet, and a line that says so.

    Without them every run has its model's rate: enough to count and to check the rest.
    """
    content = read_yaml(path, "study file")
    rates = content.get("learning_rates") if isinstance(content, dict) else None
    if not isinstance(rates, str) or os.path.isfile(rates):
        return parse_study(content, str(path)), ""
    del content["learning_rates"]
    return parse_study(content, str(path)), (
        f"learning_rates: there is no file {rates!r:.200} yet: the study starts when a sweep has "
        "made it (docs/experiments.md)"
    )


def read_learning_rates(path: str, source: str) -> LearningRates:
    """A file of learning rates (YAML); `UserError` in one line if it is none.

    Args:
        source: the study that names it.
    """
    if not os.path.isfile(path):
        raise UserError(
            f"{source}: learning_rates: there is no file {path!r:.200}: a study with a `sweep` "
            "makes it (docs/experiments.md), or write it by hand (docs/configuration.md)"
        )
    content = read_yaml(path, "learning rates")
    if not isinstance(content, dict):
        raise UserError(f"learning rates {path}: a mapping with `arms`, not {content!r:.60}")
    try:
        return LearningRates.model_validate({**content, "file": path})
    except ValidationError as error:
        raise UserError(f"learning rates {path}: {one_line(error, LearningRates)}") from None


@dataclass(frozen=True)
class Resolved:
    """resolved.json: a study as `collect` takes it, with its runs, corpora and claims."""

    schema: int
    study: dict[str, Any]  # `Study.model_dump`
    runs: dict[str, RunConfig]
    corpora: dict[str, str]  # name -> folder of the prepared corpus
    claims: list[dict[str, Any]]  # config/claims.yaml


def resolve(study: Study, claims: Sequence[BaseModel]) -> Resolved:
    """A study and the claims that it is asked about."""
    return Resolved(
        SCHEMA,
        study.model_dump(mode="json"),
        study.runs(),
        {name: str(RESULTS / study.corpus_folder(name)) for name in study.corpora},
        [claim.model_dump(mode="json") for claim in claims],
    )


def read_resolved(path: Path) -> Resolved:
    """Read resolved.json; `UserError` if it is missing, damaged or of another version."""
    return read_record(Resolved, path, "the resolved study", SCHEMA)
