"""`python -m benchmarks gradients`: what bf16 costs the gradient, over depth.

The gradient of two batches at the same weights: in float64, and under autocast to bf16 with the
streams in either dtype. How far apart the two batches are is the scale for the errors: the noise of
training. What the errors of both have in common does not average out over tokens, noise does.

Needs torch and numpy; `fused` needs a GPU.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.kernels import TIMES_REFERENCE, Case, connection_of
from benchmarks.step import RESIDUAL
from mhclite.arguments import file_path, positive_int
from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections.registry import VARIANTS
from mhclite.files import write_json
from mhclite.model import GPT
from mhclite.records import to_json
from mhclite.runs.provenance import hardware, provenance
from mhclite.training.processes import choose_device

NARROW = ModelConfig("narrow", 61, 2, n_head=4, n_embd=64, block_size=32, learning_rate=1e-3)
# implementation:stream_dtype. What `fused` stores for the authors' is bf16.
ARMS = (
    "reference:authors", "reference:fp32", "fast:authors", "fast:fp32", "fast:bf16",
    "fused:authors", "fused:fp32",
)  # fmt: skip
ARMS_OF_RESIDUAL = ("reference:authors", "reference:bf16")
# Weights: as training begins; or all moved, and the logits of H_res such that it mixes (mHC-lite:
# half of each stream stays where it is).
WEIGHTS = ("initial", "mixing")
LOGIT = -3.0

Row = dict[str, dict[str, float]]  # by arm


class Place(NamedTuple):
    """Where gradients are taken."""

    size: ModelConfig
    connection: ConnectionConfig
    state: Mapping[str, Tensor]
    batches: Tensor  # (2, B, T + 1) token ids


def made_up(weights: str, variant: str, size: ModelConfig, seed: int) -> Place:
    """Weights that were not trained, and random tokens, two sequences a batch."""
    connection = connection_of(Case(variant, 1 if variant == RESIDUAL else 4))
    if weights == "mixing" and "initial_logit" in VARIANTS[variant].options:
        connection = replace(connection, options={**connection.options, "initial_logit": LOGIT})
    model = GPT(size, connection, seed)
    generator = torch.Generator().manual_seed(seed)
    if weights == "mixing":
        spread = 0.8 / math.sqrt(size.n_embd)  # near 1 / sqrt(C), as trained weights are
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    tokens = torch.randint(size.vocab_size, (2, 2, size.block_size + 1), generator=generator)
    return Place(size, connection, model.state_dict(), tokens)


def gradients(
    place: Place, implementation: str, stream_dtype: str, device: torch.device
) -> Tensor | None:
    """Of both batches, (2, P) float64. None if another implementation would be computed.

    Implementation `exact`: the reference in float64.
    """
    exact = implementation == "exact"
    how = "reference" if exact else implementation
    connection = replace(place.connection, implementation=how, stream_dtype=stream_dtype)
    model = GPT(place.size, connection, seed=0)
    model.load_state_dict(place.state)
    model = model.double().to(device) if exact else model.to(device)
    if model.choice(not exact).implementation != how:
        return None
    found = []
    for tokens in place.batches.to(device):
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=not exact):
            loss = model.loss(tokens)
        loss.backward()
        parts = [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
        found.append(torch.cat(parts))
    return torch.stack(found)


def measures(exact: Tensor, found: Tensor) -> dict[str, float]:
    """Of gradients of both batches, (2, P).

    `error`: norm of the error over the norm. `noise`: standard deviation of a batch's gradient over
    the same norm (1 where two batches have nothing in common). `cosine`: of the errors of the two.
    """
    error, size = found - exact, exact.norm()
    noise = (exact[0] - exact[1]).norm()
    cosine = torch.nn.functional.cosine_similarity(error[0], error[1], dim=0)
    shares = {"error": (error.norm() / size).item(), "noise": (noise / size).item()}
    return {**shares, "cosine": cosine.item()}


def compare(place: Place, device: torch.device, arms: Iterable[str]) -> Row:
    """Every arm that runs here -> its measures."""
    exact = gradients(place, "exact", "authors", device)
    assert exact is not None
    found: Row = {}
    for arm in ARMS_OF_RESIDUAL if place.connection.variant == RESIDUAL else arms:
        how, streams = arm.split(":")
        ours = gradients(place, how, streams, device)
        if ours is not None:
            found[arm] = measures(exact, ours)
    return found


def too_far(row: Row) -> list[str]:
    """Arms of `fused` that are further off than `fast` with streams of the same dtype allows."""
    pairs = [("fused:authors", "fast:bf16"), ("fused:fp32", "fast:fp32")]
    both = [(ours, theirs) for ours, theirs in pairs if {ours, theirs} <= row.keys()]
    return [a for a, b in both if not row[a]["error"] <= TIMES_REFERENCE * row[b]["error"]]


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m benchmarks gradients`."""
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--layers", nargs="+", type=positive_int, default=(2, 6, 12, 24))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=positive_int, default=5, help="how many")
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write after each place: mean and standard deviation over seeds, in %."""
    device = choose_device("auto")
    about = {"schema": 2, "hardware": hardware(), "provenance": to_json(provenance())}
    rows = []
    for weights, layers, variant in product(WEIGHTS, args.layers, args.variants):
        size = replace(NARROW, n_layer=layers)
        places = [made_up(weights, variant, size, seed) for seed in range(args.seeds)]
        found = [compare(place, device, args.arms) for place in places]
        for arm in found[0]:
            own = {name: [row[arm][name] for row in found] for name in found[0][arm]}
            at = {"weights": weights, "layers": layers, "variant": variant, "arm": arm}
            rows.append({**at, **own})
            spread = statistics.stdev(own["error"]) if args.seeds > 1 else 0.0
            error = f"{100 * statistics.mean(own['error']):.2f} ± {100 * spread:.2f}"
            print(f"| {weights} | {layers} | {variant} | {arm} | {error} |", flush=True)
        for arm in {arm for row in found for arm in too_far(row)}:
            print(f"{arm} of {variant} is further off than fast")
        write_json(args.out, about | {"rows": rows})
