"""Settings with which variants are compared at equal terms: rates, parameters, attention."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import MIXING, MODEL, VARIANTS, connection, perturbed

from mhclite.connections.registry import connection_parameters
from mhclite.model import GPT, CausalSelfAttention
from mhclite.study.settings import Study
from mhclite.training.optimizer import AdamW
from mhclite.training.streams import largest_attention_logit

SEVERAL = tuple(variant for variant in VARIANTS if variant != "residual")
TOKENS = torch.randint(MODEL.vocab_size, (2, 6), generator=torch.Generator().manual_seed(0))


def study(**changes: Any) -> Study:
    """config/smoke.yaml with other values."""
    content = yaml.safe_load((Path(__file__).parents[2] / "config" / "smoke.yaml").read_text())
    return Study.model_validate(content | changes)


# --- the rate of the connections ----------------------------------------------------------------


@pytest.mark.parametrize("variant", SEVERAL)
def test_rate_factors_move_what_they_name_and_decay_as_before(variant: str) -> None:
    """The connections', of all but the backbone, and that of what makes H_res alone."""
    changes: dict[str, Any] = {"connection_rate_factor": 4.0, "final_norm": "head"}
    if variant in MIXING:
        changes["mixing_rate_factor"] = 2.0
    model = perturbed(GPT(MODEL, connection(variant, **changes), seed=0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    AdamW(model, (0.9, 0.95), weight_decay=0.1).step(1e-3)
    decayed = {id(p) for g in model.parameter_groups() if g.decayed for p in g.parameters}
    backbone = {id(p) for _, p in model.backbone_parameters()}
    mixing = next(model.connections()).mixing if variant in MIXING else ()
    # AdamW by hand: decay by rate and decay, then a first step of the size of the rate.
    for name, p in model.named_parameters():
        factor = 1.0 if id(p) in backbone else 4.0
        factor *= 2.0 if name.partition(".connection.")[2] in mixing else 1.0
        expected = before[name] * (1 - 1e-4 * (id(p) in decayed)) - 1e-3 * factor
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


# --- equal parameters ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(SEVERAL),
    st.integers(1, 6),
    st.sampled_from([8, 16, 32, 64]),
    st.sampled_from(["per_stream", "after_sum", "head"]),
)
def test_a_widened_residual_has_as_many_parameters(
    variant: str, n_layer: int, n_embd: int, final_norm: str
) -> None:
    sizes = {"n_layer": n_layer, "n_head": 2, "n_embd": n_embd, "block_size": 8}
    made = study(
        models={"m": {**sizes, "learning_rate": 1e-3}},
        variants=["residual", variant],
        connections={"final_norm": final_norm},
        conditions={
            "wide": {"title": "Wide", "variants": ["residual"], "match_parameters": variant}
        },
    )
    runs = made.runs()
    wide, other = runs["sotu-m-residual-wide-s0"], runs[f"sotu-m-{variant}-s0"]
    counts = [
        GPT(run.model, run.connection, 0).parameter_counts()["total"] for run in (wide, other)
    ]
    assert abs(counts[0] - counts[1]) <= n_layer * n_embd  # half a hidden unit a layer
    # Counted before a model is made.
    own, head = other.connection, final_norm == "head"
    extra = connection_parameters(variant, own.n_streams, n_embd, n_layer, own.options, head)
    assert extra == GPT(other.model, own, 0).parameter_counts()["connection"]
    assert wide.model == replace(other.model, mlp_width=wide.model.mlp_width)
    assert runs["sotu-m-residual-s0"].model.mlp_width is None


# --- attention ----------------------------------------------------------------------------------


def attentions(model: GPT) -> list[CausalSelfAttention]:
    return [body for body in model.modules() if isinstance(body, CausalSelfAttention)]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize(
    ("variant", "implementation"), [("residual", "reference"), ("hc", "reference"), ("mhc", "fast")]
)
def test_largest_attention_logit(variant: str, implementation: str, qk_norm: bool) -> None:
    """Of what each attention is given, pair by pair. qk_norm bounds it whatever the weights."""
    made = connection(variant, implementation=implementation)
    model = GPT(replace(MODEL, qk_norm=qk_norm), made, seed=0)
    given: list[torch.Tensor] = []
    with torch.no_grad():
        for body in attentions(model):
            body.c_attn.weight.mul_(30)
            body.register_forward_hook(lambda body, inputs, out: given.append(inputs[0].detach()))
    found = largest_attention_logit(model, TOKENS)
    expected, width = 0.0, MODEL.n_embd // MODEL.n_head
    for body, x in zip(attentions(model), given, strict=True):
        for row in x:
            q, k, _ = body.c_attn(row).detach().unflatten(-1, (3, body.n_head, width)).unbind(-3)
            if qk_norm:
                q, k = (v / v.square().mean(-1, keepdim=True).sqrt() for v in (q, k))
            logits = torch.einsum("thd,shd->hts", q, k).tril() / math.sqrt(width)
            expected = max(expected, float(logits.abs().max()))
    assert found == pytest.approx(expected, rel=1e-4)
    if qk_norm:
        assert found <= math.sqrt(width) * (1 + 1e-5)  # with gains of 1
        gains = [p for name, p in model.backbone_parameters() if name.endswith("_norm.weight")]
        assert len(gains) == 2 * MODEL.n_layer
        model.loss(TOKENS).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gains)
        decayed = {id(p) for g in model.parameter_groups() if g.decayed for p in g.parameters}
        assert not decayed & {id(p) for p in gains}
