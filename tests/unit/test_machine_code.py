"""What the compiler makes of the fused kernels for sm_90, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Kernels = dict[str, dict[str, Any]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """Compiled in a process of its own: another module's kernels here may be interpreted."""
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True, text=True, env=environment, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: Kernels = json.loads(done.stdout)
    return found


def loops(kernels: Kernels, name: str, variant: str) -> list[dict[str, int]]:
    found = kernels[f"boundary_{name} {variant} n=4 C=1024 bf16 streams, bf16 branch, inner"]
    return [dict.fromkeys(("BAR", "SHFL", "LDGSTS", "LDG"), 0) | loop for loop in found["loops"]]


def arithmetic(loop: dict[str, int]) -> int:
    return sum(loop.get(name, 0) for name in ("FFMA", "FMUL", "FADD"))


def test_all_fit_into_registers_and_shared_memory(kernels: Kernels) -> None:
    """Two programs a multiprocessor: 227 KiB of shared memory."""
    assert len(kernels) == 18
    for name, needs in kernels.items():
        assert needs["stack"] == 0, (name, needs)
        assert needs["shared"] <= 227 * 1024 // 2, (name, needs)


@pytest.mark.parametrize("variant", ["mhc", "hc", "jpmhc", "identity"])
def test_loops_wait_for_nobody(kernels: Kernels, variant: str) -> None:
    """Sums stay with their thread: shuffles are those of dgain, a sum over tokens, and of layouts.

    Loads are under way while the chunk before is computed: LDGSTS.
    """
    write, read, norm = loops(kernels, "forward", variant)
    assert write["BAR"] <= 2
    assert write["SHFL"] == 0
    assert write["LDGSTS"] > 0
    for loop in (read, norm):  # no product: wide loads, several at once
        assert loop["SHFL"] == 0
        assert loop["BAR"] <= 2
    sums, gradients = loops(kernels, "backward", variant)
    assert sums["LDGSTS"] >= 5
    assert sums["BAR"] <= 6
    assert sums["SHFL"] <= 10
    assert gradients["LDGSTS"] >= 9
    assert gradients["BAR"] <= 20
    assert gradients["SHFL"] <= 40


def test_arithmetic_is_done_once(kernels: Kernels) -> None:
    """Four streams mixed, a chunk of 16 tokens and 128 columns, or 32 backward, by 128 threads.

    Forward the mixing is computed once for the store and once for the product: for that Triton
    finds it cheaper than to hand it from thread to thread.
    """
    write, _, _ = loops(kernels, "forward", "mhc")
    mixing, squares = 4 * 5, 4
    assert arithmetic(write) <= 1.05 * (2 * mixing + squares) * 16 * 128 / 128
    sums, gradients = loops(kernels, "backward", "mhc")
    h, normed, dots = 4, 2, 2 + 3 * 4
    assert arithmetic(sums) <= 1.3 * (mixing + h + normed + 2 + dots) * 16 * 32 / 128
    whole, dy, dx, dH = 4 * 3, 4, 4 * 4, 4 + 4 * 4
    assert arithmetic(gradients) <= 1.3 * (mixing + h + 5 + whole + dy + dx + dH) * 16 * 32 / 128
