"""The rivals of mHC-lite's thesis: one exact marginal (oshc), fewer permutations (cyclic)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODEL, connection, perturbed

from mhclite.connections.matrices import cyclic_matrices
from mhclite.connections.public import make
from mhclite.connections.registry import check_streams, functional_mixing
from mhclite.model import GPT

DEPTH = 48  # matrices in a product: 24 layers
STREAMS = st.sampled_from([1, 2, 3, 4, 8])
SEEDS = st.integers(0, 2**16)
SPREADS = st.sampled_from([0.1, 3.0, 100.0, 1e4])
AXES = st.sampled_from(["rows", "columns"])
FREE, EXACT = {"rows": -2, "columns": -1}, {"rows": -1, "columns": -2}
quick = settings(deadline=None, max_examples=40)


def matrices(axis: str, n: int, spread: float, seed: int, count: int) -> torch.Tensor:
    """H_res for random logits, (count, n, n), in float64."""
    logits = torch.randn(count, n, n, generator=torch.Generator().manual_seed(seed)) * spread
    return make("oshc", n, 4, stochastic_axis=axis).mixing_matrix(logits.double())


@quick
@given(AXES, STREAMS, SPREADS, SEEDS)
def test_one_marginal_is_exact_and_a_product_is_bounded(
    axis: str, n: int, spread: float, seed: int
) -> None:
    product, ones = torch.eye(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    for H_res in matrices(axis, n, spread, seed, DEPTH):
        assert H_res.min() >= 0
        torch.testing.assert_close(
            H_res.sum(EXACT[axis]), torch.ones(n).double(), rtol=1e-14, atol=0
        )
        product = H_res @ product
    torch.testing.assert_close(product.sum(EXACT[axis]), ones, rtol=1e-12, atol=0)
    free = product.sum(FREE[axis])
    assert free.min() >= 0
    assert free.max() <= n * (1 + 1e-12)
    norm = torch.linalg.matrix_norm(product, 2)
    assert norm <= math.sqrt(n) * (1 + 1e-12)
    # The other marginal is free, up to its bound: every stream to one, or one from every stream.
    logits = torch.zeros(n, n, dtype=torch.float64)
    (logits[:, 0] if axis == "rows" else logits[0]).fill_(50.0)
    H_res = make("oshc", n, 4, stochastic_axis=axis).mixing_matrix(logits)
    assert H_res.sum(FREE[axis]).max() > n - 0.01


@pytest.mark.parametrize(
    ("axis", "final_norm", "count"),
    [
        ("rows", "after_sum", 3),
        ("columns", "per_stream", 4),
        ("columns", "after_sum", 3),
    ],
)
def test_sub_layers_whose_matrix_counts(axis: str, final_norm: str, count: int) -> None:
    """By algebra, and by what a changed matrix does to the model's output."""
    assert functional_mixing("oshc", 2, final_norm, axis) == count
    made = connection("oshc", final_norm=final_norm, stochastic_axis=axis)
    model = perturbed(GPT(MODEL, made, seed=0).double(), 0.1)
    tokens = torch.arange(6).unsqueeze(0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        before, changed = model(tokens), 0
        for one in model.connections():
            own = one.get_parameter("b_res")
            kept = own.clone()
            own += torch.randn(own.shape, generator=generator).double()
            changed += bool((model(tokens) - before).abs().max() > 1e-9)
            own.copy_(kept)
    assert changed == count


# --- cyclic -------------------------------------------------------------------------------------


@quick
@given(STREAMS, SPREADS, SEEDS)
def test_cyclic_is_a_mixture_of_shifts(n: int, spread: float, seed: int) -> None:
    """Powers of one permutation, a coefficient for each: doubly stochastic, and circulant."""
    shifts = cyclic_matrices(n)
    x = torch.arange(float(n)).double()
    for r, shift in enumerate(shifts):
        torch.testing.assert_close(shift @ x, x.roll(r))
    module = make("mhc_lite", n, 4, permutations="cyclic").double()
    assert module.get_parameter("b_res").numel() == n
    logits = torch.randn(5, n, generator=torch.Generator().manual_seed(seed)).double() * spread
    H_res = module.mixing_matrix(logits)
    for dim in (-1, -2):
        torch.testing.assert_close(H_res.sum(dim), torch.ones(5, n).double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(H_res.roll((1, 1), (-2, -1)), H_res)  # constant along diagonals


def test_cyclic_may_have_more_streams() -> None:
    check_streams("mhc_lite", 12, "cyclic")
    with pytest.raises(ValueError, match="permutations: cyclic"):
        check_streams("mhc_lite", 12)
    with pytest.raises(ValueError, match="is none of"):
        make("mhc_lite", 4, 8, permutations="some")
    for name in ("all", "cyclic"):  # almost the identity at first
        H_res = (
            make("mhc_lite", 4, 8, permutations=name).coefficients(torch.randn(1, 2, 4, 8)).H_res
        )
        assert (H_res - torch.eye(4)).abs().max() < 0.02
