"""The throughput step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import MODEL, TRAINING, connection

from mhclite.config import ThroughputConfig
from mhclite.errors import UserError
from mhclite.measure import throughput
from mhclite.measure.files import Throughput
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


def config(*variants: str, **changes: Any) -> ThroughputConfig:
    connections = {v: connection(v, implementation="fast") for v in variants}
    return replace(ThroughputConfig(MODEL, connections, TRAINING, 2, 1, ()), **changes)


def out_of_memory_for(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[Stepper], bool]
) -> list[tuple[str, ...]]:
    """Have steps of some connections not fit; returns the sets that are timed, as they come."""
    sets: list[tuple[str, ...]] = []
    step, made = Stepper.step, throughput.steppers_of

    def fitting(self: Stepper) -> None:
        if fails(self):
            raise torch.OutOfMemoryError("CUDA out of memory")
        step(self)

    def noted(asked: Any, connections: Any, *more: Any) -> Any:
        sets.append(tuple(connections))
        return made(asked, connections, *more)

    monkeypatch.setattr(Stepper, "step", fitting)
    monkeypatch.setattr(throughput, "steppers_of", noted)
    return sets


def test_what_does_not_fit_is_recorded_and_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = out_of_memory_for(monkeypatch, lambda s: s.connection.variant == "hc")
    result = measure(config("hc", "mhc_lite"))
    # All together, then each by itself.
    assert sets == [("residual", "hc", "mhc_lite"), ("residual", "hc"), ("residual", "mhc_lite")]
    assert list(result.variants) == ["residual", "mhc_lite"]
    (unfit,) = result.did_not_fit
    assert (unfit.implementation, unfit.name, unfit.reason) == ("fast", "hc", "out of memory")
    assert result.counted("hc") == unfit
    assert unfit.extra_parameters == unfit.parameters - result.variants["residual"].parameters > 0
    assert build(Throughput, json.loads(json.dumps(to_json(result)))) == result


def test_without_room_for_the_plain_residual_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out_of_memory_for(monkeypatch, lambda _: True)
    with pytest.raises(UserError, match=r"4 sequences does not fit .* lower training.micro_batch"):
        measure(config("hc"))


def test_weights_that_do_not_fit_together_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    made = throughput.steppers_of

    def fitting(asked: Any, connections: Any, *more: Any) -> Any:
        if len(connections) > 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return made(asked, connections, *more)

    monkeypatch.setattr(throughput, "steppers_of", fitting)
    result = measure(config("hc", "mhc_lite"))
    assert list(result.variants) == ["residual", "hc", "mhc_lite"]
    assert result.did_not_fit == []
    monkeypatch.setattr(throughput, "steppers_of", lambda *_: fitting(None, "too many"))
    with pytest.raises(UserError, match="weights of two variants"):
        measure(config("hc"))
