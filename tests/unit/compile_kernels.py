"""Compile the fused kernels for sm_90 (H100); print what each needs, as JSON.

Without a GPU: Triton's package brings NVIDIA's assembler. The launches are those that the operators
make, recorded in place of running, so that types and constants are not written down a second time.
In a process of its own: where a test has set TRITON_INTERPRET, kernels are not compiled.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.kernels import Case, connection_of
from mhclite.connections import connection_class
from mhclite.connections.fast import (
    fused,
    kernels,
    kernels_backward,
    sinkhorn_kernels,
    sinkhorn_operator,
    sinkhorn_v4,
)
from mhclite.connections.fast.projected import projected

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
KERNELS = (
    (kernels, "boundary_forward"),
    (kernels_backward, "boundary_backward"),
    (sinkhorn_kernels, "sinkhorn_forward"),
    (sinkhorn_kernels, "sinkhorn_backward"),
    (sinkhorn_kernels, "sinkhorn_v4_forward"),
    (sinkhorn_kernels, "sinkhorn_v4_backward"),
)
TOKENS = 16  # of a recorded launch; the code is the same for any number of them


class Shape(NamedTuple):
    """A boundary between two sub-layers that training may have, C = 1024, 4 streams."""

    variant: str
    streams: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        return f"{self.variant}, {TYPES[self.streams]} streams"


# What a variant's kernels depend on is its projection (columns, norm, eps), its activation with or
# without an offset, and whether it mixes.
SHAPES = [
    *(Shape(variant) for variant in ("mhc", "hc", "jpmhc", "identity")),
    *(Shape(variant, torch.float32) for variant in ("mhc", "hc")),
]


class Launched(NamedTuple):
    """A launch as the compiler sees it."""

    kernel: Any
    types: dict[str, str]  # of each argument: `*bf16`, `i32`, `constexpr`, ...
    constants: dict[str, Any]
    warps: int


class Recorder:
    """Stands where a kernel is, `kernel[grid](...)`, and writes down what it is called with."""

    def __init__(self, kernel: Any, into: list[Launched]) -> None:
        self.kernel, self.into = kernel, into

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return self.record

    def record(self, *arguments: Any, num_warps: int, **constants: Any) -> None:
        types = dict.fromkeys(self.kernel.arg_names, "constexpr")
        for name, value in zip(types, arguments):
            if isinstance(value, Tensor):
                types[name] = f"*{TYPES[value.dtype]}"
            elif value is None:
                constants[name] = None
            else:
                types[name] = "i32"
        self.into.append(Launched(self.kernel, types, constants, num_warps))


def recorded(work: Callable[..., None], *arguments: Any) -> list[Launched]:
    """The launches of our kernels that this makes, none of which runs."""
    found: list[Launched] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(sinkhorn_operator, "by_kernel", lambda _: True))
        stack.enter_context(patch.object(sinkhorn_v4, "by_kernel", lambda _: True))
        for module, name in KERNELS:
            recorder = Recorder(getattr(module, name), found)
            stack.enter_context(patch.object(module, name, recorder))
        stack.enter_context(torch.no_grad())
        work(*arguments)
    return found


def boundary(shape: Shape) -> None:
    """Forward and backward."""
    variant, streams = shape
    options = connection_of(Case(variant)).options
    connection = projected(connection_class(variant)(4, 1024, 0, **options))
    x = torch.zeros(TOKENS, 4, 1024, dtype=streams)
    read = fused.reading(connection, torch.ones(1024), streams)
    a = torch.zeros(TOKENS, read.weight.shape[1])
    _, H_post, H_res = connection.from_projection(fused.coefficient_inputs(a, read, 4))
    written = fused.Write(torch.zeros(TOKENS, 1024, dtype=torch.bfloat16), H_res, H_post)
    out, a, b, stats = fused.boundary(x, written, read, torch.bfloat16)
    fused.boundary_backward(x, written, read, a, stats, out, a, b)


def sinkhorns() -> None:
    """The paper's and DeepSeek V4's, forward and backward."""
    M = torch.zeros(TOKENS, 4, 4)
    sinkhorn_operator.sinkhorn(M, 20)
    sinkhorn_operator.sinkhorn_backward(M, M, 20)
    sinkhorn_v4.sinkhorn_v4(M, 20, 1e-6)
    sinkhorn_v4.sinkhorn_v4_backward(M, M, 20, 1e-6)


def needs(launched: Launched) -> dict[str, int]:
    """`stack`: bytes a thread, more than 0 where the registers do not suffice."""
    kernel, types, constants, warps = launched
    # torch's memory begins at multiples of 16 bytes.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(types.values())
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature=types, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=TARGET, options={"num_warps": warps})
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stack,) = re.findall(r"STACK:(\d+)", listing)
    return {"stack": int(stack), "shared": made.metadata.shared}


def main() -> None:
    found = {}
    for shape in SHAPES:
        for launched in recorded(boundary, shape):
            if "boundary" in launched.kernel.__name__:
                found[f"{launched.kernel.__name__} {shape}"] = needs(launched)
    for launched in recorded(sinkhorns):
        found[f"{launched.kernel.__name__}"] = needs(launched)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
