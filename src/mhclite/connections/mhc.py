"""mHC: mixing matrices made nearly doubly stochastic by Sinkhorn-Knopp."""

from __future__ import annotations

import torch
from torch import Tensor

from mhclite.connections.dynamic import DynamicConnection
from mhclite.connections.fast.sinkhorn_operator import sinkhorn
from mhclite.connections.matrices import sinkhorn_knopp


class ManifoldHC(DynamicConnection):
    """Manifold-constrained hyper-connections (arXiv 2512.24880, eq. 7 to 9).

    H_res = Sinkhorn-Knopp of exp(scale_res mat(u w_res) + b_res), `sinkhorn_iterations` times;
    `mat` fills H_res[t, s] from column t * n + s. The columns of H_res sum to 1, its rows carry
    the error of having stopped. b_res = 0 on the diagonal and `initial_logit` off it at first.
    """

    # b_pre and b_res are one matrix in the authors' code.
    decayed = frozenset({"w_pre", "w_post", "w_res", "b_pre", "b_res"})

    def __init__(
        self,
        n_streams: int,
        n_embd: int,
        home_stream: int,
        sinkhorn_iterations: int = 20,
        initial_logit: float = -8.0,
    ) -> None:
        b_res = torch.full((n_streams, n_streams), initial_logit).fill_diagonal_(0.0)
        super().__init__(n_streams, n_embd, home_stream, b_res)
        self.sinkhorn_iterations = sinkhorn_iterations

    def mixing_matrix(self, logits: Tensor) -> Tensor:
        return sinkhorn_knopp(logits, self.sinkhorn_iterations)

    def fast_mixing_matrix(self, logits: Tensor) -> Tensor:
        matrices = logits.unflatten(1, (self.n_streams, self.n_streams))
        return sinkhorn(matrices, self.sinkhorn_iterations)

    def sinkhorn_input(self, x: Tensor) -> Tensor:
        return self.residual_logits(self.normalised(x))


ConnectionClass = ManifoldHC
