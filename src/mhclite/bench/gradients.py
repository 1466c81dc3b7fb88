"""`python -m mhclite.bench gradients`: what bf16 costs the gradient, over depth.

The gradient of two batches at the same weights: in float64, and under autocast to bf16 with the
streams in either dtype. How far apart the two batches are is the scale for the errors: the noise of
training. What the errors of both have in common does not average out over tokens, noise does.

Needs torch and numpy; for `fused` a GPU, or Triton's interpreter (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhclite.arguments import file_path, folder_path, positive_int
from mhclite.bench.parity import TIMES_REFERENCE, Case, connection_of
from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections.fast import launch
from mhclite.connections.fast.availability import interpreted
from mhclite.connections.registry import VARIANTS
from mhclite.data.batches import batch_starts
from mhclite.data.manifest import open_split
from mhclite.errors import UserError
from mhclite.files import write_json
from mhclite.measure.trained import load_trained, read_trained
from mhclite.model import GPT
from mhclite.records import to_json
from mhclite.runs.folder import RunFolder
from mhclite.runs.provenance import hardware, provenance
from mhclite.training.processes import choose_device

RESIDUAL = "residual"
LAYERS = (2, 6, 12, 24)
NARROW = ModelConfig(
    "narrow", 61, n_layer=2, n_head=4, n_embd=64, block_size=32, learning_rate=1e-3
)
SEQUENCES = 2  # of each batch; of a trained run, as many as it was trained on
# implementation:stream_dtype. What `fused` stores for the authors' is bf16.
ARMS = (
    "reference:authors", "reference:fp32", "fast:authors", "fast:fp32", "fast:bf16",
    "fused:authors", "fused:fp32",
)  # fmt: skip
ARMS_OF_RESIDUAL = ("reference:authors", "reference:bf16")
# Weights: as training begins; all moved, and the logits of H_res such that it mixes (mHC-lite: half
# of each stream stays where it is); or a trained run's.
WEIGHTS = ("initial", "mixing")
COLUMNS = ("weights", "layers", "width", "tokens", "variant", "arm")  # of a row, beside measures
LOGIT = -3.0


Row = dict[str, dict[str, float]]  # by arm


class Place(NamedTuple):
    """Where gradients are taken."""

    weights: str  # of WEIGHTS, or `trained`
    size: ModelConfig
    connection: ConnectionConfig
    state: Mapping[str, Tensor]
    batches: Tensor  # (2, B, T + 1) token ids


class Gradients(NamedTuple):
    """Of both batches: of the connections' parameters, and of all, (2, P) float64."""

    connections: Tensor
    whole: Tensor


def made_up(weights: str, variant: str, size: ModelConfig, seed: int, sequences: int) -> Place:
    """Weights that were not trained, and random tokens."""
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
    shape = (2, sequences, size.block_size + 1)
    tokens = torch.randint(size.vocab_size, shape, generator=generator)
    return Place(weights, size, connection, model.state_dict(), tokens)


def trained_place(run: Path, corpus: Path) -> Place:
    """A finished run's weights, and the batches that it would have been trained on next."""
    config = RunFolder(run).record().config
    model, _ = load_trained(read_trained(run))
    split = open_split(corpus, "train")
    length, training = config.model.block_size + 1, config.training
    starts = [
        batch_starts(len(split), length, training.batch_size, config.seed, training.steps + more)
        for more in range(2)
    ]
    tokens = torch.stack([torch.from_numpy(split.windows(own, length)) for own in starts])
    return Place("trained", config.model, config.connection, model.state_dict(), tokens)


def gradients(
    place: Place, implementation: str, stream_dtype: str, device: torch.device
) -> Gradients | None:
    """Implementation `exact`: the reference in float64. None if another would be computed."""
    exact = implementation == "exact"
    how = "reference" if exact else implementation
    connection = replace(place.connection, implementation=how, stream_dtype=stream_dtype)
    model = GPT(place.size, connection, seed=0)
    model.load_state_dict(place.state)
    model = model.double().to(device) if exact else model.to(device)
    if model.choice(not exact).implementation != how:
        return None
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for tokens in place.batches.to(device):
        model.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=not exact):
            loss = model.loss(tokens)
        loss.backward()
        named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
        own = [g.double().flatten() for n, g in named if ".connection." in n]
        parts[0].append(torch.cat(own) if own else torch.zeros(0, dtype=torch.float64))
        parts[1].append(torch.cat([g.double().flatten() for _, g in named]))
    return Gradients(*(torch.stack(of) for of in parts))


def measures(exact: Tensor, found: Tensor) -> dict[str, float]:
    """Of gradients of both batches, (2, P).

    `error`: norm of the error over the norm. `noise`: standard deviation of a batch's gradient over
    the same norm (1 where two batches have nothing in common). `cosine`: of the errors of the two.
    """
    error = found - exact
    size = exact.norm()
    cosine = torch.nn.functional.cosine_similarity(error[0], error[1], dim=0)
    return {
        "error": (error.norm() / size).item(),
        "noise": ((exact[0] - exact[1]).norm() / size).item(),
        "cosine": cosine.item(),
    }


def compare(place: Place, device: torch.device, arms: Iterable[str]) -> Row:
    """Every arm that runs here -> its measures; those of the connections' parameters by `own_`."""
    plain = place.connection.variant == RESIDUAL
    exact = gradients(place, "exact", "authors", device)
    assert exact is not None
    found: Row = {}
    for arm in ARMS_OF_RESIDUAL if plain else arms:
        how, streams = arm.split(":")
        ours = gradients(place, how, streams, device)
        if ours is not None:
            found[arm] = measures(exact.whole, ours.whole)
            if not plain:
                own = measures(exact.connections, ours.connections)
                found[arm] |= {f"own_{name}": own[name] for name in own}
    return found


def too_far(row: Row) -> str:
    """What of `fused` is further off than `fast` with streams of the same dtype allows."""
    said = []
    for ours, theirs in (("fused:authors", "fast:bf16"), ("fused:fp32", "fast:fp32")):
        for name in ("error", "own_error"):
            if ours in row and not row[ours][name] <= TIMES_REFERENCE * row[theirs][name]:
                said.append(
                    f"{ours}: {name} {row[ours][name]:.1e}, {theirs} {row[theirs][name]:.1e}"
                )
    return "; ".join(said)


def cover(tokens: int) -> None:
    """One program for all: the interpreter's time goes by operations, not by their size."""
    at_once = 1 << (tokens - 1).bit_length()
    for name in ("FORWARD", "BACKWARD"):
        setattr(launch, name, getattr(launch, name)._replace(tokens=at_once))


def places(args: argparse.Namespace) -> Iterator[Place]:
    """What is asked for."""
    for run in args.runs:
        yield trained_place(run, args.corpus)
    if not args.runs:
        for seed, weights in product(range(args.seeds), WEIGHTS):
            for layers, variant in product(args.layers, args.variants):
                size = replace(NARROW, n_layer=layers)
                yield made_up(weights, variant, size, seed, SEQUENCES)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite.bench gradients`."""
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--layers", nargs="+", type=positive_int, default=LAYERS)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--seeds", type=positive_int, default=5, help="how many")
    parser.add_argument(
        "--runs", nargs="+", type=folder_path, default=[], help="at the weights of finished runs"
    )
    parser.add_argument("--corpus", type=folder_path, help="of --runs: its folder")
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure, write after each place, and print a table."""
    if args.runs and args.corpus is None:
        raise UserError("--runs needs --corpus, the folder of the corpus that they were trained on")
    device = choose_device("auto")
    if interpreted():
        from mhclite.bench.interpreter import round_to_nearest

        round_to_nearest()
    rows: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    for place in places(args):
        tokens = place.batches[0, :, 1:].numel()
        if interpreted():
            cover(tokens)
        at = (place.weights, place.size.n_layer, place.size.n_embd, tokens)
        for arm, found in compare(place, device, args.arms).items():
            kept = rows.setdefault((*at, place.connection.variant, arm), {})
            for name, value in found.items():
                kept.setdefault(name, []).append(float(f"{value:.4g}"))
        named = [dict(zip(COLUMNS, key, strict=True)) | own for key, own in rows.items()]
        about = {"schema": 1, "hardware": hardware(), "provenance": to_json(provenance())}
        write_json(args.out, about | {"rows": named})
        print(*at, place.connection.variant, flush=True)
    for key, values in rows.items():
        print("|", " | ".join([*map(str, key), *map(as_text, values.values())]), "|")


def as_text(values: list[float]) -> str:
    """Mean and standard deviation."""
    several = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{several}"
