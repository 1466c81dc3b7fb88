"""The Sinkhorn-Knopp experiment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mhclite.cli import main
from mhclite.connections.matrices import sinkhorn_knopp
from mhclite.files import read_json
from mhclite.measure.sinkhorn import measure

SETTINGS = {
    "iterations": [1, 20, 80],
    "logit_ranges": [1.0, 30.0],
    "depths": [3, 6],
    "matrices": 50,
}


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [(10, [2.0, 0.5, 0.5]), (20, [1.82, 0.59, 0.59]), (40, [1.0, 1.0, 1.0])],
)
def test_the_papers_example(iterations: int, expected: list[float]) -> None:
    """mHC-lite's 3 x 3 matrix: columns, then rows, in plain numpy, and ours on its transpose."""
    a = 1e-13
    M = np.array([[0.5, a, a], [0.5, a, a], [a, 1, 1]])
    ours = sinkhorn_knopp(torch.tensor(M).T.log(), iterations).T
    for _ in range(iterations):
        M = M / M.sum(0)
        M = M / M.sum(1, keepdims=True)
    np.testing.assert_allclose(ours, M, rtol=1e-9, atol=1e-20)
    assert M.sum(0).round(2).tolist() == expected


@pytest.mark.slow
def test_error_falls_with_iterations_and_grows_with_range() -> None:
    rows = measure(SETTINGS)
    found = {(r["logit_range"], r["precision"], r["domain"], r["iterations"]): r for r in rows}
    assert len(found) == len(rows) == 2 * 2 * 2 * 3
    easy = [found[1.0, "fp32", "log", k]["single"]["max"] for k in (1, 20, 80)]
    hard = [found[30.0, "fp32", "log", k]["single"]["max"] for k in (1, 20, 80)]
    assert easy[0] > 1e-3 > 1e-5 > easy[1]
    assert hard[0] >= hard[1] >= hard[2]
    assert hard[1] > 0.1 > easy[0]
    # What the products lose cannot be less than rounding, nor does it shrink with depth.
    product = found[30.0, "fp32", "log", 20]["product"]
    assert product.keys() == {"3", "6"}
    assert found[1.0, "bf16", "log", 80]["single"]["max"] > 1e-3  # bf16 rounds


def test_step_writes_the_file_and_refuses_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sinkhorn.json"
    assert main(["sinkhorn", "--settings", json.dumps(SETTINGS), "--out", str(out)]) == 0
    assert read_json(out)["settings"] == SETTINGS
    assert main(["sinkhorn", "--settings", "{}", "--out", str(out)]) == 2
    assert "iterations" in capsys.readouterr().err
