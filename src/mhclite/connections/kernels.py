"""Triton kernels of a boundary; `operators.py` launches them.

A boundary lies between two sub-layers: what one writes, and what the next reads,

    out = H_res x + H_post^T y          streams (n, C) of each token; not at the first boundary
    a   = out weight / |out| + bias     K inputs of the next sub-layer's coefficients
    b   = gain LayerNorm(H_pre out)     what its branch reads, H_pre from the first columns of a

One program has BT tokens and goes through their streams in chunks of BC columns. A token's n C
numbers do not fit into registers, and H_pre is known only when a's sums over all of them are
complete: so the same columns are gone through again. How much of that second pass comes from the L2
cache depends on the GPU and on n C; it has not been measured.

No atomic operations: a program owns its tokens, so that all results but dgain are its alone, and of
dgain it writes a row of its own. The bits are the same every time (for one launch: `launch.py`).

Tiles: (BT, BC) a chunk of a stream, (BT, n) one number per stream, (BT, K) one per projection
column. A vector (BT) is one number per token; tuples of n tiles or vectors are unrolled over
streams (t: output stream, s: input stream). Sums are float32, whatever the streams are.
"""

from __future__ import annotations

import triton
import triton.language as tl

# How the projection is normalised (`fast.Projection.norm`), and how H_pre comes from a.
RMS, LAYER, RMS_STREAM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SIGMOID, TANH, SOFTMAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def _columns(tile, width: tl.constexpr):
    """The columns of a tile (BT, width), as so many vectors (BT)."""
    which = tl.arange(0, width)[None, :]
    vectors = ()
    for i in tl.static_range(width):
        vectors = vectors + (tl.sum(tl.where(which == i, tile, 0.0), 1),)
    return vectors


@triton.jit
def _dot(left, right, WIDE: tl.constexpr):
    """Matrix product in float32; WIDE for the interpreter, which has no bf16 product."""
    if WIDE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def _inverse_rms(squares, D: tl.constexpr, EPS: tl.constexpr):
    """1 / the root mean square of D numbers with this sum of squares."""
    if EPS > 0:
        return 1 / tl.sqrt(squares / D + EPS)
    return (D**0.5) / tl.maximum(tl.sqrt(squares), 1e-12)


@triton.jit
def _inverse_norm(z, squares, C: tl.constexpr, n: tl.constexpr, K: tl.constexpr,
                  NORM: tl.constexpr, MEAN: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    """1 / norm for each projection column, (BT, K).

    `squares` (BT, n): sums of squares of the streams. Column MEAN of z holds the mean of all.
    """
    k = tl.arange(0, K)[None, :]
    if NORM == RMS_STREAM:
        inverse = _inverse_rms(squares, C, EPS)
        by_stream = _columns(inverse, n)
        tile = tl.zeros_like(z)
        for s in tl.static_range(n):
            tile = tl.where(k % n == s, by_stream[s][:, None], tile)
        return tile
    total = tl.sum(squares, 1)
    if NORM == LAYER:
        mean = tl.sum(tl.where(k == MEAN, z, 0.0), 1)
        inverse = 1 / tl.sqrt(total / (n * C) - mean * mean + EPS)
    else:
        inverse = _inverse_rms(total, n * C, EPS)
    return tl.zeros_like(z) + inverse[:, None]


@triton.jit
def _softmax_rows(a, n: tl.constexpr, K: tl.constexpr):
    """Softmax over each of the first n groups of n columns, (BT, K); zero elsewhere."""
    k = tl.arange(0, K)[None, :]
    result = tl.zeros_like(a)
    for t in tl.static_range(n):
        row = tl.where(k // n == t, a, float("-inf"))
        exponentials = tl.exp(row - tl.max(row, 1)[:, None])
        result += exponentials / tl.sum(exponentials, 1)[:, None]
    return result


@triton.jit
def _read_weights(a, offset, scale, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr):
    """H_pre of each stream, n vectors (BT), from a (BT, K)."""
    k = tl.arange(0, K)[None, :]
    if PRE == SIGMOID:
        values = tl.sigmoid(a)
    elif PRE == TANH:
        values = 2 * tl.sigmoid(2 * a) - 1
    else:
        values = _softmax_rows(a, n, K)
    weights = ()
    for s in tl.static_range(n):
        if PRE == SIGMOID:
            weight = tl.sum(tl.where(k == s, values, 0.0), 1)
            if offset is not None:
                weight += tl.load(offset + s)
        elif PRE == TANH:
            weight = tl.sum(tl.where(k == s, values, 0.0), 1) * tl.load(scale) + tl.load(offset + s)
        else:
            weight = tl.sum(tl.where((k % n == s) & (k < n * n), values, 0.0), 1) / n
        weights = weights + (weight,)
    return weights


@triton.jit
def _read_weights_gradient(a, dH_pre, scale, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr):
    """What H_pre's gradient, n vectors (BT), adds to that of a (BT, K)."""
    k = tl.arange(0, K)[None, :]
    spread = tl.zeros_like(a)  # dH_pre where it is felt
    for s in tl.static_range(n):
        if PRE == SOFTMAX:
            felt = (k % n == s) & (k < n * n)
            spread = tl.where(felt, dH_pre[s][:, None] / n, spread)
        else:
            spread = tl.where(k == s, dH_pre[s][:, None], spread)
    if PRE == SIGMOID:
        value = tl.sigmoid(a)
        return spread * value * (1 - value)
    if PRE == TANH:
        value = 2 * tl.sigmoid(2 * a) - 1
        return spread * tl.load(scale) * (1 - value * value)
    weights = _softmax_rows(a, n, K)
    weighted = weights * spread
    result = weighted
    for t in tl.static_range(n):
        inner = tl.sum(tl.where(k // n == t, weighted, 0.0), 1)
        result -= tl.where(k // n == t, weights * inner[:, None], 0.0)
    return result


@triton.jit
def _matrix(pointer, token, inside, count: tl.constexpr):
    """`count` numbers of each token, as vectors (BT)."""
    vectors = ()
    for i in tl.static_range(count):
        vectors = vectors + (tl.load(pointer + token * count + i, mask=inside, other=0.0),)
    return vectors


@triton.jit
def _streams(pointer, token, inside, column, XT: tl.constexpr, XS: tl.constexpr, n: tl.constexpr):
    """A chunk of each stream, n tiles (BT, BC) in float32; XT, XS: strides of token and stream."""
    tiles = ()
    for s in tl.static_range(n):
        place = pointer + token[:, None] * XT + (s * XS + column)[None, :]
        tiles = tiles + (tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def _written(x, y, H_res, H_post, n: tl.constexpr, MIX: tl.constexpr, dtype: tl.constexpr):
    """H_res x + H_post^T y: n tiles (BT, BC), rounded as they are stored."""
    tiles = ()
    for t in tl.static_range(n):
        value = H_post[t][:, None] * y
        if MIX:
            for s in tl.static_range(n):
                value += H_res[t * n + s][:, None] * x[s]
        else:
            value += x[t]
        tiles = tiles + (value.to(dtype).to(tl.float32),)
    return tiles


@triton.jit
def _mixed(weights, tiles, n: tl.constexpr):
    """Sum over streams of weight times tile, (BT, BC)."""
    value = weights[0][:, None] * tiles[0]
    for s in tl.static_range(1, n):
        value += weights[s][:, None] * tiles[s]
    return value


@triton.jit
def boundary_forward(
    x, y, H_res, H_post, weight, bias, gain, offset, scale,
    out, a, b, stats, N,
    C: tl.constexpr, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr, NORM: tl.constexpr,
    MEAN: tl.constexpr, NORM_EPS: tl.constexpr, WRITE: tl.constexpr, MIX: tl.constexpr,
    READ: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, WIDE: tl.constexpr,
    XT: tl.constexpr, XS: tl.constexpr,
):  # fmt: skip
    """One boundary forward.

    x, out (N, n, C); y, b (N, C); H_res (N, n, n) and H_post (N, n) of the sub-layer that writes;
    weight (n C, K), bias (K), gain (C), offset (n), scale () of the one that reads; a (N, K); stats
    (N, n + 2): sums of squares of the streams, mean and 1 / standard deviation of H_pre out.
    """
    token = (tl.program_id(0) * BT + tl.arange(0, BT)).to(tl.int64)
    inside = token < N
    k = tl.arange(0, K)
    which = tl.arange(0, n)[None, :]
    dtype: tl.constexpr = x.dtype.element_ty
    if WRITE:
        post = _matrix(H_post, token, inside, n)
        res = _matrix(H_res, token, inside, n * n) if MIX else post
    z = tl.zeros((BT, K), dtype=tl.float32)
    squares = tl.zeros((BT, n), dtype=tl.float32)
    for start in range(0, C, BC):
        column = start + tl.arange(0, BC)
        streams = _streams(x, token, inside, column, XT, XS, n)
        if WRITE:
            place = y + token[:, None] * C + column[None, :]
            wrote = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
            streams = _written(streams, wrote, res, post, n, MIX, dtype)
        for s in tl.static_range(n):
            place = out + token[:, None] * (n * C) + (s * C + column)[None, :]
            tl.store(place, streams[s].to(dtype), mask=inside[:, None])
            if READ:
                part = tl.load(weight + (s * C + column)[:, None] * K + k[None, :])
                z += _dot(streams[s].to(dtype), part, WIDE)
                squares += tl.where(which == s, tl.sum(streams[s] * streams[s], 1)[:, None], 0.0)
    if READ:
        inverse = _inverse_norm(z, squares, C, n, K, NORM, MEAN, NORM_EPS)
        inputs = z * inverse + tl.load(bias + k)[None, :]
        tl.store(a + token[:, None] * K + k[None, :], inputs, mask=inside[:, None])
        pre = _read_weights(inputs, offset, scale, n, K, PRE)
        # What other threads of this program wrote is read below.
        tl.debug_barrier()
        total = tl.zeros((BT,), dtype=tl.float32)
        total_square = tl.zeros((BT,), dtype=tl.float32)
        for start in range(0, C, BC):
            column = start + tl.arange(0, BC)
            h = _mixed(pre, _streams(out, token, inside, column, n * C, C, n), n)
            h = h.to(b.dtype.element_ty)
            tl.store(b + token[:, None] * C + column[None, :], h, mask=inside[:, None])
            h = h.to(tl.float32)
            total += tl.sum(h, 1)
            total_square += tl.sum(h * h, 1)
        mean = total / C
        rstd = 1 / tl.sqrt(tl.maximum(total_square / C - mean * mean, 0.0) + EPS)
        tl.debug_barrier()
        for start in range(0, C, BC):
            column = start + tl.arange(0, BC)
            place = b + token[:, None] * C + column[None, :]
            h = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
            h = (h - mean[:, None]) * rstd[:, None] * tl.load(gain + column)[None, :]
            # Each thread writes where it read.
            tl.store(place, h.to(b.dtype.element_ty), mask=inside[:, None])
        place = stats + token[:, None] * (n + 2)
        tl.store(place + which, squares, mask=inside[:, None])
        tl.store(stats + token * (n + 2) + n, mean, mask=inside)
        tl.store(stats + token * (n + 2) + n + 1, rstd, mask=inside)


# The backward pass of a boundary, for one token. Streams before X (n, C), after X' = A X + p y^T,
# with A = H_res (n, n) and p = H_post (n). v = vec X' (D = n C numbers), W = weight (D, K),
#
#     z = v W,  r = 1 / norm(v),  a = r z + bias,  q = H_pre = f(a) (n),
#     h = q X' (C),  hn = (h - mean h) rstd,  b = gain hn.
#
# Given dX' (`dout`, from the next boundary), da (from H_post and H_res, through torch) and db.
# Means are over C, a dot is a sum over C.
#
# 1. LayerNorm. g = gain db, dgain = sum over tokens of db hn,
#        dh = rstd (g - mean(g) - hn mean(g hn)).
# 2. Read. dq[s] = dh . X'[s]. dh is known only after the pass that takes its two means; but put in,
#        dq[s] = rstd (g . X'[s] - mean(g) sum(X'[s]) - mean(g hn) hn . X'[s]),
#    so that one pass takes all sums: sum_g, sum_gh, and for each stream g_stream, sum_stream and
#    h_stream. Then da += df/da dq.
# 3. Projection. dz = r da. For the norms without mean r = 1 / sqrt(|v|^2 / D + eps), and dr/dv =
#    -r^3 v / D, so that through the norm
#        dv = pull v,  pull = -(da . z) r^3 / D = -(da . (r z)) r^2 / D;  r z = a - bias is at hand.
#    Norm by stream: D = C, each stream with the sum over its own columns. LayerNorm has
#    r = 1 / sqrt(|v|^2 / D - m^2 + eps), m = z[MEAN] the mean of v, so dv = pull (v - m). The
#    second part goes by the mean column, whose weights are 1 / D: dz[MEAN] -= pull m D. And m is
#    not stored: with u = a[MEAN] - bias = r m, r = sqrt((1 + u^2) / (|v|^2 / D + eps)).
#    G = dX' in total = dX' + q dh^T + pull X' + dz W^T (as (n, C)).
#    dW = v^T dz and the bias's sum run over all tokens: torch does them, from dz and da.
# 4. Write. dX = A^T G, dy = p G; dA[t, s] = G[t] . X[s] and dp[t] = G[t] . y sum over C.
#
# So there are two passes over the columns: the first for the sums of 1 and 2; between them comes 3,
# on K numbers per token; the second for G, dX and dy chunk by chunk, and the sums of 4. X' is
# computed again in both, from X and y, which 4 needs anyway, and rounded as the forward pass stored
# it; so is h. a, |v|^2, mean and rstd are kept from the forward pass: each would take another pass.
@triton.jit
def boundary_backward(
    x, y, H_res, H_post, weight, bias, gain, offset, scale, a, stats,
    dout, da, db,
    dx, dy, dH_res, dH_post, dH_pre, da_all, dz_all, dgain, N,
    C: tl.constexpr, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr, NORM: tl.constexpr,
    MEAN: tl.constexpr, NORM_EPS: tl.constexpr, WRITE: tl.constexpr, MIX: tl.constexpr,
    READ: tl.constexpr, EPS: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, WIDE: tl.constexpr,
    XT: tl.constexpr, XS: tl.constexpr,
):  # fmt: skip
    """One boundary backward; the derivation stands above.

    Inputs as of `boundary_forward`, what it returned as a and stats, and the gradients dout
    (N, n, C), da (N, K), db (N, C). Results: dx (N, n, C), dy (N, C), dH_res (N, n, n), dH_post
    (N, n), and of the sub-layer that reads dH_pre (N, n); da_all (N, K), the whole gradient of a;
    dz_all (N, K), that of z = out weight; dgain (programs, C), to be summed over programs.
    """
    program = tl.program_id(0)
    token = (program * BT + tl.arange(0, BT)).to(tl.int64)
    inside = token < N
    k = tl.arange(0, K)
    which = tl.arange(0, n)[None, :]
    dtype: tl.constexpr = x.dtype.element_ty
    if WRITE:
        post = _matrix(H_post, token, inside, n)
        res = _matrix(H_res, token, inside, n * n) if MIX else post
    if READ:
        # First pass: the sums over C that the second needs (1 and 2).
        inputs = tl.load(a + token[:, None] * K + k[None, :], mask=inside[:, None], other=0.0)
        pre = _read_weights(inputs, offset, scale, n, K, PRE)
        mean = tl.load(stats + token * (n + 2) + n, mask=inside, other=0.0)[:, None]
        rstd = tl.load(stats + token * (n + 2) + n + 1, mask=inside, other=0.0)[:, None]
        sum_g = tl.zeros((BT,), dtype=tl.float32)
        sum_gh = tl.zeros((BT,), dtype=tl.float32)
        g_stream = tl.zeros((BT, n), dtype=tl.float32)
        sum_stream = tl.zeros((BT, n), dtype=tl.float32)
        h_stream = tl.zeros((BT, n), dtype=tl.float32)
        for start in range(0, C, BC):
            column = start + tl.arange(0, BC)
            streams = _streams(x, token, inside, column, XT, XS, n)
            if WRITE:
                place = y + token[:, None] * C + column[None, :]
                wrote = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
                streams = _written(streams, wrote, res, post, n, MIX, dtype)
            h = _mixed(pre, streams, n).to(db.dtype.element_ty).to(tl.float32)
            h = tl.where(inside[:, None], (h - mean) * rstd, 0.0)
            place = db + token[:, None] * C + column[None, :]
            d = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
            tl.store(dgain + program * C + column, tl.sum(d * h, 0))
            g = d * tl.load(gain + column)[None, :]
            sum_g += tl.sum(g, 1)
            sum_gh += tl.sum(g * h, 1)
            for s in tl.static_range(n):
                own = which == s
                g_stream += tl.where(own, tl.sum(g * streams[s], 1)[:, None], 0.0)
                sum_stream += tl.where(own, tl.sum(streams[s], 1)[:, None], 0.0)
                h_stream += tl.where(own, tl.sum(h * streams[s], 1)[:, None], 0.0)
        mean_g = (sum_g / C)[:, None]
        mean_gh = (sum_gh / C)[:, None]
        # Between the passes: dH_pre (2), da, dz and pull (3). Here h_stream is of the normed h.
        read = rstd * (g_stream - mean_g * sum_stream - mean_gh * h_stream)
        tl.store(dH_pre + token[:, None] * n + which, read, mask=inside[:, None])
        at = token[:, None] * K + k[None, :]
        total = tl.load(da + at, mask=inside[:, None], other=0.0)
        total += _read_weights_gradient(inputs, _columns(read, n), scale, n, K, PRE)
        tl.store(da_all + at, total, mask=inside[:, None])
        squares = tl.load(stats + token[:, None] * (n + 2) + which, mask=inside[:, None], other=1.0)
        normed = inputs - tl.load(bias + k)[None, :]  # z / norm
        if NORM == LAYER:  # ratio is u of 3
            ratio = tl.sum(tl.where(k[None, :] == MEAN, normed, 0.0), 1)
            spread = tl.sum(squares, 1) / (n * C) + NORM_EPS
            inverse = tl.zeros_like(normed) + tl.sqrt((1 + ratio * ratio) / spread)[:, None]
        else:
            inverse = _inverse_norm(normed, squares, C, n, K, NORM, MEAN, NORM_EPS)
        force = total * normed * inverse * inverse
        pull = ()
        for s in tl.static_range(n):
            if NORM == RMS_STREAM:
                share = tl.sum(tl.where(k[None, :] % n == s, force, 0.0), 1) / -C
            else:
                share = tl.sum(force, 1) / -(n * C)
            pull = pull + (share,)
        dz = total * inverse
        if NORM == LAYER:
            dz -= tl.where(k[None, :] == MEAN, normed / inverse * pull[0][:, None] * (n * C), 0.0)
        tl.store(dz_all + at, dz.to(dz_all.dtype.element_ty), mask=inside[:, None])
        dz = dz.to(weight.dtype.element_ty)
    if WRITE:
        mixed_gradient = tl.zeros((BT, n * n), dtype=tl.float32)
        post_gradient = tl.zeros((BT, n), dtype=tl.float32)
        entry = tl.arange(0, n * n)[None, :]
    # Second pass: G, and through the write (4).
    for start in range(0, C, BC):
        column = start + tl.arange(0, BC)
        before = _streams(x, token, inside, column, XT, XS, n)
        gradient = _streams(dout, token, inside, column, n * C, C, n)
        if WRITE:
            place = y + token[:, None] * C + column[None, :]
            wrote = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
        if READ:
            streams = _written(before, wrote, res, post, n, MIX, dtype) if WRITE else before
            h = _mixed(pre, streams, n).to(db.dtype.element_ty).to(tl.float32)
            place = db + token[:, None] * C + column[None, :]
            d = tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)
            g = d * tl.load(gain + column)[None, :]
            dh = rstd * (g - mean_g - (h - mean) * rstd * mean_gh)
            whole = ()
            for s in tl.static_range(n):
                part = tl.load(weight + (s * C + column)[:, None] * K + k[None, :])
                value = gradient[s] + pre[s][:, None] * dh + pull[s][:, None] * streams[s]
                whole = whole + (value + _dot(dz, tl.trans(part), WIDE),)
            gradient = whole
        if WRITE:
            place = dy + token[:, None] * C + column[None, :]
            value = _mixed(post, gradient, n)
            tl.store(place, value.to(dy.dtype.element_ty), mask=inside[:, None])
            for t in tl.static_range(n):
                own = tl.sum(gradient[t] * wrote, 1)[:, None]
                post_gradient += tl.where(which == t, own, 0.0)
                if MIX:
                    for s in tl.static_range(n):
                        own = tl.sum(gradient[t] * before[s], 1)[:, None]
                        mixed_gradient += tl.where(entry == t * n + s, own, 0.0)
        for s in tl.static_range(n):
            value = gradient[s]
            if WRITE and MIX:
                value = res[s][:, None] * gradient[0]
                for t in tl.static_range(1, n):
                    value += res[t * n + s][:, None] * gradient[t]
            place = dx + token[:, None] * (n * C) + (s * C + column)[None, :]
            tl.store(place, value.to(dx.dtype.element_ty), mask=inside[:, None])
    if WRITE:
        tl.store(dH_post + token[:, None] * n + which, post_gradient, mask=inside[:, None])
        if MIX:
            place = dH_res + token[:, None] * (n * n) + entry
            tl.store(place, mixed_gradient, mask=inside[:, None])
