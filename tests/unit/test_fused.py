"""The fused implementation: its kernels in Triton's interpreter, and where it does not run."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import kernels_are_interpreted  # noqa: F401
from tiny import (
    REGISTRY,
    SINKHORN,
    configuration,
    connection,
    one_graph,
    perturbed,
    sinkhorn_errors,
    write_corpus,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.kernels import Case, cases, connection_of, error_of, gradient, has_kernels
from mhclite.config import ModelConfig
from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.fast import availability, fused
from mhclite.connections.fast.availability import Choice
from mhclite.files import read_json
from mhclite.model import GPT
from mhclite.training.loop import train

CPU = torch.device("cpu")
VARIANTS = [variant for variant in REGISTRY if has_kernels(variant)]
SIZE = ModelConfig("tiny", 9, n_layer=1, n_head=1, n_embd=16, block_size=4, learning_rate=1e-3)


# All of `cases` are for a GPU (`make gpu-check`). The interpreter is slow: here each variant once
# in float32, and one for each further path of the kernels.
FURTHER = {
    ("hc", 2, 64, "fp32", "authors"),
    ("hc", 4, 96, "fp32", "authors"),
    ("mhc", 4, 64, "bf16", "authors"),
    ("mhc", 4, 64, "bf16", "fp32"),
}
CASES = [
    case
    for case in cases(VARIANTS)
    if (case.n_streams, case.n_embd, case.precision) == (4, 64, "fp32")
    or (case.variant, case.n_streams, case.n_embd, case.precision, case.stream_dtype) in FURTHER
]


# Variants whose kernels are those of another (tests/unit/compile_kernels.py), and another width.
LIKE_ANOTHER = {"kromhc", "mhc_lite", "ohc", "oshc"}
ON_DEMAND = [case for case in CASES if case.variant in LIKE_ANOTHER or case.n_embd == 96]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.exhaustive] * (c in ON_DEMAND), id=str(c)) for c in CASES],
)
def test_as_near_to_float64_as_the_reference(case: Case) -> None:
    error = error_of(case, "fused", CPU)
    assert error.own <= error.allowed(case.precision), error


@pytest.mark.slow
def test_the_same_bits_every_time() -> None:
    first, again = (gradient(Case("hc"), "fused", CPU) for _ in range(2))
    assert torch.equal(first.gradient, again.gradient)


@pytest.mark.parametrize("functions", SINKHORN.values(), ids=list(SINKHORN))
@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("spread", [1.0, 200.0])
def test_sinkhorn_kernel(spread: float, n: int, functions: tuple[Any, Any]) -> None:
    """float32; logits too far apart for the linear domain included."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.rand(70, n, n, generator=generator)  # more than one program
    weight = torch.randn(70, n, n, generator=generator)
    errors = sinkhorn_errors(functions, logits, weight)
    tolerance = 1e-5 * max(1.0, spread / 30)
    assert errors[0] < tolerance
    assert errors[1] < 10 * tolerance


def test_operators_keep_torchs_rules() -> None:
    """Fake tensors, autograd registration, no aliases: what torch.compile relies on."""
    operators, x = torch.ops.mhclite, torch.randn(5, 2, 16)
    read = fused.reading(connection_class("hc")(2, 16, 0), torch.ones(16), torch.float32)
    reading = [t.detach() if isinstance(t, torch.Tensor) else t for t in read[:-1]]
    y, a, da, db = (torch.randn(5, 16) for _ in range(4))
    H_res, H_post, stats = torch.randn(5, 2, 2), torch.randn(5, 2), torch.rand(5, 4) + 1
    kinds = ((y, H_res, H_post), (y, None, H_post), (None, None, None))
    for written in kinds:
        check(operators.boundary, x, *written, *reading, torch.float32, differentiable=True)
        given = (*reading[:5], a, stats, x, da, db, *reading[5:])
        check(operators.boundary_backward, x, *written, *given)
        if written[0] is not None:
            check(operators.write, x, *written, differentiable=True)
            check(operators.write_backward, x, *written, x)
    for name, eps in (("sinkhorn", ()), ("sinkhorn_v4", (1e-6,))):
        check(getattr(operators, name), H_res, 3, *eps, differentiable=True)
        check(getattr(operators, f"{name}_backward"), H_res, H_res.clone(), 3, *eps)


def check(operator: Any, *arguments: Any, differentiable: bool = False) -> None:
    """The first argument and, beside it, what the branch returned may have a gradient."""
    tests = ("test_schema", "test_faketensor")
    if differentiable:
        arguments = tuple(
            one.clone().requires_grad_() if isinstance(one, Tensor) and place < 2 else one
            for place, one in enumerate(arguments)
        )
        tests += ("test_autograd_registration",)  # type: ignore[assignment]
    torch.library.opcheck(operator.default, arguments, test_utils=tests)


# --- parameters of all sub-layers, prepared together ---------------------------------------------


def drawn(variant: str, seed: int, **options: Any) -> Connection:
    """A connection all of whose weights matter."""
    options = {**connection_of(Case(variant)).options, **options}
    return perturbed(connection_class(variant)(4, 16, 0, **options), 1.0, seed)


class Scaled(connection_class("mhc_lite")):  # type: ignore[misc]
    """A variant of somebody else's whose formula has a number and a tensor of each sub-layer's."""

    def __init__(self, factor: Any, shift: float) -> None:
        super().__init__(4, 16, 0, **connection_of(Case("mhc_lite")).options)
        self.factor = factor
        self.register_buffer("shift", torch.tensor(shift))

    def projection(self) -> Any:
        weight, bias, norm, eps = super().projection()
        factor = self.factor if isinstance(self.factor, float) else self.factor["number"]
        return weight * factor, bias + self.shift, norm, eps


def of_several_kinds() -> list[Connection]:
    """Sub-layers of one variant among those of others, and with another option."""
    variants = ("mhc_v4", "hc", "mhc_v4", "jpmhc", "mhc_v4", "hc")
    options: dict[int, dict[str, Any]] = {2: {"norm_eps": 0.5}}
    return [drawn(variant, k, **options.get(k, {})) for k, variant in enumerate(variants)]


def that_differ_besides_parameters() -> list[Connection]:
    kinds = [(1.0, 0.0), (1.0, 2.0), (3.0, 0.0), ({"number": 4.0}, 0.0), ({"number": 5.0}, 0.0)]
    return [perturbed(Scaled(*kind), 1.0, k) for k, kind in enumerate(kinds)]


@pytest.mark.parametrize("kind", [*VARIANTS, of_several_kinds, that_differ_besides_parameters])
def test_each_sub_layer_gets_what_it_gets_alone(kind: Any) -> None:
    """What is read, and the gradients of all parameters from a sum in which every number counts."""
    connections = [drawn(kind, k) for k in range(3)] if isinstance(kind, str) else kind()
    gains = [torch.ones(16) for _ in connections]
    alone = [fused.reading(c, g, torch.float32) for c, g in zip(connections, gains)]
    together = fused.readings(connections, gains, torch.float32)
    gradients = []
    for reads in (together, alone):
        parts = [tensor for read in reads for tensor in (read.weight, read.bias)]
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(part.shape, generator=generator) for part in parts]
        wanted = [p for c in connections for p in c.parameters()]
        grown = [(part, weight) for part, weight in zip(parts, weights) if part.requires_grad]
        outputs, weighted = zip(*grown)
        gradients.append(torch.autograd.grad(outputs, wanted, weighted, allow_unused=True))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours[5:] == theirs[5:]
        torch.testing.assert_close(ours[:5], theirs[:5])
    assert not torch.equal(together[0].weight, together[1].weight)
    assert sum(gradient is not None for gradient in gradients[0]) >= 3
    torch.testing.assert_close(*gradients)


class Operations(TorchDispatchMode):
    """How many operations of torch compute something, and are not a view alone."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_sub_layers_take_no_more_operations(variant: str) -> None:
    """Forward and backward: a small operation takes a GPU as long as a larger one."""

    def operations(sublayers: int) -> int:
        connections = [drawn(variant, seed) for seed in range(sublayers)]
        with Operations() as counted:
            reads = fused.readings(connections, [torch.ones(16)] * sublayers, torch.bfloat16)
        forward = counted.count
        parts = [t for r in reads for t in (r.weight, r.bias) if t.requires_grad]
        parameters = [p for c in connections for p in c.parameters()]
        gradients = [torch.ones_like(part) for part in parts]
        with Operations() as counted:
            torch.autograd.grad(parts, parameters, gradients, allow_unused=True)
        return forward + counted.count

    # One that is no parameter is filled for each.
    offset, _ = drawn(variant, 0).read_offset_and_scale()
    per_sublayer = int(offset is not None and not offset.requires_grad)
    assert operations(5) - operations(2) == 3 * per_sublayer


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(("variant", "bf16"), [("mhc", False), ("jpmhc", True)])
def test_is_one_graph_for_the_compiler(variant: str, bf16: bool) -> None:
    """Under autocast too: no product of the coefficients is in bf16."""
    settings = connection(variant, implementation="fused", stream_dtype="fp32")
    one_graph(replace(SIZE, vocab_size=50, block_size=8), settings, bf16)


# --- where it does not run ----------------------------------------------------------------------


def made(n_embd: int = 16, **settings: Any) -> GPT:
    chosen = connection("hc", **{"implementation": "fused", **settings})
    return GPT(replace(SIZE, n_embd=n_embd), chosen, seed=0)


def test_what_stands_in_the_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made().choice(autocast=False) == ("fused", None)
    assert made(implementation="auto").choice(autocast=False) == ("fast", None)
    assert made(implementation="reference").choice(autocast=False) == ("reference", None)
    for settings, reason in (
        ({"n_streams": 8}, "n_streams = 8, and its kernels hold 2 or 4"),
        ({"n_embd": 40}, "n_embd = 40 is not a multiple of 16"),
        ({"stream_dtype": "bf16"}, "streams of bf16 need precision bf16"),
    ):
        choice = made(**settings).choice(autocast=False)
        assert choice.implementation == "fast"
        assert reason in str(choice.obstacle)
    assert "float64" in str(made().double().choice(autocast=False).obstacle)
    gated = GPT(SIZE, connection("gated", implementation="fused"), seed=0)
    assert gated.choice(autocast=False) == Choice(
        "fast", "the variant has no projection for its kernels"
    )
    monkeypatch.delenv("TRITON_INTERPRET")
    assert made().choice(autocast=False) == ("fast", "its kernels need a GPU, and this is a cpu")
    monkeypatch.setattr(availability, "INSTALLED", False)
    assert made().choice(autocast=False) == ("fast", "Triton is not installed")


def test_training_says_why_it_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    config = configuration("hc", steps=2)
    config = replace(config, connection=connection("hc", implementation="fused"))
    with caplog.at_level(logging.WARNING):
        train(config, write_corpus(tmp_path / "corpus"), tmp_path / "run")
    assert "fast instead of fused: its kernels need a GPU" in caplog.text
    assert read_json(tmp_path / "run" / "run.json")["implementation"] == "fast"
