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
from tiny import REGISTRY, configuration, connection, write_corpus
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kernels import Case, cases, connection_of, error_of, gradient, has_kernels
from mhclite.authors.conformance import FUSED_TOLERANCE, check_file, read_golden
from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.fast import availability, fused
from mhclite.connections.fast.availability import Choice
from mhclite.connections.fast.sinkhorn_operator import sinkhorn
from mhclite.connections.fast.sinkhorn_v4 import sinkhorn_v4
from mhclite.connections.matrices import sinkhorn_knopp
from mhclite.connections.mhc_v4 import shipped_sinkhorn
from mhclite.errors import UserError
from mhclite.model import GPT
from mhclite.training.loop import train

CPU = torch.device("cpu")
VARIANTS = [variant for variant in REGISTRY if has_kernels(variant)]
GOLDEN = Path(__file__).parents[1] / "golden"
SIZE = ModelConfig("tiny", 9, n_layer=1, n_head=1, n_embd=16, block_size=4, learning_rate=1e-3)


# All of `cases` are for a GPU (`make gpu-check`). The interpreter is slow: here each variant once
# in float32, and one for each further path of the kernels.
FURTHER = {
    ("hc", 2, 64, "fp32", "authors"),
    ("hc", 4, 96, "fp32", "authors"),
    ("mhc", 4, 64, "bf16", "authors"),
    ("mhc_lite", 4, 64, "bf16", "fp32"),
}
CASES = [
    case
    for case in cases(VARIANTS)
    if (case.n_streams, case.n_embd, case.precision) == (4, 64, "fp32")
    or (case.variant, case.n_streams, case.n_embd, case.precision, case.stream_dtype) in FURTHER
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_near_to_float64_as_the_reference(case: Case) -> None:
    error = error_of(case, "fused", CPU)
    assert error.own <= error.allowed(case.precision), error


@pytest.mark.slow
def test_the_same_bits_every_time() -> None:
    first, again = (gradient(Case("hc"), "fused", CPU) for _ in range(2))
    assert torch.equal(first.gradient, again.gradient)


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in sorted(GOLDEN.glob("connection_*.npz"))
        if read_golden(p)[0]["variant"] in VARIANTS
    ],
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


# --- parameters of all sub-layers, prepared together ---------------------------------------------


def drawn(variant: str, seed: int, **options: Any) -> Connection:
    """A connection all of whose weights matter."""
    options = {**connection_of(Case(variant)).options, **options}
    found = connection_class(variant)(4, 16, 0, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return found


def with_gradients(
    connections: list[Connection], together: bool
) -> tuple[list[fused.Reading], Any]:
    """What is read, and the gradients of all parameters from a sum in which every number counts."""
    gains = [torch.ones(16) for _ in connections]
    if together:
        reads = fused.readings(connections, gains, torch.float32)
    else:
        reads = [fused.reading(c, g, torch.float32) for c, g in zip(connections, gains)]
    parts = [tensor for read in reads for tensor in (read.weight, read.bias)]
    generator = torch.Generator().manual_seed(0)
    total = sum((part * torch.randn(part.shape, generator=generator)).sum() for part in parts)
    assert isinstance(total, Tensor)
    parameters = [p for c in connections for p in c.parameters()]
    return reads, torch.autograd.grad(total, parameters, allow_unused=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_sub_layer_gets_what_it_gets_alone(variant: str) -> None:
    connections = [drawn(variant, seed) for seed in range(3)]
    together, gradients = with_gradients(connections, together=True)
    alone, their_gradients = with_gradients(connections, together=False)
    for ours, theirs in zip(together, alone, strict=True):
        assert ours[5:] == theirs[5:]
        torch.testing.assert_close(ours[:5], theirs[:5])
    assert not torch.equal(together[0].weight, together[1].weight)
    assert sum(gradient is not None for gradient in gradients) >= 3
    torch.testing.assert_close(gradients, their_gradients)


def test_sub_layers_of_several_kinds_keep_their_places() -> None:
    connections = [
        drawn("mhc_v4", 0),
        drawn("hc", 1),
        drawn("mhc_v4", 2, norm_eps=0.5),
        drawn("jpmhc", 3),
        drawn("mhc_v4", 4),
        drawn("hc", 5),
    ]
    together, gradients = with_gradients(connections, together=True)
    alone, their_gradients = with_gradients(connections, together=False)
    assert [read.eps for read in together] == [1e-6, 0.0, 0.5, 1e-5, 1e-6, 0.0]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours[5:] == theirs[5:]
        torch.testing.assert_close(ours[:5], theirs[:5])
    torch.testing.assert_close(gradients, their_gradients)


class Scaled(connection_class("mhc_lite")):  # type: ignore[misc]
    """A variant of somebody else's whose formula has a number and a tensor of each sub-layer's."""

    def __init__(self, factor: Any, shift: float) -> None:
        super().__init__(4, 16, 0, **connection_of(Case("mhc_lite")).options)
        self.factor = factor
        self.register_buffer("shift", torch.tensor(shift))

    def projection(self) -> Any:
        weight, bias, norm, eps = super().projection()
        factor = self.factor if isinstance(self.factor, float) else self.factor["number"]
        return weight * factor, bias + self.shift, norm, eps


def test_what_differs_between_sub_layers_besides_parameters() -> None:
    torch.manual_seed(0)
    kinds = [(1.0, 0.0), (1.0, 2.0), (3.0, 0.0), ({"number": 4.0}, 0.0), ({"number": 5.0}, 0.0)]
    connections = [Scaled(*kind) for kind in kinds]
    with torch.no_grad():
        for connection in connections:
            for parameter in connection.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    together, gradients = with_gradients(connections, together=True)
    alone, their_gradients = with_gradients(connections, together=False)
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[:5], theirs[:5])
    torch.testing.assert_close(gradients, their_gradients)


class Operations(TorchDispatchMode):
    """How many operations of torch compute something, and are not a view alone."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_sub_layers_take_no_more_operations(variant: str) -> None:
    """Forward and backward: a small operation takes a GPU as long as a larger one."""

    def operations(sublayers: int) -> int:
        connections = [drawn(variant, seed) for seed in range(sublayers)]
        with Operations() as counted:
            reads = fused.readings(connections, [torch.ones(16)] * sublayers, torch.bfloat16)
        forward = counted.count
        parts = [t for r in reads for t in (r.weight, r.bias) if t.requires_grad]
        parameters = [p for c in connections for p in c.parameters()]
        gradients = [torch.ones_like(part) for part in parts]
        with Operations() as counted:
            torch.autograd.grad(parts, parameters, gradients, allow_unused=True)
        return forward + counted.count

    # One that is no parameter is filled for each.
    offset, _ = drawn(variant, 0).read_offset_and_scale()
    per_sublayer = int(offset is not None and not offset.requires_grad)
    assert operations(5) - operations(2) == 3 * per_sublayer


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["identity", "mhc"])
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
