"""Sinkhorn-Knopp of the fast and fused implementations: one operator, whatever computes it.

`sinkhorn` is a single node of the compiler's graph. Unrolled, twenty iterations are eighty small
reductions, forward and backward: slower code, and minutes to compile. The Triton kernel computes it
where it can run, torch elsewhere; both work in the log domain, and both keep the logits alone for
the backward pass and do the iterations again there. To keep every iteration would take as much
memory as the streams do.

Shapes: N tokens, n streams.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhclite.connections.fast import launch, sinkhorn_native
from mhclite.connections.fast.availability import KERNEL_STREAMS, interpreted, no_kernels

Context = Any  # what torch passes as ctx: a FunctionCtx with attributes of our own
BLOCKS = 16  # of tokens, enough for the threads of a laptop


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """`mixing.sinkhorn_knopp`, equal to it up to rounding.

    Args:
        logits: (N, n, n), float32 or float64.
        iterations: how often rows, then columns are normalised.

    Returns:
        (N, n, n), contiguous: columns sum to 1, rows nearly.
    """
    M: Tensor = _sinkhorn(logits, iterations, torch.compiler.is_compiling())
    return M


def by_kernel(logits: Tensor) -> bool:
    """Whether the Triton kernel computes it: float32 matrices of a GPU, or in the interpreter."""
    if not (logits.is_cuda or interpreted()):
        return False  # at once: this is asked in every sub-layer of every step
    fits = logits.dtype == torch.float32 and logits.shape[-1] in KERNEL_STREAMS
    return fits and no_kernels(logits.device.type) is None


# --- torch --------------------------------------------------------------------------------------


def innermost(matrices: Tensor) -> Tensor:
    """(N, n, n) -> (B, n, n, N / B), contiguous.

    With tokens innermost torch's operators are vectorised over them, with a few blocks of them
    outermost over threads.
    """
    N = len(matrices)
    blocks = min(BLOCKS, N & -N) or 1  # a power of two that divides N
    return matrices.unflatten(0, (blocks, -1)).permute(0, 2, 3, 1).contiguous()


def outermost(matrices: Tensor) -> Tensor:
    """The reverse of `innermost`."""
    return matrices.permute(0, 3, 1, 2).flatten(0, 1).contiguous()


def _forward(logits: Tensor, iterations: int, native: bool) -> Tensor:
    """Each half of an iteration is one log_softmax, or a division in C++."""
    logits = innermost(logits)
    if native and (M := _exponentials(logits)) is not None:
        sinkhorn_native.divide(M, 2 * iterations)
        return outermost(M)
    for _ in range(iterations):
        logits = torch.log_softmax(torch.log_softmax(logits, 2), 1)
    return outermost(logits.exp())


def _backward(logits: Tensor, dM: Tensor, iterations: int, native: bool) -> Tensor:
    logits = innermost(logits)
    if native and (M := _exponentials(logits)) is not None:
        gradient = innermost(dM).clone()  # else dM itself, where there is one token
        sinkhorn_native.divide_backward(M.clone(), gradient, 2 * iterations)
        return outermost(gradient.mul_(M))
    steps = []
    for dim in (2, 1) * iterations:
        logits = torch.log_softmax(logits, dim)
        steps.append((dim, logits))
    gradient = innermost(dM) * logits.exp()
    for dim, normalised in reversed(steps):
        gradient = torch._log_softmax_backward_data(gradient, normalised, dim, normalised.dtype)
    return outermost(gradient)


def _exponentials(logits: Tensor) -> Tensor | None:
    """exp of the logits, the largest of each matrix taken off; None where C++ would lose digits."""
    largest = logits.amax((1, 2), keepdim=True)
    spread = (largest - logits.amin((1, 2), keepdim=True)).max()
    if logits.dtype != torch.float32 or not spread <= sinkhorn_native.WIDEST:
        return None
    return (logits - largest).exp_()


# --- the operators ------------------------------------------------------------------------------


@torch.library.custom_op("mhclite::sinkhorn", mutates_args=())
def _sinkhorn(logits: Tensor, iterations: int, native: bool = False) -> Tensor:
    if not by_kernel(logits):
        return _forward(logits, iterations, native and not logits.is_cuda)
    from mhclite.connections.fast import sinkhorn_kernels  # here: Triton need not be installed

    N, n, _ = logits.shape
    M = like(logits)
    sinkhorn_kernels.sinkhorn_forward[(-(-N // launch.SINKHORN_TOKENS),)](
        logits.contiguous(), M, N, n=n, iterations=iterations,
        BT=launch.SINKHORN_TOKENS, num_warps=launch.SINKHORN_WARPS,
    )  # fmt: skip
    return M


@torch.library.custom_op("mhclite::sinkhorn_backward", mutates_args=())
def sinkhorn_backward(logits: Tensor, dM: Tensor, iterations: int, native: bool = False) -> Tensor:
    """Gradient of `sinkhorn` in its logits, from that in its result, dM (N, n, n)."""
    if not by_kernel(logits):
        return _backward(logits, dM, iterations, native and not logits.is_cuda)
    from mhclite.connections.fast import sinkhorn_kernels

    N, n, _ = logits.shape
    dlogits = like(logits)
    rows, columns = logits.new_empty(2, N, iterations, n)  # scratch of the kernel
    sinkhorn_kernels.sinkhorn_backward[(-(-N // launch.SINKHORN_TOKENS),)](
        logits.contiguous(), dM.contiguous(), dlogits, rows, columns, N,
        n=n, iterations=iterations, BT=launch.SINKHORN_TOKENS, num_warps=launch.SINKHORN_WARPS,
    )  # fmt: skip
    return dlogits


def like(tensor: Tensor) -> Tensor:
    """An empty tensor of the same shape, contiguous whatever the strides of `tensor` are."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


@_sinkhorn.register_fake
def _(logits: Tensor, iterations: int, native: bool = False) -> Tensor:
    return like(logits)


@sinkhorn_backward.register_fake
def _(logits: Tensor, dM: Tensor, iterations: int, native: bool = False) -> Tensor:
    return like(logits)


def _keep(ctx: Context, inputs: tuple[Tensor, int, bool], output: Tensor) -> None:
    logits, ctx.iterations, ctx.native = inputs
    ctx.save_for_backward(logits)


def _gradient(ctx: Context, dM: Tensor) -> tuple[Tensor, None, None]:
    (logits,) = ctx.saved_tensors
    return sinkhorn_backward(logits, dM, ctx.iterations, ctx.native), None, None


_sinkhorn.register_autograd(_gradient, setup_context=_keep)
