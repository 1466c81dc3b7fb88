"""The operators of the fused implementation, registered with torch.library.

`boundary` is the write of one sub-layer and the read of the next, `write` the write after the last;
torch.compile sees each, and each gradient, as a single node. Operators take and return bare tensors
and numbers: `fused.py` gives them names, and says what each is.

What the backward pass keeps. Of a boundary x (its input), x' (its output, which is the x of the
next boundary: the same memory, kept once), what was written, a, and n + 2 statistics per token. The
kernel computes x' again from x and y, because it reads x anyway for the gradient of H_res, and that
saves n C numbers of traffic per token. x' is kept for the gradient of the projection's weights
alone, which is left to a matrix product of torch's: it is a sum over all tokens, for which each
program of the kernel would have to write a partial sum of n C K numbers. The derivation of the rest
stands above `kernels.boundary_backward`.

Shapes: N tokens, n streams, C width, K projection columns (padded to a power of two).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mhclite.connections.fast import launch
from mhclite.connections.fast.availability import SMALLEST_CHUNK, interpreted
from mhclite.connections.fast.functions import LAYER_NORM_EPS

Context = Any  # what torch passes as ctx


def _forward_constants(x: Tensor, **more: Any) -> dict[str, Any]:
    """What a forward launch passes besides its tensors."""
    how = launch.FORWARD
    # The sums and weights of more than 32 projection columns (JPmHC) take the registers of half a
    # chunk.
    how = how._replace(columns=how.columns // max(1, more["K"] // 32))
    if x.dtype == torch.float32:
        how = how._replace(columns=min(how.columns, launch.FLOAT32_COLUMNS))
    constants = _constants(x, how, **more)
    chunk = constants["BC"]
    # Side by side, one for each warp where the chunk is wide enough. Where it is not, there are no
    # more warps than a multiprocessor has schedulers.
    products = max(1, min(how.warps, chunk // SMALLEST_CHUNK))
    warps = min(how.warps, max(4, products))
    return constants | {"G": products, "BC": chunk // products, "num_warps": warps}


def _constants(x: Tensor, how: launch.Launch, **more: Any) -> dict[str, Any]:
    """What every launch of a boundary passes besides its tensors."""
    _, n, C = x.shape
    assert x.stride(2) == 1, x.stride()
    return {
        "C": C,
        "n": n,
        "XT": x.stride(0),
        "XS": x.stride(1),
        "EPS": LAYER_NORM_EPS,
        "BT": how.tokens,
        "BC": min(how.columns, C & -C),  # a power of two that divides C
        "STAGES": how.stages,
        "WIDE": interpreted(),
        "num_warps": how.warps,
        **more,
    }


# Of a launch that reads nothing.
NO_READING = {
    "K": SMALLEST_CHUNK, "PRE": 0, "NORM": 0, "SUM": 0, "NORM_EPS": 0.0, "READ": False
}  # fmt: skip


def _kernels() -> SimpleNamespace:
    """Imported where they run: Triton need not be installed."""
    from mhclite.connections.fast import kernels, kernels_backward

    return SimpleNamespace(
        forward=kernels.boundary_forward, backward=kernels_backward.boundary_backward
    )


def _like(tensor: Tensor) -> Tensor:
    """An empty tensor of the same shape, contiguous whatever the strides of `tensor` are."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _like_or_empty(x: Tensor, tensor: Tensor | None) -> Tensor:
    """The gradient's place of an optional input: no elements where that is None.

    Operators cannot return None.
    """
    return x.new_empty(0) if tensor is None else _like(tensor)


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """As the kernels index them: contiguous. Inputs are so but for odd callers and compilers."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _streams(x: Tensor) -> Tensor:
    """Streams as the kernels index them: columns side by side. Views of one stream stay views."""
    return x if x.stride(2) == 1 else x.contiguous()


@torch.library.custom_op("mhclite::boundary", mutates_args=())
def boundary(
    x: Tensor,
    y: Tensor | None,
    H_res: Tensor | None,
    H_post: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    norm: int,
    activation: int,
    sum_column: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = _streams(x)
    (N, n, C), K = x.shape, weight.shape[1]
    out = x.new_empty(N, n, C)
    a = x.new_empty(N, K, dtype=torch.float32)
    b = x.new_empty(N, C, dtype=dtype)
    stats = x.new_empty(N, n + 2, dtype=torch.float32)
    _kernels().forward[(launch.FORWARD.programs(N),)](
        x, *_dense(y, H_res, H_post, weight, bias, gain, offset, scale), out, a, b, stats, N,
        **_forward_constants(
            x, K=K, PRE=activation, NORM=norm, SUM=sum_column, NORM_EPS=eps,
            WRITE=y is not None, MIX=H_res is not None, READ=True,
        ),
    )  # fmt: skip
    return out, a, b, stats


@boundary.register_fake
def _(
    x: Tensor,
    y: Tensor | None,
    H_res: Tensor | None,
    H_post: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    norm: int,
    activation: int,
    sum_column: int,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (N, n, C), K = x.shape, weight.shape[1]
    return (
        x.new_empty(N, n, C),
        x.new_empty(N, K, dtype=torch.float32),
        x.new_empty(N, C, dtype=dtype),
        x.new_empty(N, n + 2, dtype=torch.float32),
    )


@torch.library.custom_op("mhclite::boundary_backward", mutates_args=())
def boundary_backward(
    x: Tensor,
    y: Tensor | None,
    H_res: Tensor | None,
    H_post: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    a: Tensor,
    stats: Tensor,
    dout: Tensor,
    da: Tensor,
    db: Tensor,
    norm: int,
    activation: int,
    sum_column: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x = _streams(x)
    (N, n, C), K = x.shape, weight.shape[1]
    programs = launch.BACKWARD.programs(N)
    dx = x.new_empty(N, n, C)
    dH_pre, da_whole, dz = stats.new_empty(N, n), _like(a), x.new_empty(N, K)
    # A row per program in place of an atomic sum, whose order would differ from run to run.
    dgain = stats.new_empty(programs, C)
    dy, dH_res, dH_post = (_like_or_empty(x, t) for t in (y, H_res, H_post))
    _kernels().backward[(programs,)](
        x,
        *_dense(y, H_res, H_post, weight, bias, gain, offset, scale, a, stats, dout, da, db),
        dx,
        None if y is None else dy,
        None if H_res is None else dH_res,
        None if H_post is None else dH_post,
        dH_pre, da_whole, dz, dgain, N,
        **_constants(
            x, launch.BACKWARD, K=K, PRE=activation, NORM=norm, SUM=sum_column, NORM_EPS=eps,
            WRITE=y is not None, MIX=H_res is not None, READ=True,
        ),
    )  # fmt: skip
    return dx, dH_pre, da_whole, dz, dgain.sum(0), dy, dH_res, dH_post


@boundary_backward.register_fake
def _(
    x: Tensor,
    y: Tensor | None,
    H_res: Tensor | None,
    H_post: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    a: Tensor,
    stats: Tensor,
    dout: Tensor,
    da: Tensor,
    db: Tensor,
    norm: int,
    activation: int,
    sum_column: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (N, n, C), K = x.shape, weight.shape[1]
    dx, dz = x.new_empty(N, n, C), x.new_empty(N, K)
    dy, dH_res, dH_post = (_like_or_empty(x, t) for t in (y, H_res, H_post))
    return dx, stats.new_empty(N, n), _like(a), dz, stats.new_empty(C), dy, dH_res, dH_post


@torch.library.custom_op("mhclite::write", mutates_args=())
def write(x: Tensor, y: Tensor, H_res: Tensor | None, H_post: Tensor) -> Tensor:
    x, N = _streams(x), len(x)
    out = _like(x)
    reading, results = [None] * 5, [out, None, None, None]
    _kernels().forward[(launch.FORWARD.programs(N),)](
        x, *_dense(y, H_res, H_post), *reading, *results, N,
        **_forward_constants(x, WRITE=True, MIX=H_res is not None, **NO_READING),
    )  # fmt: skip
    return out


@write.register_fake
def _(x: Tensor, y: Tensor, H_res: Tensor | None, H_post: Tensor) -> Tensor:
    return _like(x)


@torch.library.custom_op("mhclite::write_backward", mutates_args=())
def write_backward(
    x: Tensor, y: Tensor, H_res: Tensor | None, H_post: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, N = _streams(x), len(x)
    dx, dy, dH_post = _like(x), _like(y), _like(H_post)
    dH_res = _like_or_empty(x, H_res)
    reading, kept, reading_gradients = [None] * 5, [None] * 2, [None] * 4
    _kernels().backward[(launch.BACKWARD.programs(N),)](
        x, *_dense(y, H_res, H_post), *reading, *kept, dout.contiguous(), None, None,
        dx, dy, None if H_res is None else dH_res, dH_post, *reading_gradients, N,
        **_constants(x, launch.BACKWARD, WRITE=True, MIX=H_res is not None, **NO_READING),
    )  # fmt: skip
    return dx, dy, dH_res, dH_post


@write_backward.register_fake
def _(
    x: Tensor, y: Tensor, H_res: Tensor | None, H_post: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _like(x), _like(y), _like_or_empty(x, H_res), _like(H_post)


# --- their gradients ----------------------------------------------------------------------------


def _keep_boundary(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, norm, activation, sum_column, eps, _ = inputs
    out, a, _, stats = output
    ctx.constants = norm, activation, sum_column, eps
    ctx.save_for_backward(*tensors, a, stats, out)


def _activated(a: Tensor, activation: int, n: int) -> Tensor:
    """f(a), (N, n): H_pre without its offset and scale, as `kernel_parts.read_weights` has it."""
    if activation == 2:
        return torch.softmax(a[:, : n * n].unflatten(1, (n, n)), 2).mean(1)
    return torch.tanh(a[:, :n]) if activation == 1 else torch.sigmoid(a[:, :n])


def _boundary_gradients(
    ctx: Context, dout: Tensor, da: Tensor, db: Tensor, dstats: Tensor
) -> tuple[Tensor | None, ...]:
    x, y, H_res, H_post, weight, bias, gain, offset, scale, a, stats, out = ctx.saved_tensors
    dx, dH_pre, da, dz, dgain, dy, dH_res, dH_post = boundary_backward(
        x, y, H_res, H_post, weight, bias, gain, offset, scale, a, stats, dout, da, db,
        *ctx.constants,
    )  # fmt: skip
    if y is None:
        dy = dH_post = None
    if H_res is None:
        dH_res = None
    # H_pre = offset + scale f(a), each of them if there is one. Not all are learned.
    doffset = dscale = None
    if ctx.needs_input_grad[7]:
        doffset = dH_pre.sum(0)
    if ctx.needs_input_grad[8]:
        dscale = (dH_pre * _activated(a, ctx.constants[1], dH_pre.shape[1])).sum().view(scale.shape)
    with torch.autocast(x.device.type, enabled=False):  # whoever calls backward: as stored
        dweight = out.flatten(1).t() @ dz
    dbias = da.sum(0)
    constants = (None,) * 5  # norm, activation, sum_column, eps, dtype
    return (dx, dy, dH_res, dH_post, dweight, dbias, dgain, doffset, dscale, *constants)


boundary.register_autograd(_boundary_gradients, setup_context=_keep_boundary)


def _keep_write(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, H_res, H_post = inputs
    ctx.save_for_backward(x, y, H_res, H_post)


def _write_gradients(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, y, H_res, H_post = ctx.saved_tensors
    dx, dy, dH_res, dH_post = write_backward(x, y, H_res, H_post, dout)
    return dx, dy, None if H_res is None else dH_res, dH_post


write.register_autograd(_write_gradients, setup_context=_keep_write)
