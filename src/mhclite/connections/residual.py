"""The plain residual."""

from __future__ import annotations

from torch import Tensor

from mhclite.connections.base import Branch, Coefficients, Connection


class Residual(Connection):
    """x_out = x + F(LayerNorm(x)), one stream: pre-LayerNorm, as in GPT-2."""

    def formula(self, x: Tensor, branch: Branch) -> Tensor:
        return x + branch(x.squeeze(-2)).unsqueeze(-2)

    def coefficients(self, x: Tensor) -> Coefficients:
        one = x.new_ones(*x.shape[:2], 1)
        return Coefficients(one, one, one.unsqueeze(-1))


ConnectionClass = Residual
