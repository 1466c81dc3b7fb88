"""What bf16 costs the gradient: the measures, and the bound that the fused kernels keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from interpreted import kernels_are_interpreted  # noqa: F401

from mhclite.bench.__main__ import main
from mhclite.bench.gradients import (
    NARROW,
    TIMES_REFERENCE,
    Row,
    compare,
    gradients,
    made_up,
    measures,
    too_far,
)

CPU = torch.device("cpu")
SMALL = replace(NARROW, n_embd=32, block_size=16)


def test_measures() -> None:
    exact = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).double()  # nothing in common
    found = exact + torch.tensor([[0, 0, 0.1], [0, 0, 0.1]])
    assert measures(exact, found) == pytest.approx({"error": 0.1, "noise": 1, "cosine": 1})
    same = measures(exact[:1].expand(2, -1), exact[:1] + 0.1 * torch.eye(3)[:2])
    assert same == pytest.approx({"error": 0.1, "noise": 0, "cosine": 0})


def test_a_larger_error_of_the_kernels_is_said() -> None:
    arms = {"fast:bf16": 0.02, "fast:fp32": 0.01, "fused:authors": 0.029, "fused:fp32": 0.016}
    row: Row = {arm: {"error": error, "own_error": 0.01} for arm, error in arms.items()}
    assert too_far(row) == "fused:fp32: error 1.6e-02, fast:fp32 1.0e-02"
    del row["fused:fp32"]  # not computed here
    assert too_far(row) == ""


def test_runs_need_their_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["gradients", "--runs", str(tmp_path), "--out", str(tmp_path / "out.json")]
    assert main(command) == 2
    assert "--runs needs --corpus" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 6])
def test_fused_is_as_far_off_as_fast_with_the_same_streams(layers: int) -> None:
    arms = ("fast:bf16", "fast:fp32", "fused:authors", "fused:fp32")
    place = made_up("mixing", "mhc_lite", replace(SMALL, n_layer=layers), 0, 2)
    row = compare(place, CPU, arms)
    assert set(row) == set(arms)
    assert too_far(row) == ""
    # The streams' dtype is most of the error.
    assert row["fused:fp32"]["error"] < row["fused:authors"]["error"]


@pytest.mark.parametrize("variant", ["hc", "mhc", "mhc_lite"])
def test_error_of_bf16_streams_grows_like_the_root_of_depth(variant: str) -> None:
    """Roundings that do not depend on one another; n times as many are sqrt(n) times the error."""
    errors = [
        compare(made_up("mixing", variant, replace(SMALL, n_layer=layers), 0, 2), CPU, [arm])[arm]
        for layers, arm in ((2, "fast:bf16"), (12, "fast:bf16"))
    ]
    assert errors[1]["error"] < TIMES_REFERENCE * 6**0.5 * errors[0]["error"]


def test_an_arm_that_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    assert gradients(made_up("initial", "hc", SMALL, 0, 1), "fused", "fp32", CPU) is None
