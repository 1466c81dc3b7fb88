"""The Triton kernel of a boundary, forward; `operators.py` launches it.

A boundary lies between two sub-layers: what one writes, and what the next reads,

    out = H_res x + H_post^T y          streams (n, C) of each token; not at the first boundary
    a   = out weight / |out| + bias     K inputs of the next sub-layer's coefficients
    b   = gain LayerNorm(H_pre out)     what its branch reads, H_pre from the first columns of a

One program has BT tokens and goes through their streams in chunks of columns. A token's n C
numbers do not fit into registers, and H_pre is known only when a's sums over all of them are
complete: so the same columns are gone through again. How much of that second pass comes from the L2
cache depends on the GPU and on n C; it has not been measured.

No atomic operations: a program owns its tokens, so that all results but dgain (`kernels_backward`)
are its alone, and of dgain it writes a row of its own. The bits are the same every time (for one
launch: `launch.py`). Tiles, vectors and tuples are as in `kernel_parts`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mhclite.connections.fast.kernel_parts import (
    chunks,
    dot,
    inverse_norm,
    mixed,
    no_sums,
    numbers,
    partial,
    read_weights,
    total,
    written,
)

NEIGHBOURS = tl.constexpr(4)  # columns that a thread adds up at once


@triton.jit
def boundary_forward(
    x, y, H_res, H_post, weight, bias, gain, offset, scale,
    out, a, b, stats, N,
    C: tl.constexpr, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr, NORM: tl.constexpr,
    SUM: tl.constexpr, NORM_EPS: tl.constexpr, WRITE: tl.constexpr, MIX: tl.constexpr,
    READ: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, G: tl.constexpr,
    STAGES: tl.constexpr, WIDE: tl.constexpr, XT: tl.constexpr, XS: tl.constexpr,
):  # fmt: skip
    """One boundary forward.

    x, out (N, n, C); y, b (N, C); H_res (N, n, n) and H_post (N, n) of the sub-layer that writes;
    weight (n C, K), bias (K), gain (C), offset (n), scale (1) of the one that reads; a (N, K);
    stats (N, n + 2): sums of squares of the streams, mean and 1 / standard deviation of H_pre out.
    """
    token = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    row, inside = token[:, None], (token < N)[:, None]
    k = tl.arange(0, K)
    dtype: tl.constexpr = x.dtype.element_ty
    # The write and the projection. A chunk is G tiles (BT, BC), in the first dimension, and z the
    # sum of G products: as many as there are warps, so that each has a product of its own. Of one
    # product of BT = 16 rows each would have a share of the columns, but all would need, and so
    # compute, the whole of `out`.
    rows, all_inside = row[None], inside[None]
    if WRITE:
        post = numbers(H_post, rows, all_inside, n, n)
        res = numbers(H_res, rows, all_inside, n * n, n * n) if MIX else post
    z = tl.zeros((G, BT, K), dtype=tl.float32)
    P: tl.constexpr = BC // NEIGHBOURS
    square_sums = no_sums(n, (G, BT, P))
    within = tl.arange(0, G)[:, None] * BC + tl.arange(0, BC)[None, :]
    for start in tl.range(0, C, G * BC, num_stages=STAGES):
        column = (start + within)[:, None, :]
        streams = chunks(x, rows, all_inside, column, XT, XS, n)
        if WRITE:
            wrote = tl.load(y + rows * C + column, mask=all_inside, other=0.0).to(tl.float32)
            streams = written(streams, wrote, res, post, n, MIX, dtype)
        more = ()
        for s in tl.static_range(n):
            tl.store(out + rows * (n * C) + (s * C + column), streams[s].to(dtype), mask=all_inside)
            if READ:
                place = (s * C + start + within)[:, :, None] * K + k[None, None, :]
                z += dot(streams[s].to(dtype), tl.load(weight + place), WIDE)
                squares = tl.reshape(streams[s] * streams[s], (G, BT, P, NEIGHBOURS))
                more = more + (square_sums[s] + tl.sum(squares, 3),)
        if READ:
            square_sums = more
    if READ:
        z = tl.sum(z, 0)
        squares = ()
        for s in tl.static_range(n):
            squares = squares + (total(tl.sum(square_sums[s], 0)),)
            tl.store(stats + row * (n + 2) + s, squares[s], mask=inside)
        inverse = inverse_norm(z, squares, C, n, K, NORM, SUM, NORM_EPS)
        inputs = z * inverse + tl.load(bias + k)[None, :]
        tl.store(a + row * K + k[None, :], inputs, mask=inside)
        pre = read_weights(inputs, offset, scale, n, K, PRE)
        # The read. What other threads of this program wrote is read below.
        tl.debug_barrier()
        WIDTH: tl.constexpr = G * BC
        sums, square_sums = no_sums(2, (BT, G * P))
        for start in range(0, C, WIDTH):
            column = (start + tl.arange(0, WIDTH))[None, :]
            h = mixed(pre, chunks(out, row, inside, column, n * C, C, n), n)
            h = h.to(b.dtype.element_ty)
            tl.store(b + row * C + column, h, mask=inside)
            h = h.to(tl.float32)
            sums += partial(h, BT, WIDTH, G * P)
            square_sums += partial(h * h, BT, WIDTH, G * P)
        mean = total(sums) / C
        rstd = 1 / tl.sqrt(tl.maximum(total(square_sums) / C - mean * mean, 0.0) + EPS)
        tl.store(stats + row * (n + 2) + n, mean, mask=inside)
        tl.store(stats + row * (n + 2) + n + 1, rstd, mask=inside)
        tl.debug_barrier()
        for start in range(0, C, WIDTH):
            column = (start + tl.arange(0, WIDTH))[None, :]
            place = b + row * C + column
            h = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            h = (h - mean) * rstd * tl.load(gain + column)
            # Each thread writes where it read.
            tl.store(place, h.to(b.dtype.element_ty), mask=inside)
