"""Loss of a trained model on the validation split: all of it, document by document."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from mhclite.data.tokens import TokenSplit
from mhclite.measure.files import Evaluation
from mhclite.measure.mixing import Tokens, chunks
from mhclite.model import GPT


def windows_over(split: TokenSplit, length: int, most: int | None) -> Iterator[tuple[int, Tokens]]:
    """Windows that lie side by side: (place of the first predicted token, (1, up to length + 1)).

    Each token but the first of the split is predicted once, from at most `length` tokens before it.

    Args:
        split: the text.
        length: tokens predicted in a window; the last window may be shorter.
        most: predicted tokens, as whole windows spread evenly over the split; None: all.
    """
    predicted = len(split) - 1
    starts = np.arange(0, predicted, length)
    if most is not None and most < predicted:
        whole = predicted // length
        chosen = np.linspace(0, whole - 1, min(whole, max(1, most // length)))
        starts = starts[np.unique(chosen.round().astype(np.int64))]
    for start in starts.tolist():
        yield start + 1, split.read(start, min(length + 1, len(split) - start))


def whole_windows(split: TokenSplit, length: int, most: int | None) -> Tokens:
    """Those of `windows_over` that are whole, (count, length + 1)."""
    found = [window for _, window in windows_over(split, length, most)]
    return np.stack([window for window in found if len(window) == length + 1])


def documents_of(split: TokenSplit, end: int | None) -> Tokens:
    """The document of each token, from 0: (tokens,). The token `end` is the last of its document.

    Args:
        split: the text.
        end: the end-of-text id; None: the text is one document.
    """
    tokens = split.read(0, len(split))
    if end is None:
        return np.zeros(len(tokens), dtype=np.int64)
    ends = np.cumsum(tokens == end)
    return np.concatenate(([0], ends[:-1]))


@torch.no_grad()
def evaluation(
    model: GPT, split: TokenSplit, end: int | None, most: int | None, device: torch.device
) -> Evaluation:
    """Mean loss over the split, and its parts.

    Args:
        model: in evaluation mode on `device`.
        split: validation split.
        end: the end-of-text id that ends each document; None: the text is one document.
        most: predicted tokens; None: all.
        device: where to compute.
    """
    document = documents_of(split, end)
    found = list(windows_over(split, model.block_size, most))
    sizes = {len(window) for _, window in found}  # two at most: whole ones and the last
    tokens = np.zeros(document[-1] + 1, dtype=np.int64)
    losses = np.zeros(document[-1] + 1)
    for size in sizes:
        places = np.array([place for place, window in found if len(window) == size])
        windows = np.stack([window for _, window in found if len(window) == size])
        values = []
        for chunk in chunks(windows):
            ids = torch.from_numpy(chunk).to(device)
            logits = model(ids[:, :-1]).flatten(0, 1)
            loss = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
            values.append(loss.double().cpu().numpy())
        owner = document[places[:, None] + np.arange(size - 1)].ravel()
        tokens += np.bincount(owner, minlength=len(tokens))
        losses += np.bincount(owner, np.concatenate(values), minlength=len(tokens))
    read = tokens > 0
    return Evaluation(
        loss=float(losses.sum() / tokens.sum()),
        tokens=int(tokens.sum()),
        whole_split=int(tokens.sum()) == len(split) - 1,
        document_tokens=tokens[read].tolist(),
        document_losses=losses[read].tolist(),
    )
