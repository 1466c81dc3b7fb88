"""One run of the smoke study, shared by the tests of this folder."""

from __future__ import annotations

import pytest
from checkout import Checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the smoke study has run to its end."""
    checkout = Checkout(tmp_path_factory.mktemp("smoke"))
    code, output = checkout.snakemake()
    assert code == 0, output
    return checkout
