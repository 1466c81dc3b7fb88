"""The interface of a residual variant, and the parts that several share.

A sub-layer (attention or MLP) is a branch F. With n streams x of each token,

    h     = H_pre x            (C)      what the branch reads
    y     = F(LayerNorm(h))    (C)      what the branch writes
    x_out = H_res x + H_post^T y        x_out[t] = sum_s H_res[t, s] x[s] + H_post[t] y

(mHC, arXiv 2512.24880, eq. 3). Shapes: B batch, T tokens, n streams, C width. H_res is in operator
orientation: row t holds the weights that enter output stream t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from mhclite.connections import fast
from mhclite.connections.fast import Projection
from mhclite.connections.mixing import rms_norm

Branch = Callable[[Tensor], Tensor]


class Coefficients(NamedTuple):
    """The mixing weights of each token."""

    # (B, T, n); of a variant that reads channel by channel (B, T, n, C): h = sum_s H_pre[s] * x[s].
    H_pre: Tensor
    H_post: Tensor  # (B, T, n)
    H_res: Tensor  # (B, T, n, n)


class Connection(nn.Module):
    """One sub-layer's residual connection. Subclasses say how the coefficients are computed.

    Args:
        n_streams: n.
        n_embd: C.
        home_stream: the stream that the branch mainly reads and writes at initialisation; the
            model chooses it. No formula depends on it later: `fused` prepares sub-layers together
            that differ in it.
    """

    # Parameters that get weight decay. The authors decay whatever has two or more dimensions *in
    # their code*; these sets keep that outcome, whatever the shapes here (docs/architecture.md).
    decayed: ClassVar[frozenset[str]] = frozenset()
    # How H_pre comes from the first columns of the projection, for the fused implementation.
    read_activation: ClassVar[str] = "sigmoid"
    # Parameters that make H_res and nothing else.
    mixing: ClassVar[frozenset[str]] = frozenset({"w_res", "b_res", "scale_res"})
    # Static logits, which their code keeps as a matrix in some variants and as a vector in others.
    logits: ClassVar[frozenset[str]] = frozenset({"b_pre", "b_res"})

    def __init__(self, n_streams: int, n_embd: int, home_stream: int) -> None:
        super().__init__()
        assert 0 <= home_stream < n_streams
        self.n_streams = n_streams
        self.n_embd = n_embd
        self.home_stream = home_stream

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the initial values that are random; most variants have none."""

    def coefficients(self, x: Tensor) -> Coefficients:
        """Mixing weights for streams x (B, T, n, C)."""
        raise NotImplementedError

    def sinkhorn_input(self, x: Tensor) -> Tensor | None:
        """Logits that Sinkhorn-Knopp is given, (B, T, n, n); None for variants without it."""
        return None

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        """Streams after this sub-layer.

        Computed as the authors' code does: H_pre and H_res side by side, one product of size
        n + 1, and the branch's output added to every stream.

        Args:
            x: (B, T, n, C).
            branch: (B, T, C) -> (B, T, C), its LayerNorm included.

        Returns:
            (B, T, n, C).
        """
        H_pre, H_post, H_res = self.coefficients(x)
        H = torch.cat((H_pre.unsqueeze(-2), H_res), dim=-2)  # (B, T, 1 + n, n)
        mixed = torch.einsum("btis,btsc->btic", H, x)
        h, carried = mixed[..., 0, :], mixed[..., 1:, :]
        y = branch(h)
        return carried + torch.einsum("btc,bts->btsc", y, H_post)

    def projection(self) -> Projection:
        """The fast and fused implementations: what the streams are multiplied with."""
        raise NotImplementedError

    @property
    def has_projection(self) -> bool:
        """Whether the variant has more than its formula; it need not."""
        return type(self).projection is not Connection.projection

    def read_affine(self) -> tuple[Tensor | None, Tensor | None]:
        """Offset (n) and scale (1) of H_pre after `read_activation`, if it has any.

        H_pre = offset + scale f(a); either may be learned.
        """
        return None, None

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The fast implementation: H_pre, H_post (N, n) and H_res (N, n, n) from `projection`.

        Args:
            a: (N, K), or (N, n, K) where each stream is projected by itself; float32 at least.

        Returns:
            None for H_res if it is the identity.
        """
        raise NotImplementedError

    def fast_coefficients(self, x: Tensor) -> Coefficients:
        """As `coefficients`, by `fast`."""
        a, _ = fast.project(x.reshape(-1, *x.shape[-2:]), self.projection())
        H_pre, H_post, H_res = self.from_projection(a)
        if H_res is None:
            H_res = torch.eye(self.n_streams, dtype=x.dtype, device=x.device).expand(len(a), -1, -1)
        return Coefficients(*(H.unflatten(0, x.shape[:2]) for H in (H_pre, H_post, H_res)))

    def fast_forward(self, x: Tensor, branch: Branch) -> Tensor:
        """As `forward`, by `fast`: equal up to rounding. Without a projection, `forward` itself.

        Under autocast the products with the streams are in its dtype, as the authors' are, and all
        coefficients in float32.
        """
        if not self.has_projection:
            result: Tensor = self(x, branch)
            return result
        kind, shape = x.device.type, x.shape
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else x.dtype
        # What the reference returns under autocast: the rounded product plus a float32 term.
        stored = torch.promote_types(dtype, torch.float32)
        with torch.autocast(kind, enabled=False):
            streams = x.reshape(-1, *shape[-2:]).to(dtype)  # (N, n, C)
            a, streams = fast.project(streams, self.projection())
            H_pre, H_post, H_res = self.from_projection(a)
            h, streams = fast.read(streams, H_pre)
        y = branch(h.view(*shape[:-2], -1)).flatten(0, -2)
        with torch.autocast(kind, enabled=False):
            return fast.combine(streams, H_res, H_post, y, stored).view(shape)


class Frozen(Connection):
    """Mixin, before a variant's class: its reads and writes, and H_res = I whatever it learns.

    The control that tells what a variant's mixing buys from what its reads and writes do.
    """

    def coefficients(self, x: Tensor) -> Coefficients:
        found = super().coefficients(x)
        identity = torch.eye(self.n_streams, dtype=found.H_res.dtype, device=x.device)
        return found._replace(H_res=identity.expand_as(found.H_res))

    def from_projection(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        H_pre, H_post, _ = super().from_projection(a)
        return H_pre, H_post, None

    def sinkhorn_input(self, x: Tensor) -> None:
        return None


class DynamicConnection(Connection):
    """What the mHC family shares: coefficients from all n streams of a token at once.

    u = RMSNorm(vec x) in R^{nC} (mHC, eq. 7), H_pre = sigmoid(scale_pre u w_pre + b_pre),
    H_post = 2 sigmoid(scale_post u w_post + b_post) (eq. 8), and logits scale_res u w_res + b_res
    from which each variant makes its H_res.

    Initialisation (the authors' code): w_* = 0, scales 0.01, b_pre = b_post = -1 but +1 at the
    home stream, b_res as given by the subclass.

    Args:
        b_res: initial residual logits; their number is the width of w_res.
    """

    def __init__(self, n_streams: int, n_embd: int, home_stream: int, b_res: Tensor | None) -> None:
        super().__init__(n_streams, n_embd, home_stream)
        width = n_streams * n_embd
        home = torch.full((n_streams,), -1.0)
        home[home_stream] = 1.0
        self.norm_gain = nn.Parameter(torch.zeros(width))
        self.w_pre = nn.Parameter(torch.zeros(width, n_streams))
        self.w_post = nn.Parameter(torch.zeros(width, n_streams))
        self.b_pre = nn.Parameter(home.clone())
        self.b_post = nn.Parameter(home.clone())
        self.scale_pre = nn.Parameter(torch.tensor(0.01))
        self.scale_post = nn.Parameter(torch.tensor(0.01))
        if b_res is not None:
            self.w_res = nn.Parameter(torch.zeros(width, b_res.numel()))
            self.b_res = nn.Parameter(b_res.clone())
            self.scale_res = nn.Parameter(torch.tensor(0.01))

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
