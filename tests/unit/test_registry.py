"""The registry: what it says of a variant is what the variant's class does."""

from __future__ import annotations

import inspect

import pytest
import torch
from tiny import VARIANTS, connection, streams_of

from benchmarks.kernels import Case, connection_of
from benchmarks.session import PAPER
from mhclite.config import MODEL_FIELDS
from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.dynamic import DynamicConnection
from mhclite.connections.registry import VARIANTS as REGISTRY
from mhclite.study.sections import Connections

C = 16


def made(variant: str) -> Connection:
    """With weights all of which matter."""
    own = connection(variant, streams_of(variant)[-1])
    found = connection_class(variant)(own.n_streams, C, 0, **own.options).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_mixes_says_what_h_res_is(variant: str) -> None:
    one = made(variant)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, one.n_streams, C, generator=generator).double()
    H = one.coefficients(x).H_res
    identity = torch.eye(one.n_streams).double().expand_as(H)
    exact = [bool((H.sum(dim) - 1).abs().max() < 0.02 and H.min() >= 0) for dim in (-1, -2)]
    mixes = REGISTRY[variant].mixes
    assert torch.equal(H, identity) == (mixes == "never")
    assert all(exact) == (mixes in ("never", "doubly_stochastic"))
    assert any(exact) == (mixes != "freely")


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "residual"])
def test_own_reads_are_those_that_are_not_made_as_the_controls(variant: str) -> None:
    made_by = connection_class(variant)
    usual = issubclass(made_by, DynamicConnection) and all(
        getattr(made_by, name) is getattr(DynamicConnection, name)
        for name in ("normalised", "read_write", "from_projection")
    )
    assert REGISTRY[variant].own_reads != usual


@pytest.mark.parametrize("variant", VARIANTS)
def test_options_are_settings_and_reach_the_class(variant: str) -> None:
    """With the default of the setting, so that what is built without a study is the same."""
    options = REGISTRY[variant].options
    arguments = inspect.signature(connection_class(variant)).parameters
    assert set(options) <= set(Connections.model_fields)
    for name in set(options) - MODEL_FIELDS:
        argument = arguments[name]
        if argument.default is not argument.empty:
            assert argument.default == Connections.model_fields[name].default, name
    n = streams_of(variant)[-1]
    ours, theirs = connection(variant, n).options, connection_of(Case(variant, n)).options
    made = [connection_class(variant)(n, C, 0, **own).state_dict() for own in (ours, theirs)]
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


def test_labels_are_told_apart() -> None:
    assert len({one.label.casefold() for one in REGISTRY.values()}) == len(REGISTRY)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_session_measures_what_has_kernels(variant: str) -> None:
    assert (variant in PAPER.variants) == made(variant).has_projection
