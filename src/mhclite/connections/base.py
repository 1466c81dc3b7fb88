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
from typing import Any, ClassVar, NamedTuple, Self

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


def read_old_scales(module: nn.Module, state: dict[str, Any], prefix: str) -> None:
    """Make numbers of a state dict vectors where the module's parameter is one.

    Scales once had no dimension, and the authors' have none; `fully_shard` divides the first.
    """
    for name, own in module.named_parameters(recurse=False):
        given = state.get(prefix + name)
        if isinstance(given, Tensor) and given.dim() == 0 and own.shape == (1,):
            state[prefix + name] = given.reshape(1)


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
    _arguments: tuple[tuple[Any, ...], dict[str, Any]]  # of the constructor

    def __init__(self, n_streams: int, n_embd: int, home_stream: int) -> None:
        super().__init__()
        assert 0 <= home_stream < n_streams
        self.n_streams = n_streams
        self.n_embd = n_embd
        self.home_stream = home_stream

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        made = super().__new__(cls)
        made.__dict__["_arguments"] = arguments, options
        return made

    def _anew(self) -> Connection:
        """Another one like this, as its constructor leaves it."""
        arguments, options = self._arguments
        with torch.device("cpu"):
            return type(self)(*arguments, **options)

    def initialise(self, generator: torch.Generator) -> None:
        """Set all parameters to their initial values, also of a module that was on the meta device.

        A variant with random ones draws them here, from a generator of the CPU.
        """
        with torch.no_grad():
            for own, initial in zip(self.parameters(), self._anew().parameters(), strict=True):
                own.copy_(initial)

    def reset_parameters(self) -> None:
        """`initialise` from torch's own generator, under the name that torch's modules have."""
        self.initialise(torch.default_generator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._restore_constants()
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *more: Any) -> None:
        read_old_scales(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *more)
        if any(buffer.is_meta for buffer in self.buffers(recurse=False)):  # `assign=True`
            self._restore_constants()

    def _restore_constants(self) -> None:
        """Buffers that no checkpoint holds follow from the constructor's arguments.

        `to_empty` and loading into a module of the meta device leave them without values.
        """
        if not self._non_persistent_buffers_set:
            return
        anew, device = self._anew(), next(self.parameters()).device
        for name in self._non_persistent_buffers_set:
            own = self.get_buffer(name)
            if own.is_meta:
                own = torch.empty_like(own, device=device)
            self._buffers[name] = own.copy_(anew.get_buffer(name))

    def coefficients(self, x: Tensor) -> Coefficients:
        """Mixing weights for streams x (B, T, n, C)."""
        raise NotImplementedError

    def sinkhorn_input(self, x: Tensor) -> Tensor | None:
        """Logits that Sinkhorn-Knopp is given, (B, T, n, n); None for variants without it."""
        return None

    def checked(self, x: Tensor, branch: Branch) -> Branch:
        """The branch, which will check the shape of what it returns; `ValueError` for streams."""
        n, C = self.n_streams, self.n_embd
        if x.dim() != 4 or x.shape[-2:] != (n, C):
            raise ValueError(f"streams of shape {tuple(x.shape)}, expected (B, T, {n}, {C})")

        def checking(h: Tensor) -> Tensor:
            y = branch(h)
            if not isinstance(y, Tensor) or y.shape != h.shape:
                found = tuple(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
                raise ValueError(f"a branch returned {found}, expected {tuple(h.shape)}, as given")
            return y

        return checking

    def _check_dtype(self, x: Tensor) -> None:
        own = next((p.dtype for p in self.parameters()), None)
        if own is None:
            return
        alike = x.dtype == own or torch.is_autocast_enabled(x.device.type)
        if own not in (torch.float32, torch.float64) or not alike:
            raise ValueError(
                f"streams of {x.dtype} and parameters of {own}: the formula is computed in float32 "
                "or float64, the same for both; for bfloat16 keep the parameters float32 and use "
                "autocast, or fast_forward where the variant has a projection"
            )

    def forward(self, x: Tensor, branch: Branch) -> Tensor:
        """Streams after this sub-layer.

        Args:
            x: (B, T, n, C).
            branch: (B, T, C) -> (B, T, C), its LayerNorm included.

        Returns:
            (B, T, n, C).

        Raises:
            ValueError: streams or a branch's output of another shape; parameters that are neither
                float32 nor float64; streams of another dtype, but for autocast.
        """
        self._check_dtype(x)
        return self.formula(x, self.checked(x, branch))

    def formula(self, x: Tensor, branch: Branch) -> Tensor:
        """`forward`, as the authors' code computes it.

        H_pre and H_res side by side, one product of size n + 1, and the branch's output added to
        every stream.
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

        Raises:
            ValueError: streams or a branch's output of another shape.
        """
        if not self.has_projection:
            result: Tensor = self(x, branch)
            return result
        branch = self.checked(x, branch)
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
        y = branch(h.unflatten(0, shape[:2])).flatten(0, -2)
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
        self.scale_pre = nn.Parameter(torch.tensor([0.01]))
        self.scale_post = nn.Parameter(torch.tensor([0.01]))
        if b_res is not None:
            self.w_res = nn.Parameter(torch.zeros(width, b_res.numel()))
            self.b_res = nn.Parameter(b_res.clone())
            self.scale_res = nn.Parameter(torch.tensor([0.01]))

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
