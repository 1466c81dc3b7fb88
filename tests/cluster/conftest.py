"""One SLURM for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm import LOCK, NotHere, Slurm, install

from mhclite.files import locked


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of two nodes; skips, with the reason, where there can be none."""
    try:
        install()
    except NotHere as reason:
        pytest.skip(f"no SLURM here: {reason}")
    # Its configuration and ports are the machine's: the tests of another checkout wait for these.
    with locked(LOCK):
        cluster = Slurm(tmp_path_factory.mktemp("slurm"))
        try:
            cluster.up()
            yield cluster
        finally:
            cluster.down()
