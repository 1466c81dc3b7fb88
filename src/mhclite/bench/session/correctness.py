"""Whether the kernels are right on this card: small models, golden files, and the paper's shapes.

At the paper's shapes a boundary is compared with the formula in float64, a part of the tokens at a
time. What it returns is filled with NaN before it is computed, so that a number that no program has
written shows; and it is computed again, for the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mhclite.authors.conformance import FUSED_TOLERANCE, check_file, read_golden
from mhclite.bench.gradients import ARMS, RESIDUAL, compare, made_up, too_far
from mhclite.bench.parity import Case, cases, connection_of, error_of, gradient
from mhclite.bench.session.engine import Item, plain
from mhclite.bench.session.plan import Plan, has_kernels
from mhclite.bench.session.records import Result, Session
from mhclite.connections import connection_class
from mhclite.connections.fast import fused, launch
from mhclite.connections.fast.availability import SMALLEST_CHUNK
from mhclite.connections.fast.projected import Projected, projected
from mhclite.connections.registry import VARIANTS
from mhclite.errors import UserError
from mhclite.training.group import deterministic

# dtypes of streams and branches, and the largest error: norm of the difference over the norm.
KINDS = {
    "bf16": (torch.bfloat16, torch.bfloat16, 0.03),
    "fp32 streams": (torch.float32, torch.bfloat16, 0.02),
}
USUAL = (launch.FORWARD, launch.BACKWARD)
Change = dict[str, int]  # fields of a launch that are set otherwise
SLICE = 4096  # tokens that are computed in float64 at a time


class Boundary(NamedTuple):
    """What a boundary is given, and gradients of what it returns."""

    connection: Projected
    leaves: dict[str, Tensor]  # x, y, H_res (unless that is the identity), H_post
    gradients: dict[str, Tensor]  # of out, b, H_post and H_res of what reads
    gain: Tensor

    def parameters(self) -> dict[str, Tensor]:
        return {"gain": self.gain, **dict(self.connection.named_parameters())}


def boundary_of(
    variant: str, C: int, N: int, kind: str, device: torch.device, n: int = 4
) -> Boundary:
    """Random inputs, the same every time."""
    streams, branch, _ = KINDS[kind]
    torch.manual_seed(0)
    options = connection_of(Case(variant, n)).options
    connection = projected(connection_class(variant)(n, C, 0, **options)).to(device)
    with torch.no_grad():
        for parameter in connection.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    mixes = VARIANTS[variant].mixes != "never"
    leaves = {"x": normal(N, n, C, dtype=streams), "y": normal(N, C, dtype=branch)}
    leaves |= {"H_res": normal(N, n, n).softmax(-1)} if mixes else {}
    leaves["H_post"] = normal(N, n)
    gradients = {"out": normal(N, n, C, dtype=streams), "b": normal(N, C, dtype=branch)}
    gradients["post"] = normal(N, n)
    gradients |= {"res": normal(N, n, n)} if mixes else {}
    gain = 1 + 0.1 * normal(C)
    for leaf in (*leaves.values(), gain):
        leaf.requires_grad_()
    return Boundary(connection, leaves, gradients, gain)


def by_kernels(of: Boundary) -> dict[str, Tensor]:
    """Everything that a boundary and its backward pass return, and the last write."""
    x, y, H_post = (of.leaves[name] for name in ("x", "y", "H_post"))
    written = fused.Write(y, of.leaves.get("H_res"), H_post)
    read = fused.reading(of.connection, of.gain, x.dtype)
    out, a, b, _ = fused.boundary(x, written, read, y.dtype)
    n = x.shape[1]
    _, post, res = of.connection.from_projection(fused.coefficient_inputs(a, read, n))
    found = {"out": out, "b": b, "post": post} | ({} if res is None else {"res": res})
    inputs = of.leaves | of.parameters()
    given = [of.gradients[name] for name in found]
    backs = torch.autograd.grad(list(found.values()), list(inputs.values()), given)
    last = fused.write(x, written)
    inputs_of_write = list(of.leaves.values())
    back_of_write = torch.autograd.grad(last, inputs_of_write, of.gradients["out"])
    found |= {f"d{name}": back for name, back in zip(inputs, backs, strict=True)}
    found["last write"] = last
    for name, back in zip(of.leaves, back_of_write, strict=True):
        found[f"d{name} of the last write"] = back
    return {name: value.detach() for name, value in found.items()}


def exactly(of: Boundary, tokens: slice) -> dict[str, Tensor]:
    """The same of some tokens by the formula in float64; of parameters, these tokens' part."""
    connection = copy.deepcopy(of.connection).double()
    leaves = {
        name: leaf.detach()[tokens].double().requires_grad_() for name, leaf in of.leaves.items()
    }
    gain = of.gain.detach().double().requires_grad_()
    x, y, H_post = leaves["x"], leaves["y"], leaves["H_post"]
    H_res = leaves.get("H_res")
    carried = x if H_res is None else torch.einsum("tij,tjc->tic", H_res, x)
    out = carried + torch.einsum("ti,tc->tic", H_post, y)
    H_pre, post, res = (H[0] for H in connection.coefficients(out[None]))
    h = torch.einsum("ts,tsc->tc", H_pre, out)
    found = {"out": out, "b": F.layer_norm(h, h.shape[-1:]) * gain, "post": post, "res": res}
    found = {name: found[name] for name in of.gradients}
    inputs = leaves | {"gain": gain, **dict(connection.named_parameters())}
    given = [of.gradients[name][tokens].double() for name in found]
    backs = torch.autograd.grad(
        list(found.values()), list(inputs.values()), given, retain_graph=True, allow_unused=True
    )
    back_of_write = torch.autograd.grad(
        out, list(leaves.values()), of.gradients["out"][tokens].double()
    )
    for name, leaf, back in zip(inputs, inputs.values(), backs, strict=True):
        found[f"d{name}"] = torch.zeros_like(leaf) if back is None else back
    found["last write"] = out
    for name, back in zip(leaves, back_of_write, strict=True):
        found[f"d{name} of the last write"] = back
    return {name: value.detach() for name, value in found.items()}


def boundary_errors(
    variant: str, C: int, N: int, kind: str, device: torch.device, repeats: int
) -> Result:
    """How far a boundary at a shape of the paper's is from float64, and what is wrong with it."""
    deterministic(device)
    of = boundary_of(variant, C, N, kind, device)
    with poisoned():
        ours = by_kernels(of)
        again = [by_kernels(of) for _ in range(repeats - 1)]
    wrong = [f"{name} is not finite" for name, value in ours.items() if not value.isfinite().all()]
    for name, value in ours.items():
        if not all(torch.equal(value, other[name]) for other in again):
            wrong.append(f"{name} has other bits when computed again")
    squares: dict[str, list[float]] = {name: [0.0, 0.0] for name in ours}
    whole: dict[str, Tensor] = {}  # what is summed over tokens
    summed = [f"d{name}" for name in of.parameters()]
    for first in range(0, N, SLICE):
        part = slice(first, first + SLICE)
        for name, value in exactly(of, part).items():
            if name in summed:
                whole[name] = whole.get(name, 0) + value
            else:
                _add(squares[name], ours[name][part], value)
    for name, value in whole.items():
        _add(squares[name], ours[name], value)
    errors = {name: (own / max(size, 1e-30)) ** 0.5 for name, (own, size) in squares.items()}
    # Gradients of parameters are sums over all tokens, of terms of either sign: together, not each.
    own, size = (sum(squares[name][at] for name in summed) for at in (0, 1))
    compared = {name: error for name, error in errors.items() if name not in summed}
    compared["dparameters"] = (own / max(size, 1e-30)) ** 0.5
    allowed = KINDS[kind][2]
    wrong += [f"{name}: error {e:.1e}" for name, e in compared.items() if not e <= allowed]
    worst = max(compared, key=compared.__getitem__)
    print(f"{variant} C={C} N={N} {kind}: {worst} {compared[worst]:.1e}; {wrong or 'agrees'}")
    return {"errors": plain(errors), "worst": worst, "wrong": "; ".join(wrong)}


def _add(squares: list[float], ours: Tensor, exact: Tensor) -> None:
    squares[0] += (ours.double() - exact).square().sum().item()
    squares[1] += exact.square().sum().item()


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill new tensors with NaN before anything is written to them."""
    torch.use_deterministic_algorithms(True)  # without which they are not filled
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


# --- stages -------------------------------------------------------------------------------------


def parity_cases(plan: Plan) -> list[Case]:
    """Small models in every precision, of all variants before the next case of each."""
    own = [
        [case._replace(**plan.parity_changes) for case in cases([variant])[: plan.parity_cases]]
        for variant in plan.variants
    ]
    found = [case for at in zip(*own) for case in at]
    found += [case for of in own for case in of if case not in found]
    if plan.mode == "compiled":
        found += [Case(variant, compile=True, precision="bf16") for variant in ("hc", "mhc")]
    return found


def launches(plan: Plan) -> list[Change]:
    """What is tried of both kernels, their usual launches first."""
    names = list(plan.sweep)
    return [{}, *(dict(zip(names, at)) for at in product(*plan.sweep.values()))]


def launch_as(change: Change) -> None:
    """From here on, in this process, both kernels are launched so."""
    launch.FORWARD, launch.BACKWARD = (one._replace(**change) for one in USUAL)


def words(change: Change) -> str:
    """A change as a key: `tokens=16 columns=32 ...`."""
    return " ".join(f"{name}={value}" for name, value in change.items()) or "usual"


def compile_items(session: Session) -> list[Item]:
    """Each kernel that a later stage launches, compiled in one of several processes."""
    plan = session.plan
    device = torch.device(plan.device)

    def boundary(variant: str, C: int, kind: str, how: Change) -> Result:
        launch_as(how)
        for N in plan.compiled_tokens:
            by_kernels(boundary_of(variant, C, N, kind, device))
        return {}

    def model(case: Case) -> Result:
        launch_as({})
        gradient(case, "fused", device)
        return {}

    items = [
        Item(f"{v} C={size.n_embd} {kind}",
             lambda _, v=v, C=size.n_embd, kind=kind: boundary(v, C, kind, {}))  # type: ignore[misc]
        for kind in KINDS for v in plan.variants for size in plan.sizes.values()
    ]  # fmt: skip
    items += [
        Item(str(case), lambda _, case=case: model(case))  # type: ignore[misc]
        for case in parity_cases(plan) if not case.compile
    ]  # fmt: skip
    items += [
        Item(f"{size} {words(one)}",
             lambda _, C=plan.sizes[size].n_embd, one=one: boundary("mhc_lite", C, "bf16", one))  # type: ignore[misc]
        for size in plan.sweep_sizes for one in launches(plan)[1:]
    ]  # fmt: skip
    return items


def of_kernels(path: Path) -> bool:
    """Whether the kernels compute what a golden file holds; of a damaged one the item says it."""
    try:
        meta, _ = read_golden(path)
    except UserError:
        return True
    wide = meta["n_embd"] % SMALLEST_CHUNK == 0
    return wide and (meta["n_streams"] == 1 or has_kernels(meta["variant"]))


def parity_items(session: Session) -> list[Item]:
    """Models, then golden files."""
    plan = session.plan
    device = torch.device(plan.device)

    def model(case: Case) -> Result:
        error = error_of(case, "fused", device)
        said = f"error {error.own:.1e}, the reference's {error.reference:.1e}"
        print(f"{case}: {said}", flush=True)
        wrong = [] if error.own <= error.allowed(case.precision) else [said]
        if case.precision == "fp32" and case.n_streams == 4:
            first, again = (gradient(case, "fused", device) for _ in range(2))
            if not torch.equal(first.gradient, again.gradient):
                wrong.append("the gradient has other bits when computed again")
        found = {"error": error.own, "reference": error.reference, "wrong": "; ".join(wrong)}
        return {name: plain(value) for name, value in found.items()}

    def golden(path: Path) -> Result:
        kind, errors = check_file(path, "fused")
        worst = max(errors, key=errors.__getitem__)
        print(f"{path.name}: error {errors[worst]:.1e} ({worst})", flush=True)
        agrees = errors[worst] <= FUSED_TOLERANCE[kind]
        said = "" if agrees else f"error {errors[worst]:.1e} ({worst})"
        return {"error": plain(errors[worst]), "worst": worst, "wrong": said}

    files = [path for path in plan.golden if of_kernels(path)]
    items = [Item(str(case), lambda _, case=case: model(case)) for case in parity_cases(plan)]  # type: ignore[misc]
    return items + [Item(path.name, lambda _, path=path: golden(path)) for path in files]  # type: ignore[misc]


def shape_items(session: Session) -> list[Item]:
    """A boundary of every variant at every size."""
    plan = session.plan
    device = torch.device(plan.device)

    def work(variant: str, C: int, N: int, kind: str) -> Result:
        return boundary_errors(variant, C, N, kind, device, plan.repeats)

    return [
        Item(f"{variant} C={size.n_embd} N={N} {kind}",
             lambda _, at=(variant, size.n_embd, N, kind): work(*at))  # type: ignore[misc]
        for kind in KINDS for N in plan.tokens for size in reversed(plan.sizes.values())
        for variant in plan.variants
    ]  # fmt: skip


def gradient_items(session: Session) -> list[Item]:
    """Whole models of the smallest width under bf16, over depth, beside the residual's."""
    plan = session.plan
    device = torch.device(plan.device)

    def work(variant: str, layers: int) -> Result:
        size = replace(plan.sizes["s"], n_layer=layers)
        # One sequence: the reference in float64 keeps about a gigabyte a layer.
        found = compare(made_up("mixing", variant, size, 0, 1), device, ARMS)
        for arm, own in found.items():
            print(f"{variant} {layers} layers {arm}: error {own['error']:.1e}", flush=True)
        return {"arms": plain(found), "wrong": too_far(found)}

    return [
        Item(f"{variant} {layers} layers",
             lambda _, at=(variant, layers): work(*at))  # type: ignore[misc]
        for layers in plan.depths for variant in (RESIDUAL, *plan.variants[:3])
    ]  # fmt: skip
