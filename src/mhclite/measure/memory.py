"""What a training step holds in memory: counted as it runs, or reckoned before it is tried.

A step that does not fit ends in an error after everything was made for it, on some devices in the
end of the process; so what can be reckoned is. The reckoning is of eager steps: the compiler keeps
less for the backward pass, and the fused kernels less than `fast`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.model import GPT

STATE = 12  # bytes a parameter: its value and AdamW's two moments, float32
GRADIENT = 4
GIB = 2**30
# Small sizes at which saved tensors are counted. Of activations, a token's part grows linearly with
# layers and with the width.
LENGTHS = (64, 128)
WIDTHS = (8, 16)  # times the number of heads
VOCABULARY = 64


def saved_bytes(model: GPT, forward: Callable[[], object]) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass."""
    own = {t.untyped_storage().data_ptr() for t in model.parameters()}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(held.values())


def lasting_bytes(model: ModelConfig, connection: ConnectionConfig) -> int:
    """Weights and the optimizer's state of a model."""
    return STATE * parameters_of(model, connection)


def parameters_of(model: ModelConfig, connection: ConnectionConfig) -> int:
    """Parameters of a model."""
    with torch.device("meta"):
        return GPT(model, connection, seed=0).parameter_counts()["total"]


def step_bytes(model: ModelConfig, connection: ConnectionConfig, sequences: int, bf16: bool) -> int:
    """What an eager step adds to `lasting_bytes` at its worst, from small models.

    Args:
        bf16: whether under autocast.
    """
    # The kernels run where there is a GPU, and this is reckoned on the processor.
    how = "reference" if connection.implementation == "reference" else "fast"
    connection = replace(connection, implementation=how)

    def a_token(width: int, layers: int) -> float:
        small = replace(model, vocab_size=VOCABULARY, n_embd=width, n_layer=layers)
        first, second = (_kept(replace(small, block_size=T), connection, bf16) for T in LENGTHS)
        return (second - first) / (LENGTHS[1] - LENGTHS[0])

    def at_depth(width: int) -> float:
        one, two = (a_token(width, layers) for layers in (1, 2))
        return one + (model.n_layer - 1) * (two - one)

    narrow, wide = (model.n_head * width for width in WIDTHS)
    low, high = at_depth(narrow), at_depth(wide)
    activations = low + (model.n_embd - narrow) * (high - low) / (wide - narrow)
    # The loss: logits, their float32 copy or gradient, and log-probabilities, at once.
    loss = model.vocab_size * ((2 if bf16 else 4) + 4 + 4)
    parameters = parameters_of(model, connection)
    copies = 2 * parameters if bf16 else 0  # of the weights, in bf16
    forward = copies + sequences * model.block_size * (activations + loss)
    return int(max(forward, GRADIENT * parameters))


def _kept(model: ModelConfig, connection: ConnectionConfig, bf16: bool) -> int:
    gpt = GPT(model, connection, seed=0)
    tokens = torch.zeros(1, model.block_size + 1, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return saved_bytes(gpt, lambda: gpt.loss(tokens))


def room(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None on a CPU, whose memory is lent out beyond what it has."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def too_much(needed: float, there: int | None) -> str:
    """Why a step of so many bytes does not fit; empty if it does."""
    if there is None or needed <= there:
        return ""
    return f"needs about {needed / GIB:.3g} GiB, and {there / GIB:.3g} GiB are free"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full, from whichever library it comes."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "alloc_failed" in said)
    )


def release(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
