"""Arguments that several steps read: JSON, run ids, numbers, paths."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import configuration

from benchmarks.__main__ import BENCHMARKS
from mhclite.arguments import (
    any_path,
    file_path,
    folder_path,
    json_argument,
    positive_float,
    positive_int,
    run_arguments,
)
from mhclite.cli import STEPS
from mhclite.errors import UserError
from mhclite.training.train import run_config


def test_json_is_text_or_a_file_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": [1]}')
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for text in ('{"a": [1]}', f"@{tmp_path / 'a.json'}"):
        assert json_argument(text, "--study") == {"a": [1]}
    for text, said in (
        ("{", "--study is not JSON .*given as @FILE"),
        ("3", "must be a JSON object, not 3"),
        ('{"a": NaN}', "NaN is no number"),
        (f"@{tmp_path / 'missing.json'}", r"cannot read .*missing\.json"),
        (f"@{tmp_path / 'latin.json'}", r"cannot read .*latin\.json"),
    ):
        with pytest.raises(UserError, match=said):
            json_argument(text, "--study")


def test_run_ids_stand_on_the_command_line_or_in_files(tmp_path: Path) -> None:
    (tmp_path / "runs.txt").write_text("b\nc\n")
    assert run_arguments(["a", f"@{tmp_path / 'runs.txt'}"]) == ["a", "b", "c"]
    assert run_arguments(["a", "b", "a"]) == ["a", "b"]


def test_a_run_configuration_says_what_it_lacks() -> None:
    config = configuration()
    assert run_config(json.dumps(config.to_json())) == config
    for key in config.to_json():
        without = {name: value for name, value in config.to_json().items() if name != key}
        with pytest.raises(UserError, match=f"{key} is missing; `python -m mhclite check --runs"):
            run_config(json.dumps(without))
    with pytest.raises(UserError, match=r"training\.steps is 'x', expected int"):
        run_config(json.dumps(config.to_json() | {"training": {"steps": "x"}}))


# --- every argument of every command ------------------------------------------------------------


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from actions_of(inner)
        else:
            yield action


CHECKED = (positive_int, positive_float, any_path, file_path, folder_path)
# Arguments that are text: names, JSON, URIs. What they hold is checked by what reads them.
TEXT = {"config", "settings", "run", "study", "uri", "why", "variants", "sizes", "modes", "arms"}


def test_every_number_and_path_is_checked_where_it_is_parsed() -> None:
    """A new argument cannot be forgotten: int, float and Path alone let too much through, and what
    has no type is text or a choice."""
    benchmarks = {f"benchmarks {name}": step for name, step in BENCHMARKS["benchmarks"].items()}
    for name, step in {**STEPS, **benchmarks}.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(step.module).configure(parser)
        for action in actions_of(parser):
            if action.type is not None:
                assert action.type in CHECKED, f"{name}: {action.dest} has type {action.type}"
            elif name in STEPS and action.nargs != 0 and action.choices is None:
                assert action.dest in TEXT, f"{name}: {action.dest} has no type: is it text?"


def test_what_is_no_number_and_no_path(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    assert positive_int("12") == 12
    assert positive_float("2.5") == 2.5
    refused: list[tuple[Any, str, str]] = [
        *((positive_int, text, "whole number") for text in ("0", "1.5", "", "²", "9" * 5000)),
        *((positive_float, text, "number above 0") for text in ("0", "-1", "nan", "inf")),
        (file_path, str(tmp_path), "is a folder: name a file"),
        (folder_path, str(tmp_path / "a"), "is a file: name a folder"),
    ]
    for kind in (any_path, file_path, folder_path):
        assert kind(str(tmp_path / "new" / "b")) == tmp_path / "new" / "b"
        refused += [(kind, text, "is no path") for text in ("", " ", "a\0b")]
    for parse, text, said in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=said):
            parse(text)
