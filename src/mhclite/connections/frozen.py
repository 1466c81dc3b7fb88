"""A variant without its mixing."""

from __future__ import annotations

import torch
from torch import Tensor

from mhclite.connections.base import Coefficients
from mhclite.connections.fast.projected import Projected


class Frozen(Projected):
    """Mixin, before a variant's class: its reads and writes, and H_res = I whatever it learns.

    The control that tells what a variant's mixing buys from what its reads and writes do.
    """

    def coefficients(self, x: Tensor) -> Coefficients:
        found = super().coefficients(x)
        identity = torch.eye(self.n_streams, dtype=found.H_res.dtype, device=x.device)
        return found._replace(H_res=identity.expand_as(found.H_res))

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        H_pre, H_post, _ = super().from_projection(a)
        return H_pre, H_post, None

    def sinkhorn_input(self, x: Tensor) -> None:
        return None
