"""Hyper-Connections."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhclite.connections.base import Coefficients
from mhclite.connections.fast.functions import Projection
from mhclite.connections.fast.projected import Projected
from mhclite.connections.matrices import rms_norm


class HyperConnection(Projected):
    """Dynamic hyper-connections (arXiv 2409.19606, section 2.3), unconstrained.

    With u[s] = RMSNorm(x[s]) in R^C of each stream by itself:

        H_pre[s]    = b_pre[s]    + scale_alpha tanh(u[s] . w_pre)
        H_res[t, s] = b_res[t, s] + scale_alpha tanh(u[s] . w_res[:, t])
        H_post[s]   = b_post[s]   + scale_post  tanh(u[s] . w_post)

    Initialisation: b_pre = e_i for home stream i, b_res = I, b_post = 1, w_* = 0, scales 0.01.
    """

    # b_pre and b_res are one matrix in the authors' code, w_post one vector.
    decayed = frozenset({"w_pre", "w_res", "b_pre", "b_res"})
    read_activation = "tanh"

    def __init__(self, n_streams: int, n_embd: int, home_stream: int) -> None:
        super().__init__(n_streams, n_embd, home_stream)
        identity = torch.eye(n_streams)
        self.norm_gain = nn.Parameter(torch.zeros(n_embd))
        self.w_pre = nn.Parameter(torch.zeros(n_embd))
        self.w_post = nn.Parameter(torch.zeros(n_embd))
        self.w_res = nn.Parameter(torch.zeros(n_embd, n_streams))
        self.b_pre = nn.Parameter(identity[home_stream].clone())
        self.b_post = nn.Parameter(torch.ones(n_streams))
        self.b_res = nn.Parameter(identity)
        self.scale_alpha = nn.Parameter(torch.tensor([0.01]))
        self.scale_post = nn.Parameter(torch.tensor([0.01]))

    def coefficients(self, x: Tensor) -> Coefficients:
        u = rms_norm(x, self.norm_gain)  # (B, T, n, C)
        H_pre = self.b_pre + self.scale_alpha * torch.tanh(u @ self.w_pre)
        H_post = self.b_post + self.scale_post * torch.tanh(u @ self.w_post)
        from_stream = torch.tanh(u @ self.w_res)  # (B, T, s, t)
        H_res = self.b_res + self.scale_alpha * from_stream.transpose(-1, -2)
        return Coefficients(H_pre, H_post, H_res)

    def projection(self) -> Projection:
        weight = torch.cat((self.w_pre.unsqueeze(1), self.w_post.unsqueeze(1), self.w_res), dim=1)
        return Projection(weight * (1 + self.norm_gain).unsqueeze(1), None, "rms_stream")

    def read_offset_and_scale(self) -> tuple[Tensor, Tensor]:
        return self.b_pre, self.scale_alpha

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pre, post, res = torch.tanh(a).split((1, 1, self.n_streams), dim=-1)  # (N, s, ...)
        H_res = self.b_res + self.scale_alpha * res.transpose(1, 2)
        H_pre = self.b_pre + self.scale_alpha * pre.squeeze(-1)
        return H_pre, self.b_post + self.scale_post * post.squeeze(-1), H_res


ConnectionClass = HyperConnection
