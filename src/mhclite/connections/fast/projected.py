"""A connection that says how to be computed fast: one projection, and coefficients from it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mhclite.connections.base import Branch, Coefficients, Connection, full_precision
from mhclite.connections.fast import functions
from mhclite.connections.fast.functions import Projection


class Projected(Connection):
    """A connection whose coefficients come from one product with the streams.

    `fast` and `fused` compute that product, the norm and the streams' passes for every variant
    alike; the variant says what to multiply with (`projection`) and what its coefficients are from
    there (`from_projection`). `coefficients` stays the formula that both must equal.
    """

    # How H_pre comes from the first columns of the projection, for the fused implementation.
    read_activation: ClassVar[str] = "sigmoid"

    def projection(self) -> Projection:
        """What the streams are multiplied with, for all coefficients at once."""
        raise NotImplementedError

    @property
    def has_projection(self) -> bool:
        return type(self).projection is not Projected.projection

    def read_offset_and_scale(self) -> tuple[Tensor | None, Tensor | None]:
        """Offset (n) and scale (1) of H_pre after `read_activation`, if it has any.

        H_pre = offset + scale f(a); either may be learned.
        """
        return None, None

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """H_pre, H_post (N, n) and H_res (N, n, n) from what the projection gives.

        Args:
            a: (N, K), or (N, n, K) where each stream is projected by itself; float32 at least.

        Returns:
            None for H_res if it is the identity.
        """
        raise NotImplementedError

    def fast_coefficients(self, x: Tensor) -> Coefficients:
        """As `coefficients`, from the projection."""
        a, _ = functions.project(x.reshape(-1, *x.shape[-2:]), self.projection())
        H_pre, H_post, H_res = self.from_projection(a)
        if H_res is None:
            H_res = torch.eye(self.n_streams, dtype=x.dtype, device=x.device).expand(len(a), -1, -1)
        return Coefficients(*(H.unflatten(0, x.shape[:2]) for H in (H_pre, H_post, H_res)))

    def fast_forward(self, x: Tensor, branch: Branch) -> Tensor:
        """As `forward`, equal up to rounding. Without a projection, `forward` itself.

        Under autocast the products with the streams are in its dtype, as the authors' are, and all
        coefficients in float32.

        Raises:
            ValueError: streams or a branch's output of another shape.
        """
        if not self.has_projection:
            return super().fast_forward(x, branch)
        branch = self.checked(x, branch)
        kind, shape = x.device.type, x.shape
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        # What the reference returns under autocast: the rounded product plus a float32 term.
        stored = torch.promote_types(dtype, torch.float32)
        with full_precision(kind):
            streams = x.reshape(-1, *shape[-2:]).to(dtype)  # (N, n, C)
            a, streams = functions.project(streams, self.projection())
            H_pre, H_post, H_res = self.from_projection(a)
            h, streams = functions.read(streams, H_pre)
        y = branch(h.unflatten(0, shape[:2])).flatten(0, -2)
        with full_precision(kind):
            return functions.combine(streams, H_res, H_post, y, stored).view(shape)


def projected(connection: Connection) -> Projected:
    """The connection, where it is known to have a projection."""
    assert isinstance(connection, Projected), type(connection)
    assert connection.has_projection, type(connection)
    return connection
