"""Loss of a trained model on held-out text, in float32: all of it, or windows spread over it."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from mhclite.data.tokens import TokenSplit
from mhclite.measure.files import Evaluation
from mhclite.measure.mixing import Tokens, chunks
from mhclite.model import GPT


def windows_over(split: TokenSplit, length: int, most: int | None) -> list[Tokens]:
    """Windows that lie side by side: (count, length + 1), and (1, shorter) for what is left.

    Each token but the first of the split is predicted once, from at most `length` tokens before it.

    Args:
        split: the text.
        length: tokens predicted in a window.
        most: predicted tokens, as whole windows spread evenly over the split; None: all.
    """
    predicted = len(split) - 1
    whole = predicted // length
    chosen, end = np.arange(whole), whole * length
    if most is not None and most < predicted:
        spread = np.linspace(0, whole - 1, min(whole, max(1, most // length)))
        chosen, end = np.unique(spread.round().astype(np.int64)), predicted
    windows = [split.windows(chosen * length, length + 1)]
    return windows + ([split.read(end, len(split) - end)[None]] if end < predicted else [])


@torch.no_grad()
def evaluation(model: GPT, split: TokenSplit, most: int | None, device: torch.device) -> Evaluation:
    """Mean loss over `windows_over` the split.

    Args:
        model: in evaluation mode on `device`.
        split: validation split.
        most: predicted tokens; None: all.
        device: where to compute.
    """
    total, tokens = 0.0, 0
    for windows in windows_over(split, model.block_size, most):
        for chunk in chunks(windows):
            ids = torch.from_numpy(chunk).to(device)
            logits = model(ids[:, :-1]).flatten(0, 1)
            losses = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
            total += losses.double().sum().item()
            tokens += len(losses)
    return Evaluation(total / tokens, tokens)
