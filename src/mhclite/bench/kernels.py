"""How near the kernels of an implementation come to the bandwidth of a copy.

Bytes are those of the tensors that go in and come out, each once: what must be moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mhclite.bench.parity import Case, connection_of
from mhclite.bench.timing import timed
from mhclite.connections import connection_class
from mhclite.connections.fast import functions, fused
from mhclite.connections.fast.projected import Projected, projected
from mhclite.connections.fast.sinkhorn_operator import sinkhorn, sinkhorn_backward
from mhclite.connections.registry import VARIANTS

Kernel = tuple[Callable[[], Any], int]  # the work, and its bytes


def bytes_of(tensors: Iterable[Any]) -> int:
    """Of all tensors among these; two that share memory count once."""
    sizes = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def _connection(variant: str, C: int, device: torch.device) -> Projected:
    options = connection_of(Case(variant)).options
    return projected(connection_class(variant)(4, C, 0, **options)).to(device)


def fused_kernels(variant: str, N: int, C: int, device: torch.device) -> dict[str, Kernel]:
    """Of the fused implementation in bf16, N tokens, four streams of width C."""
    connection = _connection(variant, C, device)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x, dout, db = normal(N, 4, C), normal(N, 4, C), normal(N, C)
    mixes = VARIANTS[variant].mixes != "never"
    H_res = None if not mixes else normal(N, 4, 4, dtype=torch.float32)
    written = fused.Write(normal(N, C), H_res, normal(N, 4, dtype=torch.float32))
    with torch.no_grad():
        read = fused.reading(connection, torch.ones(C, device=device), x.dtype)
        out, a, b, stats = fused.boundary(x, written, read, x.dtype)
        back = (x, written, read, a, stats, dout, torch.randn_like(a), db)
        found = fused.boundary_backward(*back)
        dz = found.z
        inputs = (x, *written, *read)
        kernels: dict[str, Kernel] = {
            "boundary": (
                lambda: fused.boundary(x, written, read, x.dtype),
                bytes_of((*inputs, out, a, b, stats)),
            ),
            "boundary backward": (
                lambda: fused.boundary_backward(*back),
                bytes_of((*inputs, *back[3:], *found)),
            ),
            "projection's weights": (lambda: out.flatten(1).t() @ dz, bytes_of((dz, out))),
            "write": (lambda: fused.write(x, written), bytes_of((x, *written, out))),
        }
        if variant == "mhc":
            L = normal(N, 4, 4, dtype=torch.float32)
            kernels["Sinkhorn"] = (lambda: sinkhorn(L, 20), 2 * bytes_of((L,)))
            kernels["Sinkhorn backward"] = (
                lambda: sinkhorn_backward(L, L, 20),
                3 * bytes_of((L,)),
            )
    return kernels


def fast_kernels(variant: str, N: int, C: int, device: torch.device) -> dict[str, Kernel]:
    """Of the fast implementation in float32: the operations on whole streams."""
    connection = _connection(variant, C, device)
    x, y = torch.randn(N, 4, C, device=device), torch.randn(N, C, device=device)
    with torch.no_grad():
        projection = connection.projection()
        a, _ = functions.project(x, projection)
        H_pre, H_post, H_res = connection.from_projection(a)
    H_pre, H_post = H_pre.contiguous(), H_post.contiguous()
    kernels: dict[str, Kernel] = {}

    def add(name: str, inputs: tuple[Any, ...], work: Callable[..., Tensor]) -> None:
        leaves = [t.requires_grad_() for t in inputs if t is not None]
        out = work(*inputs)
        gradient = torch.randn_like(out)
        # The streams' gradient of what else reads them, which ours is added to.
        kernels[name] = (lambda: work(*inputs), bytes_of((*inputs, out)))
        kernels[f"{name} backward"] = (
            lambda: torch.autograd.grad(out, leaves, gradient, retain_graph=True),
            bytes_of((*inputs, gradient)) + bytes_of(leaves),
        )

    weight = projection.weight.detach()
    add(
        "project",
        (x.detach(), weight),
        lambda x, w: functions.project(x, projection._replace(weight=w))[0],
    )
    add("read", (x.detach(), H_pre), lambda x, H: functions.read(x, H)[0])
    if H_res is not None:
        H_res = H_res.contiguous()
    add(
        "write",
        (x.detach(), H_res, H_post, y),
        lambda x, H_res, H_post, y: functions.combine(x, H_res, H_post, y, torch.float32),
    )
    return kernels


def kernel_rows(
    variant: str, N: int, C: int, device: torch.device, bandwidth: float
) -> list[dict[str, Any]]:
    """Seconds, bytes and share of a copy's bandwidth of each kernel of a variant.

    None of one that is computed by its formula alone.
    """
    if not issubclass(connection_class(variant), Projected):
        return []
    fused_runs = device.type == "cuda"
    kernels = (fused_kernels if fused_runs else fast_kernels)(variant, N, C, device)
    rows = []
    for name, (work, size) in kernels.items():
        seconds = timed(work, device).median
        rows.append(
            {
                "variant": variant,
                "implementation": "fused" if fused_runs else "fast",
                "kernel": name,
                "tokens": N,
                "width": C,
                "seconds": seconds,
                "bytes": size,
                "bytes_per_second": size / seconds,
                "share_of_copy": size / seconds / bandwidth,
            }
        )
    return rows
