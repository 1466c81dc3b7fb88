"""What bf16 costs the gradient: the measures, and the bound that the fused kernels keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from interpreted import kernels_are_interpreted  # noqa: F401

from mhclite.bench.__main__ import main
from mhclite.bench.gradients import (
    NARROW,
    Row,
    compare,
    gradients,
    made_up,
    measures,
    too_far,
)
from mhclite.bench.parity import TIMES_REFERENCE
from mhclite.model import GPT


def rounded(x, out, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < N), mask=at < N)


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


@pytest.mark.parametrize("layers", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_the_kernels_are_as_near_as_fast_and_nearer_with_fp32_streams(layers: int) -> None:
    place = made_up("initial", "mhc_lite", replace(SMALL, n_layer=layers), 0, 2)
    arms = ("fast:bf16", "fast:fp32", "fused:authors", "fused:fp32")
    row = compare(place, CPU, arms)
    assert set(row) == set(arms)
    assert too_far(row) == ""
    assert row["fused:fp32"]["error"] < row["fused:authors"]["error"]


def test_what_bf16_makes_of_h_res_grows_with_depth_and_fp32_streams_do_not_have_it() -> None:
    """At the start rows of mHC-lite's H_res sum to 0.998 in bf16, in every sub-layer alike."""
    connection = next(
        GPT(SMALL, made_up("initial", "mhc_lite", SMALL, 0, 1).connection, 0).connections()
    )
    H_res = connection.coefficients(torch.randn(1, 1, 4, SMALL.n_embd))[2]
    assert H_res.sum(-1).sub(1).abs().max() < 1e-6
    assert H_res.bfloat16().double().sum(-1).sub(1).abs().max() > 1e-3
    few, many = (
        compare(
            made_up("initial", "mhc_lite", replace(SMALL, n_layer=layers), 0, 2),
            CPU,
            ("reference:authors", "reference:fp32"),
        )
        for layers in (3, 12)
    )
    growth = {arm: many[arm]["error"] / few[arm]["error"] for arm in many}
    assert growth["reference:authors"] > 2 > TIMES_REFERENCE > growth["reference:fp32"]


def test_interpreter_rounds_as_torch() -> None:
    x = torch.cat([torch.randn(1000), torch.tensor([1.00390625, 1.01171875, 3.4e38, torch.inf])])
    x = torch.cat([x, -x, torch.tensor([torch.nan, 1e-40, 0.0, 0.0])])
    out = torch.empty(len(x), dtype=torch.bfloat16)
    triton.jit(rounded)[(1,)](x, out, len(x), 2048)
    torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_an_arm_that_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    assert gradients(made_up("initial", "hc", SMALL, 0, 1), "fused", "fp32", CPU) is None
