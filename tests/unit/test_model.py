"""The GPT around the connections: sizes, initial weights, decay groups, causality."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import MIXING, MODEL, REGISTRY, VARIANTS, connection
from tiny import perturbed as moved

from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections import connection_class
from mhclite.model import GPT
from mhclite.study.sections import Connections

SIZES = {"S": (6, 8, 512), "M": (12, 12, 768), "L": (24, 16, 1024)}
BACKBONE = {"S": 45_160_960, "M": 124_373_760, "L": 354_599_936}
EXTRA = {
    "hc": {"S": 43_320, "M": 129_648, "L": 345_312},
    "mhc": {"S": 614_724, "M": 1_843_848, "L": 4_916_496},
    "mhc_lite": {"S": 811_428, "M": 2_433_864, "L": 6_489_744},
    "kromhc": {"S": 319_668, "M": 958_824, "L": 2_556_624},
}


@pytest.mark.parametrize("size", SIZES)
def test_models_have_the_papers_size(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The large models hold gigabytes: on the meta device they hold nothing.
    monkeypatch.setattr(GPT, "_initialise", lambda *_: None)
    n_layer, n_head, n_embd = SIZES[size]
    model = ModelConfig(size, 50304, n_layer, n_head, n_embd, 1024, 1e-3)
    with torch.device("meta"):
        counts = GPT(model, connection("residual"), seed=0).parameter_counts()
    assert counts == {"total": BACKBONE[size], "connection": 0}
    for variant, extra in EXTRA.items():
        one = connection_class(variant)(4, n_embd, 0, **connection(variant).options)
        assert 2 * n_layer * sum(p.numel() for p in one.parameters()) == extra[size]


@pytest.mark.parametrize("variant", VARIANTS)
def test_backbone_seed_and_decay_groups(variant: str) -> None:
    """The backbone is that of the plain residual; what is drawn follows the seed; each parameter is
    in one group, and of the connections' those decay that the class says."""
    settings = connection(variant)
    model, again, other = (GPT(MODEL, settings, seed) for seed in (1, 1, 2))
    plain = dict(GPT(MODEL, connection("residual"), seed=1).backbone_parameters())
    ours = dict(model.backbone_parameters())
    assert ours.keys() == plain.keys()
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    counts, own = model.parameter_counts(), [p for c in model.connections() for p in c.parameters()]
    assert counts["connection"] == sum(p.numel() for p in own)
    assert counts["total"] - counts["connection"] == sum(p.numel() for p in plain.values())

    first, second, third = (one.state_dict() for one in (model, again, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], third[name])}
    one = connection_class(variant)(settings.n_streams, MODEL.n_embd, 0, **settings.options)
    before = {name: p.clone() for name, p in one.state_dict().items()}
    one.initialise(torch.Generator().manual_seed(0))
    drawn = {name for name, p in one.state_dict().items() if not torch.equal(p, before[name])}
    assert differing == {"wte.weight", "wpe.weight"} | {
        name for name in first if ".body." in name or name.partition(".connection.")[2] in drawn
    }

    groups = model.parameter_groups()
    ids = [id(p) for group in groups for p in group.parameters]
    assert sorted(ids) == sorted(map(id, model.parameters()))
    decayed = {id(p) for group in groups if group.decayed for p in group.parameters}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert "wte.weight" in names
    assert "ln_f.weight" not in names
    for k, one in enumerate(model.connections()):
        prefix = f"sublayers.{k}.connection."
        found = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        assert found == one.decayed  # every name in the set is a parameter


@pytest.mark.parametrize("variant", VARIANTS)
def test_later_tokens_do_not_change_earlier_logits(variant: str) -> None:
    # Away from the start, where most mixing weights are zero.
    model = moved(GPT(MODEL, connection(variant), seed=0).double())
    tokens = torch.arange(12).view(2, 6)
    before = model(tokens)
    for place in (1, 5):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % MODEL.vocab_size
        after = model(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=1e-12, atol=1e-12)
        assert (after[:, place:] - before[:, place:]).abs().amax((0, 2)).min() > 1e-6


def test_loss_is_the_mean_cross_entropy() -> None:
    model = GPT(MODEL, connection("mhc_lite"), seed=0).double()
    tokens = torch.arange(14).view(2, 7)
    logs = model(tokens[:, :-1]).log_softmax(-1)
    by_hand = [-logs[b, t, tokens[b, t + 1]] for b in range(2) for t in range(6)]
    torch.testing.assert_close(model.loss(tokens), torch.stack(by_hand).mean())


# --- what docs/deviations.md calls a switch ---------------------------------------------------


def test_defaults_are_those_of_the_study_file() -> None:
    # A model made by hand computes the plain formula; a study what is fast.
    fields = {f.name: f.default for f in dataclasses.fields(ConnectionConfig)}
    known = {name: fields[name] for name in fields if name in Connections.model_fields}
    expected = known | {"implementation": "auto", "n_streams": 4}
    assert Connections().model_dump().items() >= expected.items()
    assert len(expected) == 9


def perturbed(variant: str, **settings: Any) -> GPT:
    """A model away from its initial values, the same for any settings."""
    return moved(GPT(MODEL, connection(variant, **settings), seed=0), 0.1)


def test_home_streams_go_round_or_are_the_seeds() -> None:
    def homes(seed: int, where: str) -> list[int]:
        settings = connection("mhc", home_stream=where)
        model = GPT(replace(MODEL, n_layer=10), settings, seed=seed)
        return [c.home_stream for c in model.connections()]

    assert homes(0, "alternate") == [0, 1, 2, 3] * 5
    assert homes(0, "random") == homes(0, "random") != homes(1, "random")
    assert set(homes(0, "random")) == {0, 1, 2, 3}


def test_final_norm_by_hand() -> None:
    tokens = torch.arange(12).view(2, 6)
    for where in ("per_stream", "after_sum", "head"):
        model = perturbed("mhc", final_norm=where)
        x = model.embed(tokens)
        for sublayer in model.sublayers:
            x = sublayer(x)
        if where == "after_sum":
            out = model.ln_f(x.sum(2))
        elif where == "head":
            vec = x.flatten(2)
            u = vec / (vec.square().mean(-1, keepdim=True) + 1e-6).sqrt()
            weights = torch.sigmoid(model.head.scale * (u @ model.head.w) + model.head.b) + 1e-6
            out = model.ln_f(sum(weights[:, :, s, None] * x[:, :, s] for s in range(4)))
        else:
            out = sum(model.ln_f(x[:, :, s]) for s in range(4))
        torch.testing.assert_close(model(tokens), out @ model.wte.weight.T)
    sums = [perturbed("mhc", final_norm=w)(tokens) for w in ("per_stream", "after_sum")]
    assert (sums[0] - sums[1]).abs().max() > 0.1


def test_learned_read_beside_the_rest() -> None:
    """Its parameters are extra ones, drawn last; half of every stream is read at first, in float32
    also under autocast. One stream has none."""
    plain, learned = (
        GPT(MODEL, connection("jpmhc", final_norm=where), seed=3) for where in ("after_sum", "head")
    )
    theirs, ours = plain.state_dict(), learned.state_dict()
    assert ours.keys() - theirs.keys() == {"head.w", "head.b", "head.scale"}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    n, C = 4, MODEL.n_embd
    counts, more = plain.parameter_counts(), learned.parameter_counts()
    assert more == {name: count + n * C * n + n + 1 for name, count in counts.items()}
    decayed = {id(p): g.decayed for g in learned.parameter_groups() for p in g.parameters}
    assert [decayed[id(p)] for p in learned.head.parameters()] == [True, False, False]
    assert learned.head.w.std().item() == pytest.approx(0.02, rel=0.2)
    x = torch.randn(2, 3, n, C, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        read = learned.head(x)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, x.float().sum(2) / 2, rtol=0.2, atol=0.2)
    exact = learned.head.double()(x.double()).float()
    torch.testing.assert_close(read, exact, rtol=1e-5, atol=1e-6)
    assert GPT(MODEL, connection("mhc", 1, final_norm="head"), seed=0).head is None


@pytest.mark.parametrize(
    "variant", ["residual", *(v for v in VARIANTS if "decay_logits" in REGISTRY[v].options)]
)
def test_decay_of_logits(variant: str) -> None:
    def decayed(policy: str) -> set[str]:
        model = GPT(MODEL, connection(variant, decay_logits=policy), seed=0)
        groups = model.parameter_groups()
        ids = {id(p) for group in groups if group.decayed for p in group.parameters}
        return {
            name.split("connection.")[1]
            for name, p in model.named_parameters()
            if "connection." in name and id(p) in ids
        }

    one = next(GPT(MODEL, connection(variant), seed=0).connections())
    logits = one.logits & dict(one.named_parameters()).keys()
    authors = decayed("authors")
    assert authors & logits == one.decayed & logits
    assert decayed("never") == authors - logits
    assert decayed("always") == authors | logits
    assert not any(name.startswith(("scale", "b_post")) for name in decayed("always"))


@pytest.mark.parametrize("variant", MIXING)
@pytest.mark.parametrize("implementation", ["reference", "fast"])
def test_frozen_mixing_is_the_identity_and_leaves_reads_and_writes(
    variant: str, implementation: str
) -> None:
    settings = {"implementation": implementation}
    moving, frozen = (perturbed(variant, freeze_mixing=f, **settings) for f in (False, True))
    x = torch.randn(2, 3, 4, MODEL.n_embd)
    for one, other in zip(moving.connections(), frozen.connections(), strict=True):
        for found in (other.coefficients(x), other.fast_coefficients(x)):
            expected = one.coefficients(x)
            torch.testing.assert_close(found.H_pre, expected.H_pre)
            torch.testing.assert_close(found.H_post, expected.H_post)
            assert torch.equal(found.H_res, torch.eye(4).expand(2, 3, 4, 4))
        assert (expected.H_res - torch.eye(4)).abs().max() > 1e-4
        assert other.sinkhorn_input(x) is None
    tokens = torch.randint(MODEL.vocab_size, (2, 6))
    assert (moving(tokens) - frozen(tokens)).abs().max() > 1e-5
    frozen.loss(tokens).backward()
    for one in frozen.connections():
        made_of = [p for name, p in one.named_parameters() if name in one.mixing]
        assert made_of
        assert all(p.grad is None or not p.grad.any() for p in made_of)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("wanted", ["authors", "fp32", "bf16"])
def test_dtype_of_the_streams_under_autocast(variant: str, wanted: str) -> None:
    model = perturbed(variant, stream_dtype=wanted)
    branches: list[torch.dtype] = []
    for sublayer in model.sublayers:
        sublayer.body.register_forward_hook(lambda *a: branches.append(a[2].dtype))
    for autocast in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            x = model.embed(torch.arange(12).view(2, 6))
            for sublayer in model.sublayers:
                x = sublayer(x)
            silent = model.sublayers[0].connection(x, torch.zeros_like)
        in_bf16 = wanted == "bf16" and autocast
        assert x.dtype == (torch.bfloat16 if in_bf16 else torch.float32)
        if autocast:
            assert set(branches) == {torch.bfloat16}  # the matrix products are bf16 all the same
            # What is carried on is rounded in the authors' code, except for the plain residual.
            rounded = torch.equal(silent.bfloat16().float(), silent.float())
            assert rounded == (variant != "residual" or wanted == "bf16")
        elif wanted == "bf16":
            assert torch.equal(x, x.bfloat16().float())
