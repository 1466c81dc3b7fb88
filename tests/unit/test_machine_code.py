"""What the compiler makes of the fused kernels for sm_90, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mhclite.bench.__main__ import main
from mhclite.bench.model import BARRIER, LATENCY, OTHER_LATENCY, cycles

Kernels = dict[str, dict[str, Any]]

pytestmark = pytest.mark.slow


def compiling(*command: str) -> str:
    """What a Python process prints. Of its own: kernels that are interpreted here stay so."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    found: Kernels = json.loads(compiling(str(Path(__file__).parent / "compile_kernels.py")))
    return found


def loops(kernels: Kernels, name: str, variant: str) -> list[dict[str, int]]:
    found = kernels[f"boundary_{name} {variant} n=4 C=1024 bf16 streams, bf16 branch, inner"]
    return [dict.fromkeys(("BAR", "SHFL", "LDGSTS", "LDG"), 0) | loop for loop in found["loops"]]


def arithmetic(loop: dict[str, int]) -> int:
    return sum(loop.get(name, 0) for name in ("FFMA", "FMUL", "FADD"))


def test_all_fit_into_registers_and_shared_memory(kernels: Kernels) -> None:
    """Of a multiprocessor's shared memory, 227 KiB, at most the half."""
    assert len(kernels) == 20
    for name, needs in kernels.items():
        assert needs["stack"] == 0, (name, needs)
        assert needs["shared"] <= 227 * 1024 // 2, (name, needs)


@pytest.mark.parametrize("variant", ["mhc", "hc"])
def test_a_multiprocessor_has_one_forward_program(kernels: Kernels, variant: str) -> None:
    """Of eight warps, by its 65,536 registers: of two the L2 cache keeps less (performance.md)."""
    needs = kernels[f"boundary_forward {variant} n=4 C=1024 bf16 streams, bf16 branch, inner"]
    assert 65536 // 2 < needs["registers"] * 8 * 32 <= 65536


# Of a backward chunk: barriers and shuffles of the loop of sums, and of that of gradients. Those of
# sums are dgain's, over tokens; those of gradients bring products into the streams' layout.
BACKWARD = {
    "mhc": ((6, 10), (18, 8)),
    "hc": ((6, 10), (18, 8)),
    "jpmhc": ((6, 50), (26, 16)),
    "identity": ((6, 10), (18, 8)),
}


@pytest.mark.parametrize("variant", BACKWARD)
def test_loops_hardly_wait_for_other_threads(kernels: Kernels, variant: str) -> None:
    """Sums stay with their thread. Loads are under way during the chunk before: LDGSTS."""
    write, read, norm = loops(kernels, "forward", variant)
    for loop in (write, read, norm):
        assert loop["SHFL"] == 0
        assert loop["BAR"] <= 2
    assert write["LDGSTS"] >= 9  # x and y, and the weights
    for loop, (barriers, shuffles) in zip(
        loops(kernels, "backward", variant), BACKWARD[variant], strict=True
    ):
        assert loop["LDGSTS"] >= 7  # x, y and db are in both
        assert loop["BAR"] <= barriers
        assert loop["SHFL"] <= shuffles


def test_arithmetic_is_done_once(kernels: Kernels) -> None:
    """Four streams mixed: 16 tokens, 128 columns by 256 threads, or backward 32 columns by 128.

    Forward the mixing is computed once for the store and once for the product: for that Triton
    finds it cheaper than to hand it from thread to thread.
    """
    write, _, _ = loops(kernels, "forward", "mhc")
    mixing, squares = 4 * 5, 4
    assert arithmetic(write) <= 1.05 * (2 * mixing + squares) * 16 * 128 / 256
    sums, gradients = loops(kernels, "backward", "mhc")
    h, normed, dots = 4, 2, 2 + 3 * 4
    assert arithmetic(sums) <= 1.3 * (mixing + h + normed + 2 + dots) * 16 * 32 / 128
    whole, dy, dx, dH = 4 * 3, 4, 4 * 4, 4 + 4 * 4
    assert arithmetic(gradients) <= 1.3 * (mixing + h + 5 + whole + dy + dx + dH) * 16 * 32 / 128


# --- the model of their time --------------------------------------------------------------------


def instruction(
    name: str, *, stall: int = 1, result: int = 7, operands: int = 7, waits: int = 0
) -> Any:
    """One with this control word; scoreboard 7 is none."""
    control = stall << 41 | result << 46 | operands << 49 | waits << 52
    return SimpleNamespace(name=name, control=control)


def test_cycles_of_a_loop() -> None:
    work = [instruction("FFMA", stall=4), instruction("FADD", stall=2)]
    assert cycles(work, 3) == 6
    assert cycles([*work, instruction("BAR")], 3) == 6 + 1 + BARRIER
    load = instruction("LDG", result=0)
    assert cycles([load, *work], 3) == 7  # nothing waits for what it loads
    needed = instruction("FFMA", waits=1 << 0)
    assert cycles([load, *work, needed], 3) == LATENCY["LDG"] + 1
    stored = instruction("STG", operands=5)
    assert cycles([stored, instruction("MOV", waits=1 << 5)], 3) == OTHER_LATENCY + 1


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "model.json"
    arguments = ["model", "--variants", "identity", "--sizes", "s", "--out", str(out)]
    done = compiling("-m", "mhclite.bench", *arguments)
    (row,) = json.loads(out.read_text())["kernels"]
    assert f"{row['ratio']:.2f}" in done.splitlines()[-1]
    assert row["ratio"] > 1
    for part in ("forward", "backward"):
        assert row[part] == max(row[f"{part}_code"], row[f"{part}_bytes"]) > 0


def test_where_the_kernels_are_interpreted_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["model", "--out", str(tmp_path / "model.json")]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err
