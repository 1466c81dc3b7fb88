"""What the forward and the backward kernel of a boundary share: parts of Triton programs.

Tiles: (BT, BC) a chunk of a stream, (BT, K) one number per projection column. A vector (BT, 1) is
one number per token; tuples of n tiles or vectors are unrolled over streams (t: output stream, s:
input stream). Sums are float32, whatever the streams are.

The threads of a program lie side by side over a tile, so that a sum over its columns is an exchange
between them, with barriers. In loops over chunks, therefore, each thread adds up what it holds
itself (`partial`, `dots`), and the sums of the threads are added after the loop, once (`total`).
"""

from __future__ import annotations

import triton
import triton.language as tl

# How the projection is normalised (`fast.Projection.norm`), and how H_pre comes from a.
RMS, LAYER, RMS_STREAM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SIGMOID, TANH, SOFTMAX = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def dot(left, right, WIDE: tl.constexpr):
    """Matrix product in float32; WIDE for the interpreter, which has no bf16 product."""
    if WIDE:
        return tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    return tl.dot(left, right, input_precision="tf32x3")


@triton.jit
def no_sums(count: tl.constexpr, shape: tl.constexpr):
    """Where `count` sums begin."""
    sums = ()
    for _ in tl.static_range(count):
        sums = sums + (tl.zeros(shape, dtype=tl.float32),)
    return sums


@triton.jit
def partial(tile, BT: tl.constexpr, BC: tl.constexpr, P: tl.constexpr):
    """Sums over neighbouring columns of a tile, (BT, P): of one thread where it holds BC / P."""
    return tl.sum(tl.reshape(tile, (BT, P, BC // P)), 2)


@triton.jit
def dots(sums, left, right, n: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, P: tl.constexpr):
    """Sums of n streams, and the products of `left` with the tiles of `right` added to them."""
    more = ()
    for s in tl.static_range(n):
        more = more + (sums[s] + partial(left * right[s], BT, BC, P),)
    return more


@triton.jit
def total(sums):
    """What such sums come to, (BT, 1)."""
    return tl.sum(sums, 1, keep_dims=True)


@triton.jit
def numbers(pointer, row, inside, count: tl.constexpr, stride: tl.constexpr):
    """The first `count` numbers of each token, as vectors; `stride` from one token to the next."""
    vectors = ()
    for i in tl.static_range(count):
        vectors = vectors + (tl.load(pointer + row * stride + i, mask=inside, other=0.0),)
    return vectors


@triton.jit
def chunks(pointer, row, inside, column, XT: tl.constexpr, XS: tl.constexpr, n: tl.constexpr):
    """A chunk of each stream in float32; XT, XS: strides of token and stream."""
    tiles = ()
    for s in tl.static_range(n):
        tile = tl.load(pointer + row * XT + (s * XS + column), mask=inside, other=0.0)
        tiles = tiles + (tile.to(tl.float32),)
    return tiles


@triton.jit
def written(x, y, H_res, H_post, n: tl.constexpr, MIX: tl.constexpr, dtype: tl.constexpr):
    """H_res x + H_post^T y, a tile of each stream, rounded as they are stored."""
    tiles = ()
    for t in tl.static_range(n):
        value = H_post[t] * y
        if MIX:
            for s in tl.static_range(n):
                value += H_res[t * n + s] * x[s]
        else:
            value += x[t]
        tiles = tiles + (value.to(dtype).to(tl.float32),)
    return tiles


@triton.jit
def mixed(weights, tiles, n: tl.constexpr):
    """Sum over streams of weight times tile."""
    value = weights[0] * tiles[0]
    for s in tl.static_range(1, n):
        value += weights[s] * tiles[s]
    return value


@triton.jit
def _inverse_rms(squares, D: tl.constexpr, EPS: tl.constexpr):
    """1 / the root mean square of D numbers with this sum of squares."""
    if EPS > 0:
        return 1 / tl.sqrt(squares / D + EPS)
    return (D**0.5) / tl.maximum(tl.sqrt(squares), 1e-12)


@triton.jit
def inverse_norm(z, squares, C: tl.constexpr, n: tl.constexpr, K: tl.constexpr,
                 NORM: tl.constexpr, SUM: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    """1 / norm for each projection column, (BT, K).

    `squares`: of each stream the sum of its squares. Column SUM of z holds the sum of all streams.
    """
    k = tl.arange(0, K)[None, :]
    inverse = tl.zeros_like(z)
    if NORM == RMS_STREAM:
        for s in tl.static_range(n):
            inverse = tl.where(k % n == s, _inverse_rms(squares[s], C, EPS), inverse)
        return inverse
    square = squares[0]
    for s in tl.static_range(1, n):
        square += squares[s]
    if NORM == LAYER:
        mean = total(tl.where(k == SUM, z, 0.0)) / (n * C)
        # Rounding may leave less than nothing of nearly equal numbers.
        variance = tl.maximum(square / (n * C) - mean * mean, 0.0)
        return inverse + 1 / tl.sqrt(variance + EPS)
    return inverse + _inverse_rms(square, n * C, EPS)


@triton.jit
def softmax_rows(a, n: tl.constexpr, K: tl.constexpr):
    """Softmax over each of the first n groups of n columns, (BT, K); zero elsewhere."""
    k = tl.arange(0, K)[None, :]
    result = tl.zeros_like(a)
    for t in tl.static_range(n):
        row = tl.where(k // n == t, a, float("-inf"))
        exponentials = tl.exp(row - tl.max(row, 1, keep_dims=True))
        result += exponentials / total(exponentials)
    return result


@triton.jit
def read_weights(a, offset, scale, n: tl.constexpr, K: tl.constexpr, PRE: tl.constexpr):
    """H_pre of each stream, from a (BT, K)."""
    k = tl.arange(0, K)[None, :]
    if PRE == SIGMOID:
        values = tl.sigmoid(a)
    elif PRE == TANH:
        values = 2 * tl.sigmoid(2 * a) - 1
    else:
        values = softmax_rows(a, n, K)
    weights = ()
    for s in tl.static_range(n):
        if PRE == SOFTMAX:
            weight = total(tl.where((k % n == s) & (k < n * n), values, 0.0)) / n
        else:
            weight = total(tl.where(k == s, values, 0.0))
        if scale is not None:
            weight = weight * tl.load(scale)
        if offset is not None:
            weight += tl.load(offset + s)
        weights = weights + (weight,)
    return weights
