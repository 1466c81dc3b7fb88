"""What tests counted (points killed, inputs tried, writers) stands at the end of the output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports Triton. Studies that the tests run say nothing of `fused`, and `auto` does
# not take it on a CPU.
os.environ["TRITON_INTERPRET"] = "1"

sys.path.insert(0, str(Path(__file__).parent / "unit"))  # tiny.py, for all folders

TOLD: list[str] = []


@pytest.fixture
def tell() -> Callable[[str], None]:
    """Say a line at the end of the output."""
    return TOLD.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section("counted")
        for line in TOLD:
            terminalreporter.write_line(line)
