"""The throughput step."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tiny import MODEL, TRAINING, connection

from mhclite.config import ThroughputConfig
from mhclite.errors import UserError
from mhclite.measure import throughput
from mhclite.measure.measured import Throughput
from mhclite.measure.steps import Stepper, counts, cpu_peak_of
from mhclite.measure.throughput import measure
from mhclite.model import GPT
from mhclite.records import build, to_json


def test_throughput_of_a_tiny_model() -> None:
    connections = {v: connection(v, implementation="fast") for v in ("hc", "mhc_lite")}
    result = measure(ThroughputConfig(MODEL, connections, TRAINING, 2, 1, ("reference", "fast")))
    assert result.implementation == "fast"
    assert {name: list(rows) for name, rows in result.others.items()} == {
        "reference": ["hc", "mhc_lite"]
    }
    assert len(result.others["reference"]["hc"].ratio) == 2
    variants = result.variants
    assert list(variants) == ["residual", "hc", "mhc_lite"]
    residual = variants["residual"]
    assert residual.ratio == [1.0, 1.0]
    assert variants["residual"].extra_parameters == 0
    assert (result.batch_size, result.device, result.precision) == (4, "cpu", "fp32")
    for variant, row in variants.items():
        counts = GPT(MODEL, connection(variant), seed=0).parameter_counts()
        assert row.parameters == counts["total"]
        assert row.extra_parameters == counts["connection"]
        assert len(row.step_seconds) == 2
        assert min(row.step_seconds) > 0
        steps = zip(row.step_seconds, residual.step_seconds)
        assert row.ratio == [own / base for own, base in steps]
        assert row.tokens_per_second.q1 <= row.tokens_per_second.q3
        # Weights and AdamW's two moments stay; gradients come on top.
        assert row.peak_memory_bytes > 4 * 4 * counts["total"]
    flops = [variants[v].flops_per_token for v in ("residual", "hc", "mhc_lite")]
    assert 0 < flops[0] < flops[1] < flops[2]
    assert build(Throughput, json.loads(json.dumps(to_json(result)))) == result


def test_flops_of_the_plain_residual_are_known() -> None:
    """6 per weight of a matrix product and token, and 12 T C a layer for attention; recomputed
    scores in the backward pass may add a part of the latter."""
    model = replace(MODEL, block_size=4)
    C, V = 8, MODEL.vocab_size
    products = 6 * (MODEL.n_layer * 12 * C * C + V * C)
    _, found = counts(model, connection("residual"))
    attention = 12 * 4 * C * MODEL.n_layer
    assert products + attention <= found <= products + 1.5 * attention


def test_peak_memory_of_known_allocations() -> None:
    def work() -> None:
        first = torch.ones(1_000_000)  # 4 MB
        second = first + 1  # 8 MB at once
        del first
        torch.zeros(250_000).add_(second[:250_000])  # 5 MB at once

    assert 8_000_000 <= cpu_peak_of(work) <= 8_100_000


# --- memory -------------------------------------------------------------------------------------


def measure_where(monkeypatch: pytest.MonkeyPatch, variant: str) -> Throughput:
    """With steps of one variant that do not fit in the memory."""
    step = Stepper.step

    def fitting(self: Stepper) -> None:
        if self.connection.variant == variant:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    monkeypatch.setattr(Stepper, "step", fitting)
    connections = {v: connection(v, implementation="fast") for v in ("hc", "mhc_lite")}
    return measure(ThroughputConfig(MODEL, connections, TRAINING, 2, 1, ()))


def test_what_does_not_fit_is_recorded_and_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measure_where(monkeypatch, "hc")
    assert list(result.variants) == ["residual", "mhc_lite"]
    (unfit,) = result.did_not_fit
    assert (unfit.implementation, unfit.name, unfit.reason) == ("fast", "hc", "out of memory")
    assert result.counted("hc") == unfit
    assert unfit.extra_parameters == unfit.parameters - result.variants["residual"].parameters > 0
    assert build(Throughput, json.loads(json.dumps(to_json(result)))) == result


def test_without_room_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"4 sequences does not fit .* lower training.micro_batch"):
        measure_where(monkeypatch, "residual")

    def full(*_: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(throughput, "steppers_of", full)
    with pytest.raises(UserError, match="weights of all variants"):
        measure_where(monkeypatch, "residual")
