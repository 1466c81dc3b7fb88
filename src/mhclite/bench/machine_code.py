"""What the compiler makes of the kernels for sm_90 (H100), without a GPU.

Triton's package brings NVIDIA's assembler and disassembler. The launches are those that the
operators make, recorded in place of running, so that types and constants are not written down a
second time. Not in a process in which the kernels are interpreted (TRITON_INTERPRET).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
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

from mhclite.bench.parity import Case, connection_of
from mhclite.connections import connection_class
from mhclite.connections.fast import (
    fused,
    kernels,
    kernels_backward,
    operators,
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
    """A boundary that training may have."""

    variant: str
    C: int = 1024
    n: int = 4
    streams: torch.dtype = torch.bfloat16
    branch: torch.dtype = torch.bfloat16
    # Where it lies: `inner`, between two sub-layers; `first`, which writes nothing, its streams
    # views of one or copied; `last`, which reads nothing.
    part: str = "inner"

    def __str__(self) -> str:
        types = f"{TYPES[self.streams]} streams, {TYPES[self.branch]} branch"
        return f"{self.variant} n={self.n} C={self.C} {types}, {self.part}"


# --- what is launched ---------------------------------------------------------------------------


class Launched(NamedTuple):
    """A launch as the compiler sees it."""

    kernel: Any
    types: dict[str, str]  # of each argument: `*bf16`, `i32`, `constexpr`, ...
    constants: dict[str, Any]
    warps: int


class _Recorder:
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


def recorded(work: Callable[[], object]) -> list[Launched]:
    """The launches of our kernels that this makes, none of which runs."""
    found: list[Launched] = []
    with ExitStack() as stack:
        stack.enter_context(patch.object(sinkhorn_operator, "by_kernel", lambda _: True))
        stack.enter_context(patch.object(sinkhorn_v4, "by_kernel", lambda _: True))
        for module, name in KERNELS:
            recorder = _Recorder(getattr(module, name), found)
            stack.enter_context(patch.object(module, name, recorder))
        stack.enter_context(torch.no_grad())
        work()
    return found


def boundary_launches(shape: Shape) -> list[Launched]:
    """Of a boundary, forward and backward."""
    variant, C, n, streams, branch, part = shape
    options = connection_of(Case(variant)).options
    connection = projected(connection_class(variant)(n, C, 0, **options))
    x = torch.zeros(TOKENS, n, C, dtype=streams)
    if part == "first":
        x = x[:, :1].expand(-1, n, -1)

    def work() -> None:
        read = fused.reading(connection, torch.ones(C), streams)
        a = torch.zeros(TOKENS, read.weight.shape[1])
        _, H_post, H_res = connection.from_projection(fused.coefficient_inputs(a, read, n))
        written = fused.Write(torch.zeros(TOKENS, C, dtype=branch), H_res, H_post)
        if part == "last":
            fused.write(x, written)
            operators.write_backward(x, *written, x)
        else:
            given = written if part == "inner" else None
            out, a, b, stats = fused.boundary(x, given, read, branch)
            fused.boundary_backward(x, given, read, a, stats, out, a, b)

    return [each for each in recorded(work) if "boundary" in each.kernel.__name__]


def sinkhorn_launches(n: int) -> list[Launched]:
    """Of Sinkhorn-Knopp, the paper's and DeepSeek V4's, forward and backward."""
    M = torch.zeros(TOKENS, n, n)

    def work() -> None:
        sinkhorn_operator.sinkhorn(M, 20)
        sinkhorn_operator.sinkhorn_backward(M, M, 20)
        sinkhorn_v4.sinkhorn_v4(M, 20, 1e-6)
        sinkhorn_v4.sinkhorn_v4_backward(M, M, 20, 1e-6)

    return recorded(work)


# --- what it becomes ----------------------------------------------------------------------------


class Instruction(NamedTuple):
    """One line of machine code."""

    address: int
    name: str  # up to the first dot
    text: str
    control: int  # the upper half of its 128 bits


class Code(NamedTuple):
    """A compiled kernel."""

    instructions: list[Instruction]
    registers: int  # a thread
    stack: int  # bytes a thread; more than 0 where the registers do not suffice
    shared: int  # bytes a program

    def loops(self) -> list[list[Instruction]]:
        """In order, each from where its last branch leads back to, to that branch."""
        places = {step.address: i for i, step in enumerate(self.instructions)}
        found = []
        for end, step in enumerate(self.instructions):
            target = re.search(r"0x([0-9a-f]+)$", step.text) if step.name == "BRA" else None
            if target and (start := places[int(target[1], 16)]) < end:
                found.append(self.instructions[start : end + 1])
        return found


def counted(loop: list[Instruction]) -> Counter[str]:
    """How many instructions of each name."""
    return Counter(step.name for step in loop)


LINE = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ +)?(([A-Z]\w*)\S*[^;]*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/"
    r"\s*/\* 0x([0-9a-f]{16}) \*/"
)


def compiled(launched: Launched) -> Code:
    """Compile a launch for sm_90."""
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
        command = [str(tool), "-sass", "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    instructions = [
        Instruction(int(address, 16), name, text, int(control, 16))
        for address, text, name, control in LINE.findall(listing)
    ]
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK):(\d+)", listing)}
    return Code(instructions, usage["REG"], usage["STACK"], made.metadata.shared)
