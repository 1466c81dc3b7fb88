"""For all tests: no process is left behind, and what they counted (points killed, inputs tried,
writers) stands at the end of the output."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from leftovers import MARKER, OF_THIS_PROCESS, stop_leftovers

os.environ[MARKER] = OF_THIS_PROCESS

# Before torch is imported. There are more workers than cores, and OpenMP's threads wait for one
# another in loops: with two a worker the same tests take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton decides when it is imported, and when a kernel is declared, whether to interpret it. It is
# told so for that alone: other tests, and the processes that they start, compute as a user's do.
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    from mhclite.connections.fast import kernels, sinkhorn_kernels  # noqa: F401

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")

sys.path.insert(0, str(Path(__file__).parent / "unit"))  # tiny.py, for all folders

UNIT = Path(__file__).parent / "unit"
# What takes longest, one for each worker of `make test`; the first waits more than it computes.
FIRST = ("test_slurm.py", "test_smoke.py", "test_tuned.py")
COUNTED = "counted"


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_of_the_session() -> Iterator[None]:
    yield
    left = stop_leftovers(whole_session=True)
    assert not left, f"still running after all tests, killed now: {left}"


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_of_the_module() -> Iterator[None]:
    """Set up before a module's own fixtures, so that these have stopped what is theirs."""
    yield
    left = stop_leftovers()
    assert not left, f"still running after the tests of this module, killed now: {left}"


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say a line at the end of the output, also from another process."""
    return lambda line: request.node.user_properties.append((COUNTED, line))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, and of the unit tests, which come last, those with the most slow
    tests: workers take files in this order, and none should be left alone with a long one."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))

    def place(item: pytest.Item) -> tuple[int, bool, int]:
        name, is_unit = item.path.name, item.path.is_relative_to(UNIT)
        first = FIRST.index(name) if name in FIRST else len(FIRST)
        return first, is_unit, -slow[item.path]

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [entry for report in reports for entry in getattr(report, "user_properties", ())]
    lines = dict.fromkeys(line for name, line in told if name == COUNTED)
    if lines:
        terminalreporter.section(COUNTED)
        for line in lines:
            terminalreporter.write_line(line)
