"""The GPT of the paper around the connection interface.

nanoGPT's decoder: learned positions, pre-LayerNorm without bias, exact GELU, tied head. The
embedding is copied into n streams before the first block; the streams pass through all blocks;
after the last they are normalised and summed. Where the authors' code confounds the comparison of
variants, a setting departs from it (docs/deviations.md); the defaults here are theirs, except that
the home streams can be repeated.

Shapes: B batch, T tokens, n streams, C width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhclite.config import ConnectionConfig, ModelConfig
from mhclite.connections import connection_class
from mhclite.connections.base import Connection
from mhclite.connections.fast.availability import Choice, choose
from mhclite.connections.frozen import Frozen
from mhclite.connections.head import Head
from mhclite.seeding import generator_for


class CausalSelfAttention(nn.Module):
    """Multi-head causal attention, (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd: int, n_head: int, qk_norm: bool) -> None:
        super().__init__()
        assert n_embd % n_head == 0
        self.n_head = n_head
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)
        # RMS norm of each head's queries and keys (arXiv 2010.04245 has the idea), with a gain.
        width = n_embd // n_head
        self.q_norm = nn.RMSNorm(width, eps=1e-6) if qk_norm else None
        self.k_norm = nn.RMSNorm(width, eps=1e-6) if qk_norm else None

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, C) -> three of (B, n_head, T, C / n_head)."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        return q, k, v

    def largest_logit(self, x: Tensor) -> Tensor:
        """Largest absolute value that the softmax is given for x (B, T, C), unmasked."""
        q, k, _ = self.queries_keys_values(x)
        logits = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
        return logits.tril().abs().amax()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.queries_keys_values(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.c_proj(y.transpose(1, 2).flatten(-2))
        return out


class MLP(nn.Module):
    """Two-layer perceptron with exact GELU, (B, T, C) -> (B, T, C)."""

    def __init__(self, n_embd: int, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(n_embd, width, bias=False)
        self.c_proj = nn.Linear(width, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x)))
        return out


class SubLayer(nn.Module):
    """A branch with its LayerNorm, and the connection around both."""

    def __init__(
        self, connection: Connection, body: nn.Module, stream_dtype: str, implementation: str
    ) -> None:
        super().__init__()
        self.connection = connection
        self.implementation = implementation
        self.norm = nn.LayerNorm(connection.n_embd, bias=False)
        self.body = body
        self.stream_dtype = stream_dtype

    def branch(self, h: Tensor) -> Tensor:
        """What the sub-layer computes from what it reads, (B, T, C) -> (B, T, C)."""
        out: Tensor = self.body(self.norm(h))
        return out

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        reference = self.implementation == "reference"
        connect = self.connection if reference else self.connection.fast_forward
        if self.stream_dtype != "fp32" or not torch.is_autocast_enabled(kind):
            # The authors' way: under autocast the mixing product is bf16, so what is carried on is
            # rounded in every sub-layer; the sum with what is written is fp32 again.
            out: Tensor = connect(x, self.branch)
            return rounded_to_bf16(out) if self.stream_dtype == "bf16" else out
        dtype = torch.get_autocast_dtype(kind)

        def branch(h: Tensor) -> Tensor:
            with torch.autocast(kind, dtype):
                return self.branch(h).float()

        with torch.autocast(kind, enabled=False):
            return connect(x, branch)


def rounded_to_bf16(x: Tensor) -> Tensor:
    """bf16 under autocast; else the same rounding, forward and backward, in the dtype of x."""
    return x.bfloat16() if torch.is_autocast_enabled(x.device.type) else x.bfloat16().to(x.dtype)


class ParameterGroup(NamedTuple):
    """Parameters that the optimizer treats alike."""

    parameters: list[nn.Parameter]
    decayed: bool
    rate_factor: float  # of the learning rate


class GPT(nn.Module):
    """Decoder language model with one connection a sub-layer.

    Args:
        model: the size.
        connection: the residual variant.
        seed: fixes the initial weights. The backbone's do not depend on the variant.
    """

    def __init__(self, model: ModelConfig, connection: ConnectionConfig, seed: int) -> None:
        super().__init__()
        n_layer, n_embd = model.n_layer, model.n_embd
        self.n_streams = connection.n_streams
        self.block_size = model.block_size
        make = connection_class(connection.variant)
        if connection.freeze_mixing:
            # A class of its own, since what is frozen is a method: H_res is never asked for.
            make = type(f"Frozen{make.__name__}", (Frozen, make), {})
        self.decay_logits = connection.decay_logits
        self.stream_dtype = connection.stream_dtype
        self.final_norm = connection.final_norm
        self.connection_rate_factor = connection.connection_rate_factor
        self.mixing_rate_factor = connection.mixing_rate_factor
        self.implementation = connection.implementation
        self._choices: dict[tuple[bool, str, torch.dtype], Choice] = {}
        homes = self._home_streams(connection.home_stream, 2 * n_layer, seed)

        self.wte = nn.Embedding(model.vocab_size, n_embd)
        self.wpe = nn.Embedding(self.block_size, n_embd)
        self.sublayers = nn.ModuleList(
            SubLayer(
                make(self.n_streams, n_embd, home, **connection.options),
                MLP(n_embd, model.mlp_width or 4 * n_embd)
                if k % 2
                else CausalSelfAttention(n_embd, model.n_head, model.qk_norm),
                self.stream_dtype,
                self.implementation,
            )
            for k, home in enumerate(homes)
        )
        # With one stream there is nothing to weigh: the norm undoes any factor.
        learned = connection.final_norm == "head" and self.n_streams > 1
        self.head = Head(self.n_streams, n_embd) if learned else None
        self.ln_f = nn.LayerNorm(n_embd, bias=False)
        self._initialise(n_layer, seed)

    def _home_streams(self, policy: str, n_sublayers: int, seed: int) -> list[int]:
        """Home stream of each sub-layer: `alternate` (arXiv 2409.19606: k mod n) or `random`."""
        if policy == "alternate":
            return [k % self.n_streams for k in range(n_sublayers)]
        generator = generator_for(seed, "home_streams")
        return torch.randint(self.n_streams, (n_sublayers,), generator=generator).tolist()

    def _initialise(self, n_layer: int, seed: int) -> None:
        """nanoGPT's: normal, sd 0.02; output projections 0.02 / sqrt(2 n_layer)."""
        backbone = generator_for(seed, "backbone")
        for name, parameter in self.backbone_parameters():
            if parameter.dim() == 2:
                std = 0.02 / math.sqrt(2 * n_layer) if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(parameter, std=std, generator=backbone)
        connections = generator_for(seed, "connections")
        for connection in self.connections():
            connection.initialise(connections)
        if self.head is not None:  # last: the connections start as they would without it
            self.head.initialise(connections)

    def connections(self) -> Iterator[Connection]:
        """The connections of all sub-layers, in order."""
        for sublayer in self.sublayers:
            assert isinstance(sublayer, SubLayer)
            yield sublayer.connection

    def backbone_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All but the connections and the learned read; the same for all variants."""
        for name, parameter in self.named_parameters():
            if ".connection." not in name and not name.startswith("head."):
                yield name, parameter

    def parameter_counts(self) -> dict[str, int]:
        """`total` and `connection` parameters: these are what several streams cost.

        The learned read of `final_norm: head` is among them; the tied output is counted once.
        """
        total = sum(p.numel() for p in self.parameters())
        return {
            "total": total,
            "connection": total - sum(p.numel() for _, p in self.backbone_parameters()),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """All parameters, divided by what the optimizer does with them.

        Weight decay by the rule of the authors' code, or with `decay_logits` the same for every
        variant's static logits. `connection_rate_factor` is for all but the backbone,
        `mixing_rate_factor` besides for what makes H_res alone.
        """
        members: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
        for _, parameter in self.backbone_parameters():
            members[parameter.dim() >= 2, 1.0].append(parameter)
        for connection in self.connections():
            decayed = connection.decayed
            if self.decay_logits != "authors":
                decayed -= connection.logits
            if self.decay_logits == "always":
                decayed |= connection.logits
            for name, parameter in connection.named_parameters():
                factor = self.connection_rate_factor
                if name in connection.mixing:
                    factor *= self.mixing_rate_factor
                members.setdefault((name in decayed, factor), []).append(parameter)
        if self.head is not None:
            factor = self.connection_rate_factor
            members.setdefault((True, factor), []).append(self.head.w)
            members.setdefault((False, factor), []).extend([self.head.b, self.head.scale])
        return [ParameterGroup(own, *kind) for kind, own in members.items()]

    def embed(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) -> streams (B, T, n, C), all equal."""
        T = tokens.shape[1]
        assert self.block_size >= T, (T, self.block_size)
        x = self.wte(tokens) + self.wpe.weight[:T]
        if self.stream_dtype == "bf16":
            x = rounded_to_bf16(x)
        return x.unsqueeze(-2).expand(-1, -1, self.n_streams, -1)

    def choice(self, autocast: bool) -> Choice:
        """How the connections are computed on this device.

        Args:
            autocast: whether under autocast to bfloat16.
        """
        weight = self.wte.weight
        key = (autocast, weight.device.type, weight.dtype)
        if key not in self._choices:  # found out once: it cannot be traced by the compiler
            self._choices[key] = choose(
                self.implementation,
                device=weight.device.type,
                dtype=weight.dtype,
                autocast=autocast,
                stream_dtype=self.stream_dtype,
                n_streams=self.n_streams,
                n_embd=self.wte.embedding_dim,
                has_projection=all(c.has_projection for c in self.connections()),
            )
        return self._choices[key]

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (B, T) -> logits (B, T, V)."""
        x = self.embed(tokens)
        kind = x.device.type
        # The meta device, on which FLOPs are counted, knows no autocast.
        choice = self.choice(kind != "meta" and torch.is_autocast_enabled(kind))
        if choice.implementation == "fused":
            from mhclite.connections.fast import fused  # here: Triton need not be installed
            from mhclite.connections.fast.projected import projected

            parts = [s for s in self.sublayers if isinstance(s, SubLayer)]
            steps = [fused.Step(projected(s.connection), s.norm.weight, s.body) for s in parts]
            x = fused.connect(x, steps, self.stream_dtype)
        else:
            for sublayer in self.sublayers:
                x = sublayer(x)
        return F.linear(self.final_read(x), self.wte.weight)

    def final_read(self, x: Tensor) -> Tensor:
        """What the streams (B, T, n, C) come to after the last block, normalised: (B, T, C)."""
        if self.final_norm == "per_stream":
            summed: Tensor = self.ln_f(x).sum(-2)
            return summed
        normalised: Tensor = self.ln_f(x.sum(-2) if self.head is None else self.head(x))
        return normalised

    def loss(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token.

        Args:
            tokens: (B, T + 1): inputs are the first T, targets the last T of each row.
        """
        # Under autocast cross_entropy works in float32, whatever the logits are.
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
