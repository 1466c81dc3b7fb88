"""Numbers of the fused kernels that small models do not show: wide streams, odd inputs, rounding.

Of single boundaries, in Triton's interpreter, against the same formula in float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from interpreted import kernels_are_interpreted  # noqa: F401
from numpy.typing import NDArray
from tiny import SINKHORN, sinkhorn_errors
from torch import Tensor
from triton.runtime import interpreter

from benchmarks.kernels import Case, connection_of, error_of
from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.fast import functions, fused

TOKENS = 37  # two programs, the second not full


def connection_like(variant: str, C: int) -> Connection:
    return connection_class(variant)(4, C, 0, **connection_of(Case(variant)).options)


class Given(NamedTuple):
    """What a boundary computes with, and the gradients of what it returns."""

    connection: Connection
    gain: Tensor
    x: Tensor
    written: fused.Write
    gradients: tuple[Tensor, ...]  # of streams, a and b

    def leaves(self) -> list[Tensor]:
        """What gets a gradient."""
        tensors = [self.x, *self.written, self.gain, *self.connection.parameters()]
        return [t for t in tensors if t is not None]


def given(variant: str, C: int, dtype: torch.dtype = torch.float32) -> Given:
    """Drawn; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(dtype).requires_grad_()

    connection = connection_like(variant, C)
    with torch.no_grad():
        for parameter in connection.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    gain, x, y = normal(C), normal(TOKENS, 4, C), normal(TOKENS, C)
    H_res = None if variant == "identity" else normal(TOKENS, 4, 4, scale=0.5)
    written = fused.Write(y, H_res, normal(TOKENS, 4))
    columns = fused.reading(connection, gain, torch.float32).columns
    gradients = normal(TOKENS, 4, C), normal(TOKENS, columns), normal(TOKENS, C)
    return Given(connection.to(dtype), gain, x, written, gradients)


def by_formula(it: Given) -> list[Tensor]:
    """Streams, a and b of a boundary, and all gradients."""
    y, H_res, H_post = it.written
    x = it.x if H_res is None else torch.einsum("nts,nsc->ntc", H_res, it.x)
    x = x + H_post.unsqueeze(2) * y.unsqueeze(1)
    a, _ = functions.project(x, it.connection.projection())
    H_pre, _, _ = it.connection.from_projection(a)
    h = torch.einsum("ns,nsc->nc", H_pre, x)
    b = torch.nn.functional.layer_norm(h, h.shape[-1:], it.gain, eps=functions.LAYER_NORM_EPS)
    a = a.transpose(1, 2).flatten(1) if a.dim() == 3 else a
    return with_gradients(it, x, a, b)


def by_kernels(it: Given) -> list[Tensor]:
    """The same, as the fused implementation computes it."""
    read = fused.reading(it.connection, it.gain, it.x.dtype)
    x, a, b, _ = fused.boundary(it.x, it.written, read, it.x.dtype)
    return with_gradients(it, x, a[:, : read.columns], b)


def with_gradients(it: Given, x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
    gradients = torch.autograd.grad((x, a, b), it.leaves(), it.gradients, allow_unused=True)
    return [t.detach() for t in (x, a, b, *gradients) if t is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "C"),
    [("jpmhc", 768), pytest.param("mhc", 1024, marks=pytest.mark.exhaustive)],
)
def test_paper_widths_in_every_number(variant: str, C: int) -> None:
    """The largest error of all numbers, so that no chunk of columns can hide behind the others."""
    ours_all = by_kernels(given(variant, C))
    exact_all = by_formula(given(variant, C, torch.float64))
    for ours, exact in zip(ours_all, exact_all, strict=True):
        assert ours.shape == exact.shape
        assert (ours - exact).abs().max() <= 2e-5 * exact.abs().max()


def test_inputs_of_any_strides() -> None:
    """A compiler may hand on tensors in another order of memory than they were made in."""

    def permuted(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    it = given("hc", 32)
    read = fused.reading(it.connection, it.gain, torch.float32)
    tensors = [permuted(t) if isinstance(t, Tensor) and t.dim() else t for t in read]
    odd_read, odd_written = fused.Reading(*tensors), fused.Write(*map(permuted, it.written))
    with torch.no_grad():
        plain = fused.boundary(it.x, it.written, read, torch.float32)
        odd = fused.boundary(permuted(it.x), odd_written, odd_read, torch.float32)
        dout, _, db = it.gradients
        gradients = (dout, torch.randn_like(plain.a), db)
        back = fused.boundary_backward(it.x, it.written, read, plain.a, plain.stats, *gradients)
        odd_back = fused.boundary_backward(
            permuted(it.x), odd_written, odd_read, permuted(plain.a), permuted(plain.stats),
            *map(permuted, gradients),
        )  # fmt: skip
        last, odd_last = fused.write(it.x, it.written), fused.write(permuted(it.x), odd_written)
    for one, other in zip((*plain, *back, last), (*odd, *odd_back, odd_last), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_streams_that_hardly_vary() -> None:
    """JPmHC's LayerNorm is over all streams: its variance, a difference, must not be negative.

    At C = 768 one over the number of columns is no number of bf16.
    """
    it = given("jpmhc", 768)
    generator = torch.Generator().manual_seed(1)
    x = (100 + 0.003 * torch.randn(TOKENS, 4, 768, generator=generator)).bfloat16()
    read = fused.reading(it.connection, it.gain, torch.bfloat16)
    _, a, b, stats = fused.boundary(x, None, read, torch.bfloat16)
    back = fused.boundary_backward(x, None, read, a, stats, x, torch.ones_like(a), b)
    assert all(torch.isfinite(t).all() for t in (a, b, back.x, back.z))
    mean = a[:, read.sum_column] / (4 * 768)  # times 1 / standard deviation, at most 1 / sqrt(eps)
    assert (mean / 100 <= 1.001 / read.eps**0.5).all()


# --- what a GPU computes otherwise than the interpreter -------------------------------------------


def tf32(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded to the ten bits of mantissa that a tensor core's TF32 has."""
    bits = numbers.astype(np.float32).view(np.uint32)
    rounded: NDArray[np.float32] = ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)
    return rounded


@pytest.mark.slow
def test_products_as_three_tf32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tf32x3` leaves out the product of the small parts. Within the tolerance of a session."""
    products = []

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        big = [tf32(m.data) for m in (a, b)]
        small = [tf32(m.data - part) for m, part in zip((a, b), big, strict=True)]
        product = small[0] @ big[1] + big[0] @ small[1] + big[0] @ big[1]
        products.append(product)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)
    case = Case("hc")
    error = error_of(case, "fused", torch.device("cpu"))
    assert products
    assert error.own <= error.allowed("fp32"), error


@pytest.mark.parametrize("spread", [30.0, 200.0])
def test_sinkhorn_with_the_exponential_of_a_gpu(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """exp(x) there is 2 to the power of x log2(e), rounded, and wrong by up to 2^-22; so is log."""
    generator = np.random.default_rng(0)
    calls = []

    def wrong(value: NDArray[np.float32]) -> NDArray[np.float32]:
        calls.append(value.size)
        error = generator.choice([-(2.0**-22), 2.0**-22], value.shape)
        result: NDArray[np.float32] = (value * (1 + error)).astype(np.float32)
        return result

    def exp(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return wrong(np.exp2(x * np.float32(np.log2(np.e))))

    def log(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return wrong(np.log2(x)) * np.float32(np.log(2))

    for name, function in (("create_exp", exp), ("create_log", log)):
        monkeypatch.setattr(
            interpreter.InterpreterBuilder, name, lambda s, x, f=function: s.unary_op(x, f)
        )
    draw = torch.Generator().manual_seed(0)
    logits = spread * torch.rand(70, 4, 4, generator=draw)
    weight = torch.randn(70, 4, 4, generator=draw)
    errors = sinkhorn_errors(SINKHORN["mhc"], logits, weight)
    assert calls
    tolerance = 1e-5 * max(1.0, spread / 30)  # as of the kernel in float32
    assert errors[0] < tolerance
    assert errors[1] < 10 * tolerance
