"""Properties that the mathematics gives every residual variant."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import MIXING, REGISTRY, VARIANTS, n_of, streams_of
from tiny import connection as connection_config
from torch import Tensor

from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.matrices import cayley, permutation_matrices, sinkhorn_knopp
from mhclite.connections.mhc_v4 import shipped_sinkhorn
from mhclite.connections.ohc import rotation
from mhclite.connections.registry import check_streams

C = 5
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(max_examples=15, deadline=None, database=None)


def make(variant: str, n: int, seed: int | None = None, **options: float) -> Connection:
    """A connection in float64; with a seed all its parameters are random, far from the start."""
    connection: Connection = connection_class(variant)(
        n, C, 0, **{**connection_config(variant).options, **options}
    ).double()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in connection.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return connection


def streams(n: int, seed: int, batch: int = 2, tokens: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, n, C, generator=generator, dtype=torch.float64)


def branch(h: Tensor) -> Tensor:
    return torch.sin(h) + h.roll(1, -1) ** 2


# --- sums -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("variant", "n"), [("mhc_lite", 3), ("mhc_lite", 4), ("kromhc", 8)])
@quick
@given(data=st.data())
def test_doubly_stochastic_for_any_logits(
    variant: str, n: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    connection = make(variant, n).to(dtype)
    width = connection.b_res.numel()
    logits = torch.tensor(
        data.draw(st.lists(st.floats(-1e4, 1e4), min_size=width, max_size=width)), dtype=dtype
    )
    H = connection.mixing_matrix(logits.view(1, 1, width))[0, 0]
    assert H.dtype == dtype
    assert H.min() >= 0
    bound = 16 * torch.finfo(dtype).eps
    for dim in (-1, -2):
        assert (H.sum(dim) - 1).abs().max() <= bound


# --- equation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=5, deadline=None, database=None)
@given(seed=SEEDS)
def test_forward_is_the_equation_looped(variant: str, seed: int) -> None:
    n = n_of(variant)
    connection, x = make(variant, n, seed), streams(n, seed)
    read: list[Tensor] = []

    def recording(h: Tensor) -> Tensor:
        read.append(h)
        return branch(h)

    out = connection(x, recording)
    H_pre, H_post, H_res = connection.coefficients(x)
    for b, t in itertools.product(range(x.shape[0]), range(x.shape[1])):
        h = sum(H_pre[b, t, s] * x[b, t, s] for s in range(n))
        torch.testing.assert_close(read[0][b, t], h, rtol=1e-12, atol=1e-12)
        y = branch(h)
        for i in range(n):
            expected = sum(H_res[b, t, i, s] * x[b, t, s] for s in range(n))
            expected = expected + H_post[b, t, i] * y
            torch.testing.assert_close(out[b, t, i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients(variant: str) -> None:
    n = next(n for n in (2, 4, 1) if n in streams_of(variant))
    connection, x = make(variant, n, 3), streams(n, 4, batch=1, tokens=1).requires_grad_()
    names = [name for name, _ in connection.named_parameters()]

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(
            connection, dict(zip(names, values, strict=True)), (x, branch)
        )

    assert torch.autograd.gradcheck(outputs, (x, *connection.parameters()))


@pytest.mark.parametrize("variant", MIXING)
def test_changing_the_mixing_changes_the_output(variant: str) -> None:
    connection, x = make(variant, 4, 1), streams(4, 2)
    before = connection(x, branch)
    H_pre, H_post, H_res = connection.coefficients(x)
    with torch.no_grad():
        for name, parameter in connection.named_parameters():
            if name in connection.mixing:
                parameter.add_(torch.randn(parameter.shape) * 0.5)
    changed = connection.coefficients(x)
    assert torch.equal(changed.H_pre, H_pre)
    assert torch.equal(changed.H_post, H_post)
    assert (changed.H_res - H_res).abs().amax((-2, -1)).min() > 1e-4
    assert (connection(x, branch) - before).abs().amax((-2, -1)).min() > 1e-4


# --- permuting streams ------------------------------------------------------------------------


def permute(connection: Connection, variant: str, order: list[int]) -> None:
    """Rename the streams in the weights: new stream i is what stream order[i] was."""
    n = len(order)

    def rows(p: Tensor) -> Tensor:  # (nC, ...)
        return p.unflatten(0, (n, C))[order].flatten(0, 1)

    def both(p: Tensor) -> Tensor:  # (..., n * n)
        return p.unflatten(-1, (n, n))[..., order, :][..., order].flatten(-2)

    state = {name: p.clone() for name, p in connection.state_dict().items()}
    if variant == "hc":
        state["b_pre"], state["b_post"] = state["b_pre"][order], state["b_post"][order]
        state["b_res"] = state["b_res"][order][:, order]
        state["w_res"] = state["w_res"][:, order]
    elif variant == "jpmhc":
        for name in ("norm.weight", "norm.bias"):
            state[name] = rows(state[name])
        for end in ("pre", "post", "res"):
            state[f"w_{end}"] = both(rows(state[f"w_{end}"]))
    elif variant == "gated":
        for name in ("norm_gain", "w_down", "w_post"):
            state[name] = rows(state[name])
        state["w_up"], state["w_post"] = rows(state["w_up"].T).T, state["w_post"][:, order]
    else:
        if "norm_gain" in state:
            state["norm_gain"] = rows(state["norm_gain"])
        for end in ("pre", "post"):
            state[f"w_{end}"] = rows(state[f"w_{end}"])[:, order]
            state[f"b_{end}"] = state[f"b_{end}"][order]
        if "w_res" in state:
            state["w_res"] = rows(state["w_res"])
        if state.get("b_res", torch.empty(0)).shape == (n, n):
            state["w_res"] = both(state["w_res"])
            state["b_res"] = state["b_res"][order][:, order]
        if variant == "mhc_lite":
            matrices = permutation_matrices(n)
            conjugated = matrices[:, order][:, :, order]
            place = [int((conjugated == m).all((-2, -1)).nonzero()) for m in matrices]
            state["w_res"], state["b_res"] = state["w_res"][:, place], state["b_res"][place]
        # The bits of a stream's number change places.
        if variant == "kromhc" and order == [0, 2, 1, 3]:
            pairs = [2, 3, 0, 1]
            state["w_res"], state["b_res"] = state["w_res"][:, pairs], state["b_res"][pairs]
        if variant == "ohc":  # the units i, j, k take each other's places in both quaternions
            units = [*order, *(4 + i for i in order)]
            state["w_res"], state["b_res"] = state["w_res"][:, units], state["b_res"][units]
    connection.load_state_dict(state)


# The symmetries of a Kronecker product of two factors, and the cyclic ones of the quaternions'
# units; any order for the others.
SYMMETRIES = {
    "kromhc": [[0, 2, 1, 3], [1, 0, 3, 2], [2, 3, 0, 1], [3, 2, 1, 0]],
    "ohc": [[0, 2, 3, 1], [0, 3, 1, 2]],
}


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "residual"])
@settings(max_examples=8, deadline=None, database=None)
@given(seed=SEEDS, data=st.data())
def test_permuting_streams_permutes_outputs(variant: str, seed: int, data: st.DataObject) -> None:
    known = SYMMETRIES.get(variant)
    order = data.draw(st.sampled_from(known) if known else st.permutations(range(4)))
    connection, x = make(variant, 4, seed), streams(4, seed)
    expected = connection(x, branch)[:, :, order]
    permute(connection, variant, order)
    actual = connection(x[:, :, order], branch)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


# --- at the start, n = 1 and equal streams ------------------------------------------------------


def test_how_rotations_and_deepseeks_start() -> None:
    """ohc at the identity, bit for bit, and its scale is no parameter; mhc_v4 uniform."""
    connection, x = make("ohc", 4).float(), streams(4, 3).float()
    for H in (connection.coefficients(x).H_res, connection.fast_coefficients(x).H_res):
        assert torch.equal(H, torch.eye(4).expand_as(H))
    assert "scale_res" not in dict(connection.named_parameters())
    found = make("mhc_v4", 4).coefficients(streams(4, 1))
    for ours, number in zip(found, (0.5, 1.0, 0.25), strict=True):
        torch.testing.assert_close(ours, torch.full_like(ours, number), rtol=1e-5, atol=0)


# Of those with reads and writes of their own, the ones that can be; gated up to its norm.
PLAIN = [v for v in VARIANTS if REGISTRY[v].mixes != "freely" and not REGISTRY[v].own_reads]
PLAIN += ["hc", "jpmhc", "mhc_v4"]


@pytest.mark.parametrize("variant", PLAIN)
def test_one_stream_can_be_the_plain_residual(variant: str) -> None:
    """At the start for hc and jpmhc, with H_pre = H_post = 1 for the mHC family."""
    options = {"hc_eps": 0.0} if variant == "mhc_v4" else {}
    connection, x = make(variant, 1, **options), streams(1, 5)
    if hasattr(connection, "scale_pre"):
        with torch.no_grad():
            connection.b_pre.fill_(60.0)
            connection.b_post.fill_(0.0)
    expected = make("residual", 1)(x, branch)
    torch.testing.assert_close(connection(x, branch), expected, rtol=1e-14, atol=1e-14)
    if REGISTRY[variant].mixes != "freely":  # whatever the weights
        H_res = make(variant, 1, 7).coefficients(x).H_res
        torch.testing.assert_close(H_res, torch.ones_like(H_res), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", ["identity", "mhc", "mhc_lite", "kromhc"])
def test_equal_streams_read_by_their_mean_are_the_plain_residual(variant: str) -> None:
    connection, x = make(variant, 4), streams(1, 6)
    with torch.no_grad():
        connection.b_pre.fill_(-torch.tensor(3.0).log())  # sigmoid: 1/4
        connection.b_post.fill_(0.0)
    out = connection(x.expand(-1, -1, 4, -1), branch)
    expected = make("residual", 1)(x, branch).expand(-1, -1, 4, -1)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)


# --- n = 2 ------------------------------------------------------------------------------------


@quick
@given(entries=st.lists(st.floats(-4, 4), min_size=4, max_size=4))
def test_two_streams_agree(entries: list[float]) -> None:
    """Sinkhorn's limit keeps the cross ratio: p / (1 - p) is the root of that of exp(logits)."""
    a, b, c, d = entries
    effective = torch.tensor([(a + d) / 2, (b + c) / 2], dtype=torch.float64).view(1, 1, 2)
    lite = make("mhc_lite", 2).mixing_matrix(effective)[0, 0]
    kronecker = make("kromhc", 2).mixing_matrix(effective)[0, 0]
    logits = torch.tensor([[a, b], [c, d]], dtype=torch.float64)
    limit = sinkhorn_knopp(logits, 1000)
    torch.testing.assert_close(lite, kronecker, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(lite, limit, rtol=0, atol=1e-4)
    p = torch.sigmoid((torch.tensor(entries, dtype=torch.float64) @ CROSS) / 2)
    torch.testing.assert_close(lite[0, 0], p, rtol=1e-12, atol=0)


CROSS = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)


@quick
@given(seed=SEEDS, iterations=st.integers(1, 30))
def test_sinkhorn_columns_are_exact_and_rows_improve(seed: int, iterations: int) -> None:
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double() * 3
    H = sinkhorn_knopp(logits, iterations)
    assert H.min() > 0
    torch.testing.assert_close(H.sum(0), torch.ones(4).double(), rtol=1e-13, atol=0)
    error, later = (
        (sinkhorn_knopp(logits, k).sum(1) - 1).abs().sum() for k in (iterations, iterations + 1)
    )
    assert later <= error + 1e-13


# --- Cayley -----------------------------------------------------------------------------------


@quick
@given(seed=SEEDS, size=st.floats(0, 1e3), n=st.integers(1, 6))
def test_cayley_solved_is_orthogonal(seed: int, size: float, n: int) -> None:
    logits = size * streams(n, seed)[..., :1].expand(-1, -1, -1, n)
    logits = logits * streams(n, seed + 1)[..., :1].transpose(-1, -2).cos()
    Q = cayley(logits, 0)
    identity = torch.eye(n, dtype=torch.float64).expand_as(Q)
    torch.testing.assert_close(Q @ Q.transpose(-1, -2), identity, rtol=0, atol=1e-12)


@quick
@given(seed=SEEDS, size=st.floats(0.01, 3))
def test_cayley_iterated_errs_by_the_fourth_power(seed: int, size: float) -> None:
    """Y_k - Y* = h^k (Y_0 - Y*) and Y_0 - Y* = -2 h^2 (I - h)^-1, h = 0.05 (A - A^T)."""
    A = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double() * size
    norm = torch.linalg.matrix_norm(0.05 * (A - A.T), 2)
    error = torch.linalg.matrix_norm(cayley(A, 2) - cayley(A, 0), 2)
    assert error <= 2 * norm**4 * (1 + 1e-9) + 1e-14
    assert error >= norm**4 / (1 + norm**2) - 1e-14  # it is no exact solve either


# --- DeepSeek V4's Sinkhorn-Knopp -------------------------------------------------------------


@quick
@given(seed=SEEDS, iterations=st.integers(1, 30))
def test_shipped_sinkhorn_has_exact_rows(seed: int, iterations: int) -> None:
    """The other way round than the code of mHC-lite's authors, and up to eps."""
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double()
    H = shipped_sinkhorn(logits, iterations, 1e-6)
    assert H.min() > 0
    torch.testing.assert_close(H.sum(1), torch.ones(4).double(), rtol=0, atol=1e-4)
    exact = shipped_sinkhorn(logits, iterations, 0.0)
    torch.testing.assert_close(exact.sum(1), torch.ones(4).double(), rtol=1e-13, atol=0)
    # Without eps it is mHC's, of the transpose.
    torch.testing.assert_close(exact, sinkhorn_knopp(logits.T, iterations).T, rtol=1e-10, atol=0)


@pytest.mark.parametrize("variant", ["mhc_v4", "ohc"])
def test_mixing_is_in_float32_under_autocast(variant: str) -> None:
    """A bfloat16 product would leave sums and lengths off by 1e-3."""
    connection = make(variant, 4, 7).float()
    with torch.autocast("cpu", torch.bfloat16):
        H = connection.coefficients(streams(4, 7).float()).H_res
    assert H.dtype == torch.float32
    error = H.sum(-1) - 1 if variant == "mhc_v4" else H @ H.transpose(-1, -2) - torch.eye(4)
    assert error.abs().max() < 3e-6


# --- quaternions ------------------------------------------------------------------------------


def hamilton(p: Tensor, q: Tensor) -> Tensor:
    """The product of two quaternions, (4) each, by i j = k."""
    a, u, b, v = p[0], p[1:], q[0], q[1:]
    return torch.cat(((a * b - u @ v).view(1), a * v + b * u + torch.linalg.cross(u, v)))


@quick
@given(seed=SEEDS)
def test_rotation_is_left_and_right_multiplication(seed: int) -> None:
    q, r, x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)).double()
    conjugate = r * torch.tensor([1.0, -1.0, -1.0, -1.0]).double()
    expected = hamilton(hamilton(q, x), conjugate)
    torch.testing.assert_close(rotation(q, r) @ x, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@quick
@given(logits=st.lists(st.floats(-1e4, 1e4), min_size=8, max_size=8))
def test_ohc_is_a_rotation_for_any_logits(dtype: torch.dtype, logits: list[float]) -> None:
    given = torch.tensor(logits, dtype=dtype).view(1, 1, 8)
    # Two quaternions that are all but 0 have no direction.
    assume(all((v.square().sum() > 1e-6) for v in (given.view(2, 4) + torch.eye(4)[0])))
    H = make("ohc", 4).to(dtype).mixing_matrix(given)[0, 0]
    assert H.dtype == dtype
    bound = 16 * torch.finfo(dtype).eps
    assert (H @ H.T - torch.eye(4, dtype=dtype)).abs().max() <= bound
    assert torch.linalg.det(H.double()) > 0.99


# --- gated --------------------------------------------------------------------------------------


@quick
@given(seed=SEEDS, size=st.floats(0.1, 1e4))
def test_gated_reads_no_scale_and_carries_streams_unchanged(seed: int, size: float) -> None:
    """What it reads is bounded by the gain, however large a stream; what it carries is exact."""
    connection, x = make("gated", 4, seed), streams(4, seed)
    read: list[Tensor] = []

    def silent(h: Tensor) -> Tensor:
        read.append(h)
        return torch.zeros_like(h)

    for s in range(4):  # each stream by itself
        scaled = x.clone()
        scaled[:, :, s] *= size
        assert torch.equal(connection(scaled, silent), scaled)
    before = connection.coefficients(x)
    connection(x, silent)
    largest = (1 + connection.norm_gain).abs().max() * C**0.5
    assert all(h.abs().max() <= largest for h in read)
    # norm_eps is all that remembers the size.
    tolerance = 1e-4 / min(1.0, size) ** 2
    for h in read[:4]:
        torch.testing.assert_close(h, read[4], rtol=tolerance, atol=tolerance)
    assert before.H_pre.shape == (2, 3, 4, C)
    assert before.H_post.min() > 0
    assert before.H_post.max() < 2


# --- streams that cannot be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "n", "said"),
    [
        ("residual", 2, "one stream, not 2"),
        ("kromhc", 12, "n_streams = 12.*power of two"),
        ("mhc_lite", 8, "40,320 permutations.*use kromhc"),
        ("ohc", 2, "n_streams = 2: ohc rotates four streams"),
    ],
)
def test_impossible_streams_are_refused(variant: str, n: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_streams(variant, n)
