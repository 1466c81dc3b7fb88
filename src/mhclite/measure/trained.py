"""A trained model and held-out text, as the probe and the evaluation need them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from mhclite.data.batches import Tokens, evaluation_starts
from mhclite.data.manifest import open_split, open_tokens
from mhclite.data.tokens import TokenSplit
from mhclite.errors import UserError
from mhclite.files import read_json, sha256_of
from mhclite.model import GPT
from mhclite.training.processes import choose_device, deterministic


def read_run(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(resolved configuration, summary) of a finished run."""
    if not (folder / "summary.json").is_file():
        raise UserError(f"{folder} is no finished run: it has no summary.json")
    record = read_json(folder / "run.json", "record of the run")
    return record["config"], read_json(folder / "summary.json", "summary of the run")


def load_trained(folder: Path) -> tuple[GPT, torch.device]:
    """The model of a completed run in evaluation mode, in float32, and its device."""
    config, summary = read_run(folder)
    weights = folder / "weights.pt"
    if not weights.exists() or sha256_of(weights) != summary["weights_sha256"]:
        raise UserError(
            f"{weights} is missing or not what {folder / 'summary.json'} recorded; delete the "
            "summary and run the workflow again to train this run anew"
        )
    device = choose_device(config["training"]["device"])
    deterministic(device)
    model = GPT(config["model"], config["connection"], config["seed"])
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.to(device).eval(), device


def held_out(text: Path, vocab_size: int) -> TokenSplit:
    """Validation split of a prepared corpus (a folder), or a file of raw tokens."""
    if text.is_dir():
        return open_split(text, "validation", verify=True)
    return open_tokens(text, vocab_size)


def windows_of(split: TokenSplit, count: int, length: int) -> Tokens:
    """`count` windows spread evenly over the split, (count, length)."""
    if len(split) < length:
        raise UserError(
            f"the text has {len(split)} tokens, fewer than one window of {length} tokens"
        )
    return split.windows(evaluation_starts(len(split), length, count), length)


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """`--corpus` or `--tokens`."""
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--corpus", type=Path, help="folder of a prepared corpus")
    text.add_argument("--tokens", type=Path, help="file of raw uint16 tokens (nanoGPT's val.bin)")
