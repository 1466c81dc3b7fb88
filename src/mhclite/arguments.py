"""Command-line arguments that several steps read, each in one way: JSON, lists of runs, numbers.

Needs the standard library alone: steps that run on a bare machine with torch read these too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mhclite.errors import UserError
from mhclite.files import no_number


def _text_argument(text: str, what: str) -> str:
    """The argument itself, or the content of FILE for `@FILE`."""
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what}: cannot read {text[1:]}: {error}") from None


def json_argument(text: str, what: str) -> dict[str, Any]:
    """A JSON object given on the command line, or as `@FILE`."""
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
    return list(dict.fromkeys(runs))


def positive_int(text: str) -> int:
    """For `type=`: a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number of at least 1")
    return int(text)


def positive_float(text: str) -> float:
    """For `type=`: a finite number above 0."""
    value = float(text)  # argparse says what is none
    if not 0 < value < math.inf:  # NaN is refused too
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def required(
    parser: argparse.ArgumentParser, **options: tuple[Callable[[str], Any] | None, str]
) -> None:
    """Add options that must be given: name=(type, help); None for text."""
    for name, (kind, help_) in options.items():
        more: dict[str, Any] = {} if kind is None else {"type": kind}
        parser.add_argument(f"--{name}", required=True, help=help_, **more)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """`--runs` and `--run`, for `run_arguments`."""
    required(parser, runs=(folder_path, "folder of the run folders"))
    parser.add_argument(
        "--run", required=True, nargs="+", metavar="ID", help="runs, or @FILE with one per line"
    )


# Paths are checked for what nobody could read or write. Whether what is read is there, and whole,
# its reader says, who knows what makes it.


def any_path(text: str) -> Path:
    """For `type=`: a path, to a file or a folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path: is a variable of the shell empty?")
    return Path(text)


def file_path(text: str) -> Path:
    """For `type=`: a file to read or to write."""
    found = any_path(text)
    if os.path.isdir(found):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder: name a file")
    return found


def folder_path(text: str) -> Path:
    """For `type=`: a folder to read or to make."""
    found = any_path(text)
    if os.path.exists(found) and not os.path.isdir(found):
        raise argparse.ArgumentTypeError(f"{text!r} is a file: name a folder")
    return found
