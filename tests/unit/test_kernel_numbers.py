"""Numbers of the fused kernels that small models do not show: wide streams, odd inputs, rounding.

Of single boundaries, in Triton's interpreter, against the same formula in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from interpreted import kernels_are_interpreted  # noqa: F401
from torch import Tensor

from benchmarks.kernels import Case, connection_of
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


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_wide_boundary_in_every_number() -> None:
    """The largest error of all numbers, so that no chunk of columns can hide behind the others."""
    ours_all = by_kernels(given("jpmhc", 768))
    exact_all = by_formula(given("jpmhc", 768, torch.float64))
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
