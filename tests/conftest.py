"""What tests counted (points killed, inputs tried, writers) stands at the end of the output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "unit"))  # tiny.py, for all folders

COUNTED = "counted"


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say a line at the end of the output, also from another process."""
    return lambda line: request.node.user_properties.append((COUNTED, line))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [entry for report in reports for entry in getattr(report, "user_properties", ())]
    lines = dict.fromkeys(line for name, line in told if name == COUNTED)
    if lines:
        terminalreporter.section(COUNTED)
        for line in lines:
            terminalreporter.write_line(line)
