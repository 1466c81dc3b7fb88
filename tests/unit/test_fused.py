"""The fused implementation: its kernels in Triton's interpreter, and what the compiler makes."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import configuration, write_corpus

from mhclite.authors.conformance import FUSED_TOLERANCE, check_file
from mhclite.bench.parity import Case, cases, error_of, gradient
from mhclite.connections import fused
from mhclite.connections.mixing import sinkhorn_knopp
from mhclite.model import GPT
from mhclite.training.loop import train

assert os.environ["TRITON_INTERPRET"] == "1"  # conftest.py

CPU = torch.device("cpu")
VARIANTS = ["identity", "hc", "mhc", "mhc_lite", "kromhc", "jpmhc"]
GOLDEN = Path(__file__).parents[1] / "golden"


# All of `cases` are for a GPU (`make gpu-check`): here what differs, the interpreter being slow.
CASES = [
    case
    for case in cases(VARIANTS)
    if not case.recompute  # below
    and (case.n_embd == 64 or case.variant in ("hc", "jpmhc"))
    and (case.precision == "fp32" or case.stream_dtype != "bf16")
]


@pytest.fixture(autouse=True)
def _large_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer of them: the interpreter's time goes by operations, not by their size."""
    monkeypatch.setattr(fused, "LAUNCH", fused.LAUNCH._replace(tokens=32))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_near_to_float64_as_the_reference(case: Case) -> None:
    error = error_of(case, "fused", CPU)
    assert error.own <= error.allowed(case.precision), error


@pytest.mark.slow
def test_the_same_bits_every_time_and_with_recomputation() -> None:
    for variant in ("hc", "identity"):  # the latter without H_res
        first, again, recomputed = (
            gradient(Case(variant, recompute=recompute), "fused", CPU)
            for recompute in (False, False, True)
        )
        assert torch.equal(first.gradient, again.gradient)
        assert torch.equal(first.gradient, recomputed.gradient)


@pytest.mark.slow
def test_recomputation_keeps_less_for_the_backward_pass() -> None:
    kept = []
    for recompute in (False, True):
        settings = {"variant": "kromhc", "n_streams": 4, "implementation": "fused"}
        size = {"vocab_size": 20, "n_layer": 3, "n_head": 1, "n_embd": 64, "block_size": 16}
        model = GPT(size, settings | {"recompute": recompute}, seed=0)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        held: dict[int, int] = {}

        def note(
            tensor: torch.Tensor, held: dict[int, int] = held, weights: set[int] = weights
        ) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = model.loss(torch.zeros(1, 17, dtype=torch.int64))
        kept.append(sum(held.values()))
        loss.backward()
    streams = 16 * 4 * 64 * 4  # bytes of one sub-layer's streams, of 16 tokens
    assert kept[0] - kept[1] >= 3 * streams


@pytest.mark.slow
def test_authors_training_run() -> None:
    """One of them: each takes a minute here. The command does the others."""
    _, errors = check_file(GOLDEN / "trajectory_mhc.npz", "fused")
    assert max(errors.values()) <= FUSED_TOLERANCE["trajectory"]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("connection_*.npz")), ids=lambda p: p.stem)
def test_authors_connections(path: Path) -> None:
    _, errors = check_file(path, "fused")
    assert {"output.out", "output.H_res", "grad.y"} <= errors.keys()
    assert max(errors.values()) <= FUSED_TOLERANCE["connection"]


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("spread", [1.0, 30.0, 200.0])
def test_sinkhorn_kernel(spread: float, n: int) -> None:
    """float32; logits too far apart for the linear domain included."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.rand(70, n, n, generator=generator)  # more than one program
    weight = torch.randn(70, n, n, generator=generator)
    results = []
    for function, dtype in ((fused.sinkhorn, torch.float32), (sinkhorn_knopp, torch.float64)):
        given = logits.to(dtype, copy=True).requires_grad_()
        M = function(given, 20)
        (M * weight).sum().backward()
        assert given.grad is not None
        results.append((M.detach().double(), given.grad.double()))
    (ours, our_gradient), (exact, exact_gradient) = results
    tolerance = 1e-5 * max(1.0, spread / 30)
    assert (ours - exact).abs().max() < tolerance
    assert (our_gradient - exact_gradient).abs().max() < 10 * tolerance


def test_operators_keep_torchs_rules() -> None:
    """Fake tensors, autograd registration, no aliases: what torch.compile relies on."""
    connection = next(GPT(
        {"vocab_size": 9, "n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 4},
        {"variant": "hc", "n_streams": 2}, seed=0,
    ).connections())  # fmt: skip
    read, _ = fused.reading(connection, torch.ones(16), torch.float32)
    x, y = torch.randn(5, 2, 16, requires_grad=True), torch.randn(5, 16, requires_grad=True)
    H_res, H_post = torch.randn(5, 2, 2), torch.randn(5, 2)
    tensors = [t.detach() if isinstance(t, torch.Tensor) else t for t in read]
    nothing = (None,) * 4
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (x, y, H_res, H_post, *tensors, torch.float32, True, *nothing)
    torch.library.opcheck(fused.boundary, arguments, test_utils=tests)
    torch.library.opcheck(fused.write, (x, y, H_res, H_post, *nothing), test_utils=tests)
    torch.library.opcheck(fused.sinkhorn, (torch.randn(5, 2, 2), 3), test_utils=tests)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["identity", "hc", "mhc", "jpmhc"])
def test_is_one_graph_for_the_compiler(variant: str) -> None:
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    settings = {"variant": variant, "n_streams": 4, "implementation": "fused"}
    settings |= {"mhc": {"sinkhorn_iterations": 20}, "jpmhc": {"cayley_iterations": 2}}.get(
        variant, {}
    )
    size = {"vocab_size": 50, "n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 8}
    model = GPT(size, settings, seed=0)
    model.loss(tokens).backward()
    eager = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    torch.compile(model.loss, backend="aot_eager", fullgraph=True)(tokens).backward()
    compiled = [p.grad for p in model.parameters() if p.grad is not None]
    for ours, theirs in zip(compiled, eager, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


# --- where it does not run ----------------------------------------------------------------------


def made(**settings: object) -> GPT:
    size = {"vocab_size": 9, "n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 4}
    chosen = {"variant": "hc", "n_streams": 4, "implementation": "fused", **settings}
    return GPT(size | {"n_embd": chosen.pop("n_embd", 16)}, chosen, seed=0)


def test_what_stands_in_the_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert made().choice(autocast=False) == ("fused", None)
    assert made(implementation="auto").choice(autocast=False) == ("fast", None)
    assert made(implementation="reference").choice(autocast=False) == ("reference", None)
    for settings, reason in (
        ({"n_streams": 8}, "n_streams = 8, and its kernels hold 2 or 4"),
        ({"n_embd": 40}, "n_embd = 40 is no multiple of 16"),
        ({"stream_dtype": "bf16"}, "streams of bf16 need precision bf16"),
    ):
        computed, said = made(**settings).choice(autocast=False)
        assert computed == "fast"
        assert reason in str(said)
    assert "float64" in str(made().double().choice(autocast=False)[1])
    monkeypatch.delenv("TRITON_INTERPRET")
    assert made().choice(autocast=False) == ("fast", "its kernels need a GPU, and this is a cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert made().choice(autocast=False) == ("fast", "Triton is not installed")


def test_a_fallback_computes_the_same_and_training_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    config = configuration("hc")
    config["connection"]["implementation"] = "fused"
    with caplog.at_level(logging.WARNING):
        train(config, write_corpus(tmp_path / "corpus"), tmp_path / "run")
    assert "fast instead of fused: its kernels need a GPU" in caplog.text
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["implementation"] == "fast"


# --- the compiler -------------------------------------------------------------------------------


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_and_stay_in_its_registers() -> None:
    """For sm_90, without a GPU: no register of the bf16 kernels spills to memory."""
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), "hc", "mhc", "jpmhc"],
        capture_output=True, text=True, env=environment, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 14
    for name, needs in found.items():
        assert needs["shared"] <= 227 * 1024, name
        if "fp32" not in name:
            assert needs["spilled"] == 0, (name, needs)
