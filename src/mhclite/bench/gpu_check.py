"""`python -m mhclite gpu-check`: is the fused implementation right on this GPU, and how fast?

First correctness, against the plain formula in float64 and the authors' golden vectors; only then
speed. Needs torch with Triton and numpy, nothing else, and at most ten minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from mhclite.authors.conformance import FUSED_TOLERANCE, check_file
from mhclite.bench import implementations as bench
from mhclite.bench.parity import Case, cases, error_of, gradient
from mhclite.errors import UserError
from mhclite.training.processes import choose_device

MINUTES = 9.0
# What the paper's claim and ours are about, within the time: eager as the authors computed, and
# compiled.
ARMS = ["reference:eager", "fast:compiled", "fused:eager", "fused:compiled"]
LARGE = ["mhc_lite", "mhc"]  # also at size L


def wrong(device: torch.device, golden: list[Path]) -> list[str]:
    """What does not agree, one line each; every comparison is printed."""
    found = []
    todo = cases(bench.SEVERAL)
    todo += [Case(variant, compile=True, precision="bf16") for variant in ("hc", "mhc")]
    for case in todo:
        error = error_of(case, "fused", device)
        line = f"{case}: error {error.own:.1e}, the reference's {error.reference:.1e}"
        print(line, flush=True)
        if not error.own <= error.allowed(case.precision):
            found.append(line)
    for variant in bench.SEVERAL:
        first, again = (gradient(Case(variant), "fused", device) for _ in range(2))
        if not torch.equal(first.gradient, again.gradient):
            found.append(f"{variant}: not the same bits when repeated")
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
    parser.add_argument("--golden", nargs="*", type=Path, default=[], help="golden files (.npz)")
    parser.add_argument("--out", required=True, type=Path, help="folder of the measurements")


def run(args: argparse.Namespace) -> int:
    """Exit code 1 if something does not agree: then nothing is measured."""
    began = time.monotonic()
    device = choose_device("auto")
    if device.type != "cuda":
        raise UserError(
            "gpu-check needs a GPU, and torch sees none; on a CPU the tests run the same kernels "
            "in Triton's interpreter: pytest tests/unit/test_fused.py"
        )
    problems = wrong(device, [path for path in args.golden if "_n2" not in path.name])
    if problems:
        print("WRONG:\n" + "\n".join(problems))
        return 1
    print(f"all agree, after {time.monotonic() - began:.0f} s")
    parser = argparse.ArgumentParser()
    bench.configure(parser)
    for size, variants in (("s", bench.SEVERAL), ("l", LARGE)):
        left = MINUTES - (time.monotonic() - began) / 60
        if left <= 0:
            print(f"size {size} not measured: the time is over")
            continue
        out = args.out / f"gpu-check-{size}.json"
        command = ["--sizes", size, "--variants", *variants, "--arms", *ARMS]
        bench.run(parser.parse_args([*command, "--minutes", str(left), "--out", str(out)]))
        print(f"{out} written, after {time.monotonic() - began:.0f} s")
    return 0
