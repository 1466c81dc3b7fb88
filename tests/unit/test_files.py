"""Small files: what is no JSON is refused, whoever wrote it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mhclite.errors import UserError
from mhclite.files import read_json, read_jsonl, write_json
from mhclite.records import read_record


@dataclass(frozen=True)
class Number:
    """A record of one number."""

    schema: int
    value: float


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_what_is_no_number_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"schema": 1, "value": {text}}}')
    with pytest.raises(UserError, match=r"a\.json .*; make it again"):
        read_record(Number, path, "the number", 1, "make it again")


def test_nan_in_lines_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"loss": 1}\n{"loss": NaN}\n')
    with pytest.raises(UserError, match=r"a\.jsonl line 2 is not JSON: NaN is no number"):
        read_jsonl(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_no_file_that_we_call_json_holds_nan(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "a.json") == {}


@pytest.mark.parametrize("value", ["x" * 10**6, "a\nb", "\x1b[31m", "\udcff", "a\u2028b\r\n c"])
def test_the_line_of_an_error_is_one_visible_and_bounded(value: str) -> None:
    error = UserError(f"{value} is no number: correct it")
    for line in (str(error), str(pickle.loads(pickle.dumps(error)))):
        assert line.endswith("is no number: correct it")
        assert line.isprintable()
        assert len(line) < 1500
    assert str(UserError("a  b – é")) == "a  b – é"
