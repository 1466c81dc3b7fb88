"""The learned read after the last sub-layer, as DeepSeek V4 has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mhclite.connections.base import full_precision, read_old_scales

EPS = 1e-6  # of the norm and of the weights: both are 1e-6 in DeepSeek V4's configuration


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension, in float32 at least."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


class Head(nn.Module):
    """h = sum over streams s of (sigmoid(scale u w + b) + hc_eps)[s] x[s].

    u = vec x / sqrt(mean(vec x^2) + norm_eps) in R^{nC}. Computed in float32, whatever the streams
    are. Initial values as in the package transformers: w normal with standard deviation 0.02,
    b = 0, scale 1, so that every stream is read with a weight of about 1/2.

    Args:
        n_streams: n.
        n_embd: C.
    """

    def __init__(
        self, n_streams: int, n_embd: int, norm_eps: float = EPS, hc_eps: float = EPS
    ) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(n_streams * n_embd, n_streams))
        self.b = nn.Parameter(torch.zeros(n_streams))
        self.scale = nn.Parameter(torch.ones(1))
        self.norm_eps, self.hc_eps = norm_eps, hc_eps

    def initialise(self, generator: torch.Generator) -> None:
        """Set all parameters to their initial values; those of w are random."""
        nn.init.normal_(self.w, std=0.02, generator=generator)
        nn.init.zeros_(self.b)
        nn.init.ones_(self.scale)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        read_old_scales(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *more)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, n, C) -> (B, T, C), float32 at least."""
        with full_precision(x.device.type):
            u = unit_rms(x.flatten(-2), self.norm_eps)
            weights = torch.sigmoid(self.scale * (u @ self.w) + self.b) + self.hc_eps  # (B, T, n)
            return torch.einsum("bts,btsc->btc", weights, x.to(weights.dtype))
