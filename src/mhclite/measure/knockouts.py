"""What the loss of a trained model depends on: parts of it changed, one forward pass each.

The change of the loss is taken window by window, so its standard error is that of a paired
difference. What is changed is the `coefficients` of a connection, which its reference
implementation reads; the connections themselves know nothing of it, and the sub-layers that stay
as they are may be computed faster.

- *H_res = I*: streams are read and written as before, and never mixed. By algebra this costs
  nothing in the first sub-layer of a doubly stochastic variant, where all streams are equal, nor in
  the last if the final norm comes after the sum over streams.
- *H_res = its mean over tokens*, of the probe's windows: what a static matrix keeps.
- *A stream dropped*: zero after the last sub-layer, which leaves it out of the final sum: the norm
  of zeros is zero. Learned weights of that sum see the zeros too.

The changes of all sub-layers at once are measured wherever the final loss is, the others on the
probe's few windows.
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

    # A module's own attributes come before the methods of its class.
    vars(connection)["coefficients"] = changed
    sublayer.implementation = "reference"
    try:
        yield
    finally:
        del vars(connection)["coefficients"]
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
def knockouts(
    model: GPT, found: Mixing, windows: Tokens, evaluated: Tokens, device: torch.device
) -> Use:
    """What each change costs.

    Args:
        model: in evaluation mode on `device`.
        found: its H_res on the probe's windows.
        windows: those, (sequences, T + 1) token ids.
        evaluated: the windows of the final loss, (count, T + 1).
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

    def cost(what: str, which: int | None, start: str) -> Cost:
        nothing = losses[start, None]
        changed = losses.get((what, which), nothing)
        return cost_of(np.concatenate(changed) - np.concatenate(nothing))

    for chunk in chunks(windows):
        tokens = torch.from_numpy(chunk).to(device)
        targets = tokens[:, 1:]
        x = model.embed(tokens[:, :-1])
        for layer, sublayer in enumerate(sublayers):
            if layer in mixing:
                with mixed_by(sublayer, identity):
                    changed = sublayer(x)
                changed = through(sublayers[layer + 1 :], changed)
                note("identity", layer, logits_of(model, changed), targets)
            x = sublayer(x)
        note("nothing", None, logits_of(model, x), targets)
        for stream in range(n):
            others = 1 - identity[stream]
            note("stream", stream, logits_of(model, x * others.unsqueeze(-1)), targets)

    for chunk in chunks(evaluated):
        tokens = torch.from_numpy(chunk).to(device)
        start, targets = model.embed(tokens[:, :-1]), tokens[:, 1:]
        note("evaluated", None, logits_of(model, through(sublayers, start)), targets)
        for what, matrices in changes.items() if mixing else ():
            with ExitStack() as stack:
                for layer in mixing:
                    stack.enter_context(mixed_by(sublayers[layer], matrices[layer]))
                note(what, None, logits_of(model, through(sublayers, start)), targets)

    return Use(
        windows=len(windows),
        loss=float(np.concatenate(losses["nothing", None]).mean()),
        evaluated_windows=len(evaluated),
        evaluated_loss=float(np.concatenate(losses["evaluated", None]).mean()),
        identity=cost("identity", None, "evaluated"),
        token_mean=cost("mean", None, "evaluated"),
        identity_by_sublayer=[
            cost("identity", layer, "nothing") for layer in range(len(sublayers))
        ],
        stream_dropped=[cost("stream", stream, "nothing") for stream in range(n)],
    )


def cost_of(differences: FloatArray) -> Cost:
    """Mean of a change of the loss over windows (windows,), and its standard error."""
    count = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return Cost(float(differences.mean()), error)
