"""Our implementation against golden vectors of the authors' code, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mhclite.authors.conformance import TOLERANCE, check_file
from mhclite.cli import main

GOLDEN = Path(__file__).parents[2] / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))
SHIPPED = GOLDEN / "connection_mhc_v4_n4.npz"
HEAD = GOLDEN / "head_mhc_v4_n4.npz"
CONNECTION = GOLDEN / "connection_mhc_lite_n2.npz"
GATED = GOLDEN / "connection_gated_n4.npz"
TRAJECTORY = GOLDEN / "trajectory_residual.npz"


def contents(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees(path: Path) -> None:
    kind, errors = check_file(path)
    assert path.name.startswith(kind)
    assert max(errors.values()) <= TOLERANCE[kind]
    assert {path.name.split("_")[0] for path in FILES} == set(TOLERANCE)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (GATED, "grad.w_up"),
        (CONNECTION, "output.H_res"),
        (TRAJECTORY, "losses"),
        (HEAD, "output.h"),
    ],
)
def test_disagrees(
    source: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = contents(source)
    arrays[name] = arrays[name] * (1 + 1e-5)
    changed = tmp_path / "changed.npz"
    np.savez(changed, **arrays)
    _, errors = check_file(changed)
    assert max(errors, key=errors.__getitem__) == name
    # A good file before and after does not hide it.
    assert main(["conformance", str(CONNECTION), str(changed), str(CONNECTION)]) == 1
    out = capsys.readouterr().out
    assert out.count("\nagrees within") == 2
    assert name in out[out.index(str(changed)) : out.index("DISAGREES")]


@pytest.mark.parametrize("variant", ["hc", "mhc", "mhc_lite", "mhc_v4"])
def test_a_transposed_mixing_matrix_disagrees(variant: str, tmp_path: Path) -> None:
    """But of two streams and of KromHC, where it is symmetric."""
    arrays = contents(GOLDEN / f"connection_{variant}_n4.npz")
    arrays["output.H_res"] = arrays["output.H_res"].swapaxes(-1, -2)
    np.savez(tmp_path / "theirs.npz", **arrays)
    assert main(["conformance", str(tmp_path / "theirs.npz")]) == 1


def restated(source: Path, path: Path, **changes: Any) -> None:
    """A golden file with other values in its `meta`."""
    arrays = contents(source)
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | changes))
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (SHIPPED, {"norm_eps": 1e-2}),
        (SHIPPED, {"sinkhorn_iterations": 2}),
        (HEAD, {"hc_eps": 1e-4}),
    ],
)
def test_what_a_file_states_is_used(
    source: Path, changes: dict[str, float], tmp_path: Path
) -> None:
    restated(source, tmp_path / "other.npz", **changes)
    assert main(["conformance", str(tmp_path / "other.npz")]) == 1


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (None, {}),
        (HEAD, {"variant": "mhc_heavy"}),
        (GATED, {"rank": 7}),
        (TRAJECTORY, {"n_embd": 10**9}),
    ],
)
def test_bad_file_is_one_line(
    source: Path | None, changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing, or of another `meta`; tests/fuzz damages files at random."""
    path = tmp_path / "bad.npz"
    if source is not None:
        restated(source, path, **changes)
    assert main(["conformance", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(path) in line
