"""Whether the fused implementation can run, without importing Triton."""

from __future__ import annotations

import importlib.util
import os

import torch

STREAMS = (2, 4)
SMALLEST_CHUNK = 16  # columns and rows of a matrix product in Triton


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(device: str, n_streams: int, n_embd: int, dtype: torch.dtype) -> str | None:
    """Why the kernels cannot run; None where they can.

    Args:
        dtype: of the streams.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device != "cuda" and not interpreted():
        return f"its kernels need a GPU, and this is a {device}"
    if n_streams not in STREAMS:
        return f"n_streams = {n_streams}, and its kernels hold 2 or 4 streams in registers"
    if n_embd % SMALLEST_CHUNK:
        return f"n_embd = {n_embd} is no multiple of {SMALLEST_CHUNK}"
    if dtype not in (torch.bfloat16, torch.float32):
        return f"its kernels are for bfloat16 and float32, and the streams are {dtype}"
    return None
