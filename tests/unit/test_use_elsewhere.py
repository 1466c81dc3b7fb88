"""Connections in models that are not this project's: docs/use-elsewhere.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import kernels_are_interpreted  # noqa: F401
from tiny import VARIANTS as ALL
from tiny import n_of
from torch import nn

from mhclite.connections import public
from mhclite.connections.public import Connection, SubLayer, connect, make, parameter_groups

PAGE = Path(__file__).parents[2] / "docs" / "use-elsewhere.md"
LISTINGS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
GPT2, GPT2_USED, STACK, JOINED, OPTIMIZERS, MIXING = LISTINGS
VARIANTS = ["mhc_lite", "gated"]


def page(variant: str) -> tuple[nn.Module, nn.Module]:
    """The page's two models with the same weights: its formula, and `connect` in its place."""
    loop: dict[str, Any] = {}
    exec(STACK, loop)
    joined: dict[str, Any] = {}
    head, _, _ = STACK.rpartition("    def forward")
    exec(head + JOINED, joined)
    torch.manual_seed(0)
    first, second = loop["Stack"](variant), joined["Stack"](variant)
    second.load_state_dict(first.state_dict())
    return first, second


def test_public_names() -> None:
    """As the page promises them: a name that goes breaks other people's models."""
    assert public.__all__ == [
        "VARIANTS",
        "Coefficients",
        "Connection",
        "ParameterGroups",
        "SubLayer",
        "connect",
        "make",
        "parameter_groups",
    ]
    assert SubLayer._fields == ("connection", "gain", "body")
    assert public.ParameterGroups._fields == ("decayed", "undecayed", "others")


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


def test_the_pages_gpt2_is_python_and_takes_public_names() -> None:
    """It runs where transformers is installed, which no test needs."""
    for listing in (GPT2, GPT2_USED):
        for node in ast.walk(ast.parse(listing)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("mhclite"):
                assert {alias.name for alias in node.names} <= {*public.__all__}


@pytest.mark.parametrize("variant", ALL)
def test_parameter_groups_name_every_parameter_once(variant: str) -> None:
    connection = make(variant, n_of(variant), 16)
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.ModuleList([connection, connection])})
    groups = parameter_groups(nn.DataParallel(model))
    names = [name for group in groups for name, _ in group]
    assert sorted(names) == sorted(f"module.{name}" for name, _ in model.named_parameters())
    assert {name.split(".")[-1] for name, _ in groups.decayed} == connection.decayed
    assert [name for name, _ in groups.others] == ["module.a.weight", "module.a.bias"]


def test_the_pages_optimizers() -> None:
    model, _ = page("mhc_lite")
    names = {"torch": torch, "model": model, "parameter_groups": parameter_groups}
    exec(OPTIMIZERS, names)
    optimizers: Any = names["muon"], names["adamw"]
    taken = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(map(id, taken)) == sorted(map(id, model.parameters()))
    own = {id(p) for m in model.modules() if isinstance(m, Connection) for p in m.parameters()}
    assert not own & {id(p) for group in optimizers[0].param_groups for p in group["params"]}
    model(torch.randn(2, 5, 32)).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pages_mixing_of_a_layer(variant: str) -> None:
    model, _ = page(variant)
    names: dict[str, Any] = {"model": model, "h": torch.randn(2, 5, 32)}
    exec(MIXING, names)
    names["hook"].remove()
    model(names["h"])
    (H_res,) = names["seen"]
    assert H_res.shape == (2, 5, 4, 4)
    torch.testing.assert_close(H_res.sum(-1), torch.ones(2, 5, 4))


def test_what_cannot_be_made_or_connected_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'mhc_heavy' is unknown; known are residual"):
        make("mhc_heavy", 4, 8)
    with pytest.raises(ValueError, match="home_stream = 4 is not one of the 4 streams"):
        make("mhc", 4, 8, 4)
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
