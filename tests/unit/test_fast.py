"""The fast implementation against the reference: values, gradients, precision, compilation."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from tiny import SINKHORN, VARIANTS, connection, n_of, one_graph, perturbed, sinkhorn_errors
from torch import Tensor

from mhclite.config import ModelConfig
from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.dynamic import DynamicConnection
from mhclite.connections.fast.projected import Projected
from mhclite.connections.matrices import sinkhorn_knopp
from mhclite.connections.registry import has_streams
from mhclite.model import GPT

OPTIONS = {v: dict(connection(v).options) for v in VARIANTS if v != "residual"}
MODEL = ModelConfig("tiny", 50, n_layer=2, n_head=2, n_embd=32, block_size=12, learning_rate=1e-3)
# Rounding of another order of summation, as a share of each tensor's largest number.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4}


def made(variant: str, n: int, C: int, dtype: torch.dtype, **other: str) -> Connection:
    """A connection all of whose parameters matter."""
    options = OPTIONS[variant] | other
    return perturbed(connection_class(variant)(n, C, n - 1, **options).to(dtype))


def outcome(connection: Connection, fast: bool, n: int, C: int, dtype: torch.dtype) -> list[Tensor]:
    """Streams after the sub-layer, and all gradients."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    # A mean, which a LayerNorm must take out.
    x, w = (normal(2, 7, n, C) + 0.5).requires_grad_(), (normal(C, C) / C**0.5).requires_grad_()
    connection.zero_grad()
    connect = connection.fast_forward if fast else connection
    out = connect(x, lambda h: torch.tanh(h @ w))
    out.backward(normal(2, 7, n, C))
    wanted = (x, w, *(p for p in connection.parameters() if p.numel()))  # one stream needs not all
    return [out.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in wanted)]


def errors(ours: list[Tensor], theirs: list[Tensor]) -> list[float]:
    # A scale's gradient is a sum of terms of either sign, beside which rounding is large.
    floor = 1e-2 * max(b.abs().max().item() for b in theirs)
    return [
        ((a - b).abs().max() / b.abs().max().clamp_min(floor)).item()
        for a, b in zip(ours, theirs, strict=True)
    ]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("variant", "other"),
    [
        *((variant, {}) for variant in OPTIONS),
        ("mhc_lite", {"permutations": "cyclic"}),
        ("oshc", {"stochastic_axis": "columns"}),
    ],
)
def test_same_values_and_gradients(variant: str, other: dict[str, str], dtype: torch.dtype) -> None:
    """With one stream, two, four, and as many as the variant can have, up to 16."""
    possible = [n for n in range(1, 17) if has_streams(variant, n)]
    for n in {*possible[:2], n_of(variant), possible[-1]}:
        connection = made(variant, n, 24, dtype, **other)
        found = errors(*(outcome(connection, fast, n, 24, dtype) for fast in (True, False)))
        assert max(found) < TOLERANCE[dtype], n


@pytest.mark.parametrize("variant", OPTIONS)
@pytest.mark.parametrize("stream_dtype", ["authors", "fp32", "bf16"])
def test_under_autocast_it_is_as_near_to_float64_as_the_reference(
    variant: str, stream_dtype: str
) -> None:
    """bf16: within 5 % of the gradient of a whole model, or 1.5 times the reference's own error."""
    tokens = torch.randint(50, (2, 13), generator=torch.Generator().manual_seed(0))
    found = []
    for how, rounded in (("reference", False), ("reference", True), ("fast", True)):
        settings = connection(variant, stream_dtype=stream_dtype, implementation=how)
        model = perturbed(GPT(MODEL, settings, seed=0), 0.05)
        if not rounded:
            model.double()
        with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
            loss = model.loss(tokens)
        loss.backward()
        gradients = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(gradients))
    exact, *others = found
    theirs, ours = (((other - exact).norm() / exact.norm()).item() for other in others)
    assert ours < max(0.05, 1.5 * theirs)


class RowsOnTheSimplex(DynamicConnection):
    """The example of docs/adding-a-variant.md: nothing but a formula."""

    def __init__(self) -> None:
        super().__init__(4, 24, 1, torch.full((4, 4), -8.0).fill_diagonal_(0.0))

    def mixing_matrix(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits, dim=-1)


class ByItself(RowsOnTheSimplex):
    """A variant without a fast implementation."""

    projection = Projected.projection


@pytest.mark.parametrize("make", [RowsOnTheSimplex, ByItself])
def test_a_new_variant_needs_its_formula_alone(make: type[RowsOnTheSimplex]) -> None:
    connection = perturbed(make().double())
    assert connection.has_projection == (make is RowsOnTheSimplex)
    found = errors(*(outcome(connection, fast, 4, 24, torch.float64) for fast in (True, False)))
    assert max(found) < TOLERANCE[torch.float64]


def test_streams_that_are_views_of_one_embedding() -> None:
    """The first sub-layer gets one embedding n times: its gradient is the sum."""
    connection = made("mhc", 4, 8, torch.float64)
    one = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    gradients = []
    for connect in (connection, connection.fast_forward):
        x = one.unsqueeze(-2).expand(-1, -1, 4, -1)
        (gradient,) = torch.autograd.grad(connect(x, torch.tanh).square().sum(), one)
        gradients.append(gradient)
    assert errors(gradients[:1], gradients[1:])[0] < 1e-11


SINKHORN_IN_CPP = (
    (lambda x, k: torch.ops.mhclite.sinkhorn(x, k, True), sinkhorn_knopp),
    (lambda x, k: torch.ops.mhclite.sinkhorn_v4(x, k, 1e-6, True), SINKHORN["mhc_v4"][1]),
)


@pytest.mark.parametrize("functions", [*SINKHORN.values(), *SINKHORN_IN_CPP])
@pytest.mark.parametrize("spread", [1.0, 79.0, 200.0, 1e4])
def test_sinkhorn_whatever_the_logits(spread: float, functions: tuple[Any, Any]) -> None:
    """In float32; the gradient too, as far as the matrix is not degenerate."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.rand(50, 4, 4, generator=generator)
    weight = torch.randn(50, 4, 4, generator=generator)
    # float32 logits of size 1e4 are themselves known to 1e-3 only.
    tolerance = 1e-5 if spread < 100 else 1e-3 if spread < 1000 else 1e-2
    errors = sinkhorn_errors(functions, logits, weight)
    assert errors[0] < tolerance
    assert errors[1] < 10 * tolerance


@pytest.mark.parametrize("shape", [(1, 4), (3, 2), (512, 4)])
def test_sinkhorn_in_cpp_leaves_what_is_given(shape: tuple[int, int]) -> None:
    """And is that in torch, for one matrix, for more than one thread has, and of another size."""
    logits, dM = torch.randn(2, *shape, shape[1], generator=torch.Generator().manual_seed(0))
    for (in_cpp, _), (in_torch, _) in zip(SINKHORN_IN_CPP, SINKHORN.values(), strict=True):
        results = []
        for function in (in_torch, in_cpp):
            given, weight = logits.clone().requires_grad_(), dM.clone()
            M = function(given, 20)
            (gradient,) = torch.autograd.grad(M, given, weight)
            assert torch.equal(weight, dM)
            assert torch.equal(given, logits)
            results.append((M.detach(), gradient))
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("variant", OPTIONS)
def test_is_one_graph_for_the_compiler(variant: str) -> None:
    """Traced without a break; what is computed is the same."""
    one_graph(MODEL, connection(variant, implementation="fast"))


WITHOUT_KERNELS = """
import sys
import mhclite.connections.fast.launch
assert "torch" not in sys.modules  # read where there is none
import torch
from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.model import GPT
for variant, options in {options}.items():
    settings = ConnectionConfig(variant, 4, implementation="auto", options=options)
    model = GPT({model}, settings, seed=0)
    model.loss(torch.zeros(1, 13, dtype=torch.int64)).backward()
print(*(name for name in sys.modules if name.startswith("mhclite.connections.")))
"""


def test_a_cpu_needs_no_kernels() -> None:
    """What a run on a CPU imports: its key digests no more than that."""
    script = WITHOUT_KERNELS.format(options=OPTIONS, model=MODEL)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    common = {"base", "dynamic", "fast", "frozen", "head", "matrices"}
    fast = {"availability", "functions", "launch", "projected"}
    fast |= {"sinkhorn_native", "sinkhorn_operator", "sinkhorn_v4"}
    names = common | {f"fast.{name}" for name in fast} | OPTIONS.keys()
    expected = {f"mhclite.connections.{name}" for name in names}
    assert set(done.stdout.split()) == expected
