"""`python -m mhclite gpu-check`: is the fused implementation right on this GPU, and how fast?

Correctness comes first, against the plain formula in float64 and the authors' golden vectors;
speed is measured only if all of it holds. Needs torch with Triton and numpy, nothing else, and at
most ten minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from mhclite.arguments import file_path, folder_path
from mhclite.authors.conformance import FUSED_TOLERANCE, check_file
from mhclite.bench.implementations import SEVERAL, Request, measure
from mhclite.bench.parity import Case, cases, error_of, gradient
from mhclite.errors import UserError
from mhclite.training.processes import choose_device

MINUTES = 9.0
# As the authors computed (eager), and what this project claims to be faster; the other arms would
# take too long.
ARMS = ["reference:eager", "fast:compiled", "fused:eager", "fused:compiled"]
LARGE = ["mhc_lite", "mhc"]  # also at size L


def disagreements(device: torch.device, golden: list[Path]) -> list[str]:
    """One line for each comparison that disagrees; all comparisons are printed."""
    found = []
    todo = cases(SEVERAL)
    todo += [Case(variant, compile=True, precision="bf16") for variant in ("hc", "mhc")]
    for case in todo:
        error = error_of(case, "fused", device)
        line = f"{case}: error {error.own:.1e}, the reference's {error.reference:.1e}"
        print(line, flush=True)
        if not error.own <= error.allowed(case.precision):
            found.append(line)
    for variant in SEVERAL:
        first, again = (gradient(Case(variant), "fused", device) for _ in range(2))
        if not torch.equal(first.gradient, again.gradient):
            found.append(f"{variant}: the gradient has other bits when computed again")
    for path in golden:
        kind, errors = check_file(path, "fused")
        worst = max(errors, key=errors.__getitem__)
        line = f"{path.name}: error {errors[worst]:.1e} ({worst})"
        print(line, flush=True)
        if not errors[worst] <= FUSED_TOLERANCE[kind]:
            found.append(line)
    return found


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of `python -m mhclite gpu-check`."""
    parser.add_argument(
        "--golden", nargs="*", type=file_path, default=[], help="golden files (.npz)"
    )
    parser.add_argument(
        "--out", required=True, type=folder_path, help="folder for the measurements"
    )


def run(args: argparse.Namespace) -> int:
    """Check, then measure; exit code 1, without measurements, if anything disagrees."""
    began = time.monotonic()
    device = choose_device("auto")
    if device.type != "cuda":
        raise UserError(
            "gpu-check needs a GPU, and torch sees none; without one, the tests run the same "
            "kernels in Triton's interpreter: pytest tests/unit/test_fused.py"
        )
    # The kernels need a width that is a multiple of 16; the files of two streams have width 8.
    golden = [path for path in args.golden if "_n2" not in path.name]
    problems = disagreements(device, golden)
    if problems:
        print("WRONG:\n" + "\n".join(problems))
        return 1
    print(f"all agree, after {time.monotonic() - began:.0f} s")
    for size, variants in (("s", SEVERAL), ("l", LARGE)):
        left = MINUTES - (time.monotonic() - began) / 60
        if left <= 0:
            print(f"size {size} not measured: the time is over")
            continue
        out = args.out / f"gpu-check-{size}.json"
        measure(Request(sizes=[size], variants=variants, arms=ARMS, minutes=left), out)
        print(f"{out} written, after {time.monotonic() - began:.0f} s")
    return 0
