"""Our implementation against golden vectors of the authors' code, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mhclite.authors.conformance import TOLERANCE, check_file, options_of
from mhclite.cli import main
from mhclite.connections import connection_class

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


def test_there_are_files_of_every_kind() -> None:
    assert {path.name.split("_")[0] for path in FILES} == set(TOLERANCE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_agrees(path: Path) -> None:
    kind, errors = check_file(path)
    assert path.name.startswith(kind)
    assert errors
    assert max(errors.values()) <= TOLERANCE[kind]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (GATED, "output.H_post"),
        (GATED, "grad.w_up"),
        (CONNECTION, "output.H_res"),
        (CONNECTION, "grad.b_res"),
        (TRAJECTORY, "losses"),
        (HEAD, "output.h"),
        (HEAD, "grad.scale"),
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
    assert main(["conformance", "--tolerance", "1e-3", str(changed)]) == 0


# Whose H_res is not symmetric, as that of two streams and of KromHC always is.
TOLD = [GOLDEN / f"connection_{variant}_n4.npz" for variant in ("hc", "mhc", "mhc_lite", "mhc_v4")]


@pytest.mark.parametrize("source", TOLD, ids=lambda path: path.stem)
def test_a_transposed_mixing_matrix_is_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays, path = contents(source), tmp_path / "theirs.npz"
    named = arrays | {"output.H_res": arrays["output.H_res"].swapaxes(-1, -2)}
    np.savez(path, **named)
    assert main(["conformance", str(path)]) == 1
    assert "output.H_res is the transpose of the one that is applied" in capsys.readouterr().out
    other = arrays | {"output.h": arrays["output.h"] * (1 + 1e-5)}
    np.savez(path, **other)
    assert main(["conformance", str(path)]) == 1
    assert "transpose of" not in capsys.readouterr().out

    # A module that applies the transpose, whatever it calls H_res.
    applied = arrays | of_a_module_that_transposes(arrays)
    for H_res in (applied["output.H_res"], applied["output.H_res"].swapaxes(-1, -2)):
        np.savez(path, **(applied | {"output.H_res": H_res}))
        assert main(["conformance", str(path)]) == 1
        assert "applies the transpose of H_res" in capsys.readouterr().out


def of_a_module_that_transposes(arrays: dict[str, Any]) -> dict[str, Any]:
    """Outputs and gradients of the file's connection, were H_res applied the other way round."""
    meta = json.loads(str(arrays["meta"]))
    made = connection_class(meta["variant"])(
        meta["n_streams"], meta["n_embd"], 0, **options_of(meta)
    )
    made.double().load_state_dict(
        {
            name[6:]: torch.tensor(array).reshape(made.get_parameter(name[6:]).shape)
            for name, array in arrays.items()
            if name.startswith("param.")
        }
    )
    x, y = (torch.tensor(arrays[f"input.{name}"], requires_grad=True) for name in "xy")
    H_pre, H_post, H_res = made.coefficients(x)
    h = (H_pre.unsqueeze(-1) * x).sum(-2)
    out = H_res.mT @ x + H_post.unsqueeze(-1) * y.unsqueeze(-2)
    weights = (torch.tensor(arrays[f"input.grad_{name}"]) for name in ("h", "out"))
    sum((a * b).sum() for a, b in zip((h, out), weights, strict=True)).backward()  # type: ignore
    found = {"output.h": h, "output.out": out, "output.H_res": H_res}
    found |= {f"grad.{name}": p.grad for name, p in made.named_parameters()}
    found |= {"grad.x": x.grad, "grad.y": y.grad}
    return {
        name: value.detach().numpy().reshape(arrays[name].shape) for name, value in found.items()
    }


def test_not_a_number_disagrees(tmp_path: Path) -> None:
    arrays = contents(CONNECTION)
    arrays["input.y"] = np.full_like(arrays["input.y"], np.nan)
    np.savez(tmp_path / "nan.npz", **arrays)
    assert main(["conformance", str(tmp_path / "nan.npz")]) == 1


def restated(source: Path, path: Path, **changes: Any) -> None:
    """A golden file with other values in its `meta`."""
    arrays = contents(source)
    arrays["meta"] = np.array(json.dumps(json.loads(str(arrays["meta"])) | changes))
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        (SHIPPED, {"norm_eps": 1e-2}),
        (SHIPPED, {"hc_eps": 1e-4}),
        (SHIPPED, {"sinkhorn_iterations": 2}),
        (HEAD, {"norm_eps": 1e-2}),
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
        (HEAD, {"norm_eps": -1e-6}),
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
