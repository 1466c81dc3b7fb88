"""What a model that is not this project's imports; docs/use-elsewhere.md is the contract.

The names in `__all__` stay, and a test freezes them. Nothing else of this project is needed, and
beyond torch no other package; Triton only where the kernels run.

Shapes: B batch, T tokens, n streams, C width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from mhclite.connections import connection_class
from mhclite.connections.availability import choose
from mhclite.connections.base import Coefficients, Connection
from mhclite.connections.registry import VARIANTS, check_streams

__all__ = ["VARIANTS", "Coefficients", "Connection", "SubLayer", "connect", "make"]

IMPLEMENTATIONS = ("auto", "fast", "fused", "reference")


class SubLayer(NamedTuple):
    """A sub-layer for `connect`: y = body(LayerNorm(h)) of what the connection reads."""

    connection: Connection
    gain: Tensor  # (C), of the LayerNorm: no bias, eps 1e-5
    body: Callable[[Tensor], Tensor]  # (B, T, C) -> (B, T, C)


def make(
    variant: str, n_streams: int, n_embd: int, home_stream: int = 0, **options: Any
) -> Connection:
    """The connection of one sub-layer, float32 on the CPU; a module like any other.

    Weights that are random at first (few variants have any) come from torch's own generator.

    Args:
        variant: a name in `VARIANTS`.
        n_streams: n.
        n_embd: C.
        home_stream: the stream that the sub-layer mainly reads and writes at first; k modulo n for
            the k-th is a good choice.
        options: what the variant's class takes besides; mhc and mhc_v4 need `sinkhorn_iterations`,
            20 in their papers.

    Raises:
        ValueError: no such variant, or one that cannot have this many streams.
        TypeError: an option that the variant does not have, or one that it needs is missing.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; known are {', '.join(VARIANTS)}")
    check_streams(variant, n_streams)
    if not 0 <= home_stream < n_streams:
        raise ValueError(f"home_stream = {home_stream} is not one of the {n_streams} streams")
    connection = connection_class(variant)(n_streams, n_embd, home_stream, **options)
    connection.initialise(torch.default_generator)
    return connection


def connect(x: Tensor, sublayers: Iterable[SubLayer], implementation: str = "auto") -> Tensor:
    """Streams after all sub-layers, in order. Differentiable; may stand in a compiled model.

    Args:
        x: (B, T, n, C), the streams before the first.
        sublayers: the same n and C in all of them, whatever their variants.
        implementation: `reference`, `fast`, `fused`, or `auto`: `fused` on a GPU where it runs,
            else `fast`. All are equal up to rounding.

    Returns:
        (B, T, n, C).

    Raises:
        ValueError: streams of another shape, or `fused` where it does not run, with the reason.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}"
        )
    parts = list(sublayers)
    for connection, _, _ in parts:
        n, C = connection.n_streams, connection.n_embd
        if x.dim() != 4 or x.shape[-2:] != (n, C):
            raise ValueError(f"streams of shape {tuple(x.shape)}, expected (B, T, {n}, {C})")
    kind = x.device.type
    chosen, obstacle = choose(
        implementation,
        device=kind,
        dtype=x.dtype,
        autocast=torch.is_autocast_enabled(kind),
        stream_dtype="authors",
        n_streams=x.shape[-2],
        n_embd=x.shape[-1],
        has_projection=all(connection.has_projection for connection, _, _ in parts),
    )
    if implementation == "fused" and chosen != "fused":
        raise ValueError(f"fused does not run here: {obstacle or 'one stream needs no kernels'}")
    if chosen == "fused" and parts:
        from mhclite.connections import fused

        steps = [fused.Step(part.connection, part.gain, _contiguous(part)) for part in parts]
        return fused.connect(x, steps, "authors")
    for part in parts:
        connection = part.connection
        step = connection if chosen == "reference" else connection.fast_forward
        x = step(x, _branch(part))
    return x


def _branch(part: SubLayer) -> Callable[[Tensor], Tensor]:
    return lambda h: part.body(layer_norm(h, part.gain.shape, part.gain))


def _contiguous(part: SubLayer) -> Callable[[Tensor], Tensor]:
    """The body for the kernels, which take its output as rows of C numbers, side by side."""
    return lambda b: part.body(b).contiguous()
