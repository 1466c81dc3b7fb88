"""What is known of each variant without importing it.

This module imports no torch: study files are checked with it on machines that have none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# 6! = 720 permutations cost 720 projection columns a sub-layer; 7! = 5,040 would be the bulk of
# the model at the paper's sizes.
MAX_PERMUTATION_STREAMS = 6
MAX_STREAMS = 64


# Options of every variant with several streams.
COMMON_OPTIONS = ("final_norm", "stream_dtype", "implementation", "connection_rate_factor")
# And of every variant that mixes them.
MIXING_OPTIONS = (*COMMON_OPTIONS, "freeze_mixing", "mixing_rate_factor")


@dataclass(frozen=True)
class Variant:
    """A variant's entry."""

    label: str  # in figures and tables
    note: str  # what it is, for readers of the report
    options: tuple[str, ...] = ()  # keys of study.Connections that it reads
    # What its H_res can be.
    mixes: Literal["never", "doubly_stochastic", "one_sided", "freely"] = "freely"
    own_reads: bool = False  # whether its H_pre and H_post are made otherwise than `identity`'s

    @property
    def iterates(self) -> bool:
        """Whether its H_res takes as many Sinkhorn-Knopp iterations as the study says."""
        return "sinkhorn_iterations" in self.options


VARIANTS = {
    "residual": Variant(
        "Residual",
        "The ordinary residual connection: one stream, to which each sub-layer adds its output. "
        "The baseline.",
        ("stream_dtype",),
        mixes="never",
    ),
    "identity": Variant(
        "Identity HC",
        "Several streams that each sub-layer reads and writes with learned weights, but that are "
        "never mixed with each other (H_res is the identity). It shows what mixing itself buys.",
        (*COMMON_OPTIONS, "home_stream", "decay_logits"),
        mixes="never",
    ),
    "hc": Variant(
        "HC",
        "Hyper-Connections (arXiv 2409.19606): the streams are mixed by an unconstrained matrix "
        "H_res, computed for each token.",
        (*MIXING_OPTIONS, "home_stream", "decay_logits"),
        own_reads=True,
    ),
    "mhc": Variant(
        "mHC",
        "Manifold-constrained Hyper-Connections (arXiv 2512.24880): Sinkhorn-Knopp iterations "
        "bring H_res close to a doubly stochastic matrix (all rows and columns sum to 1).",
        (*MIXING_OPTIONS, "home_stream", "decay_logits", "initial_logit", "sinkhorn_iterations"),
        mixes="doubly_stochastic",
    ),
    "mhc_lite": Variant(
        "mHC-lite",
        "The method replicated here (arXiv 2601.05732): H_res is a convex combination of all "
        "permutation matrices, and so exactly doubly stochastic.",
        (*MIXING_OPTIONS, "home_stream", "decay_logits", "initial_logit", "permutations"),
        mixes="doubly_stochastic",
    ),
    "kromhc": Variant(
        "KromHC",
        "H_res is a Kronecker product of doubly stochastic 2 × 2 matrices (arXiv 2601.21579): "
        "exactly doubly stochastic, with few parameters.",
        (*MIXING_OPTIONS, "home_stream", "decay_logits", "initial_logit"),
        mixes="doubly_stochastic",
    ),
    "jpmhc": Variant(
        "JPmHC",
        "H_res is orthogonal, through a Cayley transform (arXiv 2602.18308).",
        MIXING_OPTIONS,
        own_reads=True,
    ),
    "mhc_v4": Variant(
        "mHC (V4)",
        "mHC as it ships in DeepSeek V4 and GLM-5.3-Flash: Sinkhorn-Knopp begins with a softmax "
        "and ends with the rows, and training begins with H_res uniform.",
        (*MIXING_OPTIONS, "decay_logits", "sinkhorn_iterations"),
        mixes="doubly_stochastic",
        own_reads=True,
    ),
    "ohc": Variant(
        "oHC",
        "H_res is a rotation of four streams, made from two unit quaternions (arXiv 2609.02672): "
        "exactly orthogonal.",
        (*MIXING_OPTIONS, "home_stream", "decay_logits"),
    ),
    "gated": Variant(
        "Gated",
        "Several streams that are never mixed and that each sub-layer reads channel by channel, "
        "through a low-rank gate, as Qwen4 does.",
        (*COMMON_OPTIONS, "gate_rank"),
        mixes="never",
        own_reads=True,
    ),
    "oshc": Variant(
        "osHC",
        "The rows of H_res, or its columns, are positive and sum to 1 by a softmax; the other sums "
        "are free (OpenReview 1BC0eYN2uS).",
        (*MIXING_OPTIONS, "home_stream", "decay_logits", "initial_logit", "stochastic_axis"),
        mixes="one_sided",
    ),
}


def check_streams(variant: str, n_streams: int, permutations: str = "all") -> None:
    """Raise `ValueError` if the variant cannot have this many streams.

    Args:
        permutations: those of mhc_lite.
    """
    if not 1 <= n_streams <= MAX_STREAMS:
        raise ValueError(f"n_streams = {n_streams} is not between 1 and {MAX_STREAMS}")
    if variant == "residual" and n_streams != 1:
        raise ValueError(f"the plain residual has one stream, not {n_streams}")
    if variant == "kromhc" and n_streams & (n_streams - 1):
        raise ValueError(
            f"n_streams = {n_streams}: kromhc is a Kronecker product of 2 x 2 factors and needs a "
            "power of two (2, 4, 8, ...)"
        )
    if variant == "ohc" and n_streams != 4:
        raise ValueError(
            f"n_streams = {n_streams}: ohc rotates four streams by two quaternions; set n_streams: "
            "4, or use jpmhc, which is orthogonal for any number"
        )
    every = variant == "mhc_lite" and permutations == "all"
    if every and n_streams > MAX_PERMUTATION_STREAMS:
        raise ValueError(
            f"n_streams = {n_streams}: mhc_lite would mix {n_streams}! = "
            f"{math.factorial(n_streams):,} permutations, one projection column of n_streams * "
            f"n_embd weights each in every sub-layer; at most {MAX_PERMUTATION_STREAMS} streams "
            f"({math.factorial(MAX_PERMUTATION_STREAMS)} permutations); set permutations: cyclic, "
            "or use kromhc"
        )


def has_streams(variant: str, n_streams: int) -> bool:
    """Whether the variant can have this many."""
    try:
        check_streams(variant, n_streams)
    except ValueError:
        return False
    return True


def functional_mixing(
    variant: str, n_layer: int, final_norm: str, stochastic_axis: str = "rows"
) -> int:
    """Sub-layers whose H_res can change what the model computes, by algebra.

    All streams are equal before the first sub-layer, so a matrix whose rows sum to 1 does nothing
    there; nor does one whose columns sum to 1 in the last, if the streams are then summed as they
    are. (mHC's sums are 1 but for the error of its iterations.)
    """
    mixes = VARIANTS[variant].mixes
    if mixes == "never":
        return 0
    if mixes == "freely":
        return 2 * n_layer
    rows = mixes == "doubly_stochastic" or stochastic_axis == "rows"
    columns = mixes == "doubly_stochastic" or stochastic_axis == "columns"
    return 2 * n_layer - rows - (columns and final_norm == "after_sum")


def connection_parameters(
    variant: str, n_streams: int, n_embd: int, n_layer: int, options: Mapping[str, Any], head: bool
) -> int:
    """Parameters of all connections of a model, before one is made.

    Args:
        head: count its learned final read too.
    """
    import torch  # seconds

    from mhclite.connections import connection_class
    from mhclite.connections.head import Head

    with torch.device("meta"):
        one = connection_class(variant)(n_streams, n_embd, 0, **options)
        read = Head(n_streams, n_embd) if head and n_streams > 1 else None
    count = 2 * n_layer * sum(p.numel() for p in one.parameters())
    return count if read is None else count + sum(p.numel() for p in read.parameters())
