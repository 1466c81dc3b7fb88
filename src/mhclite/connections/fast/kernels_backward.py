"""The Triton kernel of a boundary, backward: the derivation, and the kernel.

For one token. Streams before X (n, C), after X' = A X + p y^T, with A = H_res (n, n) and p = H_post
(n). v = vec X' (D = n C numbers), W = weight (D, K),

    z = v W,  r = 1 / norm(v),  a = r z + bias,  q = H_pre = f(a) (n),
    h = q X' (C),  hn = (h - mean h) rstd,  b = gain hn.

Given dX' (`dout`, from the next boundary), da (from H_post and H_res, through torch) and db. Means
are over C, a dot is a sum over C.

1. LayerNorm. g = gain db, dgain = sum over tokens of db hn,
       dh = rstd (g - mean(g) - hn mean(g hn)).
2. Read. dq[s] = dh . X'[s]. dh is known only after the pass that takes its two means; but put in,
       dq[s] = rstd (g . X'[s] - mean(g) sum(X'[s]) - mean(g hn) hn . X'[s]),
   so that one pass takes all sums: sum_g, sum_gh, and for each stream g_streams, sum_streams and
   h_streams. Then da += df/da dq.
3. Projection. dz = r da. For the norms without mean r = 1 / sqrt(|v|^2 / D + eps), and dr/dv =
   -r^3 v / D, so that through the norm
       dv = pull v,  pull = -(da . z) r^3 / D = -(da . (r z)) r^2 / D;  r z = a - bias is at hand.
   Norm by stream: D = C, each stream with the sum over its own columns. LayerNorm has
   r = 1 / sqrt(|v|^2 / D - m^2 + eps), m = z[SUM] / D the mean of v, so dv = pull (v - m). The
   second part goes by the column of the sum, whose weights are 1: dz[SUM] -= pull m. And m is not
   stored: with u = (a[SUM] - bias) / D = r m, r = sqrt((1 + u^2) / (|v|^2 / D + eps)).
   G = dX' in total = dX' + q dh^T + pull X' + dz W^T (as (n, C)).
   dW = v^T dz and the bias's sum run over all tokens: torch does them, from dz and da.
4. Write. dX = A^T G, dy = p G; dA[t, s] = G[t] . X[s] and dp[t] = G[t] . y sum over C.

So there are two passes over the columns: the first for the sums of 1 and 2; between them comes 3,
on K numbers per token; the second for G, dX and dy chunk by chunk, and the sums of 4. X' is
computed again in both, from X and y, which 4 needs anyway, and rounded as the forward pass stored
it; so is h. a, |v|^2, mean and rstd are kept from the forward pass: each would take another pass.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mhclite.connections.fast.kernel_parts import (
    LAYER,
    RMS_STREAM,
    SIGMOID,
    SOFTMAX,
    TANH,
    chunks,
    dot,
    dots,
    inverse_norm,
    mixed,
    no_sums,
    numbers,
    partial,
    read_weights,
    softmax_rows,
    total,
    written,
)

NEIGHBOURS = tl.constexpr(2)  # columns that a thread adds up at once, as a tensor core gives them


@triton.jit
def _read_weights_gradient(a, dH_pre, scale, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr):
    """What H_pre's gradient, n vectors, adds to that of a (BT, K)."""
    k = tl.arange(0, K)[None, :]
    spread = tl.zeros_like(a)  # dH_pre where it is felt
    for s in tl.static_range(n):
        if PRE == SOFTMAX:
            spread = tl.where((k % n == s) & (k < n * n), dH_pre[s] / n, spread)
        else:
            spread = tl.where(k == s, dH_pre[s], spread)
    if scale is not None:
        spread = spread * tl.load(scale)
    if PRE == SIGMOID:
        value = tl.sigmoid(a)
        return spread * value * (1 - value)
    if PRE == TANH:
        value = 2 * tl.sigmoid(2 * a) - 1
        return spread * (1 - value * value)
    weighted = softmax_rows(a, n, K) * spread
    result = weighted
    for t in tl.static_range(n):
        inner = total(tl.where(k // n == t, weighted, 0.0))
        result -= tl.where(k // n == t, softmax_rows(a, n, K) * inner, 0.0)
    return result


@triton.jit
def boundary_backward(
    x, y, H_res, H_post, weight, bias, gain, offset, scale, a, stats,
    dout, da, db,
    dx, dy, dH_res, dH_post, dH_pre, da_all, dz_all, dgain, N,
    C: tl.constexpr, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr, NORM: tl.constexpr,
    SUM: tl.constexpr, NORM_EPS: tl.constexpr, WRITE: tl.constexpr, MIX: tl.constexpr,
    READ: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    STAGES: tl.constexpr, WIDE: tl.constexpr, XT: tl.constexpr, XS: tl.constexpr,
):  # fmt: skip
    """One boundary backward.

    Inputs as of `boundary_forward`, what it returned as a and stats, and the gradients dout
    (N, n, C), da (N, K), db (N, C). Results: dx (N, n, C), dy (N, C), dH_res (N, n, n), dH_post
    (N, n), and of the sub-layer that reads dH_pre (N, n); da_all (N, K), the whole gradient of a;
    dz_all (N, K), that of z = out weight; dgain (programs, C), to be summed over programs.
    """
    program = tl.program_id(0)
    token = (program * BT + tl.arange(0, BT)).to(tl.int64)
    row, inside = token[:, None], (token < N)[:, None]
    k = tl.arange(0, K)[None, :]
    within = tl.arange(0, BC)[None, :]
    dtype: tl.constexpr = x.dtype.element_ty
    P: tl.constexpr = BC // NEIGHBOURS
    if WRITE:
        post = numbers(H_post, row, inside, n, n)
        res = numbers(H_res, row, inside, n * n, n * n) if MIX else post
    if READ:
        # First pass: the sums over C that the second needs (1 and 2).
        inputs = tl.load(a + row * K + k, mask=inside, other=0.0)
        pre = read_weights(inputs, offset, scale, n, K, PRE)
        mean = tl.load(stats + row * (n + 2) + n, mask=inside, other=0.0)
        rstd = tl.load(stats + row * (n + 2) + n + 1, mask=inside, other=0.0)
        sum_g, sum_gh = no_sums(2, (BT, P))
        g_streams, h_streams = no_sums(n, (BT, P)), no_sums(n, (BT, P))
        sum_streams = no_sums(n, (BT, P))
        for start in tl.range(0, C, BC, num_stages=STAGES):
            column = start + within
            streams = chunks(x, row, inside, column, XT, XS, n)
            if WRITE:
                wrote = tl.load(y + row * C + column, mask=inside, other=0.0).to(tl.float32)
                streams = written(streams, wrote, res, post, n, MIX, dtype)
            h = mixed(pre, streams, n).to(db.dtype.element_ty).to(tl.float32)
            h = tl.where(inside, (h - mean) * rstd, 0.0)
            d = tl.load(db + row * C + column, mask=inside, other=0.0).to(tl.float32)
            tl.store(dgain + program * C + column, tl.sum(d * h, 0, keep_dims=True))
            g = d * tl.load(gain + column)
            sum_g += partial(g, BT, BC, P)
            sum_gh += partial(g * h, BT, BC, P)
            g_streams = dots(g_streams, g, streams, n, BT, BC, P)
            h_streams = dots(h_streams, h, streams, n, BT, BC, P)
            sum_streams = dots(sum_streams, 1.0, streams, n, BT, BC, P)
        mean_g = total(sum_g) / C
        mean_gh = total(sum_gh) / C
        # Between the passes: dH_pre (2), da, dz and pull (3). Here h_streams are of the normed h.
        read = ()
        for s in tl.static_range(n):
            own = total(g_streams[s]) - mean_g * total(sum_streams[s])
            read = read + (rstd * (own - mean_gh * total(h_streams[s])),)
            tl.store(dH_pre + row * n + s, read[s], mask=inside)
        all_da = tl.load(da + row * K + k, mask=inside, other=0.0)
        all_da += _read_weights_gradient(inputs, read, scale, n, K, PRE)
        tl.store(da_all + row * K + k, all_da, mask=inside)
        squares = numbers(stats, row, inside, n, n + 2)
        normed = inputs - tl.load(bias + k)  # r z
        if NORM == LAYER:
            u = total(tl.where(k == SUM, normed, 0.0)) / (n * C)
            square = squares[0]
            for s in tl.static_range(1, n):
                square += squares[s]
            inverse = tl.zeros_like(normed) + tl.sqrt((1 + u * u) / (square / (n * C) + NORM_EPS))
        else:
            inverse = inverse_norm(normed, squares, C, n, K, NORM, SUM, NORM_EPS)
        force = all_da * normed * inverse * inverse
        if NORM != LAYER and NORM_EPS == 0:  # rows that are as good as 0: as in `fast`
            width: tl.constexpr = C if NORM == RMS_STREAM else n * C
            force = tl.where(inverse < (width**0.5) * (1e12 - 1e6), force, 0.0)
        pull = ()
        for s in tl.static_range(n):
            if NORM == RMS_STREAM:
                pull = pull + (total(tl.where(k % n == s, force, 0.0)) / -C,)
            else:
                pull = pull + (total(force) / -(n * C),)
        dz = all_da * inverse
        if NORM == LAYER:
            # `inverse` is 0 where squares are more than float32 holds, and so is `pull`.
            dz -= tl.where(k == SUM, pull[0] * u / tl.maximum(inverse, 1e-30), 0.0)
        dz = dz.to(dtype)
        tl.store(dz_all + row * K + k, dz, mask=inside)
    if WRITE:
        post_sums = no_sums(n, (BT, P))
        res_sums = ()  # of each row of H_res
        for _ in tl.static_range(n if MIX else 0):
            res_sums = res_sums + (no_sums(n, (BT, P)),)
    # Second pass: G, and through the write (4).
    for start in tl.range(0, C, BC, num_stages=STAGES):
        column = start + within
        before = chunks(x, row, inside, column, XT, XS, n)
        gradient = chunks(dout, row, inside, column, n * C, C, n)
        if WRITE:
            wrote = tl.load(y + row * C + column, mask=inside, other=0.0).to(tl.float32)
        if READ:
            streams = written(before, wrote, res, post, n, MIX, dtype) if WRITE else before
            h = mixed(pre, streams, n).to(db.dtype.element_ty).to(tl.float32)
            d = tl.load(db + row * C + column, mask=inside, other=0.0).to(tl.float32)
            dh = rstd * (d * tl.load(gain + column) - mean_g - (h - mean) * rstd * mean_gh)
            whole = ()
            for s in tl.static_range(n):
                part = tl.load(weight + (s * C + start + tl.arange(0, BC))[:, None] * K + k)
                value = gradient[s] + pre[s] * dh + pull[s] * streams[s]
                whole = whole + (value + dot(dz, tl.trans(part), WIDE),)
            gradient = whole
        if WRITE:
            value = mixed(post, gradient, n).to(dy.dtype.element_ty)
            tl.store(dy + row * C + column, value, mask=inside)
            post_sums = dots(post_sums, wrote, gradient, n, BT, BC, P)
            if MIX:
                rows = ()
                for t in tl.static_range(n):
                    rows = rows + (dots(res_sums[t], gradient[t], before, n, BT, BC, P),)
                res_sums = rows
        for s in tl.static_range(n):
            value = gradient[s]
            if WRITE and MIX:
                value = res[s] * gradient[0]
                for t in tl.static_range(1, n):
                    value += res[t * n + s] * gradient[t]
            place = dx + row * (n * C) + (s * C + column)
            tl.store(place, value.to(dx.dtype.element_ty), mask=inside)
    if WRITE:
        for t in tl.static_range(n):
            tl.store(dH_post + row * n + t, total(post_sums[t]), mask=inside)
            if MIX:
                for s in tl.static_range(n):
                    place = dH_res + row * (n * n) + (t * n + s)
                    tl.store(place, total(res_sums[t][s]), mask=inside)
