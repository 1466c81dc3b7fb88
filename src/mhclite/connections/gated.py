"""Streams that are read channel by channel and never mixed, as Qwen4 ships them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mhclite.connections.base import Branch, Coefficients, Connection


class GatedHC(Connection):
    """Qwen4's gated residual (the package transformers, 5.24.0, `Qwen4ExpTextGatedResidual`).

    With v = u / n, u[s] = x[s] / sqrt(mean(x[s]^2) + norm_eps) * (1 + norm_gain[s]) of each stream
    by itself, all streams of a token side by side in R^{nC}:

        g      = sigmoid(silu(v w_down) w_up)    one number per stream and channel
        h[c]   = mean_s g[s, c] u[s, c]
        H_post = 2 sigmoid(v w_post)             H_res = I

    So h = sum_s H_pre[s] * x[s], channel by channel, with an H_pre of (n, C) for each token; the
    norm is part of it.

    Initialisation (that package's): weights normal with standard deviation 0.02, gains zero, so
    that H_post is about 1 and g about 1/2. The home stream has no part in it.

    Args:
        gate_rank: columns of w_down; None is n_embd / 8, the proportion in Qwen4 (320 of 2560).
        norm_eps: added to the mean square of a stream.
    """

    decayed = frozenset({"w_down", "w_up", "w_post"})

    def __init__(
        self,
        n_streams: int,
        n_embd: int,
        home_stream: int,
        gate_rank: int | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(n_streams, n_embd, home_stream)
        width = n_streams * n_embd
        rank = max(1, n_embd // 8) if gate_rank is None else gate_rank
        self.norm_eps = norm_eps
        self.norm_gain = nn.Parameter(torch.zeros(width))
        self.w_down = nn.Parameter(torch.zeros(width, rank))
        self.w_up = nn.Parameter(torch.zeros(rank, width))
        self.w_post = nn.Parameter(torch.zeros(width, n_streams))

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        for weight in (self.w_down, self.w_up, self.w_post):
            nn.init.normal_(weight, std=0.02, generator=generator)

    def coefficients(self, x: Tensor) -> Coefficients:
        n, C = self.n_streams, self.n_embd
        # What decides is at least float32, whatever the streams and the products are.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.norm_eps)  # (B, T, n, 1)
        scale = inverse * (1 + self.norm_gain).view(n, C) / n
        v = (scale * x).flatten(-2)
        gate = torch.sigmoid((silu(v @ self.w_down) @ self.w_up).to(x.dtype)).unflatten(-1, (n, C))
        H_post = 2 * torch.sigmoid((v @ self.w_post).to(x.dtype))
        H_res = torch.eye(n, dtype=x.dtype, device=x.device).expand(*x.shape[:2], -1, -1)
        return Coefficients(gate * scale, H_post, H_res)

    def formula(self, x: Tensor, branch: Branch) -> Tensor:
        H_pre, H_post, _ = self.coefficients(x)
        # A sum over streams, written as the product that it is in other variants: both are bf16
        # under autocast. So is what they carry on.
        y = branch((H_pre.new_ones(1, self.n_streams) @ (H_pre * x)).squeeze(-2))
        return x.to(y.dtype) + H_post.unsqueeze(-1) * y.unsqueeze(-2)


ConnectionClass = GatedHC
