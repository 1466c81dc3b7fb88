"""Triton kernels of Sinkhorn-Knopp; `sinkhorn.py` launches them.

One program has BT tokens, and the matrix (n, n) of each in registers. Everything is float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _logsumexp(tile, axis: tl.constexpr):
    """Over one axis of (BT, n, n), which stays as one of length 1."""
    largest = tl.max(tile, axis, keep_dims=True)
    return largest + tl.log(tl.sum(tl.exp(tile - largest), axis, keep_dims=True))


@triton.jit
def _square(pointer, token, inside, n: tl.constexpr):
    """Places of a matrix of each token, (BT, n, n), and which of them are tokens."""
    i = tl.arange(0, n)
    place = token[:, None, None] * (n * n) + i[None, :, None] * n + i[None, None, :]
    return pointer + place, inside[:, None, None] & (i[None, :, None] >= 0) & (
        i[None, None, :] >= 0
    )


@triton.jit
def sinkhorn_forward(
    logits, M, N, n: tl.constexpr, iterations: tl.constexpr, BT: tl.constexpr
):  # fmt: skip
    """`mixing.sinkhorn_knopp` of logits (N, n, n), in registers.

    After each half of an iteration the matrix is exp(logits - row - column), so that only row and
    column (BT, n) change.
    """
    token = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    place, inside = _square(logits, token, token < N, n)
    L = tl.load(place, mask=inside, other=0.0)
    column = tl.zeros((BT, 1, n), dtype=tl.float32)
    row = tl.zeros((BT, n, 1), dtype=tl.float32)
    for _ in range(iterations):
        row = _logsumexp(L - column, 2)
        column = _logsumexp(L - row, 1)
    place, inside = _square(M, token, token < N, n)
    tl.store(place, tl.exp(L - row - column), mask=inside)


@triton.jit
def sinkhorn_backward(
    logits, dM, dlogits, rows, columns, N,
    n: tl.constexpr, iterations: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Gradient of `sinkhorn_forward`: the iterations again, then back through them.

    rows, columns (N, iterations, n): room for what each iteration subtracts.
    """
    token = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    i = tl.arange(0, n)
    place, inside = _square(logits, token, token < N, n)
    L = tl.load(place, mask=inside, other=0.0)
    at_row = token[:, None, None] * (iterations * n) + i[None, :, None]
    at_column = token[:, None, None] * (iterations * n) + i[None, None, :]
    in_row = (token < N)[:, None, None] & (i[None, :, None] >= 0)
    in_column = (token < N)[:, None, None] & (i[None, None, :] >= 0)
    row = tl.zeros((BT, n, 1), dtype=tl.float32)
    column = tl.zeros((BT, 1, n), dtype=tl.float32)
    for step in range(iterations):
        row = _logsumexp(L - column, 2)
        column = _logsumexp(L - row, 1)
        tl.store(rows + at_row + step * n, row, mask=in_row)
        tl.store(columns + at_column + step * n, column, mask=in_column)
    tl.debug_barrier()
    place, inside = _square(dM, token, token < N, n)
    gradient = tl.load(place, mask=inside, other=0.0) * tl.exp(L - row - column)
    for back in range(iterations):
        step = iterations - 1 - back
        gradient -= tl.exp(L - row - column) * tl.sum(gradient, 1, keep_dims=True)
        before = (step > 0) & in_column
        column = tl.load(columns + at_column + (step - 1) * n, mask=before, other=0.0)
        gradient -= tl.exp(L - row - column) * tl.sum(gradient, 2, keep_dims=True)
        before = (step > 0) & in_row
        row = tl.load(rows + at_row + (step - 1) * n, mask=before, other=0.0)
    place, inside = _square(dlogits, token, token < N, n)
    tl.store(place, gradient, mask=inside)


@triton.jit
def _softmax_columns(tile):
    """Softmax over the rows' index of (BT, n, n): each column sums to 1."""
    exponentials = tl.exp(tile - tl.max(tile, 1, keep_dims=True))
    return exponentials / tl.sum(exponentials, 1, keep_dims=True)


@triton.jit
def sinkhorn_v4_forward(
    logits, M, N,
    n: tl.constexpr, iterations: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """`mhc_v4.shipped_sinkhorn` of logits (N, n, n), in registers."""
    token = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    place, inside = _square(logits, token, token < N, n)
    tile = _softmax_columns(tl.load(place, mask=inside, other=0.0)) + EPS
    tile = tile / (tl.sum(tile, 2, keep_dims=True) + EPS)
    for _ in range(iterations - 1):
        tile = tile / (tl.sum(tile, 1, keep_dims=True) + EPS)
        tile = tile / (tl.sum(tile, 2, keep_dims=True) + EPS)
    place, inside = _square(M, token, token < N, n)
    tl.store(place, tile, mask=inside)


@triton.jit
def sinkhorn_v4_backward(
    logits, dM, dlogits, rows, columns, N,
    n: tl.constexpr, iterations: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Gradient of `sinkhorn_v4_forward`: the steps again, then back through them.

    rows, columns (N, iterations, n): room for what each step divides by. The formulas stand in
    `sinkhorn_v4.py`.
    """
    token = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    i = tl.arange(0, n)
    source, inside = _square(logits, token, token < N, n)
    at_row = rows + token[:, None, None] * (iterations * n) + i[None, :, None]
    at_column = columns + token[:, None, None] * (iterations * n) + i[None, None, :]
    in_row = (token < N)[:, None, None] & (i[None, :, None] >= 0)
    in_column = (token < N)[:, None, None] & (i[None, None, :] >= 0)
    tile = _softmax_columns(tl.load(source, mask=inside, other=0.0)) + EPS
    row = tl.sum(tile, 2, keep_dims=True) + EPS
    tile = tile / row
    tl.store(at_row, row, mask=in_row)
    for step in range(1, iterations):
        column = tl.sum(tile, 1, keep_dims=True) + EPS
        tile = tile / column
        tl.store(at_column + step * n, column, mask=in_column)
        row = tl.sum(tile, 2, keep_dims=True) + EPS
        tile = tile / row
        tl.store(at_row + step * n, row, mask=in_row)
    tl.debug_barrier()
    place, inside = _square(dM, token, token < N, n)
    gradient = tl.load(place, mask=inside, other=0.0)
    for back in range(1, iterations):
        step = iterations - back
        row = tl.load(at_row + step * n, mask=in_row, other=1.0)
        gradient = (gradient - tl.sum(gradient * tile, 2, keep_dims=True)) / row
        tile = tile * row
        column = tl.load(at_column + step * n, mask=in_column, other=1.0)
        gradient = (gradient - tl.sum(gradient * tile, 1, keep_dims=True)) / column
        tile = tile * column
    row = tl.load(at_row, mask=in_row, other=1.0)
    gradient = (gradient - tl.sum(gradient * tile, 2, keep_dims=True)) / row
    start = _softmax_columns(tl.load(source, mask=inside, other=0.0))
    gradient = start * (gradient - tl.sum(gradient * start, 1, keep_dims=True))
    place, inside = _square(dlogits, token, token < N, n)
    tl.store(place, gradient, mask=inside)
