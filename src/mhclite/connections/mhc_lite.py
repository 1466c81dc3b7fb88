"""mHC-lite: mixing matrices doubly stochastic by construction."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mhclite.connections.base import DynamicConnection
from mhclite.connections.mixing import permutation_matrices


class LiteHC(DynamicConnection):
    """mHC-lite (arXiv 2601.05732): a convex combination of all n! permutations.

    H_res = sum_r softmax(scale_res u w_res + b_res)[r] P_r (Birkhoff and von Neumann: theorem
    3.1), permutations in lexicographic order. b_res = 0 for the identity permutation and
    `initial_logit` for the others at first.
    """

    decayed = frozenset({"w_pre", "w_post", "w_res"})
    permutations: Tensor

    def __init__(
        self, n_streams: int, n_embd: int, home_stream: int, initial_logit: float = -8.0
    ) -> None:
        b_res = torch.full((math.factorial(n_streams),), initial_logit)
        b_res[0] = 0.0
        super().__init__(n_streams, n_embd, home_stream, b_res)
        self.register_buffer(
            "permutations",
            permutation_matrices(n_streams).flatten(1).to(torch.get_default_dtype()),
            persistent=False,
        )  # (n!, n * n)

    def mixing_matrix(self, logits: Tensor) -> Tensor:
        weights = torch.softmax(logits, dim=-1)  # (B, T, n!)
        H_res = weights @ self.permutations.to(weights.dtype)
        return H_res.unflatten(-1, (self.n_streams, self.n_streams))


ConnectionClass = LiteHC
