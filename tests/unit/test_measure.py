"""The mixing probe against matrices multiplied by hand, and the throughput step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import MODEL, TRAINING, configuration, connection, write_corpus

from mhclite.config import ThroughputConfig
from mhclite.errors import UserError
from mhclite.measure.files import Throughput
from mhclite.measure.probe import QUANTILE_LEVELS, probe, probe_run
from mhclite.measure.throughput import counts, cpu_peak_of, measure
from mhclite.model import GPT
from mhclite.records import build, to_json
from mhclite.training.loop import train

CPU = torch.device("cpu")


def trained_like(variant: str) -> GPT:
    """A model whose weights are far from the start, as if it had been trained."""
    model = GPT(MODEL, connection(variant), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("variant", ["hc", "mhc", "jpmhc"])
def test_probe_is_what_multiplying_by_hand_gives(variant: str) -> None:
    model = trained_like(variant)
    windows = np.random.default_rng(0).integers(0, MODEL.vocab_size, size=(1, 2))
    result = probe(model, windows, CPU)

    x = model.embed(torch.from_numpy(windows))
    products = [np.eye(4), np.eye(4)]  # one a token
    for layer, sublayer in enumerate(model.sublayers):
        with torch.no_grad():
            H_res = sublayer.connection.coefficients(x).H_res[0].double().numpy()
            x = sublayer(x)
        products = [H @ product for H, product in zip(H_res, products, strict=True)]
        rows = np.array([[sum(H[t]) for t in range(4)] for H in H_res])
        columns = np.array([[sum(P[:, s]) for s in range(4)] for P in products])
        forward = [max(sum(abs(P[t])) for t in range(4)) for P in products]
        backward = [max(sum(abs(P[:, s])) for s in range(4)) for P in products]
        single, product = result.single, result.product
        assert single.row_sum[layer] == pytest.approx(np.quantile(rows, QUANTILE_LEVELS))
        assert product.column_sum[layer] == pytest.approx(np.quantile(columns, QUANTILE_LEVELS))
        assert product.gain_forward[layer] == pytest.approx(np.mean(forward))
        assert product.gain_backward[layer] == pytest.approx(np.mean(backward))
        assert product.gain_forward_max[layer] == pytest.approx(max(forward))
        distance = np.mean([np.sqrt(((H - np.eye(4)) ** 2).sum()) for H in H_res])
        assert result.identity_distance[layer] == pytest.approx(distance)
    deviation = max(abs(P.sum(1) - 1).max() for P in products)
    assert result.product.max_deviation == pytest.approx(deviation)
    if variant == "mhc":
        inputs = result.sinkhorn_input
        assert inputs is not None
        assert sum(inputs.counts) == 2 * len(model.sublayers)
        assert inputs.max > 0
    else:
        assert result.sinkhorn_input is None


def test_probe_does_not_depend_on_how_the_windows_are_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = trained_like("mhc_lite")
    windows = np.random.default_rng(0).integers(0, MODEL.vocab_size, size=(5, 6))
    whole = probe(model, windows, CPU)
    monkeypatch.setattr("mhclite.measure.probe.CHUNK", 2)
    parts = probe(model, windows, CPU)
    for name in ("gain_forward", "gain_backward_max"):
        expected = pytest.approx(getattr(whole.product, name), rel=1e-5)
        assert getattr(parts.product, name) == expected
    assert whole.single.max_deviation < 1e-5


def test_probe_of_runs(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    for variant in ("residual", "kromhc"):
        train(configuration(variant), corpus, tmp_path / variant)
    assert "one stream" in str(probe_run(tmp_path / "residual", corpus, 3).skipped)
    result = probe_run(tmp_path / "kromhc", corpus, 3)
    assert result.skipped is None
    assert result.mixing is not None
    assert (result.mixing.tokens, result.mixing.n_sublayers) == (18, 4)
    with (tmp_path / "kromhc" / "weights.pt").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match=r"weights\.pt is missing or not"):
        probe_run(tmp_path / "kromhc", corpus, 3)


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
