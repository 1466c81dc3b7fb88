"""Coefficients from all streams of a token at once, as in mHC and what derives from it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhclite.connections.base import Coefficients
from mhclite.connections.fast.functions import Projection
from mhclite.connections.fast.projected import Projected
from mhclite.connections.matrices import rms_norm


class DynamicConnection(Projected):
    """What the mHC family shares: coefficients from all n streams of a token at once.

    u = RMSNorm(vec x) in R^{nC} (mHC, eq. 7), H_pre = sigmoid(scale_pre u w_pre + b_pre),
    H_post = 2 sigmoid(scale_post u w_post + b_post) (eq. 8), and logits scale_res u w_res + b_res
    from which each variant makes its H_res.

    Initialisation (the authors' code): w_* = 0, scales 0.01, b_pre = b_post = -1 but +1 at the
    home stream, b_res as given by the subclass.

    Args:
        b_res: initial residual logits; their number is the width of w_res. None: no w_res.
        learned_scale: whether scale_res is trained.
    """

    def __init__(
        self,
        n_streams: int,
        n_embd: int,
        home_stream: int,
        b_res: Tensor | None,
        learned_scale: bool = True,
    ) -> None:
        super().__init__(n_streams, n_embd, home_stream)
        width = n_streams * n_embd
        home = torch.full((n_streams,), -1.0)
        home[home_stream] = 1.0
        self.norm_gain = nn.Parameter(torch.zeros(width))
        self.w_pre = nn.Parameter(torch.zeros(width, n_streams))
        self.w_post = nn.Parameter(torch.zeros(width, n_streams))
        self.b_pre = nn.Parameter(home.clone())
        self.b_post = nn.Parameter(home.clone())
        self.scale_pre = nn.Parameter(torch.tensor([0.01]))
        self.scale_post = nn.Parameter(torch.tensor([0.01]))
        if b_res is not None:
            self.w_res = nn.Parameter(torch.zeros(width, b_res.numel()))
            self.b_res = nn.Parameter(b_res.clone())
            scale = torch.tensor([0.01])
            if learned_scale:
                self.scale_res = nn.Parameter(scale)
            else:
                self.register_buffer("scale_res", scale, persistent=False)

    def normalised(self, x: Tensor) -> Tensor:
        """u, (B, T, nC)."""
        return rms_norm(x.flatten(-2), self.norm_gain)

    def read_write(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """H_pre and H_post, (B, T, n) each."""
        H_pre = torch.sigmoid(self.scale_pre * (u @ self.w_pre) + self.b_pre)
        H_post = 2 * torch.sigmoid(self.scale_post * (u @ self.w_post) + self.b_post)
        return H_pre, H_post

    def residual_logits(self, u: Tensor) -> Tensor:
        """scale_res u w_res + b_res, (B, T, *b_res.shape); row-major where b_res is a matrix."""
        return self.scale_res * (u @ self.w_res).unflatten(-1, self.b_res.shape) + self.b_res

    def mixing_matrix(self, logits: Tensor) -> Tensor:
        """H_res, (B, T, n, n), from the residual logits."""
        raise NotImplementedError

    def coefficients(self, x: Tensor) -> Coefficients:
        u = self.normalised(x)
        H_pre, H_post = self.read_write(u)
        return Coefficients(H_pre, H_post, self.mixing_matrix(self.residual_logits(u)))

    def projection(self) -> Projection:
        weights: list[Tensor] = [self.scale_pre * self.w_pre, self.scale_post * self.w_post]
        biases: list[Tensor] = [self.b_pre, self.b_post]
        if hasattr(self, "w_res"):
            weights.append(self.scale_res * self.w_res)
            biases.append(self.b_res.flatten())
        weight = torch.cat(weights, dim=1) * (1 + self.norm_gain).unsqueeze(1)
        return Projection(weight, torch.cat(biases), "rms")

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        n = self.n_streams
        H_pre, H_post = torch.sigmoid(a[:, : 2 * n]).split(n, dim=1)
        return H_pre, 2 * H_post, self.fast_mixing_matrix(a[:, 2 * n :])

    def fast_mixing_matrix(self, logits: Tensor) -> Tensor | None:
        """H_res, (N, n, n), from the residual logits (N, b_res.numel()); None is the identity."""
        return self.mixing_matrix(logits.unflatten(1, self.b_res.shape))
