"""osHC: mixing matrices stochastic on one side."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mhclite.connections.dynamic import DynamicConnection


class OneSidedHC(DynamicConnection):
    """One-sided stochastic mixing (osHC, OpenReview 1BC0eYN2uS: its idea; the rest is inferred).

    H_res = softmax of scale_res mat(u w_res) + b_res over one axis: `rows`, over the input streams
    of each output stream, which is then a weighted mean of them; `columns`, over the output streams
    of each input stream, which keeps the sum over streams. b_res = 0 on the diagonal and
    `initial_logit` off it at first; reads, writes and initial values are the mHC family's.

    The sums over that axis are 1, those over the other are free. So are those of a product over any
    depth, whose spectral norm is therefore at most sqrt(n): ||A||_2^2 <= ||A||_1 ||A||_inf <= n.
    """

    decayed = frozenset({"w_pre", "w_post", "w_res"})

    def __init__(
        self,
        n_streams: int,
        n_embd: int,
        home_stream: int,
        stochastic_axis: Literal["rows", "columns"] = "rows",
        initial_logit: float = -8.0,
    ) -> None:
        b_res = torch.full((n_streams, n_streams), initial_logit).fill_diagonal_(0.0)
        super().__init__(n_streams, n_embd, home_stream, b_res)
        self.axis = {"rows": -1, "columns": -2}[stochastic_axis]

    def mixing_matrix(self, logits: Tensor) -> Tensor:  # (..., n, n)
        return torch.softmax(logits, dim=self.axis)


ConnectionClass = OneSidedHC
