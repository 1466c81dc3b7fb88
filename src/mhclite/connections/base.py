"""A residual connection: what every variant computes.

A sub-layer (attention or MLP) is a branch F. With n streams x of each token,

    h     = H_pre x            (C)      what the branch reads
    y     = F(LayerNorm(h))    (C)      what the branch writes
    x_out = H_res x + H_post^T y        x_out[t] = sum_s H_res[t, s] x[s] + H_post[t] y

(mHC, arXiv 2512.24880, eq. 3). Shapes: B batch, T tokens, n streams, C width. H_res is in operator
orientation: row t holds the weights that enter output stream t.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

Branch = Callable[[Tensor], Tensor]


class Coefficients(NamedTuple):
    """The mixing weights of each token."""

    # (B, T, n); of a variant that reads channel by channel (B, T, n, C): h = sum_s H_pre[s] * x[s].
    H_pre: Tensor
    H_post: Tensor  # (B, T, n)
    H_res: Tensor  # (B, T, n, n)


def full_precision(device: str) -> AbstractContextManager[None]:
    """No autocast on this kind of device.

    Nothing where there is none to switch off: torch keeps no compiled graph that does.
    """
    # The meta device, on which FLOPs are counted, knows no autocast.
    off = device == "meta" or not torch.is_autocast_enabled(device)
    return nullcontext() if off else torch.autocast(device, enabled=False)


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

    @property
    def has_projection(self) -> bool:
        """Whether it can be computed in other ways than by its formula (`fast/projected.py`)."""
        return False

    def fast_forward(self, x: Tensor, branch: Branch) -> Tensor:
        """As `forward`, with less memory traffic where the variant can (`fast/projected.py`)."""
        result: Tensor = self(x, branch)
        return result
