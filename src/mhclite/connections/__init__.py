"""The residual variants by name.

This module imports no torch: the study file is checked with it on machines that have none. The
class of a variant is found by `connection_class`, which imports that variant's file and no other,
so that editing one variant reruns that variant only.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mhclite.connections.base import Connection

# 6! = 720 permutations cost 720 projection columns a sub-layer; 7! = 5,040 would be the bulk of
# the model at the paper's sizes.
MAX_PERMUTATION_STREAMS = 6


@dataclass(frozen=True)
class Variant:
    """What is known of a variant without importing it."""

    label: str  # in figures and tables
    options: tuple[str, ...] = ()  # keys of study.Connections that it reads


VARIANTS = {
    "residual": Variant("Residual"),
    "identity": Variant("Identity HC"),
    "hc": Variant("HC"),
    "mhc": Variant("mHC", ("sinkhorn_iterations",)),
    "mhc_lite": Variant("mHC-lite"),
    "kromhc": Variant("KromHC"),
    "jpmhc": Variant("JPmHC", ("cayley_iterations",)),
}


def check_streams(variant: str, n_streams: int) -> None:
    """Raise `ValueError` if the variant cannot have this many streams."""
    if variant == "residual" and n_streams != 1:
        raise ValueError(f"the plain residual has one stream, not {n_streams}")
    if variant == "kromhc" and n_streams & (n_streams - 1):
        raise ValueError(
            f"n_streams = {n_streams}: kromhc is a Kronecker product of 2 x 2 factors and needs a "
            "power of two (2, 4, 8, ...)"
        )
    if variant == "mhc_lite" and n_streams > MAX_PERMUTATION_STREAMS:
        raise ValueError(
            f"n_streams = {n_streams}: mhc_lite would mix {n_streams}! = "
            f"{math.factorial(n_streams):,} permutations, one projection column of n_streams * "
            f"n_embd weights each in every sub-layer; at most {MAX_PERMUTATION_STREAMS} streams "
            f"({math.factorial(MAX_PERMUTATION_STREAMS)} permutations), or use kromhc"
        )


def connection_class(variant: str) -> type[Connection]:
    """The class of a variant: `connections/<variant>.py` defines it as `Connection`."""
    assert variant in VARIANTS, variant
    return importlib.import_module(f"mhclite.connections.{variant}").ConnectionClass
