"""One run of the smoke study, shared by the tests of this folder."""

from __future__ import annotations

import pytest
import yaml
from checkout import VARIANTS, Checkout


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout in which the smoke study, of `VARIANTS`, has run to its end."""
    checkout = Checkout(tmp_path_factory.mktemp("smoke"), own_source=True)
    study = checkout.folder / "config/smoke.yaml"
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) | {"variants": VARIANTS}))
    code, output = checkout.snakemake()
    assert code == 0, output
    (checkout.folder / "terminal.txt").write_text(output)
    return checkout
