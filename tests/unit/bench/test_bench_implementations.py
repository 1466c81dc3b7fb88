"""The benchmark of the implementations, on a model that takes no time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mhclite.bench import implementations, timing
from mhclite.bench.__main__ import main
from mhclite.bench.kernels import kernel_rows
from mhclite.bench.parity import Case, connection_of
from mhclite.config import ModelConfig
from mhclite.connections.fast import fused
from mhclite.measure.steps import Stepper
from mhclite.model import GPT

TINY = ModelConfig("laptop", 32, n_layer=1, n_head=2, n_embd=16, block_size=8, learning_rate=1e-3)


@pytest.mark.slow
def test_it_measures_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(implementations.SIZES, "laptop", TINY)
    limits = {"bytes_per_second": 1e10, "flops_per_second": 1e11}
    monkeypatch.setattr(implementations, "limits", lambda device, dtype: limits)
    out = tmp_path / "bench.json"
    options = ["--variants", "mhc_lite", "--arms", "reference:eager", "fast:eager"]
    options += ["--rounds", "3", "--batch-size", "2", "--out", str(out)]
    assert main(["implementations", *options]) == 0
    found = json.loads(out.read_text())
    assert found["rounds"] == 3
    arms = [(row["variant"], row["implementation"]) for row in found["rows"]]
    assert arms == [("residual", ""), ("mhc_lite", "reference"), ("mhc_lite", "fast")]
    for row in found["rows"]:
        assert len(row["step_seconds"]) == 3
        if row["variant"] == "residual":
            assert row["ratio"] == [1.0] * 3
        else:
            assert row["floor"] > 1
    assert found["skipped"] == []
    assert {row["variant"] for row in found["kernels"]} == {"mhc_lite"}
    assert "step / residual" in capsys.readouterr().out

    assert main(["implementations", *options, "--minutes", "1e-9"]) == 0
    late = json.loads(out.read_text())
    assert late["rows"] == []
    assert late["skipped"] == ["laptop mhc_lite"]
    assert "not measured, for lack of time: laptop mhc_lite" in capsys.readouterr().out


def test_a_variant_by_its_formula_alone_has_no_kernels() -> None:
    assert kernel_rows("gated", 16, 16, torch.device("cpu"), 1e10) == []


@pytest.mark.parametrize("stream_dtype", ["authors", "fp32", "bf16"])
@pytest.mark.parametrize(
    ("variant", "how"),
    [("residual", "fast"), ("mhc_lite", "reference"), ("mhc_lite", "fast"), ("mhc_lite", "fused")],
)
def test_the_floor_counts_the_dtypes_of_a_forward_pass(
    variant: str, how: str, stream_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    n = 1 if variant == "residual" else 4
    connection = connection_of(Case(variant, n, stream_dtype=stream_dtype))
    model = GPT(TINY, replace(connection, implementation=how), seed=0)
    streams, branches = set(), set()
    last_write = fused.write

    def write(x: Tensor, written: fused.Write) -> Tensor:
        streams.add(x.dtype)
        return last_write(x, written)

    monkeypatch.setattr(fused, "write", write)
    for sublayer in model.sublayers:
        sublayer.register_forward_hook(lambda _m, _given, out: streams.add(out.dtype))
        sublayer.body.register_forward_hook(lambda _m, _given, out: branches.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(torch.zeros(2, TINY.block_size + 1, dtype=torch.int64))
    counted = implementations.stream_bytes(how, stream_dtype, bf16=True)
    assert [dtype.itemsize for dtype in streams] == [counted]
    assert branches == {torch.bfloat16}


def test_the_floor_of_bytes() -> None:
    """In one dtype 25 numbers against 8; of bf16, less the residual's in float32."""
    C, sublayers = TINY.n_embd, 2 * TINY.n_layer
    one_dtype = implementations.extra_traffic(TINY, 4, 4, 4, 4)
    assert one_dtype == sublayers * C * 4 * (25 - 8)
    mixed = implementations.extra_traffic(TINY, 4, 2, 4, 2)
    assert mixed == sublayers * C * (2 * 25 - (5 * 4 + 4 * 2))


class Event:
    """A GPU's event, of a GPU whose launches take 2 ms and whose writes take 1 ms."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.now

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


def test_a_launch_is_timed_by_events_with_the_cache_written_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = torch.zeros(2, dtype=torch.int32)
    zero = Tensor.zero_

    def zero_(tensor: Tensor) -> Tensor:
        Event.now += 1
        return zero(tensor)

    def work() -> None:
        Event.now += 2

    monkeypatch.setattr(torch, "empty", lambda *_, **__: written)
    monkeypatch.setattr(Tensor, "zero_", zero_)
    monkeypatch.setattr("torch.cuda.Event", Event)
    monkeypatch.setattr("torch.cuda.synchronize", lambda _: None)
    Event.now = 0.0
    found = timing.timed(work, torch.device("cuda"), launches=4)
    assert found == (0.002, 0.002, 0.002, 4)
    assert Event.now == 4 * 3 + 2 * timing.WARM_UP


def test_an_arm_that_does_not_fit_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Stepper.step

    def fitting(self: Stepper) -> None:
        if self.connection.implementation == "reference" and self.connection.n_streams > 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")
        step(self)

    monkeypatch.setattr(Stepper, "step", fitting)
    wanted = implementations.Request(arms=["reference:eager", "fast:eager"], rounds=1)
    limits = {"bytes_per_second": 1e10, "flops_per_second": 1e11}
    cpu = torch.device("cpu")
    rows = implementations.group_rows(TINY, "mhc_lite", 2, wanted, cpu, limits)
    failed = {row["implementation"]: row.get("failed") for row in rows}
    assert failed == {"": None, "fast": None, "reference": "out of memory"}
