"""The rivals of mHC-lite's thesis: one exact marginal (oshc), fewer permutations (cyclic)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MODEL, connection

from mhclite.connections.matrices import cyclic_matrices, permutation_matrices
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


@pytest.mark.parametrize("axis", ["rows", "columns"])
def test_the_other_marginal_is_free(axis: str) -> None:
    """It comes close to its bound: every stream to one, or one from every stream."""
    logits = torch.zeros(4, 4, dtype=torch.float64)
    (logits[:, 0] if axis == "rows" else logits[0]).fill_(50.0)
    H_res = make("oshc", 4, 4, stochastic_axis=axis).mixing_matrix(logits)
    assert H_res.sum(FREE[axis]).max() > 3.99
    assert torch.linalg.matrix_norm(H_res, 2) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize(
    ("axis", "final_norm", "count"),
    [
        ("rows", "per_stream", 3),
        ("rows", "after_sum", 3),
        ("columns", "per_stream", 4),
        ("columns", "after_sum", 3),
    ],
)
def test_sub_layers_whose_matrix_counts(axis: str, final_norm: str, count: int) -> None:
    """By algebra, and by what a changed matrix does to the model's output."""
    assert functional_mixing("oshc", 2, final_norm, axis) == count
    made = connection("oshc", final_norm=final_norm, stochastic_axis=axis)
    model = GPT(MODEL, made, seed=0).double()
    tokens = torch.arange(6).unsqueeze(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).double()
        before, changed = model(tokens), 0
        for one in model.connections():
            own = one.get_parameter("b_res")
            kept = own.clone()
            own += torch.randn(own.shape, generator=generator).double()
            changed += bool((model(tokens) - before).abs().max() > 1e-9)
            own.copy_(kept)
    assert changed == count


# --- cyclic -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_cyclic_shifts_are_powers_of_one_permutation(n: int) -> None:
    shifts = cyclic_matrices(n)
    assert shifts.shape == (n, n, n)
    step = shifts[1 % n]
    x = torch.arange(float(n)).double()
    torch.testing.assert_close(step @ x, x.roll(1))
    for r, shift in enumerate(shifts):
        torch.testing.assert_close(shift, torch.linalg.matrix_power(step, r))
    if n <= 4:
        every = {tuple(p.flatten().tolist()) for p in permutation_matrices(n)}
        assert {tuple(p.flatten().tolist()) for p in shifts} <= every
    assert torch.equal(shifts.sum(0), torch.ones(n, n).double())


@quick
@given(STREAMS, SPREADS, SEEDS)
def test_cyclic_is_doubly_stochastic_and_circulant(n: int, spread: float, seed: int) -> None:
    module = make("mhc_lite", n, 4, permutations="cyclic")
    logits = torch.randn(5, n, generator=torch.Generator().manual_seed(seed)).double() * spread
    H_res = module.double().mixing_matrix(logits)
    for dim in (-1, -2):
        torch.testing.assert_close(H_res.sum(dim), torch.ones(5, n).double(), rtol=1e-14, atol=0)
    torch.testing.assert_close(H_res.roll((1, 1), (-2, -1)), H_res)  # constant along diagonals


def test_cyclic_has_a_coefficient_for_each_stream() -> None:
    whole, cyclic = (make("mhc_lite", 4, 8, permutations=name) for name in ("all", "cyclic"))
    assert (whole.get_parameter("b_res").numel(), cyclic.get_parameter("b_res").numel()) == (24, 4)
    x = torch.randn(1, 2, 4, 8)
    for module in (whole, cyclic):  # almost the identity at first
        assert (module.coefficients(x).H_res - torch.eye(4)).abs().max() < 0.02
    check_streams("mhc_lite", 12, "cyclic")
    with pytest.raises(ValueError, match="permutations: cyclic"):
        check_streams("mhc_lite", 12)
    assert make("mhc_lite", 12, 4, permutations="cyclic").get_parameter("b_res").numel() == 12


@pytest.mark.parametrize(
    ("variant", "options"),
    [
        ("mhc_lite", {"permutations": "all"}),
        ("mhc_lite", {"permutations": "cyclic"}),
        ("oshc", {"stochastic_axis": "rows"}),
        ("oshc", {"stochastic_axis": "columns"}),
    ],
)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_fast_equals_the_formula(variant: str, options: dict[str, str], n: int) -> None:
    module = make(variant, n, 8, **options).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.randn(parameter.shape, generator=generator).double()
    results = []
    for call in (module, module.fast_forward):
        x = torch.randn(2, 3, n, 8, generator=torch.Generator().manual_seed(3)).double()
        x.requires_grad_()
        out = call(x, torch.sin)
        gradients = torch.autograd.grad(out.square().sum(), [x, *module.parameters()])
        results.append([out, *gradients])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("variant", "options"),
    [("mhc_lite", {"permutations": "some"}), ("oshc", {"stochastic_axis": 1})],
)
def test_an_unknown_value_is_named(variant: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is none of"):
        make(variant, 4, 8, **options)
