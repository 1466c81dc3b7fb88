"""KromHC: mixing matrices as Kronecker products of 2 x 2 doubly stochastic factors."""

from __future__ import annotations

import torch
from torch import Tensor

from mhclite.connections.dynamic import DynamicConnection
from mhclite.connections.matrices import kronecker_factors


class KroneckerHC(DynamicConnection):
    """KromHC (arXiv 2601.21579) with n = 2^K streams.

    H_res = U_1 kron ... kron U_K, U_k = [[p, 1 - p], [1 - p, p]], where (p, 1 - p) is the softmax
    of the k-th pair of scale_res u w_res + b_res. Kronecker products of doubly stochastic matrices
    are doubly stochastic (theorem 4.2). Each pair of b_res is (0, `initial_logit`) at first.
    """

    decayed = frozenset({"w_pre", "w_post", "w_res"})
    exclusive_or: Tensor

    def __init__(
        self, n_streams: int, n_embd: int, home_stream: int, initial_logit: float = -8.0
    ) -> None:
        factors = n_streams.bit_length() - 1
        assert n_streams == 2**factors
        pairs = torch.tensor([0.0, initial_logit] * factors)
        super().__init__(n_streams, n_embd, home_stream, pairs)
        stream = torch.arange(n_streams)
        bits = stream.unsqueeze(1) ^ stream  # (n, n)
        one_hot = torch.nn.functional.one_hot(bits.flatten(), n_streams).t()
        self.register_buffer(
            "exclusive_or", one_hot.to(torch.get_default_dtype()), persistent=False
        )  # (n, n * n): row r is the permutation that takes s to s xor r

    def mixing_matrix(self, logits: Tensor) -> Tensor:
        return kronecker_factors(torch.softmax(logits.unflatten(-1, (-1, 2)), dim=-1))

    def fast_mixing_matrix(self, logits: Tensor) -> Tensor:
        # Entry (t, s) depends on t xor s alone: factor k gives p[k] or 1 - p[k] by its k-th bit.
        K = logits.shape[1] // 2
        p = torch.softmax(logits.unflatten(1, (K, 2)), dim=-1)  # (N, K, 2)
        weights = p[:, 0] if K else p.new_ones(len(p), 1)
        for k in range(1, K):
            weights = (weights.unsqueeze(2) * p[:, k].unsqueeze(1)).flatten(1)
        n = self.n_streams
        return (weights @ self.exclusive_or.to(weights.dtype)).unflatten(1, (n, n))


ConnectionClass = KroneckerHC
