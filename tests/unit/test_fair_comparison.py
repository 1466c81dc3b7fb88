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
from pydantic import ValidationError
from tiny import MIXING, MODEL, VARIANTS, connection

from mhclite.connections.counts import connection_parameters
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


@pytest.mark.parametrize("final_norm", ["after_sum", "head"])
@pytest.mark.parametrize("variant", SEVERAL)
def test_connection_rate_factor_is_of_all_but_the_backbone(variant: str, final_norm: str) -> None:
    changes: dict[str, Any] = {"connection_rate_factor": 3.0, "final_norm": final_norm}
    if variant in MIXING:
        changes["mixing_rate_factor"] = 2.0
    model = GPT(MODEL, connection(variant, **changes), seed=0)
    backbone = {id(p) for _, p in model.backbone_parameters()}
    mixing = {
        id(p)
        for one in model.connections()
        for name, p in one.named_parameters()
        if name in one.mixing
    }
    found = {id(p): g.rate_factor for g in model.parameter_groups() for p in g.parameters}
    assert found.keys() == {id(p) for p in model.parameters()}
    for parameter, factor in found.items():
        faster = 2.0 if parameter in mixing and variant in MIXING else 1.0
        expected = 1.0 if parameter in backbone else 3.0 * faster
        assert factor == expected


def test_a_faster_connection_moves_by_the_factor_and_decays_as_before() -> None:
    model = GPT(MODEL, connection("mhc", connection_rate_factor=4.0), seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    AdamW(model, (0.9, 0.95), weight_decay=0.1).step(1e-3)
    decayed = {id(p) for g in model.parameter_groups() if g.decayed for p in g.parameters}
    for name, p in model.named_parameters():
        rate = 4e-3 if ".connection." in name else 1e-3
        expected = before[name] * (1 - 1e-4 * (id(p) in decayed)) - rate
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


# --- equal parameters ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
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
    assert wide.model == replace(other.model, mlp_width=wide.model.mlp_width)
    assert runs["sotu-m-residual-s0"].model.mlp_width is None


@pytest.mark.parametrize("final_norm", ["per_stream", "head"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_before_a_model_is_made(variant: str, final_norm: str) -> None:
    made = connection(variant) if variant == "residual" else connection(variant, 4)
    made = replace(made, final_norm=final_norm)
    found = connection_parameters(
        variant, made.n_streams, 8, MODEL.n_layer, made.options, final_norm == "head"
    )
    assert found == GPT(MODEL, made, 0).parameter_counts()["connection"]


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"variants": ["residual"], "match_parameters": "mhclite"}, "did you mean 'mhc_lite'"),
        ({"variants": ["residual"], "match_parameters": "residual"}, "nothing to widen"),
        ({"variants": ["mhc_lite"], "match_parameters": "identity"}, "nothing to widen"),
        ({"variants": ["hc"], "model": {"n_layer": 3}}, "n_layer"),
        ({"variants": ["hc"], "model": {"qk_norm": "perhaps"}}, "qk_norm"),
        ({"variants": ["hc"], "model": {"qk_norm": False}}, "changes nothing"),
        ({"variants": ["residual"], "connections": {"connection_rate_factor": 2}}, "nothing"),
        ({"variants": ["hc"], "connections": {"connection_rate_factor": 0}}, "greater than 0"),
    ],
)
def test_a_condition_that_makes_no_sense_is_refused(condition: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        study(conditions={"other": {"title": "Other", **condition}})


# --- attention ----------------------------------------------------------------------------------


def attentions(model: GPT) -> list[CausalSelfAttention]:
    return [body for body in model.modules() if isinstance(body, CausalSelfAttention)]


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "fast"])
@pytest.mark.parametrize("variant", ["residual", "hc", "mhc_lite"])
def test_largest_attention_logit(variant: str, implementation: str, qk_norm: bool) -> None:
    """Of what each attention is given, pair by pair."""
    made = connection(variant, implementation=implementation)
    model = GPT(replace(MODEL, qk_norm=qk_norm), made, seed=0)
    with torch.no_grad():
        for body in attentions(model):
            body.c_attn.weight.mul_(30)
    given: list[torch.Tensor] = []
    for body in attentions(model):
        body.register_forward_hook(lambda body, inputs, out: given.append(inputs[0].detach()))
    found = largest_attention_logit(model, TOKENS)
    expected = 0.0
    for body, x in zip(attentions(model), given, strict=True):
        for row in x:
            q, k, _ = body.c_attn(row).detach().chunk(3, dim=-1)
            for head in range(body.n_head):
                width = MODEL.n_embd // body.n_head
                part = slice(head * width, (head + 1) * width)
                q_h, k_h = q[:, part], k[:, part]
                if qk_norm:
                    q_h, k_h = (v / v.square().mean(-1, keepdim=True).sqrt() for v in (q_h, k_h))
                for t in range(len(row)):
                    for s in range(t + 1):
                        expected = max(expected, abs(float(q_h[t] @ k_h[s]) / math.sqrt(width)))
    assert found == pytest.approx(expected, rel=1e-4)
    assert not [hook for body in attentions(model) for hook in body._forward_pre_hooks]


@settings(deadline=None)
@given(st.floats(1.0, 1e6))
def test_qk_norm_bounds_the_logits_whatever_the_weights(size: float) -> None:
    model = GPT(replace(MODEL, qk_norm=True), connection("residual"), seed=0)
    with torch.no_grad():
        for body in attentions(model):
            body.c_attn.weight.mul_(size)
    bound = math.sqrt(MODEL.n_embd // MODEL.n_head)  # with gains of 1
    assert 0 < largest_attention_logit(model, TOKENS) <= bound * (1 + 1e-5)


def test_gains_of_qk_norm_are_learned_and_belong_to_the_backbone() -> None:
    model = GPT(replace(MODEL, qk_norm=True), connection("mhc_lite"), seed=0)
    model.loss(TOKENS).backward()
    backbone = dict(model.backbone_parameters())
    for name in ("q_norm", "k_norm"):
        parameters = [p for key, p in backbone.items() if name in key]
        assert len(parameters) == MODEL.n_layer
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)
    decayed = {id(p) for g in model.parameter_groups() if g.decayed for p in g.parameters}
    assert not decayed & {id(p) for key, p in backbone.items() if "_norm" in key}
