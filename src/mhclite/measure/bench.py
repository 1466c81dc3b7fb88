"""`python -m mhclite bench`: what each variant costs in each implementation, and the floor.

For every variant one process holds all its implementations and the plain residual, eager and
compiled, and takes their training steps in turn: a ratio compares steps of the same round, in the
same mode. Needs torch and numpy, nothing else.

The floor is what a variant must cost on the device at hand: its additional matrix products at the
rate measured for a large product, and the additional traffic of streams that are read and written
once a sub-layer, at the bandwidth measured for a copy.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhclite.connections.registry import VARIANTS
from mhclite.files import write_json
from mhclite.measure.throughput import Stepper, counts, interleaved, timing
from mhclite.provenance import hardware, provenance
from mhclite.training.processes import choose_device

# What the goals of docs/performance.md are stated for; S, M and L are the paper's.
SIZES: dict[str, dict[str, Any]] = {
    "laptop": {"n_layer": 6, "n_head": 4, "n_embd": 256, "block_size": 256, "vocab_size": 4096},
    "s": {"n_layer": 6, "n_head": 8, "n_embd": 512, "block_size": 1024, "vocab_size": 50304},
    "m": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50304},
    "l": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024, "vocab_size": 50304},
}
BATCH_SIZE = {"laptop": 8, "s": 16, "m": 16, "l": 16}
OPTIONS = {"sinkhorn_iterations": 20, "cayley_iterations": 2}
IMPLEMENTATIONS = ("reference", "fast")
MODES = ("eager", "compiled")
RESIDUAL = "residual"

log = logging.getLogger(__name__)


def connection_of(variant: str, implementation: str, stream_dtype: str) -> dict[str, Any]:
    """Settings of a variant with four streams."""
    options = VARIANTS[variant].options
    own: dict[str, Any] = {name: value for name, value in OPTIONS.items() if name in options}
    if variant == RESIDUAL:
        return {"variant": variant, "n_streams": 1, "stream_dtype": stream_dtype}
    own |= {"stream_dtype": stream_dtype, "implementation": implementation}
    return {"variant": variant, "n_streams": 4, **own}


def best_seconds(work: Callable[[], object], device: torch.device, times: int = 10) -> float:
    """The shortest of several timings."""
    found = []
    for _ in range(times):
        _synchronise(device)
        start = time.perf_counter()
        work()
        _synchronise(device)
        found.append(time.perf_counter() - start)
    return min(found)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes a second of a large copy, read and write counted, and FLOP/s of a large product."""
    cuda = device.type == "cuda"
    source = torch.zeros(2**30 if cuda else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = 8192 if cuda else 2048
    a = torch.randn(size, size, dtype=dtype, device=device)
    copy = best_seconds(lambda: target.copy_(source), device)
    product = best_seconds(lambda: a @ a, device)
    return {
        "bytes_per_second": 2 * source.numel() / copy,
        "flops_per_second": 2 * size**3 / product,
    }


def saved_bytes(stepper: Stepper) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass."""
    own = {t.untyped_storage().data_ptr() for t in stepper.model.parameters()}
    held: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        stepper.forward()
    return sum(held.values())


def extra_traffic(model: dict[str, Any], n_streams: int, stream_bytes: int, other: int) -> int:
    """Bytes a token that the floor adds to the residual's, forward and backward.

    A boundary between sub-layers reads n streams and what was written, and writes n streams and
    what is read next; backward it reads the gradient besides. The residual is counted alike, with
    one stream and two passes less: 5 n + 5 against 8 numbers of width C.
    """
    C, sublayers = model["n_embd"], 2 * model["n_layer"]
    several = 5 * n_streams * stream_bytes + 5 * other
    one = 4 * stream_bytes + 4 * other
    return int(sublayers * C * (several - one))


def group_of(
    variant: str,
    model: dict[str, Any],
    training: dict[str, Any],
    batch_size: int,
    device: torch.device,
    implementations: Sequence[str],
    modes: Sequence[str],
    stream_dtype: str,
) -> dict[tuple[str, str, str], Stepper]:
    """(variant, implementation, mode) -> stepper, with the residual's; weights are shared."""
    steppers: dict[tuple[str, str, str], Stepper] = {}
    first: dict[str, Stepper] = {}
    arms = [(RESIDUAL, "", mode) for mode in modes]
    if variant != RESIDUAL:
        arms += [(variant, name, mode) for name in implementations for mode in modes]
    for arm in arms:
        name, implementation, mode = arm
        steppers[arm] = Stepper(
            model,
            connection_of(name, implementation, stream_dtype),
            {**training, "compile": mode == "compiled"},
            batch_size,
            device,
            weights_of=first.get(name),
        )
        first.setdefault(name, steppers[arm])
    return steppers


def without_failures(
    steppers: dict[tuple[str, str, str], Stepper],
) -> tuple[dict[tuple[str, str, str], Stepper], dict[tuple[str, str, str], str]]:
    """The steppers that can take a step, compiled where they are, and why others cannot."""
    able, failed = {}, {}
    for arm, stepper in steppers.items():
        start = time.perf_counter()
        try:
            stepper.step()
            able[arm] = stepper
        except torch.OutOfMemoryError:
            stepper.model.zero_grad(set_to_none=True)
            failed[arm] = "out of memory"
        log.info("%s ready after %.0f s", " ".join(filter(None, arm)), time.perf_counter() - start)
    return able, failed


def bench(args: argparse.Namespace) -> dict[str, Any]:
    """Measure everything that is asked for; see docs/performance.md for the fields."""
    device = choose_device("auto")
    cuda = device.type == "cuda"
    precision = "bf16" if cuda else "fp32"
    dtype = torch.bfloat16 if cuda else torch.float32
    training = {
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "precision": precision,
    }
    measured = limits(device, dtype)
    rows: list[dict[str, Any]] = []
    for size in args.sizes or (["s", "m", "l"] if cuda else ["laptop"]):
        model = {**SIZES[size], "name": size, "learning_rate": 1e-3}
        batch_size = args.batch_size or BATCH_SIZE[size]
        tokens = batch_size * model["block_size"]
        _, flops = counts(model, connection_of(RESIDUAL, "", args.stream_dtype))
        for variant in args.variants:
            steppers, failed = without_failures(
                group_of(
                    variant,
                    model,
                    training,
                    batch_size,
                    device,
                    args.implementations,
                    args.modes,
                    args.stream_dtype,
                )
            )
            seconds = interleaved(steppers, 2, args.rounds)
            _, own_flops = counts(model, connection_of(variant, "reference", args.stream_dtype))
            stream_bytes = 2 if args.stream_dtype == "bf16" else 4
            traffic = extra_traffic(model, 4, stream_bytes, 2 if cuda else 4)
            for arm, stepper in steppers.items():
                name, implementation, mode = arm
                row = timing(seconds[arm], seconds[RESIDUAL, "", mode], tokens)
                per_token = row["tokens_per_second"]["median"] ** -1
                if name == RESIDUAL:
                    row["share_of_peak"] = flops / per_token / measured["flops_per_second"]
                else:
                    base = sorted(seconds[RESIDUAL, "", mode])[args.rounds // 2] / tokens
                    extra = (own_flops - flops) / measured["flops_per_second"]
                    extra += traffic / measured["bytes_per_second"]
                    row["floor"] = 1 + extra / base
                    slow = (name, "reference", "eager")
                    if slow in seconds:
                        row["speedup"] = sorted(
                            a / b for a, b in zip(seconds[slow], seconds[arm], strict=True)
                        )[args.rounds // 2]
                row |= {"size": size, "group": variant, "variant": name, "mode": mode}
                row |= {"implementation": implementation, "peak_memory_bytes": stepper.peak_bytes()}
                row["saved_bytes_per_token"] = saved_bytes(stepper) / tokens
                rows.append(row)
            for (name, implementation, mode), reason in failed.items():
                row = {"size": size, "group": variant, "variant": name, "mode": mode}
                rows.append({**row, "implementation": implementation, "failed": reason})
            print(table(rows[-len(steppers) - len(failed) :]), flush=True)
            del steppers
            gc.collect()
            torch._dynamo.reset()
            if cuda:
                torch.cuda.empty_cache()
    return {
        "schema": 1,
        "hardware": hardware(),
        "provenance": provenance(),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "stream_dtype": args.stream_dtype,
        "rounds": args.rounds,
        "limits": measured,
        "rows": rows,
    }


HEADER = (
    f"{'size':7} {'variant':10} {'computed':20} {'step / residual':>24} {'floor':>6} "
    f"{'x reference':>11} {'tokens/s':>11} {'saved B/token':>13} {'peak MiB':>9}"
)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [HEADER]
    for row in rows:
        how = f"{row['implementation']} {row['mode']}".strip()
        start = f"{row['size']:7} {row['variant']:10} {how:20} "
        if "failed" in row:
            lines.append(start + row["failed"])
            continue
        ratio = "{median:.3f} [{q1:.3f}, {q3:.3f}]".format(**row["ratio_quartiles"])
        floor = f"{row['floor']:.3f}" if "floor" in row else ""
        speedup = f"{row['speedup']:.2f}" if "speedup" in row else ""
        lines.append(
            f"{start}{ratio:>24} {floor:>6} {speedup:>11} "
            f"{row['tokens_per_second']['median']:>11,.0f} {row['saved_bytes_per_token']:>13,.0f} "
            f"{row['peak_memory_bytes'] / 2**20:>9,.0f}"
        )
    return "\n".join(lines)


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite bench`."""
    several = [variant for variant in VARIANTS if variant != RESIDUAL]
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="laptop on a CPU, s m l on a GPU")
    parser.add_argument("--variants", nargs="+", choices=several, default=several)
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, default=IMPLEMENTATIONS
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds")
    parser.add_argument("--batch-size", type=int, help="sequences a step")
    parser.add_argument("--threads", type=int, help="CPU threads; left out: all")
    parser.add_argument("--stream-dtype", choices=("authors", "fp32", "bf16"), default="authors")
    parser.add_argument("--out", required=True, type=Path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write the file."""
    if args.threads:
        torch.set_num_threads(args.threads)
    result = bench(args)
    write_json(args.out, result)
    print(json.dumps(result["limits"]))
    print(table(result["rows"]))
