"""The mathematics of mixing matrices, as pure functions.

Shapes: n streams; `...` any leading dimensions. Matrices are in operator orientation: row t holds
the weights that enter output stream t.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """x / max(||x||_2, 1e-12) * sqrt(C) * (1 + gain) over the last dimension.

    Args:
        x: (..., C).
        gain: (C), zero at initialisation.
    """
    return torch.nn.functional.normalize(x, dim=-1) * x.shape[-1] ** 0.5 * (1 + gain)


def sinkhorn_knopp(logits: Tensor, iterations: int) -> Tensor:
    """Sinkhorn-Knopp on exp(logits), in the log domain (mHC, arXiv 2512.24880, eq. 9).

    One iteration normalises each row over its input streams, then each column over its output
    streams: after the last one the columns sum to 1 and the rows carry the error.

    Args:
        logits: (..., n, n).
        iterations: how often; 20 in the papers.

    Returns:
        (..., n, n), positive.
    """
    for _ in range(iterations):
        logits = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        logits = logits - torch.logsumexp(logits, dim=-2, keepdim=True)
    return logits.exp()


def permutation_matrices(n: int) -> Tensor:
    """All n! permutation matrices in lexicographic order, as operators (mHC-lite, theorem 3.1).

    Returns:
        (n!, n, n) of 0 and 1: matrix r has a 1 at [perm_r[i], i].
    """
    permutations = torch.tensor(list(itertools.permutations(range(n))))  # (n!, n)
    return torch.nn.functional.one_hot(permutations, n).transpose(-1, -2).double()


def cyclic_matrices(n: int) -> Tensor:
    """The n cyclic shifts C^r, r = 0 to n - 1, as operators: stream s goes to stream s + r.

    Returns:
        (n, n, n) of 0 and 1: matrix r has a 1 at [(s + r) mod n, s].
    """
    identity = torch.eye(n, dtype=torch.float64)
    return torch.stack([identity.roll(shift, 0) for shift in range(n)])


def kronecker_factors(p: Tensor) -> Tensor:
    """Kronecker product of the 2 x 2 factors [[p, 1 - p], [1 - p, p]] (KromHC, arXiv 2601.21579).

    Args:
        p: (..., K, 2), each pair non-negative with sum 1.

    Returns:
        (..., 2^K, 2^K), doubly stochastic; the first factor is the slowest index.
    """
    product = p.new_ones(*p.shape[:-2], 1, 1)
    for k in range(p.shape[-2]):
        first, second = p[..., k, 0], p[..., k, 1]  # (...)
        factor = torch.stack((first, second, second, first), dim=-1).unflatten(-1, (2, 2))
        size = product.shape[-1] * 2
        product = torch.einsum("...ab,...cd->...acbd", product, factor).reshape(
            *p.shape[:-2], size, size
        )
    return product


CAYLEY_ALPHA = 0.1  # JPmHC, arXiv 2602.18308


def cayley(logits: Tensor, iterations: int) -> Tensor:
    """Cayley transform of the skew part of `logits` (JPmHC, arXiv 2602.18308).

    W = A - A^T; the paper iterates Y <- I + (a/2) W (I + Y) from Y = I + a W, a = 0.1. Its fixed
    point (I - (a/2) W)^-1 (I + (a/2) W) is orthogonal.

    Args:
        logits: A, (..., n, n).
        iterations: of the fixed point, 2 in the paper; 0 solves the linear system instead.

    Returns:
        (..., n, n): orthogonal to rounding when solved, only nearly so when iterated.
    """
    W = logits - logits.transpose(-1, -2)
    identity = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    half = (CAYLEY_ALPHA / 2) * W
    if iterations == 0:
        return torch.linalg.solve(identity - half, identity + half)
    Y = identity + CAYLEY_ALPHA * W
    for _ in range(iterations):
        Y = identity + half @ (identity + Y)
    return Y
