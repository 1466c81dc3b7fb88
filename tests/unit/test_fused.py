"""The fused implementation: its kernels in Triton's interpreter, and where it does not run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import kernels_are_interpreted  # noqa: F401
from tiny import configuration, connection, write_corpus
from torch import Tensor

from mhclite.authors.conformance import FUSED_TOLERANCE, check_file
from mhclite.bench.parity import Case, cases, error_of, gradient
from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections import availability, fused
from mhclite.connections.availability import Choice
from mhclite.connections.mhc_v4 import shipped_sinkhorn
from mhclite.connections.mixing import sinkhorn_knopp
from mhclite.connections.sinkhorn import sinkhorn
from mhclite.connections.sinkhorn_v4 import sinkhorn_v4
from mhclite.errors import UserError
from mhclite.model import GPT
from mhclite.training.loop import train

CPU = torch.device("cpu")
VARIANTS = ["identity", "hc", "mhc", "mhc_lite", "kromhc", "jpmhc", "mhc_v4", "ohc"]
GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = ModelConfig("tiny", 9, n_layer=1, n_head=1, n_embd=16, block_size=4, learning_rate=1e-3)


# All of `cases` are for a GPU (`make gpu-check`): here what differs, the interpreter being slow.
CASES = [
    case
    for case in cases(VARIANTS)
    if (case.n_embd == 64 or case.variant in ("hc", "jpmhc"))
    and (case.precision == "fp32" or case.stream_dtype != "bf16")
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_near_to_float64_as_the_reference(case: Case) -> None:
    error = error_of(case, "fused", CPU)
    assert error.own <= error.allowed(case.precision), error


@pytest.mark.slow
def test_the_same_bits_every_time() -> None:
    for variant in ("hc", "identity"):  # the latter without H_res
        first, again = (gradient(Case(variant), "fused", CPU) for _ in range(2))
        assert torch.equal(first.gradient, again.gradient)


@pytest.mark.slow
def test_authors_training_run() -> None:
    """One of them: each takes a minute here. The command does the others."""
    _, errors = check_file(GOLDEN / "trajectory_mhc.npz", "fused")
    assert max(errors.values()) <= FUSED_TOLERANCE["trajectory"]


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(GOLDEN.glob("connection_*.npz")) if "gated" not in p.stem],
    ids=lambda p: p.stem,
)
def test_authors_connections(path: Path) -> None:
    _, errors = check_file(path, "fused")
    assert {"output.out", "output.H_res", "grad.y"} <= errors.keys()
    assert max(errors.values()) <= FUSED_TOLERANCE["connection"]


def test_a_variant_without_kernels_is_one_line() -> None:
    with pytest.raises(UserError, match="gated has no fused implementation"):
        check_file(GOLDEN / "connection_gated_n4.npz", "fused")


def shipped(logits: Tensor, iterations: int) -> Tensor:
    return shipped_sinkhorn(logits, iterations, 1e-6)


def shipped_fast(logits: Tensor, iterations: int) -> Tensor:
    return sinkhorn_v4(logits, iterations, 1e-6)


@pytest.mark.parametrize("functions", [(sinkhorn, sinkhorn_knopp), (shipped_fast, shipped)])
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("spread", [1.0, 30.0, 200.0])
def test_sinkhorn_kernel(
    spread: float, n: int, functions: tuple[Callable[[Tensor, int], Tensor], ...]
) -> None:
    """float32; logits too far apart for the linear domain included."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.rand(70, n, n, generator=generator)  # more than one program
    weight = torch.randn(70, n, n, generator=generator)
    results = []
    for function, dtype in zip(functions, (torch.float32, torch.float64), strict=True):
        given = logits.to(dtype, copy=True).requires_grad_()
        M = function(given, 20)
        (M * weight).sum().backward()
        assert given.grad is not None
        results.append((M.detach().double(), given.grad.double()))
    (ours, our_gradient), (exact, exact_gradient) = results
    tolerance = 1e-5 * max(1.0, spread / 30)
    assert (ours - exact).abs().max() < tolerance
    assert (our_gradient - exact_gradient).abs().max() < 10 * tolerance


@pytest.mark.parametrize("mixed", [True, False])
def test_operators_keep_torchs_rules(mixed: bool) -> None:
    """Fake tensors, autograd registration, no aliases: what torch.compile relies on."""
    operators = torch.ops.mhclite
    connection = next(GPT(
        SIZE, ConnectionConfig("hc", 2), seed=0).connections())  # fmt: skip
    read = fused.reading(connection, torch.ones(16), torch.float32)
    reading = [t.detach() if isinstance(t, torch.Tensor) else t for t in read[:-1]]
    x, y = torch.randn(5, 2, 16, requires_grad=True), torch.randn(5, 16, requires_grad=True)
    H_res, H_post = torch.randn(5, 2, 2) if mixed else None, torch.randn(5, 2)
    a, stats = torch.randn(5, 16), torch.rand(5, 4) + 1
    da, db = torch.randn(5, 16), torch.randn(5, 16)
    differentiable = ("test_schema", "test_autograd_registration", "test_faketensor")
    for operator, arguments in (
        (operators.boundary, (x, y, H_res, H_post, *reading, torch.float32)),
        (operators.boundary, (x, None, None, None, *reading, torch.float32)),
        (operators.write, (x, y, H_res, H_post)),
        (operators.sinkhorn, (torch.randn(5, 2, 2, requires_grad=True), 3)),
        (operators.sinkhorn_v4, (torch.randn(5, 2, 2, requires_grad=True), 3, 1e-6)),
    ):
        torch.library.opcheck(operator.default, arguments, test_utils=differentiable)
    x, y = x.detach(), y.detach()
    tensors, constants = reading[:5], reading[5:]
    for operator, arguments in (
        (
            operators.boundary_backward,
            (x, y, H_res, H_post, *tensors, a, stats, x, da, db, *constants),
        ),
        (
            operators.boundary_backward,
            (x, None, None, None, *tensors, a, stats, x, da, db, *constants),
        ),
        (operators.write_backward, (x, y, H_res, H_post, x)),
        (operators.sinkhorn_backward, (torch.randn(5, 2, 2), torch.randn(5, 2, 2), 3)),
        (operators.sinkhorn_v4_backward, (torch.randn(5, 2, 2), torch.randn(5, 2, 2), 3, 1e-6)),
    ):
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(operator.default, arguments, test_utils=checks)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["identity", "hc", "mhc", "jpmhc", "mhc_v4"])
def test_is_one_graph_for_the_compiler(variant: str) -> None:
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    size = replace(SIZE, vocab_size=50, block_size=8)
    model = GPT(size, connection(variant, implementation="fused"), seed=0)
    model.loss(tokens).backward()
    eager = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.compile(model.loss, backend="aot_eager", fullgraph=True)(tokens).backward()
    compiled = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


# --- where it does not run ----------------------------------------------------------------------


def made(n_embd: int = 16, **settings: Any) -> GPT:
    chosen = connection("hc", **{"implementation": "fused", **settings})
    return GPT(replace(SIZE, n_embd=n_embd), chosen, seed=0)


def test_what_stands_in_the_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made().choice(autocast=False) == ("fused", None)
    assert made(implementation="auto").choice(autocast=False) == ("fast", None)
    assert made(implementation="reference").choice(autocast=False) == ("reference", None)
    for settings, reason in (
        ({"n_streams": 8}, "n_streams = 8, and its kernels hold 2 or 4"),
        ({"n_embd": 40}, "n_embd = 40 is not a multiple of 16"),
        ({"stream_dtype": "bf16"}, "streams of bf16 need precision bf16"),
    ):
        choice = made(**settings).choice(autocast=False)
        assert choice.implementation == "fast"
        assert reason in str(choice.obstacle)
    assert "float64" in str(made().double().choice(autocast=False).obstacle)
    gated = GPT(SIZE, connection("gated", implementation="fused"), seed=0)
    assert gated.choice(autocast=False) == Choice(
        "fast", "the variant has no projection for its kernels"
    )
    monkeypatch.delenv("TRITON_INTERPRET")
    assert made().choice(autocast=False) == ("fast", "its kernels need a GPU, and this is a cpu")
    monkeypatch.setattr(availability, "INSTALLED", False)
    assert made().choice(autocast=False) == ("fast", "Triton is not installed")


def test_a_fallback_computes_the_same_and_training_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    config = replace(configuration("hc"), connection=connection("hc", implementation="fused"))
    with caplog.at_level(logging.WARNING):
        train(config, write_corpus(tmp_path / "corpus"), tmp_path / "run")
    assert "fast instead of fused: its kernels need a GPU" in caplog.text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["implementation"] == "fast"
