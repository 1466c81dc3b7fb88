"""`python -m benchmarks step`: what each variant costs in each implementation.

For every variant, one process holds all its implementations and the plain residual, eager and
compiled, and takes their training steps in turn: a ratio compares steps of the same round, in the
same mode. Needs torch and numpy, nothing else.

Beside each ratio stands its floor, the least that a variant can cost on this device: its additional
matrix products at the rate measured for a large product, and the additional traffic of streams that
are read and written once per sub-layer, at the bandwidth measured for a copy.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import Case, connection_of, limits
from mhclite.arguments import file_path, positive_int
from mhclite.config import ModelConfig, TrainingConfig
from mhclite.connections.registry import VARIANTS
from mhclite.files import write_json
from mhclite.measure.steps import (
    Stepper,
    counts,
    fitting_step,
    interleaved,
    quartiles,
    release,
    timing,
)
from mhclite.model import GPT
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
    steps=1, batch_size=1, micro_batch_size=None, warmup_steps=0, min_lr_ratio=0.1,
    betas=(0.9, 0.95), weight_decay=0.1, grad_clip=1.0, precision="fp32", device="auto", threads=1,
    compile=False, processes=1, evaluation_interval=1, evaluation_sequences=1,
    checkpoint_interval=1,
)  # fmt: skip
SEVERAL = [variant for variant in VARIANTS if variant != RESIDUAL]
ARMS = [f"{how}:{mode}" for how in ("reference", "fast", "fused") for mode in ("eager", "compiled")]

# (variant, implementation, mode). The residual has one implementation, named "".
Arm = tuple[str, str, str]

log = logging.getLogger(__name__)


def stream_bytes(computed: str, bf16: bool) -> int:
    """Bytes of a number of the streams between sub-layers; the plain residual's is not `fused`.

    As the authors', bf16 is added to float32 under autocast, and the sum is float32; the kernels
    store what the product would be, bf16.
    """
    return 2 if bf16 and computed == "fused" else 4


def extra_traffic(
    model: ModelConfig, n_streams: int, streams: int, residual: int, branch: int
) -> int:
    """Bytes per token that the floor adds to the residual's traffic, forward and backward.

    Forward, a boundary between sub-layers reads n streams and the branch's output and writes n
    streams and the next branch's input: 2 n + 2 numbers of width C. Backward it also reads the
    gradient: 3 n + 3. The residual moves 4 + 4, and one more where its stream has another dtype
    than the branch: the gradient of the branch's output is then a copy.

    Args:
        streams, residual, branch: bytes of a number of n streams, of the residual's one stream, and
            of what a branch is given and returns.
    """
    C, sublayers = model.n_embd, 2 * model.n_layer
    several = 5 * n_streams * streams + 5 * branch
    one = 5 * residual + 3 * branch + (branch if residual != branch else 0)
    return sublayers * C * (several - one)


def steppers_of(
    variant: str, model: ModelConfig, batch_size: int, device: torch.device,
    arms: Sequence[str], repeatable: bool,
) -> tuple[dict[Arm, Stepper], dict[Arm, str]]:  # fmt: skip
    """(steppers that can take a step, the reason for each arm that cannot), residual included.

    The arms of a variant share their weights. Each takes its first step here, in which it is
    compiled if its mode says so.
    """
    able: dict[Arm, Stepper] = {}
    failed: dict[Arm, str] = {}
    first: dict[str, Stepper] = {}
    training = replace(TRAINING, precision="bf16" if device.type == "cuda" else "fp32")
    split = [arm.split(":") for arm in arms]
    todo: list[Arm] = [(RESIDUAL, "", mode) for mode in dict.fromkeys(mode for _, mode in split)]
    for arm in [*todo, *((variant, how, mode) for how, mode in split)]:
        name, how, mode = arm
        start = time.perf_counter()
        settings = connection_of(Case(name, 1 if name == RESIDUAL else 4))
        settings = replace(settings, implementation=how) if how else settings
        stepper = Stepper(
            model, settings, replace(training, compile=mode == "compiled"), batch_size, device,
            first.get(name), repeatable,
        )  # fmt: skip
        first.setdefault(name, stepper)
        if how and stepper.computed != how:
            failed[arm] = stepper.model.choice(training.precision == "bf16")[1] or "not fused"
        elif fitting_step(stepper) is None:
            failed[arm] = "out of memory"
        else:
            able[arm] = stepper
        log.info("%s ready after %.0f s", " ".join(filter(None, arm)), time.perf_counter() - start)
    return able, failed


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


def group_rows(
    model: ModelConfig, variant: str, batch_size: int, device: torch.device,
    limit: dict[str, float], arms: Sequence[str], rounds: int, repeatable: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of one variant at one size, and those of the residual measured with it.

    Args:
        limit: rates of this device, as `limits` returns them.
        arms: `implementation:mode`.
        repeatable: on a GPU, with deterministic algorithms: as training.
    """
    bf16 = device.type == "cuda"
    tokens = batch_size * model.block_size
    steppers, failed = steppers_of(variant, model, batch_size, device, arms, repeatable)
    seconds, out_of_memory = interleaved(steppers, 2, rounds)
    failed |= out_of_memory
    _, plain = counts(model, connection_of(Case(RESIDUAL, 1)))
    _, flops = counts(model, connection_of(Case(variant)))
    common: dict[str, Any] = {"size": model.name, "group": variant, "batch_size": batch_size}
    common["deterministic"] = bf16 and repeatable
    rows: list[dict[str, Any]] = []
    for arm, own_seconds in seconds.items():
        name, how, mode = arm
        base = seconds.get((RESIDUAL, "", mode))
        if base is None:
            failed[arm] = "the plain residual did not fit beside it"
            continue
        row: dict[str, Any] = {**common, "variant": name, "implementation": how, "mode": mode}
        row |= to_json(timing(own_seconds, base, tokens, steppers[arm].peak_bytes()))
        per_token = quartiles(base).median / tokens
        if name == RESIDUAL:
            row["share_of_peak"] = plain / per_token / limit["flops_per_second"]
        else:
            ours, theirs = (stream_bytes(computed, bf16) for computed in (how, "fast"))
            traffic = extra_traffic(model, 4, ours, theirs, 2 if bf16 else 4)
            extra = (flops - plain) / limit["flops_per_second"]
            row["floor"] = 1 + (extra + traffic / limit["bytes_per_second"]) / per_token
            if slow := seconds.get((name, "reference", "eager")):
                faster = [a / b for a, b in zip(slow, own_seconds, strict=True)]
                row["speedup"] = quartiles(faster).median
        stepper = steppers[arm]
        row["saved_bytes_per_token"] = saved_bytes(stepper.model, stepper.forward) / tokens
        rows.append(row)
    for (name, how, mode), reason in failed.items():
        row = {**common, "variant": name, "implementation": how, "mode": mode, "failed": reason}
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of arms as text."""
    lines = [
        f"{'size':7} {'variant':10} {'computed':20} {'step / residual':>24} {'floor':>6} "
        f"{'x reference':>11} {'tokens/s':>11} {'saved B/token':>13} {'peak MiB':>9}"
    ]
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
    """Arguments of `python -m benchmarks step`."""
    parser.add_argument(
        "--sizes", nargs="+", choices=SIZES, default=[], help="default: laptop, on a GPU s m l"
    )
    parser.add_argument("--variants", nargs="+", choices=SEVERAL, default=SEVERAL)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="implementation:mode")
    parser.add_argument("--rounds", type=positive_int, default=9, help="timed rounds")
    parser.add_argument("--batch-size", type=positive_int, help="sequences per step")
    parser.add_argument("--out", required=True, type=file_path, help="file to write")


def run(args: argparse.Namespace) -> None:
    """Measure, print the table and write the file; docs/performance.md explains its fields."""
    device = choose_device("auto")
    cuda = device.type == "cuda"
    result: dict[str, Any] = {
        "schema": 2,
        "hardware": hardware(),
        "provenance": to_json(provenance()),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if cuda else "fp32",
        "rounds": args.rounds,
        "limits": limits(device),
        "rows": [],
    }
    for size in args.sizes or (["s", "m", "l"] if cuda else ["laptop"]):
        for variant in args.variants:
            batch_size = args.batch_size or BATCH_SIZE[size]
            rows = group_rows(
                SIZES[size], variant, batch_size, device, result["limits"], args.arms, args.rounds
            )
            result["rows"] += rows
            write_json(args.out, result)  # so that a run that is cut short leaves what it measured
            print(table(rows), flush=True)
            torch._dynamo.reset()
            release(device)
    print("\nall rows (copy {:,.0f} GB/s, product {:,.2f} TFLOP/s):".format(
        result["limits"]["bytes_per_second"] / 1e9, result["limits"]["flops_per_second"] / 1e12
    ))  # fmt: skip
    print(table(result["rows"]))
