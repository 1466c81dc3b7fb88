"""The fast implementation: the formulas of the variants with little memory traffic, in plain torch.

The reference computes as the authors' code does, and reads and writes the n C numbers of a token
some forty times a sub-layer. Here they are read four times forward: one product with all projection
weights side by side (the norm's gain is folded into them, and the division by the norm comes after
it), the norm, H_pre x, and H_res x + H_post^T y. Backward the same: each function hands the streams
on, so that their gradient is one tensor to which each adds its part in place, where autograd would
write three and add them up.

Under torch.compile the same formulas stand as they are, and the compiler fuses them; under
torch.func they stand so too.

Shapes: N tokens, n streams, C width, K projection columns.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

Context = Any  # what torch passes as ctx: a FunctionCtx with attributes of our own
LAYER_NORM_EPS = 1e-5  # of the branches
FEW = 8  # streams: for more, one product is faster than a multiplication each
SMALLEST = 1e-12  # length of a row, of torch.nn.functional.normalize


class Projection(NamedTuple):
    """How the coefficients' inputs a come from the streams: a = norm(x) weight + bias.

    `norm`: `rms` of all streams of a token at once, `layer` LayerNorm of all at once, `rms_stream`
    of each stream by itself. The norm has no gain: it is folded into `weight`. `eps` is added to
    the mean square (`layer`: to the variance); where it is 0, the norm is at least `SMALLEST`
    instead, and rows below that have no gradient through it.
    """

    weight: Tensor  # (nC, K), or (C, K) for each stream by itself
    bias: Tensor | None  # (K)
    norm: Literal["rms", "layer", "rms_stream"]
    eps: float = 0.0


def _is_traced() -> bool:
    """Whether the plain formulas are wanted: by torch.compile, or by torch.func's transforms."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def project(x: Tensor, projection: Projection) -> tuple[Tensor, Tensor]:
    """Coefficient inputs of streams x (N, n, C): (N, K), or (N, n, K) for each stream; and x.

    At least float32, whatever x is.
    """
    N, n, _ = x.shape
    weight, bias, norm, eps = projection
    rows = x.flatten(0, 1) if norm == "rms_stream" else x.flatten(1)
    if norm == "layer":
        weight = centred(weight)
    weight = weight.to(x.dtype)
    if _is_traced():
        z = (rows @ weight).to(torch.promote_types(x.dtype, torch.float32))
        a = z * _inverse_norm(rows, z, norm, eps)
    else:
        a, rows = _Project.apply(rows, weight, norm, eps)
        x = rows.view(x.shape)
    if norm == "layer":
        a = a[:, :-1]
    if bias is not None:
        a = a + bias
    return a.unflatten(0, (N, n)) if norm == "rms_stream" else a, x


def centred(weight: Tensor) -> Tensor:
    """For a LayerNorm's projection (D, K): (D, K + 1).

    Columns without mean do not see the mean of the streams; one more column measures it.
    """
    weight = weight - weight.mean(0)
    return torch.cat((weight, weight.new_full((len(weight), 1), 1 / len(weight))), dim=1)


def _inverse_norm(rows: Tensor, z: Tensor, norm: str, eps: float) -> Tensor:
    """1 / the norm of each row, (rows, 1)."""
    width = rows.shape[1]
    if _is_traced():
        # Bounded before the root, whose gradient at 0 is infinite.
        squares = rows.to(z.dtype).square().sum(-1, keepdim=True).clamp_min(SMALLEST**2)
        length = squares.sqrt()
    else:
        length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=z.dtype)
        squares = length.square()
    if norm == "layer":
        # Rounding may leave less than nothing of nearly equal numbers.
        return torch.rsqrt((squares / width - z[:, -1:].square()).clamp_min(0) + eps)
    if eps:
        return torch.rsqrt(squares / width + eps)
    return width**0.5 / length.clamp_min(SMALLEST)


class _Project(Function):
    """a = r z with z = rows weight (R, K) and r = 1 / norm(rows) (R, 1); and the rows (R, D) again.

    Backward, per row v: dz = r da. Through the norm, dr/dv = -r^3 v / D, so that v gets pull v with
    pull = -(da . z) r^3 / D. With a LayerNorm dr/dv = -r^3 (v - mean) / D: the mean's part goes by
    the last column of the weight, which measures it with weights 1 / D, as dz[-1] -= pull mean D.
    Together dv = dx + dz weight^T + pull v, added in place to dx, the gradient of the rows from
    whatever used them afterwards.
    """

    @staticmethod
    def forward(
        ctx: Context, rows: Tensor, weight: Tensor, norm: str, eps: float
    ) -> tuple[Tensor, Tensor]:
        columns = weight.t().contiguous()  # (K, D): narrow products are several times faster so
        z = (rows @ columns.t()).to(torch.promote_types(rows.dtype, torch.float32))
        inverse = _inverse_norm(rows, z, norm, eps)
        ctx.save_for_backward(rows, columns, z, inverse)
        ctx.norm, ctx.eps = norm, eps
        return z * inverse, rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, da: Tensor, dx: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, columns, z, inverse = ctx.saved_tensors
        width = rows.shape[1]
        dz = da * inverse
        # By a power of two and back, which is exact: r^3 is up to 1e36 D^1.5.
        cube = (inverse * 2**-10).pow(3)
        pull = (da * z).sum(-1, keepdim=True) * cube / -width * 2**30
        # None where squares are more than float32 holds (r = 0), nor below SMALLEST.
        largest = float("inf") if ctx.eps else (1 - 1e-6) * width**0.5 / SMALLEST
        pull = torch.where((inverse > 0) & (inverse < largest), pull, 0)
        if ctx.norm == "layer":
            dz[:, -1:] -= pull * z[:, -1:] * width
        dz = dz.to(rows.dtype)
        dx.addmm_(dz, columns)
        dx.addcmul_(rows, pull.to(rows.dtype))
        return dx, (dz.t() @ rows).t().contiguous(), None, None


def read(x: Tensor, H_pre: Tensor) -> tuple[Tensor, Tensor]:
    """h = H_pre x, (N, C), of streams x (N, n, C) with H_pre (N, n); and x."""
    if _is_traced():
        return (H_pre.unsqueeze(-1) * x).sum(-2).to(x.dtype), x
    h, x = _Read.apply(x, H_pre.to(x.dtype))
    return h, x


def weighted_sum(weights: Tensor, x: Tensor) -> Tensor:
    """sum_s weights[s] x[s], (N, C), of streams x (N, n, C) with weights (N, n).

    For a product of one row torch's CPU code calls no library below 400 multiplications (4 streams
    of 64): n fused multiplications are faster there. Not in half precision, where each would
    round.
    """
    n = x.shape[1]
    if x.device.type != "cpu" or x.dtype.itemsize < 4 or n > FEW:
        return torch.bmm(weights.unsqueeze(1), x).squeeze(1)
    total = weights[:, :1] * x[:, 0]
    for s in range(1, n):
        total.addcmul_(weights[:, s : s + 1], x[:, s])
    return total


class _Read(Function):
    """h = H_pre x; backward dH_pre[s] = dh . x[s], and H_pre dh^T is added to dx in place."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, H_pre: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, H_pre)
        return weighted_sum(H_pre, x), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dh: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        x, H_pre = ctx.saved_tensors
        dH_pre = torch.bmm(dh.unsqueeze(1), x.transpose(1, 2)).squeeze(1)
        dx.addcmul_(H_pre.unsqueeze(-1), dh.unsqueeze(1))
        return dx, dH_pre


def combine(x: Tensor, H_res: Tensor | None, H_post: Tensor, y: Tensor, dtype: Any) -> Tensor:
    """H_res x + H_post^T y, (N, n, C) in `dtype`.

    Args:
        x: (N, n, C), not used afterwards.
        H_res: (N, n, n); None is the identity.
        H_post: (N, n).
        y: (N, C).
    """
    if _is_traced():
        # Sums over few streams, which the compiler unrolls.
        carried = x if H_res is None else (H_res.unsqueeze(-1) * x.unsqueeze(-3)).sum(-2)
        return (carried.to(x.dtype) + H_post.unsqueeze(-1) * y.unsqueeze(-2)).to(dtype)
    H_res = None if H_res is None else H_res.to(x.dtype)
    out: Tensor = _Combine.apply(x, H_res, H_post.to(dtype), y.to(dtype), dtype)
    return out


class _Combine(Function):
    """out = H_res x + H_post^T y.

    Backward dx = H_res^T dout, dH_res = dout x^T, dy = H_post dout, dH_post[t] = dout[t] . y.

    It comes last forward and so first backward: dx is a new tensor, to which `_Read` and then
    `_Project` add their parts in place.
    """

    @staticmethod
    def forward(
        ctx: Context, x: Tensor, H_res: Tensor | None, H_post: Tensor, y: Tensor, dtype: Any
    ) -> Tensor:
        ctx.save_for_backward(x, H_res, H_post, y)
        written = (H_post.unsqueeze(-1), y.unsqueeze(1))
        if H_res is None:
            return torch.addcmul(x.to(dtype), *written)
        return torch.bmm(H_res, x).to(dtype).addcmul_(*written)

    @staticmethod
    @once_differentiable
    def backward(ctx: Context, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, H_res, H_post, y = ctx.saved_tensors
        dH_post = torch.bmm(y.unsqueeze(1), dout.transpose(1, 2)).squeeze(1)
        dy = weighted_sum(H_post, dout)
        if H_res is None:
            # A tensor of its own: what reads x adds to its gradient in place.
            return dout.to(x.dtype, copy=True), None, dH_post, dy, None
        dout = dout.to(x.dtype)
        dx = torch.bmm(H_res.transpose(1, 2), dout)
        dH_res = torch.bmm(dout, x.transpose(1, 2))
        return dx, dH_res, dH_post, dy, None
