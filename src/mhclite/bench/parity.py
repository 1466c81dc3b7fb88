"""How near an implementation is to the plain formula in float64, in loss and gradients.

The measure is that of the whole gradient: the norm of the error over the norm. Beside it stands the
reference's own error in the same precision. Needs torch and numpy alone: `gpu-session` runs it on a
GPU, the tests in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections.registry import VARIANTS, has_streams
from mhclite.model import GPT
from mhclite.training.compiled import compiled_loss

OPTIONS = {"sinkhorn_iterations": 20}
# An implementation's error may be as large as the reference's own times this, or this in itself:
# rounding of sums in another order.
TIMES_REFERENCE = 1.5
FLOOR = {"fp32": 2e-6, "bf16": 0.03}


class Case(NamedTuple):
    """A model and how it is computed."""

    variant: str
    n_streams: int = 4
    precision: str = "fp32"
    stream_dtype: str = "authors"
    n_embd: int = 64
    length: int = 13  # of the two sequences; no multiple of anything
    compile: bool = False

    def __str__(self) -> str:
        parts = [self.variant, f"n={self.n_streams}", f"C={self.n_embd}", self.precision]
        parts += [f"streams {self.stream_dtype}"] * (self.stream_dtype != "authors")
        return " ".join(parts + ["compiled"] * self.compile)


class Gradient(NamedTuple):
    """Loss and gradients of a case, and how they were computed."""

    computed: str
    loss: float
    gradient: Tensor  # of all parameters, flat, float64


def connection_of(case: Case) -> ConnectionConfig:
    """The connection of a case."""
    options = VARIANTS[case.variant].options
    own = {name: value for name, value in OPTIONS.items() if name in options}
    return ConnectionConfig(
        case.variant, case.n_streams, stream_dtype=case.stream_dtype, options=own
    )


def gradient(case: Case, implementation: str, device: torch.device) -> Gradient:
    """Two layers at weights all of which matter; implementation `exact`: reference in float64."""
    exact = implementation == "exact"
    size = ModelConfig("parity", 61, 2, 2, case.n_embd, case.length, 1e-3)
    how = "reference" if exact else implementation
    model = GPT(size, replace(connection_of(case), implementation=how), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(61, (2, case.length + 1), generator=generator).to(device)
    model = model.double().to(device) if exact else model.to(device)
    autocast = case.precision == "bf16" and not exact
    loss_of = compiled_loss(model) if case.compile and not exact else model.loss
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        loss = loss_of(tokens)
    loss.backward()
    found = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    return Gradient(model.choice(autocast)[0], loss.item(), torch.cat(found))


class Error(NamedTuple):
    """Errors of an implementation and of the reference, against float64."""

    own: float
    reference: float
    loss: float

    def allowed(self, precision: str) -> float:
        return max(FLOOR[precision], TIMES_REFERENCE * self.reference)


def error_of(case: Case, implementation: str, device: torch.device) -> Error:
    """Compare; the implementation must be the one that is computed, not a fallback."""
    exact = gradient(case, "exact", device)
    ours = gradient(case, implementation, device)
    assert ours.computed == implementation, (str(case), ours.computed)
    theirs = gradient(case._replace(compile=False), "reference", device)
    size = exact.gradient.norm()
    return Error(
        ((ours.gradient - exact.gradient).norm() / size).item(),
        ((theirs.gradient - exact.gradient).norm() / size).item(),
        abs(ours.loss - exact.loss),
    )


def cases(variants: list[str]) -> list[Case]:
    """What the fused implementation must do, for each variant."""
    found = []
    for variant in variants:
        base = Case(variant)
        found.append(base)
        if has_streams(variant, 2):
            found.append(base._replace(n_streams=2))
        found.append(base._replace(n_embd=96, length=20))
        for stream_dtype in ("authors", "fp32", "bf16"):
            found.append(base._replace(precision="bf16", stream_dtype=stream_dtype))
    return found
