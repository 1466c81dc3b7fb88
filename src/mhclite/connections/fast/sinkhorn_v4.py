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

from mhclite.connections.fast import launch, sinkhorn_native
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
    M: Tensor = _sinkhorn_v4(logits, iterations, eps, torch.compiler.is_compiling())
    return M


def _steps(iterations: int) -> tuple[int, ...]:
    """Over which dimension of (B, t, s, N / B) each step sums: rows over s, columns over t."""
    return (2, *(1, 2) * (iterations - 1))


def _forward(logits: Tensor, iterations: int, eps: float, native: bool) -> Tensor:
    M = torch.softmax(innermost(logits), 1).add_(eps)
    if native and M.dtype == torch.float32:
        sinkhorn_native.divide(M, 2 * iterations - 1, eps)
        return outermost(M)
    for dim in _steps(iterations):
        M.div_(M.sum(dim, keepdim=True).add_(eps))
    return outermost(M)


def _backward(logits: Tensor, dM: Tensor, iterations: int, eps: float, native: bool) -> Tensor:
    start = torch.softmax(innermost(logits), 1)
    M = start + eps
    gradient = innermost(dM)
    if native and M.dtype == torch.float32:
        gradient = gradient.clone()  # dM itself, where there is one token
        sinkhorn_native.divide_backward(M, gradient, 2 * iterations - 1, eps)
    else:
        gradient = _divided_backward(M, gradient, iterations, eps)
    gradient = start * (gradient - (gradient * start).sum(1, keepdim=True))
    return outermost(gradient)


def _divided_backward(M: Tensor, gradient: Tensor, iterations: int, eps: float) -> Tensor:
    """The gradient in M, from that in what the steps make of it."""
    steps = []
    for dim in _steps(iterations):
        divisor = M.sum(dim, keepdim=True).add_(eps)
        M.div_(divisor)
        steps.append((dim, divisor))
    for dim, divisor in reversed(steps):
        gradient = (gradient - (gradient * M).sum(dim, keepdim=True)).div_(divisor)
        M.mul_(divisor)
    return gradient


@torch.library.custom_op("mhclite::sinkhorn_v4", mutates_args=())
def _sinkhorn_v4(logits: Tensor, iterations: int, eps: float, native: bool = False) -> Tensor:
    if not by_kernel(logits):
        return _forward(logits, iterations, eps, native and not logits.is_cuda)
    from mhclite.connections.fast import sinkhorn_kernels  # here: Triton need not be installed

    N, n, _ = logits.shape
    M = like(logits)
    sinkhorn_kernels.sinkhorn_v4_forward[(-(-N // launch.SINKHORN_TOKENS),)](
        logits.contiguous(), M, N, n=n, iterations=iterations, EPS=eps,
        BT=launch.SINKHORN_TOKENS, num_warps=launch.SINKHORN_WARPS,
    )  # fmt: skip
    return M


@torch.library.custom_op("mhclite::sinkhorn_v4_backward", mutates_args=())
def sinkhorn_v4_backward(
    logits: Tensor, dM: Tensor, iterations: int, eps: float, native: bool = False
) -> Tensor:
    """Gradient of `sinkhorn_v4` in its logits, from that in its result, dM (N, n, n)."""
    if not by_kernel(logits):
        return _backward(logits, dM, iterations, eps, native and not logits.is_cuda)
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
def _(logits: Tensor, iterations: int, eps: float, native: bool = False) -> Tensor:
    return like(logits)


@sinkhorn_v4_backward.register_fake
def _(logits: Tensor, dM: Tensor, iterations: int, eps: float, native: bool = False) -> Tensor:
    return like(logits)


def _keep(ctx: Context, inputs: tuple[Tensor, int, float, bool], output: Tensor) -> None:
    logits, ctx.iterations, ctx.eps, ctx.native = inputs
    ctx.save_for_backward(logits)


def _gradient(ctx: Context, dM: Tensor) -> tuple[Tensor, None, None, None]:
    (logits,) = ctx.saved_tensors
    gradient = sinkhorn_v4_backward(logits, dM, ctx.iterations, ctx.eps, ctx.native)
    return gradient, None, None, None


_sinkhorn_v4.register_autograd(_gradient, setup_context=_keep)
