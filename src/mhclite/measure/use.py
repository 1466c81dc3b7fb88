"""What the loss of a trained model depends on: parts of it changed, one forward pass each.

The change of the loss is taken window by window, so its standard error is that of a paired
difference. What is changed is the `coefficients` of a connection, which its reference
implementation reads; the connections themselves know nothing of it, and the sub-layers that stay
as they are may be computed faster.

- *H_res = I*: streams are read and written as before, and never mixed. By algebra this costs
  nothing in the first sub-layer of a doubly stochastic variant, where all streams are equal, nor in
  the last if the final norm comes after the sum over streams.
- *H_res = its mean over tokens* (on the same windows): what a static matrix keeps.
- *A stream dropped*: zero after the last sub-layer, which leaves it out of the final sum: the norm
  of zeros is zero. Learned weights of that sum see the zeros too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mhclite.connections.base import Coefficients
from mhclite.measure.files import Cost, Mixing, Use
from mhclite.measure.mixing import FloatArray, Tokens, chunks
from mhclite.model import GPT, SubLayer


@contextmanager
def mixed_by(sublayer: SubLayer, matrix: Tensor) -> Iterator[None]:
    """The sub-layer with one H_res (n, n) for all tokens."""
    connection, implementation = sublayer.connection, sublayer.implementation
    own = connection.coefficients

    def changed(x: Tensor) -> Coefficients:
        found = own(x)
        return found._replace(H_res=matrix.to(found.H_res).expand_as(found.H_res))

    # Set beside the method of the class, which it hides until it is deleted.
    object.__setattr__(connection, "coefficients", changed)
    sublayer.implementation = "reference"
    try:
        yield
    finally:
        object.__delattr__(connection, "coefficients")
        sublayer.implementation = implementation


def logits_of(model: GPT, x: Tensor) -> Tensor:
    """What the model makes of its last streams (B, T, n, C): (B, T, V)."""
    return F.linear(model.final_read(x), model.wte.weight)


def window_losses(logits: Tensor, targets: Tensor) -> FloatArray:
    """Mean cross-entropy of each window in nats per token: (B, T, V), (B, T) -> (B,)."""
    losses = F.cross_entropy(logits.mT, targets, reduction="none").double()
    return losses.mean(-1).cpu().numpy()


def through(sublayers: Sequence[SubLayer], x: Tensor) -> Tensor:
    """Streams after some sub-layers."""
    for sublayer in sublayers:
        x = sublayer(x)
    return x


@torch.no_grad()
def use(model: GPT, found: Mixing, windows: Tokens, device: torch.device) -> Use:
    """What each change costs.

    Args:
        model: in evaluation mode on `device`.
        found: its H_res, on the same windows.
        windows: (sequences, T + 1) token ids.
        device: where to compute.
    """
    sublayers = [sublayer for sublayer in model.sublayers if isinstance(sublayer, SubLayer)]
    n = model.n_streams
    identity = torch.eye(n, device=device)
    means = [torch.tensor(matrix, device=device) for matrix in found.geometry.mean_matrix]
    changes = {"identity": [identity] * len(sublayers), "mean": means}
    # Where H_res is I for every token already, no change is one: no pass, and no cost.
    mixing = [layer for layer, distance in enumerate(found.identity_distance) if distance != 0]
    losses: dict[tuple[str, int | None], list[FloatArray]] = {}

    def note(what: str, which: int | None, logits: Tensor, targets: Tensor) -> None:
        losses.setdefault((what, which), []).append(window_losses(logits, targets))

    for chunk in chunks(windows):
        tokens = torch.from_numpy(chunk).to(device)
        targets = tokens[:, 1:]
        x = start = model.embed(tokens[:, :-1])
        for layer, sublayer in enumerate(sublayers):
            for what, matrices in changes.items() if layer in mixing else ():
                with mixed_by(sublayer, matrices[layer]):
                    changed = sublayer(x)
                changed = through(sublayers[layer + 1 :], changed)
                note(what, layer, logits_of(model, changed), targets)
            x = sublayer(x)
        note("nothing", None, logits_of(model, x), targets)
        for stream in range(n):
            others = 1 - identity[stream]
            note("stream", stream, logits_of(model, x * others.unsqueeze(-1)), targets)
        for what, matrices in changes.items() if mixing else ():
            with ExitStack() as stack:
                for layer in mixing:
                    stack.enter_context(mixed_by(sublayers[layer], matrices[layer]))
                note(what, None, logits_of(model, through(sublayers, start)), targets)

    nothing = losses["nothing", None]
    unchanged = np.concatenate(nothing)

    def cost(what: str, which: int | None) -> Cost:
        return cost_of(np.concatenate(losses.get((what, which), nothing)) - unchanged)

    layers = range(len(sublayers))
    return Use(
        windows=len(windows),
        loss=float(unchanged.mean()),
        identity=cost("identity", None),
        token_mean=cost("mean", None),
        identity_by_sublayer=[cost("identity", layer) for layer in layers],
        token_mean_by_sublayer=[cost("mean", layer) for layer in layers],
        stream_dropped=[cost("stream", stream) for stream in range(n)],
    )


def cost_of(differences: FloatArray) -> Cost:
    """Mean of a change of the loss over windows (windows,), and its standard error."""
    count = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return Cost(float(differences.mean()), error)
