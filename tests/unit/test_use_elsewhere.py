"""Connections in models that are not this project's: docs/use-elsewhere.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mhclite.connections import public
from mhclite.connections.fast import launch
from mhclite.connections.public import SubLayer, connect, make

PAGE = Path(__file__).parents[2] / "docs" / "use-elsewhere.md"
LISTINGS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
VARIANTS = ["mhc_lite", "gated"]


def page(variant: str) -> tuple[nn.Module, nn.Module]:
    """The page's two models with the same weights: its formula, and `connect` in its place."""
    loop: dict[str, Any] = {}
    exec(LISTINGS[0], loop)
    joined: dict[str, Any] = {}
    head, _, _ = LISTINGS[0].partition("    def forward")
    exec(head + LISTINGS[1], joined)
    torch.manual_seed(0)
    first, second = loop["Stack"](variant), joined["Stack"](variant)
    second.load_state_dict(first.state_dict())
    return first, second


def names() -> set[str]:
    return {name for name in vars(public) if not name.startswith("_")}


def test_public_names() -> None:
    assert public.__all__ == [
        "VARIANTS",
        "Coefficients",
        "Connection",
        "SubLayer",
        "connect",
        "make",
    ]
    assert set(public.__all__) <= names()
    assert SubLayer._fields == ("connection", "gain", "body")


def test_nothing_else_of_this_project_is_loaded() -> None:
    script = (
        "import sys; from mhclite.connections.public import make; make('mhc_lite', 4, 8);"
        "print(*(m for m in sys.modules if m.split('.')[0] in ('mhclite', 'triton', 'pydantic')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert "mhclite.connections.mhc_lite" in found
    assert all(name == "mhclite" or name.startswith("mhclite.connections") for name in found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pages_listings_agree_and_learn(variant: str) -> None:
    first, second = page(variant)
    h, target = torch.randn(8, 5, 32), torch.randn(8, 5, 32)
    gradients = []
    for model in (first, second):
        (model(h) - target).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(first(h), second(h))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)

    optimizer = torch.optim.AdamW(second.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (second(h) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


class Recurrent(nn.Module):
    """Nothing like a transformer: recurrent sub-layers of several variants, read by the mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.connections = nn.ModuleList(
            make(variant, 2, 16, k % 2) for k, variant in enumerate(("hc", "mhc_lite", "jpmhc"))
        )
        self.bodies = nn.ModuleList(nn.GRU(16, 16, batch_first=True) for _ in range(3))
        self.gain = nn.Parameter(torch.ones(16))
        with torch.no_grad():
            for parameter in self.connections.parameters():
                parameter += 0.1 * torch.randn_like(parameter)

    def forward(self, h: Tensor, implementation: str) -> Tensor:
        def body(gru: nn.Module) -> Any:
            return lambda h: gru(h)[0]

        parts = [
            SubLayer(connection, self.gain, body(gru))  # type: ignore[arg-type]
            for connection, gru in zip(self.connections, self.bodies, strict=True)
        ]
        return connect(h.unsqueeze(-2).expand(-1, -1, 2, -1), parts, implementation).mean(-2)


def test_all_implementations_are_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(launch, name, getattr(launch, name)._replace(tokens=32))
    model, h = Recurrent(), torch.randn(2, 4, 16)
    outputs, gradients = [], []
    for implementation in ("reference", "fast", "fused", "fused"):
        model.zero_grad()
        outputs.append(model(h, implementation))
        outputs[-1].square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for other in (1, 2):
        torch.testing.assert_close(outputs[other], outputs[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients[other], gradients[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(outputs[2], outputs[3])
    assert all(torch.equal(a, b) for a, b in zip(gradients[2], gradients[3], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["reference", "fast", "fused"])
def test_it_is_one_graph_for_the_compiler(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    for name in ("FORWARD", "BACKWARD"):
        monkeypatch.setattr(launch, name, getattr(launch, name)._replace(tokens=32))
    parts = [SubLayer(make("mhc_lite", 2, 16, k), torch.ones(16), torch.sin) for k in range(2)]

    def stack(x: Tensor) -> Tensor:
        return connect(x, parts, implementation)

    x = torch.randn(1, 3, 2, 16, requires_grad=True)
    found = []
    for function in (stack, torch.compile(stack, backend="aot_eager", fullgraph=True)):
        out = function(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), x)))
    torch.testing.assert_close(found[1], found[0])
    torch._dynamo.reset()


def test_under_autocast_streams_come_back_in_float32() -> None:
    model, h = Recurrent(), torch.randn(2, 4, 16)
    exact = model(h, "reference")
    for implementation in ("reference", "fast"):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(h, implementation)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, exact, rtol=0.05, atol=0.05)


def test_the_same_seed_makes_the_same_connection() -> None:
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(make("gated", 4, 16).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["w_up"], states[2]["w_up"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mhc_heavy", 4, 8), "'mhc_heavy' is unknown; known are residual"),
        (("kromhc", 3, 8), "power of two"),
        (("mhc", 4, 8, 4), "home_stream = 4 is not one of the 4 streams"),
    ],
)
def test_what_cannot_be_made_is_said(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make(*arguments)


def test_what_cannot_be_connected_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    parts = [SubLayer(make("mhc", 4, 16, sinkhorn_iterations=20), torch.ones(16), torch.tanh)]
    x = torch.randn(2, 3, 4, 16)
    with pytest.raises(ValueError, match="fused does not run here: its kernels need a GPU"):
        connect(x, parts, "fused")
    with pytest.raises(ValueError, match=r"shape \(2, 3, 16, 4\), expected \(B, T, 4, 16\)"):
        connect(x.transpose(2, 3), parts)
    with pytest.raises(ValueError, match="'quick' is none of auto, fast, fused, reference"):
        connect(x, parts, "quick")
    assert torch.equal(connect(x, []), x)
    gated = [SubLayer(make("gated", 4, 16), torch.ones(16), torch.tanh)]
    with pytest.raises(ValueError, match="the variant has no projection for its kernels"):
        connect(x, gated, "fused")
    one = [SubLayer(make("residual", 1, 16), torch.ones(16), torch.tanh)]
    with pytest.raises(ValueError, match="one stream needs no kernels"):
        connect(x[:, :, :1], one, "fused")
