"""Which implementation computes the connections here, and why not the fused one.

The one place that decides it. Triton is not imported for it.
"""

from __future__ import annotations

import importlib.util
import os
from typing import NamedTuple

import torch

KERNEL_STREAMS = (2, 4)  # numbers of streams whose tiles the kernels hold in registers
SMALLEST_CHUNK = 16  # columns and rows of a matrix product in Triton
# Found once: torch.compile traces `choose`, and a search for files does not belong in a trace.
INSTALLED = importlib.util.find_spec("triton") is not None


class Choice(NamedTuple):
    """How the connections of a model are computed."""

    implementation: str  # reference, fast or fused
    obstacle: str | None  # what is in the way of `fused`, where that was wanted


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def no_kernels(device: str) -> str | None:
    """Why no Triton kernel runs on a device (`cpu`, `cuda`, ...); None where they do."""
    if not INSTALLED:
        return "Triton is not installed"
    if device != "cuda" and not interpreted():
        return f"its kernels need a GPU, and this is a {device}"
    return None


def choose(
    wanted: str,
    *,
    device: str,
    dtype: torch.dtype,
    autocast: bool,
    stream_dtype: str,
    n_streams: int,
    n_embd: int,
    has_projection: bool,
) -> Choice:
    """Which implementation computes a model's connections.

    Args:
        wanted: `reference`, `fast`, `fused`, or `auto`: `fused` on a GPU, else `fast`.
        device: `cpu`, `cuda`, ...
        dtype: of the weights.
        autocast: whether under autocast to bfloat16.
        stream_dtype: as in the study.
        has_projection: whether the variant says how to project its streams.
    """
    if wanted in ("reference", "fast"):
        return Choice(wanted, None)
    if n_streams == 1 or (wanted == "auto" and device != "cuda"):
        return Choice("fast", None)
    obstacle = None
    if not has_projection:
        obstacle = "the variant has no projection for its kernels"
    elif reason := no_kernels(device):
        obstacle = reason
    elif n_streams not in KERNEL_STREAMS:
        obstacle = f"n_streams = {n_streams}, and its kernels hold 2 or 4 streams in registers"
    elif n_embd % SMALLEST_CHUNK:
        obstacle = f"n_embd = {n_embd} is not a multiple of {SMALLEST_CHUNK}"
    elif not autocast and stream_dtype == "bf16":
        obstacle = "streams of bf16 need precision bf16"
    elif not autocast and dtype not in (torch.bfloat16, torch.float32):
        obstacle = f"its kernels are for bfloat16 and float32, and the streams are {dtype}"
    return Choice("fast", obstacle) if obstacle else Choice("fused", None)
