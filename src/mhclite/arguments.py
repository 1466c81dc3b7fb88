"""Command-line arguments that several steps read, each in one way: JSON, lists of runs, numbers.

Needs the standard library alone: steps that run on a bare machine with torch read these too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.files import no_number


def _text_argument(text: str, what: str) -> str:
    """The argument itself, the content of FILE for `@FILE`, or standard input for `-`."""
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: cannot read {text[1:]}: {error}") from None


def json_argument(text: str, what: str) -> dict[str, Any]:
    """A JSON object given on the command line, as `@FILE`, or `-` for standard input."""
    try:
        value = json.loads(_text_argument(text, what), parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} is not JSON ({error}); a file is given as @FILE") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} must be a JSON object, not {value!r:.60}")
    return value


def run_arguments(arguments: list[str]) -> list[str]:
    """Run ids given one by one or, one per line, in files named `@FILE`."""
    runs = [run for text in arguments for run in _text_argument(text, "--run").split()]
    twice = sorted({run for run in runs if runs.count(run) > 1})
    if twice:
        raise UserError(f"--run: {twice[0]} is given twice")
    return runs


def positive_int(text: str) -> int:
    """For `type=`: a whole number of at least 1."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def positive_float(text: str) -> float:
    """For `type=`: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:  # NaN is refused too
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
