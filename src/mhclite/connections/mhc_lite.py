"""mHC-lite: mixing matrices doubly stochastic by construction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mhclite.connections.dynamic import DynamicConnection
from mhclite.connections.matrices import cyclic_matrices, permutation_matrices


class LiteHC(DynamicConnection):
    """mHC-lite (arXiv 2601.05732): a convex combination of permutations.

    H_res = sum_r softmax(scale_res u w_res + b_res)[r] P_r, over all n! permutations in
    lexicographic order (Birkhoff and von Neumann: theorem 3.1), or with `cyclic` over the n cyclic
    shifts, one of the subsets that the paper proposes. b_res = 0 for the identity permutation, the
    first, and `initial_logit` for the others at first.
    """

    decayed = frozenset({"w_pre", "w_post", "w_res"})
    basis: Tensor

    def __init__(
        self,
        n_streams: int,
        n_embd: int,
        home_stream: int,
        permutations: Literal["all", "cyclic"] = "all",
        initial_logit: float = -8.0,
    ) -> None:
        make = {"all": permutation_matrices, "cyclic": cyclic_matrices}[permutations]
        basis = make(n_streams).flatten(1).to(torch.get_default_dtype())  # (R, n * n)
        b_res = torch.full((len(basis),), initial_logit)
        b_res[0] = 0.0
        super().__init__(n_streams, n_embd, home_stream, b_res)
        self.register_buffer("basis", basis, persistent=False)

    def mixing_matrix(self, logits: Tensor) -> Tensor:
        weights = torch.softmax(logits, dim=-1)  # (B, T, R)
        H_res = weights @ self.basis.to(weights.dtype)
        return H_res.unflatten(-1, (self.n_streams, self.n_streams))


ConnectionClass = LiteHC
