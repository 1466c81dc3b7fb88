"""`python -m mhclite.bench model`: what the fused kernels would take on an H100, without one.

A model, not a measurement: of each kernel's machine code in order, issued as its control words say,
and of the bytes that it must move; the longer of the two counts. Nothing here has been compared
with a GPU. It compares kernels with one another, and says which of the two they wait for.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhclite.arguments import file_path
from mhclite.bench.implementations import BATCH_SIZE, SEVERAL, SIZES
from mhclite.config import ModelConfig
from mhclite.connections.fast.availability import INSTALLED, interpreted
from mhclite.errors import UserError
from mhclite.files import write_json

if TYPE_CHECKING:  # Triton need not be installed, and decides at import whether to interpret
    from mhclite.bench.machine_code import Code, Instruction, Launched

# H100 SXM: multiprocessors, clock and memory as NVIDIA states them, of the memory what a copy is
# assumed to reach; 65,536 registers and 227 KiB of shared memory a multiprocessor.
MULTIPROCESSORS, CLOCK, COPY = 132, 1.755e9, 0.9 * 3.35e12
REGISTERS, SHARED, SCHEDULERS = 65536, 227 * 1024, 4
# Assumed of the plain residual's step: the rate of its 6 FLOPs a parameter and token.
RESIDUAL = 350e12
# Cycles until a result is there, assumed: of a load from the L2 cache, through shared memory, of
# the slower units; and until all threads have come to a barrier. What is not here has its stall
# count alone, which the assembler has worked out.
LATENCY = {
    "LDG": 280, "LDS": 30, "LDSM": 33, "SHFL": 24, "MUFU": 24, "HMMA": 33, "F2F": 24,
}  # fmt: skip
OTHER_LATENCY, BARRIER = 20, 20


def cycles(loop: list[Instruction], rounds: int) -> float:
    """Cycles of a round of a loop, for one warp that has its scheduler to itself.

    An instruction's control word has the cycles until the next may be issued, which of six
    scoreboards it occupies until its result is there and until its operands are read, and for
    which it waits.
    """
    time, free, began = 0, [0] * 6, 0
    for turn in range(rounds):
        if turn == 1:  # the first fills the scoreboards
            began = time
        for step in loop:
            stall, result, operands, waits = (
                step.control >> shift & mask
                for shift, mask in ((41, 15), (46, 7), (49, 7), (52, 63))
            )
            time = max([time, *(free[i] for i in range(6) if waits >> i & 1)])
            time += BARRIER if step.name == "BAR" else 0
            latency = LATENCY.get(step.name, OTHER_LATENCY)
            if result < 6:
                free[result] = max(free[result], time + latency)
            if operands < 6:
                free[operands] = max(free[operands], time + OTHER_LATENCY)
            time += max(1, stall)
    return (time - began) / max(1, rounds - 1)


def resident(code: Code, warps: int) -> int:
    """Programs of a kernel that a multiprocessor holds at once."""
    by_registers = REGISTERS // (-(-code.registers // 8) * 8 * 32 * warps)
    return min(by_registers, SHARED // max(1, code.shared))


def seconds_of_code(code: Code, launched: Launched, tokens: int) -> float:
    """Time of a kernel if its code alone decides."""
    constants, warps = launched.constants, launched.warps
    loops, together = code.loops(), resident(code, warps)
    inside = {step.address for loop in loops for step in loop}
    outside = [step for step in code.instructions if step.address not in inside]
    turns = constants["C"] / (constants["BC"] * constants.get("G", 1))
    alone = cycles(outside, 1) + turns * sum(cycles(loop, 6) for loop in loops)
    # Warps that share a scheduler fill one another's waits, but each cycle issues one instruction.
    issued = len(outside) + turns * sum(len(loop) for loop in loops)
    sharing = max(1, together * warps // SCHEDULERS)
    waves = tokens / (constants["BT"] * MULTIPROCESSORS * together)
    return max(1.0, waves) * max(alone, sharing * issued) / CLOCK


def seconds_of_bytes(numbers: int, tokens: int, C: int) -> float:
    """Time to move so many bf16 numbers of each token, in units of C."""
    return 2 * numbers * C * tokens / COPY


def kernel_row(variant: str, model: ModelConfig, tokens: int) -> dict[str, Any]:
    """Modelled seconds of a boundary's kernels, and of what they must move."""
    from mhclite.bench.machine_code import Shape, boundary_launches, compiled

    n, C = 4, model.n_embd
    row: dict[str, Any] = {"size": model.name, "variant": variant, "tokens": tokens, "width": C}
    parts = (("forward", 2 * n + 2), ("backward", 3 * n + 3))
    for (name, numbers), launched in zip(parts, boundary_launches(Shape(variant, C)), strict=True):
        code = compiled(launched)
        by_code = seconds_of_code(code, launched, tokens)
        by_bytes = seconds_of_bytes(numbers, tokens, C)
        row |= {
            name: max(by_code, by_bytes),
            f"{name}_code": by_code,
            f"{name}_bytes": by_bytes,
            f"{name}_registers": code.registers,
        }
    return row


def step_ratio(row: dict[str, Any], model: ModelConfig) -> float:
    """Step over the residual's: its boundaries and the product for the projection's weights.

    Small kernels on a token's coefficients are left out.
    """
    tokens, C, sublayers = row["tokens"], row["width"], 2 * model.n_layer
    parameters = 12 * model.n_layer * C**2 + model.vocab_size * C
    step = 6 * parameters * tokens / RESIDUAL
    boundary = row["forward"] + row["backward"] + seconds_of_bytes(4, tokens, C)
    return float(1 + sublayers * (boundary - seconds_of_bytes(8, tokens, C)) / step)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite.bench model`."""
    parser.add_argument("--out", required=True, type=file_path, help="file to write")
    parser.add_argument("--variants", nargs="+", choices=SEVERAL, default=["mhc_lite"])
    parser.add_argument("--sizes", nargs="+", choices=["s", "m", "l"], default=["s", "m", "l"])


def run(args: argparse.Namespace) -> int:
    """Print a table of modelled times, as docs/performance.md has it, and write it as JSON.

    Raises:
        UserError: the kernels cannot be compiled here.
    """
    if not INSTALLED or interpreted():
        reason = "TRITON_INTERPRET is set" if INSTALLED else "Triton is not installed"
        raise UserError(f"the kernels cannot be compiled: {reason}")
    out: Path = args.out
    rows = []
    print(
        "| size | variant | forward, us | of a copy | backward, us | of a copy | step / residual |"
    )
    print("|:--|:--|--:|--:|--:|--:|--:|")
    for name in args.sizes:
        model = SIZES[name]
        for variant in args.variants:
            row = kernel_row(variant, model, BATCH_SIZE[name] * model.block_size)
            row["ratio"] = step_ratio(row, model)
            rows.append(row)
            cells = [name, variant]
            for part in ("forward", "backward"):
                share = row[f"{part}_bytes"] / row[part]
                cells += [f"{1e6 * row[part]:.0f}", f"{100 * share:.0f} %"]
            print("|", " | ".join([*cells, f"{row['ratio']:.2f}"]), "|", flush=True)
    write_json(out, {"assumed": {"residual_flops_per_second": RESIDUAL}, "kernels": rows})
    return 0
