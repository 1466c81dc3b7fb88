"""Every variant's module in somebody else's program: odd numbers, shapes, values and wrappers."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreted import kernels_are_interpreted  # noqa: F401
from tiny import VARIANTS, n_of, perturbed
from tiny import connection as connection_config
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.fast.functions import project
from mhclite.connections.fast.projected import projected
from mhclite.connections.public import SubLayer, connect, make

C = 16
SEVERAL = [v for v in VARIANTS if v != "residual"]
PROJECTED = [v for v in SEVERAL if connection_class(v)(4, C, 0).has_projection]
# One variant of each way that `project` computes a norm; what differs otherwise is its own file.
NORMS = {
    (found.norm, found.eps > 0): variant
    for variant in reversed(PROJECTED)
    for found in [projected(connection_class(variant)(4, C, 0)).projection()]
}
TWO = ("reference", "fast")


def made(variant: str, n: int | None = None) -> Connection:
    torch.manual_seed(0)
    return perturbed(make(variant, n_of(variant) if n is None else n, C))


def normal(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WEIGHT = normal(C, C, seed=3) / 4


def body(h: Tensor) -> Tensor:
    return torch.tanh(h @ WEIGHT)


Outcome = tuple[Tensor, Tensor, list[Tensor]]


def outcome(
    connection: Connection, x: Tensor, implementation: str, *, autocast: bool = False
) -> Outcome:
    """Streams after one sub-layer, and the gradients of those before and of all parameters."""
    x = x.detach().requires_grad_()
    part = SubLayer(connection, torch.ones(C), body)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = connect(x, [part], implementation)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    wanted = [x, *connection.parameters()]
    dx, *rest = torch.autograd.grad((out.float() * weights).sum(), wanted, materialize_grads=True)
    return out.detach(), dx, rest


def finite(outcome: Outcome) -> bool:
    out, dx, rest = outcome
    return all(bool(tensor.isfinite().all()) for tensor in (out, dx, *rest))


# --- numbers ------------------------------------------------------------------------------------

# Of a token: all streams 0 (padding), lengths around the norm's smallest (1e-12), one stream 0.
SIZES = (1.0, 0.0, 1e-30, 1e-16, 1e-14, 6e-14, 1e-12, 1.0)


def odd_tokens() -> Tensor:
    x = normal(1, len(SIZES), 4, C) * torch.tensor(SIZES).view(1, -1, 1, 1)
    x[0, -1, 2] = 0
    return x


@pytest.mark.parametrize(
    ("variant", "implementation"),
    [*((v, "fast") for v in SEVERAL), *((v, "fused") for v in NORMS.values())],
)
def test_tokens_without_length_have_the_references_gradient(
    variant: str, implementation: str
) -> None:
    """Token by token: their gradients are 1e12 times those of others."""
    connection, x = made(variant), odd_tokens()
    for autocast in (False, True) if variant in NORMS.values() else (False,):
        expected = outcome(connection, x, "reference", autocast=autocast)
        found = outcome(connection, x, implementation, autocast=autocast)
        assert finite(expected)
        assert finite(found)
        for ours, theirs in zip(found[:2], expected[:2], strict=True):
            largest = theirs.abs().amax((0, 2, 3)).clamp_min(1e-30)
            error = (ours - theirs).abs().amax((0, 2, 3)) / largest
            assert error.max() < (0.05 if autocast else 1e-4), error


@pytest.mark.parametrize("variant", NORMS.values())
def test_tokens_whose_squares_overflow_are_finite_where_the_references_are(variant: str) -> None:
    connection, x = made(variant), normal(1, 7, 4, C)
    x[0, 1:] *= torch.tensor([1e12, 1e16, 1e18, 1e19, 3e19, 1e20]).view(-1, 1, 1)
    with np.errstate(all="ignore"):  # of the interpreter
        theirs, *others = (outcome(connection, x, i)[:2] for i in (*TWO, "fused"))
    for ours in others:
        for expected, found in zip(theirs, ours, strict=True):
            assert expected.isfinite().sum() >= 5 * 4 * C
            assert bool(found.isfinite()[expected.isfinite()].all())


def test_nearly_equal_numbers_leave_no_negative_variance() -> None:
    """A mean square less the square of a mean: rounding may leave less than nothing."""
    connection, size = made("jpmhc"), torch.logspace(0, 4, 64)
    x = size.view(1, -1, 1, 1) + normal(1, 64, 4, C) * size.view(1, -1, 1, 1) * 1e-4
    assert finite(outcome(connection, x, "fast"))
    assert finite(outcome(connection, x, "fast", autocast=True))


# --- shapes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_in_nothing_out(variant: str) -> None:
    connection = made(variant)
    for implementation in (*TWO, *["fused"] * (variant in PROJECTED)):
        for B, T in ((0, 3), (2, 0), (0, 0)):
            x = normal(B, T, n_of(variant), C)
            out, dx, rest = outcome(connection, x, implementation)
            assert out.shape == dx.shape == x.shape
            assert not any(gradient.any() for gradient in rest)


def test_any_number_of_tokens_fits_the_kernels() -> None:
    """Blocks hold 32 tokens here."""
    for T in (1, 31, 33, 65):
        fast, fused = (outcome(made("mhc_lite"), normal(1, T, 4, C), i) for i in ("fast", "fused"))
        torch.testing.assert_close(fused, fast, rtol=1e-3, atol=1e-4)


def applied(connection: Connection, x: Tensor, branch: Any, how: str) -> Tensor:
    if how == "forward":
        return connection(x, branch)  # type: ignore[no-any-return]
    if how == "fast_forward":
        return connection.fast_forward(x, branch)
    return connect(x, [SubLayer(connection, torch.ones(C), branch)], how)


WAYS = ("forward", "fast_forward", *TWO)


@pytest.mark.parametrize("variant", VARIANTS)
def test_another_shape_is_refused_and_both_are_said(variant: str) -> None:
    connection, n = made(variant), n_of(variant)
    other_n = 2 if n == 1 else 1
    for how in (*WAYS, *["fused"] * (variant == "mhc_lite")):
        for shape in ((2, 3, n * C), (2, 3, other_n, C), (2, 3, C, n), (2, 3, n, 1), ()):
            with pytest.raises(ValueError, match="expected") as refused:
                applied(connection, normal(*shape), body, how)
            assert str(shape) in str(refused.value)
            assert f"{n}, {C})" in str(refused.value)
        for branch, came in (
            (lambda h: h.transpose(0, 1), (3, 2, C)), (lambda h: h[..., :1], (2, 3, 1)),
            (lambda h: h.flatten(0, 1), (6, C)), (lambda h: (h, h), "tuple"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="branch") as refused:
                applied(connection, normal(2, 3, n, C), branch, how)
            assert str(came) in str(refused.value)
            assert str((2, 3, C)) in str(refused.value)


HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("variant", SEVERAL)
def test_half_precision_is_refused_or_keeps_its_coefficients_in_float32(variant: str) -> None:
    """The formula is of one dtype, float32 or float64; `fast` may have half streams and weights."""
    x, dtypes = normal(1, 2, 4, C), (torch.float32, torch.float64, *HALVES)
    exact = made(variant)(x, torch.tanh)
    for own in dtypes:
        for of_streams in dtypes:
            connection, given = made(variant).to(own), x.to(of_streams)
            if own == of_streams and own not in HALVES:
                assert connection(given, torch.tanh).dtype == own
                continue
            with pytest.raises(ValueError, match=f"{of_streams}.*{own}"):
                connection(given, torch.tanh)
            if variant not in PROJECTED:
                with pytest.raises(ValueError, match=f"{of_streams}.*{own}"):
                    connection.fast_forward(given, torch.tanh)
            elif torch.float64 not in (own, of_streams):
                found = connection.fast_forward(given, torch.tanh)
                assert found.dtype == torch.float32
                torch.testing.assert_close(found, exact, rtol=0.1, atol=0.1)
                a, _ = project(given[0], projected(connection).projection())
                mixing = projected(connection).from_projection(a)
                assert {H.dtype for H in mixing if H is not None} == {torch.float32}
    for own in HALVES:
        with pytest.raises(ValueError, match=str(own)), torch.autocast("cpu", torch.bfloat16):
            made(variant).to(own)(x, torch.tanh)


# --- values -------------------------------------------------------------------------------------

NOT_NUMBERS = st.sampled_from(["4", "", True, False, [4], (4,), 2j, b"4"])
NOT_WHOLE = NOT_NUMBERS | st.floats() | st.none()
NOT_FINITE = NOT_NUMBERS | st.sampled_from([float("nan"), float("inf"), -float("inf")])


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=30, deadline=None, database=None)
@given(data=st.data())
def test_a_value_that_cannot_be_is_one_line_that_names_it(
    variant: str, data: st.DataObject
) -> None:
    known = inspect.signature(connection_class(variant)).parameters
    name = data.draw(st.sampled_from(sorted(known)))
    kind = str(known[name].annotation)
    wrong: st.SearchStrategy[Any] = NOT_FINITE
    if kind.startswith("int"):
        wrong = NOT_WHOLE.filter(lambda v: v is not None or "None" not in kind)
        wrong |= st.integers(max_value=-1 if name == "home_stream" else 0)
    elif name.endswith("eps"):
        wrong |= st.floats(max_value=-1e-300)
    value = data.draw(wrong)
    arguments = {"n_streams": n_of(variant), "n_embd": C, name: value}
    with pytest.raises((ValueError, TypeError)) as refused:
        make(variant, **arguments)
    assert str(refused.value).startswith((f"{name} = {value!r} ", f"{name} = {value} "))


def test_options_are_those_of_a_study_and_no_others() -> None:
    for variant in VARIANTS:
        with pytest.raises(TypeError, match=f"{variant} has no option 'iterations'"):
            make(variant, n_of(variant), C, iterations=20)
        with pytest.raises(ValueError, match="n_streams = 65"):
            make(variant, 65, C)
        ours = make(variant, n_of(variant), C)
        options = connection_config(variant).options
        theirs = connection_class(variant)(n_of(variant), C, 0, **options)
        plain = {k: v for k, v in vars(theirs).items() if isinstance(v, int | float)}
        assert plain.items() <= vars(ours).items()
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }
    assert make("mhc", 4, 32).sinkhorn_iterations == 20


# --- states and devices -------------------------------------------------------------------------


@pytest.fixture
def empty_is_nan() -> Iterator[None]:
    """What is not set is NaN: else it may be right by chance."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def alike(connection: Connection, expected: Connection) -> None:
    x = normal(2, 3, expected.n_streams, C)
    assert torch.equal(connection(x, body), expected(x, body))
    assert torch.equal(connection.fast_forward(x, body), expected.fast_forward(x, body))


def on_meta(variant: str) -> Connection:
    with torch.device("meta"):
        return make(variant, n_of(variant), C)


@pytest.mark.usefixtures("empty_is_nan")
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_module_without_memory_gets_all_of_its_values(variant: str) -> None:
    expected = made(variant)
    state = expected.state_dict()
    for empty in (on_meta(variant), make(variant, n_of(variant), C)):
        empty.to_empty(device="cpu").load_state_dict(state)
        alike(empty, expected)
    assigned = on_meta(variant)
    assigned.load_state_dict(state, assign=True)
    alike(assigned, expected)
    stack = nn.ModuleList([on_meta(variant)]).double().to_empty(device="cpu")
    stack.load_state_dict({f"0.{name}": value for name, value in state.items()})
    alike(stack[0].float(), expected)  # type: ignore[arg-type]
    torch.manual_seed(5)
    expected = make(variant, n_of(variant), C)
    for again in ("initialise", "reset_parameters"):
        empty = on_meta(variant).to_empty(device="cpu")
        torch.manual_seed(5)
        if again == "initialise":
            empty.initialise(torch.default_generator)
        else:
            empty.reset_parameters()
        alike(empty, expected)


# --- what programs do with modules ----------------------------------------------------------------


class Layer(nn.Module):
    """One sub-layer."""

    def __init__(self, variant: str, implementation: str) -> None:
        super().__init__()
        self.connection, self.implementation = made(variant), implementation
        self.body = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        fast = self.implementation == "fast"
        return (self.connection.fast_forward if fast else self.connection)(x, self.body)


@pytest.mark.parametrize("variant", VARIANTS)
def test_copies_and_checkpointed_activations_compute_the_same(variant: str) -> None:
    for implementation in TWO:
        layer, x = Layer(variant, implementation), normal(2, 3, n_of(variant), C).requires_grad_()
        stored = io.BytesIO()
        torch.save(layer, stored)
        stored.seek(0)
        for again in (copy.deepcopy(layer), torch.load(stored, weights_only=False)):
            assert torch.equal(again(x), layer(x))
            again.connection.reset_parameters()  # it still knows how it was made
        wanted = [x, *layer.parameters()]
        for reentrant in (False, True):
            found = []
            for out in (layer(x), checkpoint(layer, x, use_reentrant=reentrant)):
                x.grad = None
                layer.zero_grad()
                out.square().sum().backward()
                found.append([p.grad for p in wanted])
            for one, other in zip(*found, strict=True):
                assert (one is None) == (other is None)
                assert one is None or torch.equal(one, other)


@pytest.mark.slow
def test_can_be_exported_and_compiled() -> None:
    x, other = normal(2, 3, 4, C), normal(3, 5, 4, C)
    for implementation in TWO:
        layer = Layer("jpmhc", implementation)
        sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
        exported = torch.export.export(layer, (x,), dynamic_shapes=(sizes,)).module()
        torch.testing.assert_close(exported(other), layer(other))
    again = partial(checkpoint, Layer("jpmhc", "fast"), use_reentrant=False)
    compiled = torch.compile(again, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), again(x))
    torch._dynamo.reset()
