"""`python -m mhclite.bench implementations`: what each variant costs in each implementation.

For every variant, one process holds all its implementations and the plain residual, eager and
compiled, and takes their training steps in turn: a ratio compares steps of the same round, in the
same mode. Needs torch and numpy, nothing else.

Beside each ratio stands its floor, the least that a variant can cost on this device: its additional
matrix products at the rate measured for a large product, and the additional traffic of streams that
are read and written once per sub-layer, at the bandwidth measured for a copy.
"""

from __future__ import annotations

import argparse
import gc
import logging
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhclite.arguments import file_path, positive_float, positive_int
from mhclite.bench.kernels import kernel_rows, median_seconds
from mhclite.bench.parity import Case, connection_of
from mhclite.config import ModelConfig, TrainingConfig
from mhclite.connections.registry import VARIANTS
from mhclite.files import write_json
from mhclite.measure.throughput import Stepper, counts, interleaved, quartiles, timing
from mhclite.records import to_json
from mhclite.runs.provenance import hardware, provenance
from mhclite.training.processes import choose_device

# The goals in docs/performance.md are stated for these sizes; S, M and L are the paper's.
SIZES = {
    size.name: size
    for size in (
        ModelConfig("laptop", 4096, 6, 4, 256, 256, 1e-3),
        ModelConfig("s", 50304, 6, 8, 512, 1024, 1e-3),
        ModelConfig("m", 50304, 12, 12, 768, 1024, 1e-3),
        ModelConfig("l", 50304, 24, 16, 1024, 1024, 1e-3),
    )
}
BATCH_SIZE = {"laptop": 8, "s": 16, "m": 16, "l": 16}
RESIDUAL = "residual"
# Only the optimizer's settings, precision and compile matter to a step that is timed.
TRAINING = TrainingConfig(
    steps=1,
    batch_size=1,
    micro_batch_size=None,
    warmup_steps=0,
    min_lr_ratio=0.1,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    grad_clip=1.0,
    precision="fp32",
    device="auto",
    threads=1,
    compile=False,
    processes=1,
    evaluation_interval=1,
    evaluation_sequences=1,
    checkpoint_interval=1,
)
SEVERAL = [variant for variant in VARIANTS if variant != RESIDUAL]
ARMS = [f"{how}:{mode}" for how in ("reference", "fast", "fused") for mode in ("eager", "compiled")]

# (variant, implementation, mode). The residual has one implementation, named "".
Arm = tuple[str, str, str]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is to be measured, and how."""

    sizes: list[str] = field(default_factory=list)  # none: what suits the device
    variants: list[str] = field(default_factory=lambda: list(SEVERAL))
    arms: list[str] = field(default_factory=lambda: list(ARMS))  # implementation:mode
    rounds: int = 9
    batch_size: int | None = None  # sequences per step; None: that of the size
    stream_dtype: str = "authors"
    minutes: float | None = None  # no further variant is begun after that


def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes per second of a large copy (read plus write) and FLOP/s of a large product."""
    cuda = device.type == "cuda"
    # Not zeros, which a GPU may move compressed.
    source = torch.randint(256, (2**30 if cuda else 2**26,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    size = 8192 if cuda else 2048
    a = torch.randn(size, size, dtype=dtype, device=device)
    copy = median_seconds(lambda: target.copy_(source), device)
    product = median_seconds(lambda: a @ a, device)
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


def extra_traffic(model: ModelConfig, n_streams: int, stream_bytes: int, other: int) -> int:
    """Bytes per token that the floor adds to the residual's traffic, forward and backward.

    Forward, a boundary between sub-layers reads n streams and the branch's output and writes n
    streams and the next branch's input: 2 n + 2 numbers of width C. Backward it also reads the
    gradient: 3 n + 3. The residual moves 4 + 4.
    """
    C, sublayers = model.n_embd, 2 * model.n_layer
    several = 5 * n_streams * stream_bytes + 5 * other
    one = 4 * stream_bytes + 4 * other
    return int(sublayers * C * (several - one))


def steppers_of(
    variant: str,
    model: ModelConfig,
    training: TrainingConfig,
    batch_size: int,
    device: torch.device,
    arms: list[str],
    stream_dtype: str,
) -> tuple[dict[Arm, Stepper], dict[Arm, str]]:
    """(steppers that can take a step, the reason for each arm that cannot), residual included.

    The arms of a variant share their weights. Each takes its first step here, in which it is
    compiled if its mode says so.
    """
    able: dict[Arm, Stepper] = {}
    failed: dict[Arm, str] = {}
    first: dict[str, Stepper] = {}
    modes = dict.fromkeys(arm.split(":")[1] for arm in arms)
    wanted: list[Arm] = [(RESIDUAL, "", mode) for mode in modes]
    for how, mode in (arm.split(":") for arm in arms):
        wanted.append((variant, how, mode))
    for arm in wanted:
        name, how, mode = arm
        start = time.perf_counter()
        n = 1 if name == RESIDUAL else 4
        settings = connection_of(Case(name, n, stream_dtype=stream_dtype))
        stepper = Stepper(
            model,
            replace(settings, implementation=how) if how else settings,
            replace(training, compile=mode == "compiled"),
            batch_size,
            device,
            first.get(name),
        )
        first.setdefault(name, stepper)
        if how and stepper.computed != how:
            failed[arm] = stepper.model.choice(training.precision == "bf16")[1] or "not fused"
            continue
        try:
            stepper.step()
            able[arm] = stepper
        except torch.OutOfMemoryError:
            stepper.model.zero_grad(set_to_none=True)
            failed[arm] = "out of memory"
        log.info("%s ready after %.0f s", " ".join(filter(None, arm)), time.perf_counter() - start)
    return able, failed


def group_rows(
    size: str, variant: str, wanted: Request, device: torch.device, limit: dict[str, float]
) -> list[dict[str, Any]]:
    """Rows of one variant at one size, and those of the residual measured with it."""
    cuda = device.type == "cuda"
    model = SIZES[size]
    batch_size = wanted.batch_size or BATCH_SIZE[size]
    tokens = batch_size * model.block_size
    training = replace(TRAINING, precision="bf16" if cuda else "fp32")
    steppers, failed = steppers_of(
        variant, model, training, batch_size, device, wanted.arms, wanted.stream_dtype
    )
    seconds = interleaved(steppers, 2, wanted.rounds)
    _, plain = counts(model, connection_of(Case(RESIDUAL, 1)))
    _, flops = counts(model, connection_of(Case(variant)))
    stream_bytes = 4 if wanted.stream_dtype == "fp32" or not cuda else 2
    extra = (flops - plain) / limit["flops_per_second"]
    extra += extra_traffic(model, 4, stream_bytes, 2 if cuda else 4) / limit["bytes_per_second"]
    rows: list[dict[str, Any]] = []
    for arm, stepper in steppers.items():
        name, how, mode = arm
        base = seconds[RESIDUAL, "", mode]
        row: dict[str, Any] = {"size": size, "group": variant, "variant": name}
        timed = timing(seconds[arm], base, tokens, stepper.peak_bytes())
        row |= {"implementation": how, "mode": mode, **to_json(timed)}
        per_token = quartiles(base).median / tokens
        if name == RESIDUAL:
            row["share_of_peak"] = plain / per_token / limit["flops_per_second"]
        else:
            row["floor"] = 1 + extra / per_token
            slow = seconds.get((name, "reference", "eager"))
            if slow:
                faster = [a / b for a, b in zip(slow, seconds[arm], strict=True)]
                row["speedup"] = quartiles(faster).median
        row["saved_bytes_per_token"] = saved_bytes(stepper) / tokens
        rows.append(row)
    for (name, how, mode), reason in failed.items():
        row = {"size": size, "group": variant, "variant": name, "mode": mode}
        rows.append({**row, "implementation": how, "failed": reason})
    return rows


def measure(wanted: Request, out: Path) -> dict[str, Any]:
    """Measure what is wanted, as far as the time goes, print it and write the file `out`.

    docs/performance.md explains the fields.
    """
    began = time.monotonic()
    device = choose_device("auto")
    cuda = device.type == "cuda"
    limit = limits(device, torch.bfloat16 if cuda else torch.float32)
    result: dict[str, Any] = {
        "schema": 1,
        "hardware": hardware(),
        "provenance": to_json(provenance()),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if cuda else "fp32",
        "stream_dtype": wanted.stream_dtype,
        "rounds": wanted.rounds,
        "limits": limit,
        "kernels": [],
        "rows": [],
        "skipped": [],
    }
    sizes = wanted.sizes or (["s", "m", "l"] if cuda else ["laptop"])
    for size in sizes:
        N = (wanted.batch_size or BATCH_SIZE[size]) * SIZES[size].block_size
        C = SIZES[size].n_embd
        for variant in wanted.variants:
            bandwidth = limit["bytes_per_second"]
            result["kernels"] += kernel_rows(variant, N, C, device, bandwidth)
    print(kernel_table(result["kernels"]), flush=True)
    for size in sizes:
        for variant in wanted.variants:
            if wanted.minutes and time.monotonic() - began > 60 * wanted.minutes:
                result["skipped"].append(f"{size} {variant}")
                continue
            rows = group_rows(size, variant, wanted, device, limit)
            result["rows"] += rows
            write_json(out, result)  # so that a run that is cut short leaves what it measured
            print(table(rows), flush=True)
            gc.collect()
            torch._dynamo.reset()
            if cuda:
                torch.cuda.empty_cache()
    write_json(out, result)
    print(
        f"\nall rows (copy {limit['bytes_per_second'] / 1e9:,.0f} GB/s, product "
        f"{limit['flops_per_second'] / 1e12:,.2f} TFLOP/s):\n{table(result['rows'])}"
    )
    if result["skipped"]:
        print(f"not measured, for lack of time: {', '.join(result['skipped'])}")
    return result


def kernel_table(rows: list[dict[str, Any]]) -> str:
    """Rows of kernels as text."""
    lines = [f"{'variant':10} {'kernel':24} {'C':>5} {'us':>9} {'GB/s':>7} {'of a copy':>9}"]
    for row in rows:
        microseconds = f"{1e6 * row['seconds']:,.0f}"
        lines.append(
            f"{row['variant']:10} {row['kernel']:24} {row['width']:>5} {microseconds:>9} "
            f"{row['bytes_per_second'] / 1e9:>7,.1f} {100 * row['share_of_copy']:>7.0f} %"
        )
    return "\n".join(lines)


HEADER = (
    f"{'size':7} {'variant':10} {'computed':20} {'step / residual':>24} {'floor':>6} "
    f"{'x reference':>11} {'tokens/s':>11} {'saved B/token':>13} {'peak MiB':>9}"
)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of arms as text."""
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
    """Arguments of `python -m mhclite.bench implementations`."""
    usual = Request()
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=[], help="default: laptop, on a GPU s m l"
    )
    parser.add_argument("--variants", nargs="+", choices=SEVERAL, default=usual.variants)
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=usual.arms, help="implementation:mode"
    )
    parser.add_argument("--rounds", type=positive_int, default=usual.rounds, help="timed rounds")
    parser.add_argument("--batch-size", type=positive_int, help="sequences per step")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: all)")
    parser.add_argument(
        "--stream-dtype", choices=("authors", "fp32", "bf16"), default=usual.stream_dtype
    )
    parser.add_argument(
        "--minutes",
        type=positive_float,
        help="then no further variant is begun (default: no limit)",
    )
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure, print the tables and write the file."""
    if args.threads:
        torch.set_num_threads(args.threads)
    wanted = Request(
        args.sizes,
        args.variants,
        args.arms,
        args.rounds,
        args.batch_size,
        args.stream_dtype,
        args.minutes,
    )
    measure(wanted, args.out)
