"""Loss of a trained model on held-out text, in float32: all of it, or windows spread over it.

`python -m mhclite evaluate` prints that of a trained or imported run.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mhclite.arguments import folder_path, positive_int
from mhclite.data.tokens import TokenSplit
from mhclite.errors import UserError
from mhclite.measure.files import Evaluation
from mhclite.measure.mixing import Tokens, chunks
from mhclite.measure.trained import (
    add_text_arguments,
    held_out,
    load_trained,
    read_trained,
    windows_of,
)
from mhclite.model import GPT

CHUNK = 8  # windows at a time
MAX_LOSS = 700.0  # nats per token; the perplexity of more is no float


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


@torch.no_grad()
def evaluate(folder: Path, text: Path, sequences: int) -> dict[str, Any]:
    """Mean loss in nats per token over windows spread evenly over the held-out text."""
    trained = read_trained(folder)
    if not trained.has_weights:
        raise UserError(f"{folder} diverged: it has no final weights")
    model, device = load_trained(trained)
    windows = windows_of(held_out(text, trained), sequences, trained.model.block_size + 1)
    total = 0.0
    for first in range(0, sequences, CHUNK):
        chunk = torch.from_numpy(windows[first : first + CHUNK]).to(device)
        total += model.loss(chunk).item() * len(chunk)
    loss = total / sequences
    if not loss < MAX_LOSS:  # NaN too
        raise UserError(f"{folder}: its loss on {text} is {loss}: its weights are no model's")
    return {
        "run": folder.name,
        "variant": trained.connection.variant,
        "sequences": sequences,
        "tokens": sequences * trained.model.block_size,
        "loss": loss,
        "perplexity": math.exp(loss),
    }


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite evaluate`."""
    parser.add_argument("--run", required=True, type=folder_path, help="run folder")
    add_text_arguments(parser)
    parser.add_argument(
        "--sequences", type=positive_int, default=128, help="windows (default: 128)"
    )


def run(args: argparse.Namespace) -> None:
    """Print the result as JSON."""
    print(json.dumps(evaluate(args.run, args.corpus or args.tokens, args.sequences), indent=1))
