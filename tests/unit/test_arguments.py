"""Arguments that several steps read: JSON in three ways, run ids, numbers."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
from tiny import configuration

from mhclite.arguments import (
    json_argument,
    positive_float,
    positive_int,
    run_arguments,
)
from mhclite.cli import main
from mhclite.errors import UserError
from mhclite.training.train import run_config


def test_json_is_given_as_text_as_a_file_or_on_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text('{"a": [1]}')
    monkeypatch.setattr("sys.stdin", io.StringIO('{"a": [1]}'))
    for text in ('{"a": [1]}', f"@{tmp_path / 'a.json'}", "-"):
        assert json_argument(text, "--study") == {"a": [1]}


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--study is not JSON .*given as @FILE"):
        json_argument("{", "--study")
    with pytest.raises(UserError, match="--study is not JSON"):
        json_argument("[" * 200_000, "--study")
    with pytest.raises(UserError, match="must be a JSON object, not 3"):
        json_argument("3", "--study")
    with pytest.raises(UserError, match=r"--study is not JSON \(NaN is no number\)"):
        json_argument('{"a": NaN}', "--study")
    with pytest.raises(UserError, match=r"cannot read .*missing\.json"):
        json_argument(f"@{tmp_path / 'missing.json'}", "--study")
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(UserError, match=r"cannot read .*latin\.json"):
        json_argument(f"@{tmp_path / 'latin.json'}", "--study")


def test_run_ids_stand_on_the_command_line_or_in_files(tmp_path: Path) -> None:
    (tmp_path / "runs.txt").write_text("b\nc\n")
    assert run_arguments(["a", f"@{tmp_path / 'runs.txt'}"]) == ["a", "b", "c"]
    with pytest.raises(UserError, match="a is given twice"):
        run_arguments(["a", "b", "a"])


def test_a_run_configuration_says_what_it_lacks() -> None:
    config = configuration()
    assert run_config(json.dumps(config.to_json())) == config
    for key in config.to_json():
        without = {name: value for name, value in config.to_json().items() if name != key}
        with pytest.raises(UserError, match=f"{key} is missing; `python -m mhclite check --runs"):
            run_config(json.dumps(without))
    with pytest.raises(UserError, match=r"training\.steps is 'x', expected int"):
        run_config(json.dumps(config.to_json() | {"training": {"steps": "x"}}))


@pytest.mark.parametrize("text", ["{}", "[1]", "{", "@missing.json"])
def test_every_step_with_a_configuration_refuses_a_bad_one_in_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--config", text]
    for command in (
        ["train", "--corpus", str(tmp_path), *out],
        ["throughput", "--threads", "1", *out],
        ["exchange", "import", str(tmp_path / "ckpt.pt"), "--corpus", str(tmp_path), *out],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err.startswith("error: --config")


def test_numbers() -> None:
    assert positive_int("12") == 12
    assert positive_float("2.5") == 2.5
    for text in ("0", "-1", "1.5", "", "two", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"not a whole number of at least 1"):
            positive_int(text)
    for text in ("0", "-1", "nan", "inf", "two"):
        with pytest.raises(argparse.ArgumentTypeError, match="not a number above 0"):
            positive_float(text)
