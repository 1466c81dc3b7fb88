"""The fused kernels: how near they are to the formulas in float64, and to the speed of a copy.

Parity is that of whole small models: the norm of the gradient's error over the gradient's norm,
beside the reference's own error in the same precision. Needs torch and numpy alone: the session
runs it on a GPU, the tests in Triton's interpreter.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections import connection_class
from mhclite.connections.fast import fused
from mhclite.connections.fast.projected import Projected, projected
from mhclite.connections.fast.sinkhorn_operator import sinkhorn, sinkhorn_backward
from mhclite.connections.registry import VARIANTS, has_streams
from mhclite.measure.measured import Quartiles
from mhclite.measure.steps import quartiles
from mhclite.model import GPT
from mhclite.training.compiled import compiled_loss

# An implementation's error may be as large as the reference's own times this, or this in itself:
# rounding of sums in another order.
TIMES_REFERENCE = 1.5
FLOOR = {"fp32": 2e-6, "bf16": 0.03}
FLUSHED_BYTES = 2**28  # written before each launch: several times a GPU's L2 cache
WARM_UP = 3


class Case(NamedTuple):
    """A model and how it is computed."""

    variant: str
    n_streams: int = 4
    precision: str = "fp32"
    stream_dtype: str = "authors"
    n_embd: int = 64
    length: int = 13  # of the two sequences; no multiple of anything
    compile: bool = False

    def __str__(self) -> str:
        parts = [self.variant, f"n={self.n_streams}", f"C={self.n_embd}", self.precision]
        parts += [f"streams {self.stream_dtype}"] * (self.stream_dtype != "authors")
        return " ".join(parts + ["compiled"] * self.compile)


class Gradient(NamedTuple):
    """Of a case, and how it was computed."""

    computed: str
    gradient: Tensor  # of all parameters, flat, float64


class Error(NamedTuple):
    """Errors of an implementation and of the reference, against float64."""

    own: float
    reference: float

    def allowed(self, precision: str) -> float:
        return max(FLOOR[precision], TIMES_REFERENCE * self.reference)


def connection_of(case: Case) -> ConnectionConfig:
    """The connection of a case."""
    own = {"sinkhorn_iterations": 20} if VARIANTS[case.variant].iterates else {}
    return ConnectionConfig(
        case.variant, case.n_streams, stream_dtype=case.stream_dtype, options=own
    )


def has_kernels(variant: str) -> bool:
    """Whether the fused implementation computes four streams of a variant."""
    return issubclass(connection_class(variant), Projected) and has_streams(variant, 4)


def gradient(case: Case, implementation: str, device: torch.device) -> Gradient:
    """Two layers at weights all of which matter; implementation `exact`: the formula in float64."""
    exact = implementation == "exact"
    size = ModelConfig("parity", 61, 2, 2, case.n_embd, case.length, 1e-3)
    how = "reference" if exact else implementation
    model = GPT(size, replace(connection_of(case), implementation=how), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(61, (2, case.length + 1), generator=generator).to(device)
    model = model.double().to(device) if exact else model.to(device)
    autocast = case.precision == "bf16" and not exact
    loss_of = compiled_loss(model) if case.compile and not exact else model.loss
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        loss = loss_of(tokens)
    loss.backward()
    found = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    return Gradient(model.choice(autocast)[0], torch.cat(found))


def error_of(case: Case, implementation: str, device: torch.device) -> Error:
    """Compare; the implementation must be the one that is computed, not a fallback."""
    exact = gradient(case, "exact", device)
    ours = gradient(case, implementation, device)
    assert ours.computed == implementation, (str(case), ours.computed)
    theirs = gradient(case._replace(compile=False), "reference", device)
    size = exact.gradient.norm()
    errors = [(one.gradient - exact.gradient).norm() / size for one in (ours, theirs)]
    return Error(*(error.item() for error in errors))


def cases(variants: Iterable[str]) -> list[Case]:
    """What the fused implementation must do, for each variant."""
    found = []
    for variant in variants:
        base = Case(variant)
        found.append(base)
        if has_streams(variant, 2):
            found.append(base._replace(n_streams=2))
        found.append(base._replace(n_embd=96, length=20))
        for stream_dtype in ("authors", "fp32", "bf16"):
            found.append(base._replace(precision="bf16", stream_dtype=stream_dtype))
    return found


# --- speed --------------------------------------------------------------------------------------


def timed(work: Callable[[], object], device: torch.device, launches: int = 50) -> Quartiles:
    """Seconds of one launch, of many.

    On a GPU each stands between two events of its own. Before it, memory is written that replaces
    what the cache holds, and that takes the GPU longer than the host needs to submit the launch:
    the time is the GPU's, without Python's.
    """
    if device.type != "cuda":
        return quartiles(timeit.repeat(work, number=1, repeat=launches))
    for _ in range(WARM_UP):
        work()
    flushed = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device=device)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(launches)]
    for before, after in pairs:
        flushed.zero_()
        before.record()
        work()
        after.record()
    torch.cuda.synchronize(device)
    return quartiles([before.elapsed_time(after) / 1000 for before, after in pairs])


def limits(device: torch.device) -> dict[str, float]:
    """Bytes per second of a large copy (read plus write) and FLOP/s of a large product.

    Of random numbers: zeros move and multiply with less power, and faster. The product is of bf16
    on a GPU, else of float32.
    """
    cuda = device.type == "cuda"
    source = torch.randn(2**28 if cuda else 2**24, device=device)
    target = torch.empty_like(source)
    size = 8192 if cuda else 2048
    a = torch.randn(size, size, dtype=torch.bfloat16 if cuda else torch.float32, device=device)
    launches = 20 if cuda else 10
    copy = timed(lambda: target.copy_(source), device, launches).median
    product = timed(lambda: a @ a, device, launches).median
    return {
        "bytes_per_second": 2 * source.numel() * source.element_size() / copy,
        "flops_per_second": 2 * size**3 / product,
    }


def bytes_of(tensors: Iterable[Any]) -> int:
    """Of all tensors among these; two that share memory count once."""
    sizes = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def fused_kernels(
    variant: str, N: int, C: int, device: torch.device
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Kernel -> (a launch, bytes that must be moved), in bf16, N tokens, four streams of width C.

    Bytes are those of the tensors that go in and come out, each once.
    """
    options = connection_of(Case(variant)).options
    connection = projected(connection_class(variant)(4, C, 0, **options)).to(device)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    x, dout, db = normal(N, 4, C), normal(N, 4, C), normal(N, C)
    L = normal(N, 4, 4, dtype=torch.float32)
    H_res = None if VARIANTS[variant].mixes == "never" else L
    written = fused.Write(normal(N, C), H_res, normal(N, 4, dtype=torch.float32))
    with torch.no_grad():
        read = fused.reading(connection, torch.ones(C, device=device), x.dtype)
        out, a, b, stats = fused.boundary(x, written, read, x.dtype)
        back = (x, written, read, a, stats, dout, torch.randn_like(a), db)
        found = fused.boundary_backward(*back)
    dz = found.z
    inputs = (x, *written, *read)
    kernels: dict[str, tuple[Callable[[], Any], int]] = {
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
    if variant == "mhc":  # mhc_v4 has another kernel of the same size
        kernels["Sinkhorn"] = (lambda: sinkhorn(L, 20), 2 * bytes_of((L,)))
        kernels["Sinkhorn backward"] = (lambda: sinkhorn_backward(L, L, 20), 3 * bytes_of((L,)))
    return kernels


def kernel_rows(
    variant: str, N: int, C: int, device: torch.device, bandwidth: float, launches: int
) -> list[dict[str, Any]]:
    """Seconds, bytes and share of a copy's bandwidth of each kernel of a variant."""
    rows = []
    with torch.no_grad():
        for name, (work, size) in fused_kernels(variant, N, C, device).items():
            took = timed(work, device, launches)
            rate = size / took.median
            rows.append(
                {"variant": variant, "kernel": name, "tokens": N, "width": C,
                 "seconds": took.median, "q1": took.q1, "q3": took.q3, "bytes": size,
                 "bytes_per_second": rate, "share_of_copy": rate / bandwidth}
            )  # fmt: skip
    return rows
