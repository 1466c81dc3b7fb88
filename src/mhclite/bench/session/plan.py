"""What a session measures: at the paper's sizes, or, for a dry run, as small as can be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mhclite.bench.implementations import BATCH_SIZE, SEVERAL, SIZES
from mhclite.config import ModelConfig
from mhclite.connections import connection_class
from mhclite.connections.fast.projected import Projected
from mhclite.connections.registry import VARIANTS, has_streams

FIRST = ("mhc_lite", "mhc")  # those that tell most


def has_kernels(variant: str) -> bool:
    """Whether the fused implementation computes four streams of a variant."""
    return issubclass(connection_class(variant), Projected) and has_streams(variant, 4)


# In the order in which they tell most: of the others, those that mix.
OTHERS = [variant for variant in SEVERAL if variant not in FIRST and has_kernels(variant)]
OTHERS.sort(key=lambda variant: VARIANTS[variant].mixes == "never")


@dataclass(frozen=True)
class Plan:
    """Sizes, and what is tried at each."""

    dry: bool
    sizes: dict[str, ModelConfig]
    variants: tuple[str, ...]  # that have kernels
    batch_size: dict[str, int]  # sequences a step
    reference_batch_size: dict[str, int]  # likewise; the reference keeps several times as much
    patience: float  # times the minutes of each stage
    checks: int | None  # of the sanitizer
    checked: tuple[int, int]  # width and tokens of the boundary that it watches
    tokens: tuple[int, int]  # of a boundary: a whole number of programs, and not
    compiled_tokens: tuple[int, int]  # few, for which the compiler makes the same kernels
    repeats: int  # computations whose bits are compared
    rounds: int
    launches: int  # of a kernel that is timed
    mode: str  # of models that are timed
    parity_cases: int | None  # of each variant
    parity_changes: dict[str, Any]  # what is smaller in them
    depths: tuple[int, ...]  # of models whose gradients are compared
    sweep: dict[str, tuple[int, ...]]  # fields of both kernels' launches, and what is tried
    sweep_sizes: tuple[str, ...]
    golden: tuple[Path, ...] = ()
    bundle: Path | None = None

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"


PAPER = Plan(
    dry=False,
    sizes={name: SIZES[name] for name in ("s", "m", "l")},
    variants=(*FIRST, *OTHERS),
    batch_size=BATCH_SIZE,
    reference_batch_size=BATCH_SIZE | {"l": 8},
    patience=1.0,
    checks=None,
    checked=(96, 37),
    tokens=(16384, 16379),
    compiled_tokens=(48, 37),
    repeats=5,
    rounds=20,
    launches=50,
    mode="compiled",
    parity_cases=None,
    parity_changes={},
    depths=(6, 24),
    sweep={"tokens": (16, 32), "columns": (32, 64, 128), "warps": (4, 8), "stages": (1, 2, 3)},
    sweep_sizes=("l", "s", "m"),
)
DRY = replace(
    PAPER,
    dry=True,
    sizes={
        name: ModelConfig(
            name, 32, n_layer=1, n_head=1, n_embd=16, block_size=8, learning_rate=1e-3
        )
        for name in ("s", "l")
    },
    variants=("mhc_lite", "identity"),
    batch_size={"s": 1, "l": 1},
    reference_batch_size={"s": 1, "l": 1},
    patience=10.0,  # a processor may have other work
    checks=1,
    checked=(16, 13),
    tokens=(16, 13),
    compiled_tokens=(16, 13),
    repeats=2,
    rounds=2,
    launches=2,
    mode="eager",
    parity_cases=1,
    parity_changes={"n_embd": 16, "length": 3},
    depths=(1,),
    sweep={"tokens": (16, 32)},
    sweep_sizes=("l",),
)
