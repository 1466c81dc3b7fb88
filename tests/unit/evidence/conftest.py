"""One synthetic study for all tests of the evidence; a test that changes it builds its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from builder import build_results

from mhclite.evidence.results import Results, load_results


@pytest.fixture(scope="session")
def results_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """results/synthetic of the builder: 1 corpus x 2 depths x 7 variants x 3 seeds, one diverged.

    Shared by all tests: read only.
    """
    return build_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def results(results_folder: Path) -> Results:
    """The shared study, loaded."""
    return load_results(results_folder)
