"""What a model that is not this project's imports; docs/use-elsewhere.md is the contract.

The names in `__all__` stay, and a test freezes them. Nothing else of this project is needed, and
beyond torch no other package; Triton only where the kernels run.

Shapes: B batch, T tokens, n streams, C width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from mhclite.connections import connection_class
from mhclite.connections.base import Coefficients, Connection
from mhclite.connections.fast.availability import choose
from mhclite.connections.registry import VARIANTS, check_streams

__all__ = [
    "VARIANTS",
    "Coefficients",
    "Connection",
    "ParameterGroups",
    "SubLayer",
    "connect",
    "make",
    "parameter_groups",
]

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
        options: what the variant's class takes besides, such as mhc's `sinkhorn_iterations`.

    Raises:
        ValueError: no such variant, one that cannot have this many streams, or a number that is too
            small or not finite.
        TypeError: a number of another type, or an option that the variant does not have.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; known are {', '.join(VARIANTS)}")
    n, C, home = (
        _whole(name, value, least)
        for name, value, least in (
            ("n_streams", n_streams, 1),
            ("n_embd", n_embd, 1),
            ("home_stream", home_stream, 0),
        )
    )
    check_streams(variant, n, options.get("permutations", "all"))
    if home >= n:
        raise ValueError(f"home_stream = {home} is not one of the {n} streams")
    made = connection_class(variant)
    known = inspect.signature(made, eval_str=True).parameters
    connection = made(n, C, home, **{k: _option(known, variant, k, v) for k, v in options.items()})
    connection.reset_parameters()
    return connection


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} = {value!r} is not a whole number")
    if value < least:
        raise ValueError(f"{name} = {value} is less than {least}")
    return int(value)


def _option(
    known: Mapping[str, inspect.Parameter], variant: str, name: str, value: Any
) -> int | float | str | None:
    """An option's value, as its constructor declares it: `int` is positive, `float` finite, of a
    `Literal` one of its values."""
    own = [key for key in known if key not in ("n_streams", "n_embd", "home_stream")]
    if name not in own:
        raise TypeError(f"{variant} has no option {name!r}; it has {', '.join(own) or 'none'}")
    kind, parts = known[name].annotation, get_args(known[name].annotation)
    if get_origin(kind) is Literal:
        if value not in parts:
            raise ValueError(f"{name} = {value!r} is none of {', '.join(map(repr, parts))}")
        return str(value)
    if value is None and NoneType in parts:
        return None
    if kind is int or int in parts:
        return _whole(name, value, 1)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} = {value!r} is not a number")
    if not math.isfinite(value) or (name.endswith("eps") and value < 0):
        raise ValueError(f"{name} = {value} is negative or not finite")
    return float(value)


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
        ValueError: streams or a body's output of another shape; a dtype that the implementation
            does not have; `fused` where it does not run, with the reason.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}"
        )
    parts = list(sublayers)
    if not parts:
        return x
    first, kind = parts[0].connection, x.device.type
    chosen, obstacle = choose(
        implementation,
        device=kind,
        dtype=x.dtype,
        autocast=torch.is_autocast_enabled(kind),
        stream_dtype="authors",
        n_streams=first.n_streams,
        n_embd=first.n_embd,
        has_projection=all(connection.has_projection for connection, _, _ in parts),
    )
    if implementation == "fused" and chosen != "fused":
        raise ValueError(f"fused does not run here: {obstacle or 'one stream needs no kernels'}")
    if chosen == "fused":
        from mhclite.connections.fast import fused  # here: Triton need not be installed
        from mhclite.connections.fast.projected import projected

        steps = [fused.Step(projected(part.connection), part.gain, part.body) for part in parts]
        return fused.connect(x, steps, "authors")
    for part in parts:
        connection = part.connection
        step = connection if chosen == "reference" else connection.fast_forward
        x = step(x, _branch(part))
    return x


def _branch(part: SubLayer) -> Callable[[Tensor], Tensor]:
    return lambda h: part.body(layer_norm(h, part.gain.shape, part.gain))


class ParameterGroups(NamedTuple):
    """(name, parameter) pairs, as `named_parameters` gives and torch's optimizers take them."""

    decayed: list[tuple[str, nn.Parameter]]  # of connections: weight decay as their authors have it
    undecayed: list[tuple[str, nn.Parameter]]  # of connections
    others: list[tuple[str, nn.Parameter]]  # of what is no connection


def parameter_groups(module: nn.Module) -> ParameterGroups:
    """All parameters of a model, or of one connection, each once.

    Those of connections are not for an optimizer of matrices such as Muon: projections start at
    zero or have few columns, so that their rows' variances, by which such optimizers divide, are
    nothing; biases and scales are no matrices. AdamW takes both groups.
    """
    decayed = {
        id(parameter): name in part.decayed
        for part in module.modules()
        if isinstance(part, Connection)
        for name, parameter in part.named_parameters()
    }
    groups = ParameterGroups([], [], [])
    for name, parameter in module.named_parameters():
        known = decayed.get(id(parameter))
        group = groups.others if known is None else groups.decayed if known else groups.undecayed
        group.append((name, parameter))
    return groups
