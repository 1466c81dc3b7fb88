"""The fused implementation: one pass over the streams between two sub-layers, by Triton kernels.

The write of a sub-layer and the read of the next are one operator, `boundary`: the streams are read
and written once forward, and once backward, and their gradient is a single tensor that each
boundary hands on. The operators are registered with torch.library, so that torch.compile sees them
as single nodes. What is computed from a token's few coefficients alone stays in torch.

Shapes: N tokens, n streams, C width, K projection columns (padded to a power of two).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhclite.connections import fast
from mhclite.connections.base import Connection
from mhclite.connections.choice import SMALLEST_CHUNK, interpreted

Context = Any  # what torch passes as ctx
NORMS = ("rms", "layer", "rms_stream")  # in the order of the kernels' constants
ACTIVATIONS = ("sigmoid", "tanh", "softmax")


class Launch(NamedTuple):
    """How the kernels of a boundary run."""

    tokens: int  # of a program
    columns: int  # of a chunk, at most
    warps: int
    stages: int  # chunks under way at a time

    def programs(self, tokens: int) -> int:
        return -(-tokens // self.tokens)


# What the compiler makes of these needs no more registers than there are on sm_90
# (tests/unit/test_fused.py); `bench --tune` times others.
LAUNCH = Launch(tokens=16, columns=32, warps=4, stages=3)
SINKHORN_TOKENS = 64


def _kernels() -> Any:
    from mhclite.connections import kernels

    return kernels


class Reading(NamedTuple):
    """What a boundary needs of the sub-layer that reads, as tensors and constants."""

    weight: Tensor  # (n C, K) in the streams' dtype
    bias: Tensor  # (K) float32
    gain: Tensor  # (C) of the branch's LayerNorm
    offset: Tensor | None  # (n)
    scale: Tensor | None  # ()
    norm: int
    activation: int
    mean_column: int


def reading(connection: Connection, gain: Tensor, dtype: torch.dtype) -> tuple[Reading, int]:
    """A connection's parameters as one padded projection, and its columns without the padding."""
    n = connection.n_streams
    weight, bias, norm = connection.projection()
    if norm == "layer":
        weight = fast.centred(weight)
    mean_column = columns = weight.shape[1] - (norm == "layer")
    if norm == "rms_stream":
        # Each stream by itself: block diagonal, column k of stream s at k n + s.
        own = torch.eye(n, dtype=weight.dtype, device=weight.device)
        weight = (weight[None, :, :, None] * own[:, None, None, :]).flatten(2).flatten(0, 1)
        columns = weight.shape[1]
    padded = max(SMALLEST_CHUNK, 1 << (weight.shape[1] - 1).bit_length())
    weight = torch.nn.functional.pad(weight, (0, padded - weight.shape[1])).to(dtype)
    if bias is None:
        bias = weight.new_zeros(padded, dtype=torch.float32)
    else:
        bias = torch.nn.functional.pad(bias, (0, padded - len(bias))).float()
    offset, scale = connection.read_affine()
    activation = ACTIVATIONS.index(connection.read_activation)
    norm_index = NORMS.index(norm)
    return Reading(weight, bias, gain, offset, scale, norm_index, activation, mean_column), columns


def coefficient_inputs(a: Tensor, read: Reading, columns: int, n: int) -> Tensor:
    """What `Connection.from_projection` takes, from a (N, K padded)."""
    a = a[:, :columns]
    if read.norm == NORMS.index("rms_stream"):
        return a.unflatten(1, (-1, n)).transpose(1, 2)  # (N, n, K)
    return a


# --- the operators ------------------------------------------------------------------------------


def _constants(x: Tensor, launch: Launch, **more: Any) -> dict[str, Any]:
    """What every launch of a boundary passes besides its tensors."""
    _, n, C = x.shape
    chunk = min(launch.columns, C & -C)  # a power of two that divides C
    return {
        "C": C,
        "n": n,
        "EPS": fast.LAYER_NORM_EPS,
        "BT": launch.tokens,
        "BC": chunk,
        "WIDE": interpreted(),
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        **more,
    }


def _like(tensor: Tensor) -> Tensor:
    """Room for as much, contiguous whatever the tensor is."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _dense(*tensors: Tensor | None) -> list[Tensor | None]:
    """As the kernels index them: contiguous."""
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


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
    mean_column: int,
    dtype: torch.dtype,
    keep_out: bool,
    earlier_x: Tensor | None,
    earlier_y: Tensor | None,
    earlier_H_res: Tensor | None,
    earlier_H_post: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The write of one sub-layer and the read of the next.

    Args:
        x: (N, n, C); its streams may be one (stride 0) where nothing is written.
        y, H_res, H_post: (N, C), (N, n, n), (N, n) of the sub-layer that writes. No y: nothing is
            written, the streams are copied; no H_res: the identity.
        weight, ..., mean_column: `Reading`.
        dtype: of what the branch is given.
        keep_out: whether the backward pass keeps the streams that come out; if not, it writes them
            again.
        earlier_x, ...: where given, the backward pass keeps these in place of x, which is what they
            write.

    Returns:
        Streams (N, n, C), coefficient inputs (N, K), what the branch reads (N, C), and statistics
        for the backward pass (N, n + 2).
    """
    N, n, C = x.shape
    K = weight.shape[1]
    out = x.new_empty(N, n, C)
    a = x.new_empty(N, K, dtype=torch.float32)
    b = x.new_empty(N, C, dtype=dtype)
    stats = x.new_empty(N, n + 2, dtype=torch.float32)
    launch = LAUNCH
    _kernels().boundary_forward[(launch.programs(N),)](
        x, *_dense(y, H_res, H_post), weight, bias, gain, offset, scale, out, a, b, stats, N,
        **_constants(
            x, launch, K=K, PRE=activation, NORM=norm, MEAN=mean_column, WRITE=y is not None,
            MIX=H_res is not None, READ=True, XT=x.stride(0), XS=x.stride(1),
        ),
    )  # fmt: skip
    return out, a, b, stats


@boundary.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    N, n, C = x.shape
    weight, dtype = rest[3], rest[11]
    return (
        x.new_empty(N, n, C),
        x.new_empty(N, weight.shape[1], dtype=torch.float32),
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
    mean_column: int,
) -> list[Tensor]:
    """Gradients of `boundary`: dx, dH_pre (N, n), da (N, K) whole, dz (N, K), dgain, [dy, dH_post,
    [dH_res]], the latter where there is something written.
    """
    N, n, C = x.shape
    launch = LAUNCH
    dx = x.new_empty(N, n, C)
    dH_pre, da_all = stats.new_empty(N, n), _like(a)
    dz = x.new_empty(a.shape)
    dgain = stats.new_empty(launch.programs(N), C)
    dy = None if y is None else _like(y)
    dH_post = None if H_post is None else _like(H_post)
    dH_res = None if H_res is None else _like(H_res)
    _kernels().boundary_backward[(launch.programs(N),)](
        x, *_dense(y, H_res, H_post), weight, bias, gain, offset, scale, a, stats,
        dout.contiguous(), da.contiguous(), db.contiguous(),
        dx, dy, dH_res, dH_post, dH_pre, da_all, dz, dgain, N,
        **_constants(
            x, launch, K=a.shape[1], PRE=activation, NORM=norm, MEAN=mean_column,
            WRITE=y is not None, MIX=H_res is not None, READ=True, XT=x.stride(0), XS=x.stride(1),
        ),
    )  # fmt: skip
    found = [dx, dH_pre, da_all, dz, dgain.sum(0), dy, dH_post, dH_res]
    return [gradient for gradient in found if gradient is not None]


@boundary_backward.register_fake
def _(x: Tensor, y: Any, H_res: Any, H_post: Any, *rest: Any) -> list[Tensor]:
    N, n, C = x.shape
    a, stats = rest[5], rest[6]
    found = [x.new_empty(N, n, C), stats.new_empty(N, n), _like(a), x.new_empty(a.shape)]
    found.append(stats.new_empty(C))
    return found + [_like(t) for t in (y, H_post, H_res) if t is not None]


@torch.library.custom_op("mhclite::write", mutates_args=())
def write(
    x: Tensor,
    y: Tensor,
    H_res: Tensor | None,
    H_post: Tensor,
    earlier_x: Tensor | None = None,
    earlier_y: Tensor | None = None,
    earlier_H_res: Tensor | None = None,
    earlier_H_post: Tensor | None = None,
) -> Tensor:
    """H_res x + H_post^T y, (N, n, C): after the last sub-layer, and again in a backward pass.

    earlier_x, ...: as for `boundary`.
    """
    N = len(x)
    out = _like(x)
    launch = LAUNCH
    _kernels().boundary_forward[(launch.programs(N),)](
        x, *_dense(y, H_res, H_post), *[None] * 5, out, None, None, None, N,
        **_constants(
            x, launch, K=SMALLEST_CHUNK, PRE=0, NORM=0, MEAN=0, WRITE=True, MIX=H_res is not None,
            READ=False, XT=x.stride(0), XS=x.stride(1),
        ),
    )  # fmt: skip
    return out


@write.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return _like(x)


@torch.library.custom_op("mhclite::write_backward", mutates_args=())
def write_backward(
    x: Tensor, y: Tensor, H_res: Tensor | None, H_post: Tensor, dout: Tensor
) -> list[Tensor]:
    """Gradients of `write`: dx, dy, dH_post, [dH_res]."""
    N = len(x)
    launch = LAUNCH
    dx, dy, dH_post = _like(x), _like(y), _like(H_post)
    dH_res = None if H_res is None else _like(H_res)
    _kernels().boundary_backward[(launch.programs(N),)](
        x, *_dense(y, H_res, H_post), *[None] * 7, dout.contiguous(), None, None,
        dx, dy, dH_res, dH_post, *[None] * 4, N,
        **_constants(
            x, launch, K=SMALLEST_CHUNK, PRE=0, NORM=0, MEAN=0, WRITE=True, MIX=H_res is not None,
            READ=False, XT=x.stride(0), XS=x.stride(1),
        ),
    )  # fmt: skip
    return [t for t in (dx, dy, dH_post, dH_res) if t is not None]


@write_backward.register_fake
def _(x: Tensor, y: Tensor, H_res: Any, H_post: Tensor, dout: Tensor) -> list[Tensor]:
    return [_like(t) for t in (x, y, H_post, H_res) if t is not None]


def _keep_boundary(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, *rest = inputs
    tensors, (norm, activation, mean_column, _, keep_out), earlier = rest[:8], rest[8:13], rest[13:]
    out, a, _, stats = output
    ctx.constants = norm, activation, mean_column
    ctx.save_for_backward(
        None if earlier[0] is not None else x,
        *tensors,
        a,
        stats,
        out if keep_out else None,
        *earlier,
    )


def _boundary_gradients(
    ctx: Context, dout: Tensor, da: Tensor, db: Tensor, _: Tensor
) -> tuple[Tensor | None, ...]:
    x, y, H_res, H_post, weight, bias, gain, offset, scale, a, stats, out, *earlier = (
        ctx.saved_tensors
    )
    if x is None:
        x = write(*earlier)
    if out is None:
        out = write(x, y, H_res, H_post)
    tensors = (x, y, H_res, H_post, weight, bias, gain, offset, scale)
    found = iter(boundary_backward(*tensors, a, stats, dout, da, db, *ctx.constants))
    dx, dH_pre, da, dz, dgain = (next(found) for _ in range(5))
    dy, dH_post, dH_res = (None if t is None else next(found) for t in (y, H_post, H_res))
    doffset = dscale = None
    if scale is not None:
        doffset = dH_pre.sum(0)
        dscale = (dH_pre * torch.tanh(a[:, : dH_pre.shape[1]])).sum()
    dweight = (dz.t() @ out.flatten(1)).t()
    gradients = (dx, dy, dH_res, dH_post, dweight, da.sum(0), dgain, doffset, dscale)
    return (*gradients, *[None] * 9)


boundary.register_autograd(_boundary_gradients, setup_context=_keep_boundary)


def _keep_write(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, y, H_res, H_post, *earlier = inputs
    kept = None if earlier[0] is not None else x
    ctx.save_for_backward(kept, y, H_res, H_post, *earlier)


def _write_gradients(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, y, H_res, H_post, *earlier = ctx.saved_tensors
    if x is None:
        x = write(*earlier)
    dx, dy, dH_post, *dH_res = write_backward(x, y, H_res, H_post, dout)
    return (dx, dy, dH_res[0] if dH_res else None, dH_post, *[None] * 4)


write.register_autograd(_write_gradients, setup_context=_keep_write)


@torch.library.custom_op("mhclite::sinkhorn", mutates_args=())
def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """`mixing.sinkhorn_knopp` of logits (N, n, n), in one kernel where Triton runs."""
    if not (logits.is_cuda or interpreted()):
        return fast.sinkhorn_forward(logits, iterations)
    N, n, _ = logits.shape
    M = _like(logits)
    _kernels().sinkhorn_forward[(-(-N // SINKHORN_TOKENS),)](
        logits.contiguous(), M, N, n=n, iterations=iterations, BT=SINKHORN_TOKENS
    )
    return M


@sinkhorn.register_fake
def _(logits: Tensor, iterations: int) -> Tensor:
    return _like(logits)


@torch.library.custom_op("mhclite::sinkhorn_backward", mutates_args=())
def sinkhorn_backward(logits: Tensor, dM: Tensor, iterations: int) -> Tensor:
    """Gradient of `sinkhorn`, which keeps the logits alone: the iterations are done again."""
    if not (logits.is_cuda or interpreted()):
        return fast.sinkhorn_backward(logits, dM, iterations)
    N, n, _ = logits.shape
    dlogits = _like(logits)
    room = logits.new_empty(2, N, iterations, n)
    _kernels().sinkhorn_backward[(-(-N // SINKHORN_TOKENS),)](
        logits.contiguous(), dM.contiguous(), dlogits, room[0], room[1], N,
        n=n, iterations=iterations, BT=SINKHORN_TOKENS,
    )  # fmt: skip
    return dlogits


@sinkhorn_backward.register_fake
def _(logits: Tensor, dM: Tensor, iterations: int) -> Tensor:
    return _like(logits)


def _keep_sinkhorn(ctx: Context, inputs: tuple[Tensor, int], output: Tensor) -> None:
    logits, ctx.iterations = inputs
    ctx.save_for_backward(logits)


def _sinkhorn_gradient(ctx: Context, dM: Tensor) -> tuple[Tensor, None]:
    (logits,) = ctx.saved_tensors
    return sinkhorn_backward(logits, dM, ctx.iterations), None


sinkhorn.register_autograd(_sinkhorn_gradient, setup_context=_keep_sinkhorn)


# --- the model's sub-layers ---------------------------------------------------------------------


class Step(NamedTuple):
    """A sub-layer: its connection, the gain (C) of its LayerNorm, and what follows the norm."""

    connection: Connection
    gain: Tensor
    body: Callable[[Tensor], Tensor]


class Writing(NamedTuple):
    """A write that is still to be done."""

    x: Tensor  # (N, n, C)
    y: Tensor  # (N, C)
    H_res: Tensor | None  # (N, n, n)
    H_post: Tensor  # (N, n)

    def detached(self) -> tuple[Tensor | None, ...]:
        return tuple(None if tensor is None else tensor.detach() for tensor in self)


def connect(x: Tensor, steps: Iterable[Step], stream_dtype: str, recompute: bool) -> Tensor:
    """Streams after all sub-layers, (B, T, n, C).

    Args:
        x: (B, T, n, C).
        stream_dtype: as in the study. Under autocast the streams are in its dtype but for `fp32`.
        recompute: keep the streams after every other sub-layer alone, and write the others again
            in the backward pass.
    """
    B, T, n, C = x.shape
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype  # of the branches
    x = x.reshape(-1, n, C).to(torch.float32 if stream_dtype == "fp32" else dtype)
    pending: Writing | None = None
    earlier: tuple[Tensor | None, ...] = (None,) * 4
    for index, step in enumerate(steps):
        with torch.autocast(kind, enabled=False):
            keep = not recompute or index % 2 == 0
            before = earlier if recompute and keep else (None,) * 4
            written = (x, None, None, None) if pending is None else pending
            if pending is not None:
                earlier = pending.detached()
            read, columns = reading(step.connection, step.gain, x.dtype)
            x, a, b, _ = boundary(*written, *read, dtype, keep, *before)
            a = coefficient_inputs(a, read, columns, n)
            _, H_post, H_res = step.connection.from_projection(a, fused=True)
        y = step.body(b.view(B, T, C)).view(-1, C)
        pending = Writing(x, y, H_res, H_post)
    assert pending is not None
    with torch.autocast(kind, enabled=False):
        before = earlier if recompute and not keep else (None,) * 4
        return write(*pending, *before).view(B, T, n, C)
