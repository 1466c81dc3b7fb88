"""DeepSeek V4's Sinkhorn-Knopp in the fast and fused implementations: one operator, as `sinkhorn`.

Each step divides the matrix by its sums plus eps, M' = M / D with D = sum M + eps. The backward
pass does the steps again, keeps D of each, which are n numbers, and goes back by M = M' D and

    dM = (dM' - sum dM' M') / D          sums over the same streams as in D.

Shapes: N tokens, n streams.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhclite.connections.fast import launch
from mhclite.connections.fast.sinkhorn_operator import by_kernel, innermost, like, outermost

Context = Any  # what torch passes as ctx: a FunctionCtx with attributes of our own


def sinkhorn_v4(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """`mhc_v4.shipped_sinkhorn`, equal to it up to rounding.

    Args:
        logits: (N, n, n), float32 or float64.
        iterations: at least 1.
        eps: beside every sum, and added to the softmax that it begins with.

    Returns:
        (N, n, n), contiguous: rows sum to 1 up to eps, columns nearly.
    """
    M: Tensor = _sinkhorn_v4(logits, iterations, eps)
    return M


def _steps(iterations: int) -> tuple[int, ...]:
    """Over which dimension of (B, t, s, N / B) each step sums: rows over s, columns over t."""
    return (2, *(1, 2) * (iterations - 1))


def _forward_in_torch(logits: Tensor, iterations: int, eps: float) -> Tensor:
    M = torch.softmax(innermost(logits), 1).add_(eps)
    for dim in _steps(iterations):
        M.div_(M.sum(dim, keepdim=True).add_(eps))
    return outermost(M)


def _backward_in_torch(logits: Tensor, dM: Tensor, iterations: int, eps: float) -> Tensor:
    start = torch.softmax(innermost(logits), 1)
    M = start + eps
    steps = []
    for dim in _steps(iterations):
        divisor = M.sum(dim, keepdim=True).add_(eps)
        M.div_(divisor)
        steps.append((dim, divisor))
    gradient = innermost(dM)
    for dim, divisor in reversed(steps):
        gradient = (gradient - (gradient * M).sum(dim, keepdim=True)).div_(divisor)
        M.mul_(divisor)
    gradient = start * (gradient - (gradient * start).sum(1, keepdim=True))
    return outermost(gradient)


@torch.library.custom_op("mhclite::sinkhorn_v4", mutates_args=())
def _sinkhorn_v4(logits: Tensor, iterations: int, eps: float) -> Tensor:
    if not by_kernel(logits):
        return _forward_in_torch(logits, iterations, eps)
    from mhclite.connections.fast import sinkhorn_kernels  # here: Triton need not be installed

    N, n, _ = logits.shape
    M = like(logits)
    sinkhorn_kernels.sinkhorn_v4_forward[(-(-N // launch.SINKHORN_TOKENS),)](
        logits.contiguous(), M, N, n=n, iterations=iterations, EPS=eps,
        BT=launch.SINKHORN_TOKENS, num_warps=launch.SINKHORN_WARPS,
    )  # fmt: skip
    return M


@torch.library.custom_op("mhclite::sinkhorn_v4_backward", mutates_args=())
def sinkhorn_v4_backward(logits: Tensor, dM: Tensor, iterations: int, eps: float) -> Tensor:
    """Gradient of `sinkhorn_v4` in its logits, from that in its result, dM (N, n, n)."""
    if not by_kernel(logits):
        return _backward_in_torch(logits, dM, iterations, eps)
    from mhclite.connections.fast import sinkhorn_kernels

    N, n, _ = logits.shape
    dlogits = like(logits)
    rows, columns = logits.new_empty(2, N, iterations, n)  # scratch of the kernel
    sinkhorn_kernels.sinkhorn_v4_backward[(-(-N // launch.SINKHORN_TOKENS),)](
        logits.contiguous(), dM.contiguous(), dlogits, rows, columns, N,
        n=n, iterations=iterations, EPS=eps,
        BT=launch.SINKHORN_TOKENS, num_warps=launch.SINKHORN_WARPS,
    )  # fmt: skip
    return dlogits


@_sinkhorn_v4.register_fake
def _(logits: Tensor, iterations: int, eps: float) -> Tensor:
    return like(logits)


@sinkhorn_v4_backward.register_fake
def _(logits: Tensor, dM: Tensor, iterations: int, eps: float) -> Tensor:
    return like(logits)


def _keep(ctx: Context, inputs: tuple[Tensor, int, float], output: Tensor) -> None:
    logits, ctx.iterations, ctx.eps = inputs
    ctx.save_for_backward(logits)


def _gradient(ctx: Context, dM: Tensor) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    return sinkhorn_v4_backward(logits, dM, ctx.iterations, ctx.eps), None, None


_sinkhorn_v4.register_autograd(_gradient, setup_context=_keep)
