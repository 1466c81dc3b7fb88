"""Compile the fused kernels for sm_90 and print what each needs, as JSON; `all` takes minutes.

In a process of its own: where a test has set TRITON_INTERPRET, kernels are not compiled.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from mhclite.bench.machine_code import (
    Launched,
    Shape,
    boundary_launches,
    compiled,
    counted,
    sinkhorn_launches,
)

FLOAT32 = {"streams": torch.float32, "branch": torch.float32}
# What a variant's kernels depend on is its projection (columns, norm, eps), its activation with or
# without an offset, and whether it mixes. kromhc stands for ohc too, mhc for mhc_lite.
SOME = [
    *(Shape(variant) for variant in ("mhc", "hc", "jpmhc", "identity")),
    Shape("mhc", part="first"),
    Shape("mhc", part="last"),
    Shape("mhc", streams=torch.float32),
    Shape("hc", streams=torch.float32),
]
OTHERS = [
    *(Shape(variant) for variant in ("kromhc", "mhc_v4")),
    *(Shape("mhc", C) for C in (16, 96, 512, 768)),
    Shape("mhc", part="first, copied"),
    Shape("identity", part="last"),
    *(Shape(variant, n=2) for variant in ("mhc", "hc", "jpmhc", "identity")),
    Shape("jpmhc", streams=torch.float32),
    *(Shape(variant, **FLOAT32) for variant in ("mhc", "hc", "jpmhc", "identity")),
]


def needs(launched: Launched) -> dict[str, Any]:
    code = compiled(launched)
    return {
        "registers": code.registers,
        "stack": code.stack,
        "shared": code.shared,
        "loops": [counted(loop) for loop in code.loops()],
    }


def main() -> None:
    everything = sys.argv[1:] == ["all"]
    found = {}
    for shape in SOME + (OTHERS if everything else []):
        for launched in boundary_launches(shape):
            found[f"{launched.kernel.__name__} {shape}"] = needs(launched)
    for n in (2, 4) if everything else (4,):
        for launched in sinkhorn_launches(n):
            found[f"{launched.kernel.__name__} n={n}"] = needs(launched)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
