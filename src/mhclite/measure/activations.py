"""A trained model from within: how sharply it reads and writes, and the sizes of its activations
and gradients on held-out text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhclite.measure.files import Parameters
from mhclite.measure.mixing import Gathered, Tokens, chunks
from mhclite.model import GPT, SubLayer

SCALES = ("scale_res", "scale_alpha")  # the mHC family's and HC's name for the same factor


def weight_entropy(weights: Tensor) -> Tensor:
    """Entropy in nats of |weights| over their sum over streams: 0 where all is one stream's, log n
    where all streams have the same share.

    Args:
        weights: (B, T, n), or channel by channel (B, T, n, C).

    Returns:
        (B, T), or (B, T, C).
    """
    size = weights.abs()
    return torch.special.entr(size / size.sum(2, keepdim=True)).sum(2)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Euclidean norm of the gradients of all of them together."""
    squares = [p.grad.double().square().sum() for p in parameters if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def activations(model: GPT, windows: Tokens, device: torch.device) -> Parameters:
    """Statistics of a model on windows (sequences, T + 1); its gradients are overwritten."""
    sublayers = [sublayer for sublayer in model.sublayers if isinstance(sublayer, SubLayer)]
    several = model.n_streams > 1
    reads, writes, sizes = (Gathered(len(sublayers)) for _ in range(3))
    model.zero_grad()
    for chunk in chunks(windows):
        tokens = torch.from_numpy(chunk).to(device)
        with torch.no_grad():
            x = model.embed(tokens[:, :-1])
            for layer, sublayer in enumerate(sublayers):
                if several:
                    H_pre, H_post, _ = sublayer.connection.coefficients(x)
                    for gathered, weights in ((reads, H_pre), (writes, H_post)):
                        gathered.add(layer, weight_entropy(weights).double().cpu().numpy())
                x = sublayer(x)
                sizes.add(layer, x.double().square().mean((-2, -1)).cpu().numpy())
        logits, targets = model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        (
            F.cross_entropy(logits, targets, reduction="sum") / (windows.size - len(windows))
        ).backward()
    connections = [sublayer.connection for sublayer in sublayers]
    named = next((name for name in SCALES if hasattr(connections[0], name)), None)
    return Parameters(
        scale_res=None if named is None else [getattr(c, named).item() for c in connections],
        read_entropy=reads.means() if several else None,
        write_entropy=writes.means() if several else None,
        activation_norm=np.sqrt(sizes.means()).tolist(),
        gradient_backbone=[
            gradient_norm([*sublayer.norm.parameters(), *sublayer.body.parameters()])
            for sublayer in sublayers
        ],
        gradient_connection=[gradient_norm(c.parameters()) for c in connections]
        if several
        else None,
    )
