"""How fast this card is, the kernels on it, and training steps with them."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import torch

from mhclite.bench.implementations import RESIDUAL, TRAINING, Request, group_rows, table
from mhclite.bench.kernels import fused_kernels
from mhclite.bench.parity import Case, connection_of
from mhclite.bench.session.correctness import Change, launch_as, launches, words
from mhclite.bench.session.engine import Item, in_a_child
from mhclite.bench.session.plan import FIRST, Plan
from mhclite.bench.session.records import Result, Session
from mhclite.bench.timing import limits, timed
from mhclite.connections.fast import launch
from mhclite.measure import memory
from mhclite.measure.steps import Stepper
from mhclite.records import to_json
from mhclite.runs.provenance import provenance, versions

QUERIED = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu"
)
PACKAGES = ("torch", "triton", "numpy")
RECKONING_SECONDS = 30.0
LARGEST_SHARE = 0.8  # of a card's memory that steps at the same time may need, as reckoned


def card(dry: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all results of a session have in common, and where this part of it runs."""
    where = to_json(provenance())
    gpu = None if dry else where["hardware"].get("gpu")
    return {"gpu": gpu, **versions(*PACKAGES), "cuda": torch.version.cuda}, where


def smi() -> dict[str, str]:
    """Clocks, power and driver; empty where nvidia-smi is not there."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={QUERIED}", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    lines = said.splitlines() or [""]
    return dict(zip(QUERIED.split(","), (part.strip() for part in lines[0].split(","))))


def limit_items(session: Session) -> list[Item]:
    """The rates of a copy and of a product, and the clocks before and after."""
    dry = session.plan.dry
    device = torch.device(session.plan.device)

    def work(_: float) -> Result:
        before = smi()
        dtype = torch.float32 if dry else torch.bfloat16
        rates = (
            {"bytes_per_second": 1e10, "flops_per_second": 1e11} if dry else limits(device, dtype)
        )
        found: Result = {**rates, "platform": platform.platform(), "before": before, "after": smi()}
        if not dry:
            found["memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        print(found, flush=True)
        return found

    return [Item("rates", work)]


def kernel_items(session: Session) -> list[Item]:
    """The kernels as they are launched, of every variant at every size."""
    plan, bandwidth = session.plan, session.limits()["bytes_per_second"]
    device = torch.device(plan.device)

    def work(variant: str, C: int) -> Result:
        rows = []
        for name, (kernel, size) in fused_kernels(variant, plan.tokens[0], C, device).items():
            found = timed(kernel, device, plan.launches)
            rate = size / found.median
            rows.append(
                {"variant": variant, "kernel": name, "width": C, "tokens": plan.tokens[0],
                 **found._asdict(), "bytes": size, "bytes_per_second": rate,
                 "share_of_copy": rate / bandwidth}
            )  # fmt: skip
            print(f"{variant} C={C} {name}: {1e6 * found.median:.0f} us, "
                  f"{rate / bandwidth:.0%} of a copy", flush=True)  # fmt: skip
        return {"rows": rows, "launch": launch.settings()}

    sizes = reversed(plan.sizes.values())
    return [
        Item(f"{variant} C={size.n_embd}", lambda _, at=(variant, size.n_embd): work(*at))  # type: ignore[misc]
        for size in sizes for variant in plan.variants
    ]  # fmt: skip


def launch_items(session: Session) -> list[Item]:
    """The boundary of mHC-lite, launched in every way; the fastest stands in the summary."""
    plan = session.plan
    device = torch.device(plan.device)

    def work(C: int, how: Change) -> Result:
        launch_as(how)
        kernels = fused_kernels("mhc_lite", plan.tokens[0], C, device)
        found = {
            name: timed(kernels[name][0], device, plan.launches).median
            for name in ("boundary", "boundary backward")
        }
        print(f"C={C} {words(how)}: {found}", flush=True)
        return found

    return [
        Item(f"{size} {words(how)}", lambda _, at=(plan.sizes[size].n_embd, how): work(*at))  # type: ignore[misc]
        for size in plan.sweep_sizes for how in launches(plan)
    ]  # fmt: skip


def fastest(results: dict[str, Result]) -> dict[str, dict[str, str]]:
    """Size -> kernel -> the fastest launch of a sweep."""
    found: dict[str, dict[str, tuple[float, str]]] = {}
    for key, result in results.items():
        size, _, how = key.partition(" ")
        for kernel, seconds in result.items():
            if kernel.startswith("boundary"):
                best = found.setdefault(size, {})
                best[kernel] = min(best.get(kernel, (seconds, how)), (seconds, how))
    return {
        size: {kernel: f"{how}: {1e6 * s:.0f} us" for kernel, (s, how) in best.items()}
        for size, best in found.items()
    }


# --- training steps -----------------------------------------------------------------------------


def arms_in_order(plan: Plan) -> list[tuple[str, str, bool]]:
    """(size, variant, deterministic), those first that tell most."""
    small, *others = plan.sizes
    large = others[-1:]
    rest = [name for name in others if name not in large]
    first = [v for v in FIRST if v in plan.variants]
    last = [v for v in plan.variants if v not in first]
    found = [(small, v, True) for v in plan.variants]
    found += [(size, v, True) for size in large for v in first]
    found += [(size, v, False) for size in (small, *large) for v in first]
    found += [(size, v, True) for size in rest for v in plan.variants]
    found += [(size, v, True) for size in large for v in last]
    found += [(size, v, False) for size in rest for v in first]
    found += [(size, v, False) for size in plan.sizes for v in last]
    return found


def name_of(size: str, variant: str, repeatable: bool) -> str:
    return f"{size} {variant} {'deterministic' if repeatable else 'free'}"


def graph_items(session: Session) -> list[Item]:
    """First steps of the smaller models that are not timed yet: compiled several at a time."""
    plan = session.plan
    device = torch.device(plan.device)
    done = session.results("throughput")
    missing = [at for at in arms_in_order(plan) if name_of(*at) not in done and at[0] != "l"]
    todo = dict.fromkeys((size, RESIDUAL, repeatable) for size, _, repeatable in missing)
    todo |= dict.fromkeys(missing)

    def work(size: str, variant: str, repeatable: bool) -> Result:
        n = 1 if variant == RESIDUAL else 4
        how = "fast" if variant == RESIDUAL else "fused"
        training = replace(
            TRAINING, precision="fp32" if plan.dry else "bf16", compile=plan.mode == "compiled"
        )
        connection = replace(connection_of(Case(variant, n)), implementation=how)
        batch_size = plan.batch_size[size]
        stepper = Stepper(
            plan.sizes[size], connection, training, batch_size, device, repeatable=repeatable
        )
        stepper.step()
        return {}

    return [
        Item(name_of(*at), lambda _, at=at: work(*at)) for at in todo  # type: ignore[misc]
    ]  # fmt: skip


def steps_at_once(session: Session) -> int:
    """Models that fit on the card together, by the largest that is compiled beside others."""
    plan = session.plan
    there = session.results("limits").get("rates", {}).get("memory_bytes")
    sizes = [name for name in plan.sizes if name != "l"]
    if there is None:
        return 1
    size = plan.sizes[sizes[-1]]
    connection = replace(connection_of(Case("mhc_lite")), implementation="fast")

    def needed() -> int:
        added = memory.step_bytes(size, connection, plan.batch_size[size.name], bf16=True)
        return memory.lasting_bytes(size, connection) + added

    # In a child: its threads must not be in this process when it forks again.
    bytes_of_one = in_a_child(needed, RECKONING_SECONDS, session.log_file)
    if bytes_of_one is None:
        return 1
    return max(1, min(session.cores // 3, int(LARGEST_SHARE * there / bytes_of_one)))


def throughput_items(session: Session) -> list[Item]:
    """Steps of each variant by the kernels, as they are trained, beside the residual's."""
    plan, limit = session.plan, session.limits()
    device = torch.device(plan.device)

    def work(size: str, variant: str, repeatable: bool) -> Result:
        wanted = Request(arms=[f"fused:{plan.mode}"], rounds=plan.rounds, repeatable=repeatable)
        batch_size = plan.batch_size[size]
        rows = group_rows(plan.sizes[size], variant, batch_size, wanted, device, limit)
        print(table(rows), flush=True)
        return {"rows": rows}

    return [Item(name_of(*at), lambda _, at=at: work(*at)) for at in arms_in_order(plan)]  # type: ignore[misc]


def regime_items(session: Session) -> list[Item]:
    """The authors' regime: their formulas, eagerly, by whatever kernels torch takes."""
    plan, limit = session.plan, session.limits()
    device = torch.device(plan.device)

    def work(size: str, variant: str) -> Result:
        wanted = Request(
            arms=["reference:eager"], rounds=max(2, plan.rounds // 2), repeatable=False
        )
        batch_size = plan.reference_batch_size[size]
        rows = group_rows(plan.sizes[size], variant, batch_size, wanted, device, limit)
        print(table(rows), flush=True)
        return {"rows": rows}

    order = [v for v in plan.variants if v in FIRST] + [v for v in plan.variants if v not in FIRST]
    return [
        Item(f"{size} {variant}", lambda _, at=(size, variant): work(*at))  # type: ignore[misc]
        for size in plan.sizes for variant in order
    ]  # fmt: skip
