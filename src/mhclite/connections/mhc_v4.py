"""mHC as it ships in DeepSeek V4 and GLM-5.3-Flash."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhclite.connections.base import Coefficients, full_precision
from mhclite.connections.fast.functions import Projection
from mhclite.connections.fast.projected import Projected
from mhclite.connections.fast.sinkhorn_v4 import sinkhorn_v4
from mhclite.connections.head import EPS, unit_rms


def shipped_sinkhorn(logits: Tensor, iterations: int, eps: float) -> Tensor:
    """Sinkhorn-Knopp as DeepSeek V4 has it: rows last, and `eps` beside every sum.

    It begins with a softmax over the output streams of each input stream (columns), plus eps, and
    one normalisation of the rows; then (iterations - 1) times columns and rows.

    Args:
        logits: (..., n, n), in operator orientation.
        iterations: at least 1; 20 in both models.
        eps: 1e-6 in both.

    Returns:
        (..., n, n), positive: rows sum to 1 up to eps, columns carry the error of having stopped.
    """
    M = torch.softmax(logits, dim=-2) + eps
    M = M / (M.sum(-1, keepdim=True) + eps)
    for _ in range(iterations - 1):
        M = M / (M.sum(-2, keepdim=True) + eps)
        M = M / (M.sum(-1, keepdim=True) + eps)
    return M


class ShippedHC(Projected):
    """Manifold-constrained hyper-connections (arXiv 2512.24880) as shipped in 2026.

    As the package transformers (5.24.0) computes them for DeepSeek V4 and GLM-5.3-Flash. With
    u = vec x / sqrt(mean(vec x^2) + norm_eps) in R^{nC}, without gain:

        H_pre  = sigmoid(scale_pre u w_pre + b_pre) + hc_eps
        H_post = 2 sigmoid(scale_post u w_post + b_post)
        H_res  = shipped_sinkhorn of scale_res mat(u w_res) + b_res

    `mat` fills H_res[t, s] from column t * n + s. Coefficients are computed in float32, whatever
    the streams are; `fast` and `fused` round w to the dtype of the streams, as of all variants.
    docs/deviations.md lists the differences to `mhc`, the code of mHC-lite's authors.

    Initialisation of that package: w normal with standard deviation 0.02, b = 0, scales 1. But for
    what w adds, each stream is read with 1/2, written with 1 and mixed with 1/n: no stream is the
    home of a sub-layer. All b are one vector there, which by the rule of ranks is not decayed.
    """

    decayed = frozenset({"w_pre", "w_post", "w_res"})

    def __init__(
        self,
        n_streams: int,
        n_embd: int,
        home_stream: int,
        sinkhorn_iterations: int = 20,
        norm_eps: float = EPS,
        hc_eps: float = EPS,
    ) -> None:
        super().__init__(n_streams, n_embd, home_stream)
        n, width = n_streams, n_streams * n_embd
        self.w_pre = nn.Parameter(torch.zeros(width, n))
        self.w_post = nn.Parameter(torch.zeros(width, n))
        self.w_res = nn.Parameter(torch.zeros(width, n * n))
        self.b_pre = nn.Parameter(torch.zeros(n))
        self.b_post = nn.Parameter(torch.zeros(n))
        self.b_res = nn.Parameter(torch.zeros(n, n))
        self.scale_pre = nn.Parameter(torch.ones(1))
        self.scale_post = nn.Parameter(torch.ones(1))
        self.scale_res = nn.Parameter(torch.ones(1))
        self.sinkhorn_iterations = sinkhorn_iterations
        self.norm_eps, self.hc_eps = norm_eps, hc_eps

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        for w in (self.w_pre, self.w_post, self.w_res):
            nn.init.normal_(w, std=0.02, generator=generator)

    def normalised(self, x: Tensor) -> Tensor:
        """u, (B, T, nC)."""
        return unit_rms(x.flatten(-2), self.norm_eps)

    def residual_logits(self, u: Tensor) -> Tensor:
        """scale_res mat(u w_res) + b_res, (B, T, n, n)."""
        return self.scale_res * (u @ self.w_res).unflatten(-1, self.b_res.shape) + self.b_res

    def coefficients(self, x: Tensor) -> Coefficients:
        with full_precision(x.device.type):
            u = self.normalised(x)
            H_pre = torch.sigmoid(self.scale_pre * (u @ self.w_pre) + self.b_pre) + self.hc_eps
            H_post = 2 * torch.sigmoid(self.scale_post * (u @ self.w_post) + self.b_post)
            logits = self.residual_logits(u)
            H_res = shipped_sinkhorn(logits, self.sinkhorn_iterations, self.hc_eps)
        return Coefficients(H_pre, H_post, H_res)

    def sinkhorn_input(self, x: Tensor) -> Tensor:
        with full_precision(x.device.type):
            return self.residual_logits(self.normalised(x))

    def projection(self) -> Projection:
        weights = (
            self.scale_pre * self.w_pre,
            self.scale_post * self.w_post,
            self.scale_res * self.w_res,
        )
        bias = torch.cat((self.b_pre, self.b_post, self.b_res.flatten()))
        return Projection(torch.cat(weights, dim=1), bias, "rms", self.norm_eps)

    def read_offset_and_scale(self) -> tuple[Tensor, None]:
        return self.b_pre.new_full((self.n_streams,), self.hc_eps, dtype=torch.float32), None

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.n_streams
        H_pre, H_post = torch.sigmoid(a[:, : 2 * n]).split(n, dim=1)
        matrices = a[:, 2 * n :].unflatten(1, (n, n))
        H_res = sinkhorn_v4(matrices, self.sinkhorn_iterations, self.hc_eps)
        return H_pre + self.hc_eps, 2 * H_post, H_res


ConnectionClass = ShippedHC
