"""JPmHC: orthogonal mixing matrices through the Cayley transform."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from mhclite.connections.base import Coefficients
from mhclite.connections.fast.functions import Projection
from mhclite.connections.fast.projected import Projected
from mhclite.connections.matrices import cayley


class OrthogonalHC(Projected):
    """JPmHC's Cayley arm (arXiv 2602.18308).

    One linear map without bias takes u = LayerNorm(vec x) in R^{nC} to three n x n blocks
    [pre | post | res]. P = softmax of the pre block over its input streams (rows), Q = softmax of
    the post block over its output streams (columns), H_res = Cayley transform of the res block.
    The branch reads the mean over streams of P x and its output is broadcast through Q:

        H_pre[s]  = mean_t P[t, s]        H_post[t] = sum_s Q[t, s]

    No official code was found. The initialisation is ours: weights normal with standard deviation
    0.02, as the backbone's; with zero weights all streams would stay equal for ever. The home
    stream has no part in it.
    """

    decayed = frozenset({"w_pre", "w_post", "w_res"})
    read_activation = "softmax"
    CAYLEY_ITERATIONS: ClassVar = 2  # the paper's; H_res is then only nearly orthogonal

    def __init__(self, n_streams: int, n_embd: int, home_stream: int) -> None:
        super().__init__(n_streams, n_embd, home_stream)
        width = n_streams * n_embd
        self.norm = nn.LayerNorm(width)
        self.w_pre = nn.Parameter(torch.zeros(width, n_streams**2))
        self.w_post = nn.Parameter(torch.zeros(width, n_streams**2))
        self.w_res = nn.Parameter(torch.zeros(width, n_streams**2))

    def initialise(self, generator: torch.Generator) -> None:
        super().initialise(generator)
        drawn = nn.init.normal_(self.weight().detach(), std=0.02, generator=generator)
        with torch.no_grad():
            for own, block in zip((self.w_pre, self.w_post, self.w_res), drawn.chunk(3, dim=1)):
                own.copy_(block)

    def weight(self) -> Tensor:
        """The linear map, (nC, 3 n^2): [pre | post | res]."""
        return torch.cat((self.w_pre, self.w_post, self.w_res), dim=1)

    def coefficients(self, x: Tensor) -> Coefficients:
        n = self.n_streams
        # At least float32: the transform is not closed under the rounding of bfloat16.
        blocks = (self.norm(x.flatten(-2)) @ self.weight()).unflatten(-1, (3, n, n))
        pre, post, res = blocks.to(torch.promote_types(blocks.dtype, torch.float32)).unbind(-3)
        H_pre = torch.softmax(pre, dim=-1).mean(-2)
        H_post = torch.softmax(post, dim=-2).sum(-1)
        return Coefficients(H_pre, H_post, cayley(res, self.CAYLEY_ITERATIONS))

    def projection(self) -> Projection:
        w = self.weight()
        weight, bias = self.norm.weight.unsqueeze(1) * w, self.norm.bias @ w
        return Projection(weight, bias, "layer", self.norm.eps)

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n = self.n_streams
        pre, post, res = a.unflatten(1, (3, n, n)).unbind(1)
        # Softmax over its input streams: on a CPU several times faster than torch's over so few.
        weights = (pre - pre.detach().amax(2, keepdim=True)).exp()
        H_pre = (weights / weights.sum(2, keepdim=True)).mean(1)
        return H_pre, torch.softmax(post, dim=1).sum(2), cayley(res, self.CAYLEY_ITERATIONS)


ConnectionClass = OrthogonalHC
