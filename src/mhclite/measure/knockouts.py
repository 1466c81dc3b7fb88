"""What the loss of a trained model depends on: H_res changed in all sub-layers, a pass each.

The change of the loss is taken window by window, so its standard error is that of a paired
difference. What is changed is the `coefficients` of a connection, which its reference
implementation reads; the connections themselves know nothing of it, and sub-layers that never mix
may be computed faster.

- *H_res = I*: streams are read and written as before, and never mixed.
- *H_res = its mean over tokens*, of the probe's windows: what a static matrix keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
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


def window_losses(logits: Tensor, targets: Tensor) -> FloatArray:
    """Mean cross-entropy of each window in nats per token: (B, T, V), (B, T) -> (B,)."""
    losses = F.cross_entropy(logits.mT, targets, reduction="none").double()
    return losses.mean(-1).cpu().numpy()


@torch.no_grad()
def knockouts(model: GPT, found: Mixing, windows: Tokens, device: torch.device) -> Use:
    """What each change costs.

    Args:
        model: in evaluation mode on `device`.
        found: its H_res on the probe's windows.
        windows: those of the final loss, (count, T + 1) token ids.
        device: where to compute.
    """
    sublayers = [sublayer for sublayer in model.sublayers if isinstance(sublayer, SubLayer)]
    identity = torch.eye(model.n_streams, device=device)
    means = [torch.tensor(matrix, device=device) for matrix in found.geometry.mean_matrix]
    # Where H_res is I for every token already, no change is one: no pass, and no cost.
    mixing = [layer for layer, distance in enumerate(found.identity_distance) if distance != 0]
    changes = {"nothing": dict[int, Tensor]()}
    if mixing:
        changes["identity"] = dict.fromkeys(mixing, identity)
        changes["token_mean"] = {layer: means[layer] for layer in mixing}
    losses: dict[str, list[FloatArray]] = {what: [] for what in changes}
    for chunk in chunks(windows):
        tokens = torch.from_numpy(chunk).to(device)
        for what, matrices in changes.items():
            with ExitStack() as stack:
                for layer, matrix in matrices.items():
                    stack.enter_context(mixed_by(sublayers[layer], matrix))
                x = model.embed(tokens[:, :-1])
                for sublayer in sublayers:
                    x = sublayer(x)
            logits = F.linear(model.final_read(x), model.wte.weight)
            losses[what].append(window_losses(logits, tokens[:, 1:]))

    nothing = np.concatenate(losses["nothing"])

    def cost(what: str) -> Cost:
        return cost_of(np.concatenate(losses.get(what, losses["nothing"])) - nothing)

    return Use(float(nothing.mean()), identity=cost("identity"), token_mean=cost("token_mean"))


def cost_of(differences: FloatArray) -> Cost:
    """Mean of a change of the loss over windows (windows,), and its standard error."""
    count = len(differences)
    error = float(differences.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return Cost(float(differences.mean()), error)
