"""The fused implementation: one pass over the streams between two sub-layers, by Triton kernels.

The write of a sub-layer and the read of the next are one operator, `boundary`: the streams are read
and written once forward, and once backward. What is computed from a token's few coefficients alone
stays in torch (`Projected.from_projection`), so that a variant needs nothing here.

The gradient of the streams is a single tensor that each boundary hands to the one before it: what a
boundary returns goes to the next boundary alone, so that autograd has nothing to add up.

Shapes: N tokens, n streams, C width, K projection columns (padded to a power of two).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn.utils.stateless import _reparametrize_module

from mhclite.connections.base import full_precision
from mhclite.connections.fast import operators
from mhclite.connections.fast.availability import SMALLEST_CHUNK
from mhclite.connections.fast.projected import Projected

# Without this torch.compile traces the backward pass under the autocast of the forward pass, and
# products of the coefficients' gradients, which are float32, would be taken in bf16. Eagerly the
# backward pass is called outside of autocast; this says that it is so here.
torch._functorch.config.backward_pass_autocast = "off"

NORMS = ("rms", "layer", "rms_stream")  # in the order of the kernels' constants
ACTIVATIONS = ("sigmoid", "tanh", "softmax")
PLAIN = (int, float, str)


class Write(NamedTuple):
    """What a sub-layer writes to its streams x: H_res x + H_post^T y."""

    y: Tensor  # (N, C), the branch's output
    H_res: Tensor | None  # (N, n, n) float32; None is the identity
    H_post: Tensor  # (N, n) float32


class Reading(NamedTuple):
    """What a boundary needs of the sub-layer that reads: tensors, and constants of the kernels."""

    weight: Tensor  # (n C, K) in the streams' dtype
    bias: Tensor  # (K) float32
    gain: Tensor  # (C) of the branch's LayerNorm
    offset: Tensor | None  # (n) of H_pre, after the activation
    scale: Tensor | None  # (1)
    norm: int  # index into NORMS
    activation: int  # index into ACTIVATIONS
    sum_column: int  # of weight: the one that sums the streams, for a LayerNorm
    eps: float  # of the norm
    columns: int  # of weight without the padding and the mean column


class Boundary(NamedTuple):
    """What a boundary computes."""

    x: Tensor  # (N, n, C), the streams after the write
    a: Tensor  # (N, K) float32, what the coefficients of the next sub-layer come from
    b: Tensor  # (N, C), what its body is given: LayerNorm(H_pre x)
    # (N, n + 2) float32, for the backward pass: the sum of squares of each stream, mean and
    # 1 / standard deviation of H_pre x.
    stats: Tensor


class BoundaryGradients(NamedTuple):
    """Gradients of what a boundary is given, or what they are summed from."""

    x: Tensor  # (N, n, C)
    H_pre: Tensor  # (N, n), of the sub-layer that reads
    a: Tensor  # (N, K): the one that came in, and what H_pre adds; summed over tokens, the bias's
    z: Tensor  # (N, K) in the streams' dtype, of the product z = x' weight: x'^T z is the weight's
    gain: Tensor  # (C)
    y: Tensor | None  # (N, C); None where nothing was written
    H_res: Tensor | None  # (N, n, n)
    H_post: Tensor | None  # (N, n)


class _Constants(NamedTuple):
    """What the kernels are compiled for: the last fields of `Reading`."""

    norm: int
    activation: int
    sum_column: int
    eps: float
    columns: int


def _folded(connection: Projected, dtype: torch.dtype) -> tuple[Tensor, Tensor, _Constants]:
    """Weight and bias of a `Reading`, and its constants."""
    n = connection.n_streams
    weight, bias, norm, eps = connection.projection()
    sum_column = columns = weight.shape[1]
    if norm == "layer":
        # Columns without mean do not see that of the streams. The sum's column is of ones, which
        # bf16 has, where `fast.centred` measures the mean by 1 / D, which it may not have.
        weight = weight - weight.mean(0)
        weight = torch.cat((weight, weight.new_ones(len(weight), 1)), dim=1)
    if norm == "rms_stream":
        # Each stream by itself: block diagonal, column k of stream s at k n + s.
        own = torch.eye(n, dtype=weight.dtype, device=weight.device)
        weight = (weight[None, :, :, None] * own[:, None, None, :]).flatten(2).flatten(0, 1)
        sum_column = columns = weight.shape[1]
    padded = max(SMALLEST_CHUNK, 1 << (weight.shape[1] - 1).bit_length())
    weight = torch.nn.functional.pad(weight, (0, padded - weight.shape[1])).to(dtype)
    if bias is None:
        bias = weight.new_zeros(padded, dtype=torch.float32)
    else:
        bias = torch.nn.functional.pad(bias, (0, padded - len(bias))).float()
    activation = ACTIVATIONS.index(connection.read_activation)
    return weight, bias, _Constants(NORMS.index(norm), activation, sum_column, eps, columns)


def readings(
    connections: Sequence[Projected], gains: Sequence[Tensor], dtype: torch.dtype
) -> list[Reading]:
    """Each connection's parameters as one padded projection.

    All connections of a kind are computed together, with their parameters stacked: each by itself
    takes some thirty small operations, forward and backward, for which a GPU waits.

    Args:
        gains: (C) each, of the branches' LayerNorms.
        dtype: of the streams.
    """
    kinds: dict[Any, list[int]] = {}
    for place, connection in enumerate(connections):
        kinds.setdefault(_kind(connection), []).append(place)
    found: dict[int, Reading] = {}
    for places in kinds.values():
        tensors = [
            {**dict(connections[i].named_parameters()), **dict(connections[i].named_buffers())}
            for i in places
        ]
        stacked = {name: torch.stack([own[name] for own in tensors]) for name in tensors[0]}
        weights, biases, constants = _folded_together(connections[places[0]], stacked, dtype)
        for place, weight, bias in zip(places, weights.unbind(), biases.unbind(), strict=True):
            offset, scale = connections[place].read_offset_and_scale()
            found[place] = Reading(weight, bias, gains[place], offset, scale, *constants)
    return [found[place] for place in range(len(connections))]


def _kind(connection: Projected) -> Any:
    """What its projection may depend on besides tensors; where that is not plain, itself."""
    own = {
        name: value
        for name, value in vars(connection).items()
        if not name.startswith("_") and name not in ("training", "home_stream")
    }
    if not all(isinstance(value, PLAIN) for value in own.values()):
        return id(connection)
    return type(connection), *sorted(own.items())


def _folded_together(
    connection: Projected, stacked: dict[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor, _Constants]:
    """`_folded` with each of these tensors in place of the connection's: results stacked too."""
    constants: list[_Constants] = []

    def fold(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        # What `functional_call` does before it calls `forward`. It takes a module alone, and one
        # made here, around `_folded`, the compiler cannot follow.
        with _reparametrize_module(connection, tensors):
            weight, bias, same = _folded(connection, dtype)
        constants.append(same)
        return weight, bias

    weights, biases = torch.func.vmap(fold)(stacked)
    return weights, biases, constants[0]


def reading(connection: Projected, gain: Tensor, dtype: torch.dtype) -> Reading:
    """`readings` of one."""
    return readings([connection], [gain], dtype)[0]


def coefficient_inputs(a: Tensor, read: Reading, n: int) -> Tensor:
    """What `Projected.from_projection` takes: (N, columns), or (N, n, K) for `rms_stream`.

    Args:
        a: (N, K padded), of a boundary.
    """
    a = a[:, : read.columns]
    if NORMS[read.norm] == "rms_stream":
        return a.unflatten(1, (-1, n)).transpose(1, 2)
    return a


def boundary(x: Tensor, written: Write | None, read: Reading, dtype: torch.dtype) -> Boundary:
    """The write of one sub-layer and the read of the next. Differentiable.

    Args:
        x: (N, n, C) bf16 or float32; where nothing is written its streams may be views of one.
        written: by the sub-layer before; None before the first, where the streams are copied.
        read: of the sub-layer that reads.
        dtype: of what its body is given.
    """
    y, H_res, H_post = (None, None, None) if written is None else written
    return Boundary(
        *operators.boundary(
            x, y, H_res, H_post, read.weight, read.bias, read.gain, read.offset, read.scale,
            read.norm, read.activation, read.sum_column, read.eps, dtype,
        )
    )  # fmt: skip


def boundary_backward(
    x: Tensor,
    written: Write | None,
    read: Reading,
    a: Tensor,
    stats: Tensor,
    dout: Tensor,
    da: Tensor,
    db: Tensor,
) -> BoundaryGradients:
    """Gradients of `boundary`, from its inputs and those of x, a and b that it returned.

    Args:
        x, written, read: as given to `boundary`.
        a, stats: as it returned them.
        dout, da, db: gradients of the streams (N, n, C), of a (N, K) and of b (N, C).
    """
    y, H_res, H_post = (None, None, None) if written is None else written
    dx, dH_pre, da, dz, dgain, dy, dH_res, dH_post = operators.boundary_backward(
        x, y, H_res, H_post, read.weight, read.bias, read.gain, read.offset, read.scale, a, stats,
        dout, da, db, read.norm, read.activation, read.sum_column, read.eps,
    )  # fmt: skip
    if y is None:
        return BoundaryGradients(dx, dH_pre, da, dz, dgain, None, None, None)
    mixed = None if H_res is None else dH_res
    return BoundaryGradients(dx, dH_pre, da, dz, dgain, dy, mixed, dH_post)


def write(x: Tensor, written: Write) -> Tensor:
    """H_res x + H_post^T y, (N, n, C), of streams x (N, n, C). Differentiable."""
    out: Tensor = operators.write(x, *written)
    return out


# --- the model's sub-layers ---------------------------------------------------------------------


class Step(NamedTuple):
    """A sub-layer: its connection, the gain (C) of its LayerNorm, and what follows the norm."""

    connection: Projected
    gain: Tensor
    body: Callable[[Tensor], Tensor]  # (B, T, C) -> (B, T, C)


def connect(x: Tensor, steps: Iterable[Step], stream_dtype: str) -> Tensor:
    """Streams after all sub-layers, (B, T, n, C).

    Args:
        x: (B, T, n, C).
        steps: the sub-layers in order, at least one.
        stream_dtype: as in the study. Under autocast the streams are in its dtype but for `fp32`.

    Raises:
        ValueError: streams or a body's output of another shape.
    """
    steps = list(steps)
    bodies = [step.connection.checked(x, step.body) for step in steps]
    B, T, n, C = x.shape
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype  # of the branches
    x = x.reshape(-1, n, C).to(torch.float32 if stream_dtype == "fp32" else dtype)
    with full_precision(kind):
        reads = readings([s.connection for s in steps], [s.gain for s in steps], x.dtype)
    pending: Write | None = None  # a write waits for the read that it shares a pass with
    for step, body, read in zip(steps, bodies, reads, strict=True):
        with full_precision(kind):
            x, a, b, _ = boundary(x, pending, read, dtype)
            a = coefficient_inputs(a, read, n)
            _, H_post, H_res = step.connection.from_projection(a)
        y = body(b.view(B, T, C)).reshape(-1, C)
        pending = Write(y, H_res, H_post)
    assert pending is not None
    with full_precision(kind):
        return write(x, pending).view(B, T, n, C)
