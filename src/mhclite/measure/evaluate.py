"""`python -m mhclite evaluate`: validation loss of a trained or imported run, in float32."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

from mhclite.arguments import folder_path, positive_int
from mhclite.errors import UserError
from mhclite.measure.trained import (
    add_text_arguments,
    held_out,
    load_trained,
    read_trained,
    windows_of,
)

CHUNK = 8  # windows at a time
MAX_LOSS = 700.0  # nats per token; the perplexity of more is no float


@torch.no_grad()
def evaluate(folder: Path, text: Path, sequences: int) -> dict[str, Any]:
    """Mean loss in nats per token over windows spread evenly over the held-out text."""
    trained = read_trained(folder)
    if not trained.has_weights:
        raise UserError(f"{folder} diverged: it has no final weights")
    model, device = load_trained(trained)
    split = held_out(text, trained)
    windows = windows_of(split, sequences, trained.model.block_size + 1)
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
