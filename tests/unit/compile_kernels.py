"""Compile the fused kernels for sm_90 without a GPU, and print what each needs, as JSON.

Triton's compiler brings NVIDIA's assembler, which says how many registers a kernel takes and how
many bytes of them go to memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mhclite.connections import kernels, launch, sinkhorn_kernels

FLOAT32 = {"H_res", "H_post", "bias", "gain", "offset", "scale", "a", "stats", "da", "dH_res"}
FLOAT32 |= {"dH_post", "dH_pre", "da_all", "dgain", "logits", "M", "dM", "dlogits", "rows"}
FLOAT32 |= {"columns"}
# Projection columns, padded, of four streams; norm and its eps, activation, whether streams are
# mixed, what follows the activation.
VARIANTS = {
    "identity": (16, 0, 0.0, 0, False, ()),
    "hc": (32, 2, 0.0, 1, True, ("offset", "scale")),
    "mhc": (32, 0, 0.0, 0, True, ()),  # as mhc_lite
    "kromhc": (16, 0, 0.0, 0, True, ()),  # as ohc
    "jpmhc": (64, 1, 1e-5, 2, True, ()),
    "mhc_v4": (32, 0, 1e-6, 0, True, ("offset",)),
}


def needs(
    kernel: Any, constants: dict[str, Any], streams: str, warps: int, stages: int = 3
) -> dict[str, int]:
    """Registers a thread, bytes spilled and shared memory of a kernel."""
    signature = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name == "N"
        else f"*{'fp32' if name in FLOAT32 else streams}"
        for name in kernel.arg_names
    }
    # As a launch finds them: torch's memory begins at multiples of 16 bytes.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": stages}
    )
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        command = [str(assembler), "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": sum(int(size) for size in re.findall(r"(\d+) bytes spill", said)),
        "shared": made.metadata.shared,
    }


def boundary(kernel: Any, variant: str, streams: str) -> dict[str, int]:
    """`needs` of a boundary between two sub-layers of a variant, at the paper's size L."""
    n, C, usual = 4, 1024, launch.BOUNDARY
    columns, norm, norm_eps, activation, mixes, affine = VARIANTS[variant]
    forward = kernel is kernels.boundary_forward
    constants: dict[str, Any] = {
        "C": C,
        "n": n,
        "K": columns,
        "PRE": activation,
        "NORM": norm,
        "MEAN": 3 * n * n,
        "NORM_EPS": norm_eps,
        "WRITE": True,
        "MIX": mixes,
        "READ": True,
        "EPS": 1e-5,
        "BT": usual.tokens,
        "BC": usual.columns,
        "WIDE": False,
        "XT": n * C,
        "XS": C,
    }
    constants |= {name: None for name in ("offset", "scale") if name not in affine}
    if not mixes:
        constants |= {"H_res": None} | ({} if forward else {"dH_res": None})
    return needs(kernel, constants, streams, usual.warps, usual.stages)


def main() -> None:
    found = {}
    for variant in sys.argv[1:] or VARIANTS:
        for streams in ("bf16", "fp32"):
            for kernel in (kernels.boundary_forward, kernels.boundary_backward):
                name = f"{kernel.__name__} {variant} {streams}"
                found[name] = boundary(kernel, variant, streams)
    for kernel in (
        sinkhorn_kernels.sinkhorn_forward,
        sinkhorn_kernels.sinkhorn_backward,
        sinkhorn_kernels.sinkhorn_v4_forward,
        sinkhorn_kernels.sinkhorn_v4_backward,
    ):
        constants = {"n": 4, "iterations": 20, "EPS": 1e-6, "BT": launch.SINKHORN_TOKENS}
        constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
        found[kernel.__name__] = needs(kernel, constants, "fp32", launch.SINKHORN_WARPS)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
