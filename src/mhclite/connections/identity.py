"""Identity hyper-connections: streams that are read and written, but never mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from mhclite.connections.base import Branch, Coefficients
from mhclite.connections.dynamic import DynamicConnection


class IdentityHC(DynamicConnection):
    """H_res = I exactly; H_pre and H_post as in mHC (arXiv 2512.24880, eq. 7 and 8).

    The baseline that tells what mixing itself buys. By the rule of the authors' code (decay by
    tensor rank) b_pre, a vector here, would not be decayed.
    """

    decayed = frozenset({"w_pre", "w_post"})

    def __init__(self, n_streams: int, n_embd: int, home_stream: int) -> None:
        super().__init__(n_streams, n_embd, home_stream, b_res=None)

    def coefficients(self, x: Tensor) -> Coefficients:
        H_pre, H_post = self.read_write(self.normalised(x))
        identity = torch.eye(self.n_streams, dtype=x.dtype, device=x.device)
        return Coefficients(H_pre, H_post, identity.expand(*x.shape[:2], -1, -1))

    def fast_mixing_matrix(self, logits: Tensor) -> None:
        return None

    def formula(self, x: Tensor, branch: Branch) -> Tensor:
        H_pre, H_post = self.read_write(self.normalised(x))
        y = branch(torch.einsum("bts,btsc->btc", H_pre, x))
        # Under autocast the mixing variants round what they carry on to bf16: so here.
        return x.to(y.dtype) + torch.einsum("btc,bts->btsc", y, H_post)


ConnectionClass = IdentityHC
