"""What docs/use-elsewhere.md asks of the package transformers, where that is not installed.

Names, attributes and orders of arguments are those of its GPT-2 (5.24.0), and so are the steps of
`from_pretrained`: modules are made on the meta device; what the file holds is put in and marked;
the rest, buffers too, is memory that nobody has set (NaN here), for the inner model's
`_init_weights` to fill, which is asked for every module that the file did not wholly hold.
"""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention


class GPT2Config(SimpleNamespace):
    """Whatever it is given."""


class Attention(nn.Module):
    def __init__(self, config: GPT2Config, layer_idx: int) -> None:
        super().__init__()
        self.n_head, self.layer_idx = config.n_head, layer_idx
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(
        self, h: Tensor, cache: Any, mask: Tensor, *encoder: Any, **more: Any
    ) -> tuple[Tensor, None]:
        q, k, v = self.c_attn(h).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            earlier = cache.get(self.layer_idx)
            if earlier is not None:
                k, v = torch.cat((earlier[0], k), 2), torch.cat((earlier[1], v), 2)
            cache[self.layer_idx] = k, v
        y = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(y.transpose(1, 2).flatten(-2)), None


class GPT2Block(nn.Module):
    def __init__(self, config: GPT2Config, layer_idx: int) -> None:
        super().__init__()
        C = config.n_embd
        self.ln_1, self.ln_2 = nn.LayerNorm(C), nn.LayerNorm(C)
        self.attn = Attention(config, layer_idx)
        self.mlp = nn.Sequential(nn.Linear(C, 4 * C), nn.GELU(), nn.Linear(4 * C, C))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        x = x + self.attn(self.ln_1(x), *args, **kwargs)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class GPT2Model(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(GPT2Block(config, k) for k in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)

    def _init_weights(self, module: nn.Module) -> None:
        """Only of what it knows, as theirs."""

    def post_init(self) -> None:
        if not self.wte.weight.is_meta:
            self.initialise_marked(False)

    @torch.no_grad()
    def initialise_marked(self, known: bool) -> None:
        """All modules but those of whose own tensors each is marked as known."""
        for module in self.modules():
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if own and not (known and all(tensor._is_hf_initialized for tensor in own)):
                self._init_weights(module)

    def forward(self, tokens: Tensor, cache: dict[int, Any] | None) -> Tensor:
        T, before = tokens.shape[1], cache[0][0].shape[2] if cache else 0
        positions = torch.arange(before, before + T)
        mask = torch.arange(before + T) <= positions.unsqueeze(1)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x, cache, mask, None, encoder_attention_mask=None, use_cache=True)
        assert x.shape[-1] == self.config.n_embd
        out: Tensor = self.ln_f(x)
        return out


class Output(NamedTuple):
    loss: Tensor | None
    logits: Tensor


class GPT2LMHeadModel(nn.Module):
    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config, self.transformer = config, GPT2Model(config)

    def post_init(self) -> None:
        self.transformer.post_init()

    def forward(self, tokens: Tensor, labels: Tensor | None = None, cache: Any = None) -> Output:
        logits = self.transformer(tokens, cache) @ self.transformer.wte.weight.T
        if labels is None:
            return Output(None, logits)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return Output(loss, logits)

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, max_new_tokens: int, do_sample: bool, use_cache: bool = True
    ) -> Tensor:
        cache: dict[int, Any] = {}
        given = tokens
        for _ in range(max_new_tokens):
            logits = self(given, cache=cache if use_cache else None).logits
            new = logits[:, -1:].argmax(-1)
            tokens = torch.cat((tokens, new), 1)
            given = new if use_cache else tokens
        return tokens

    def save_pretrained(self, folder: str) -> None:
        Path(folder).mkdir(exist_ok=True)
        Path(folder, "config.json").write_text(json.dumps(vars(self.config)))
        torch.save(self.state_dict(), Path(folder, "weights.pt"))

    @classmethod
    def from_pretrained(cls, folder: str, config: GPT2Config | None = None) -> Self:
        state = torch.load(Path(folder, "weights.pt"), weights_only=True)
        stated = GPT2Config(**json.loads(Path(folder, "config.json").read_text()))
        with torch.device("meta"):
            model = cls(stated if config is None else config)
        for prefix, owner in model.named_modules():
            own = (owner.named_parameters(recurse=False), owner.named_buffers(recurse=False))
            for name, tensor in chain(*own):
                unset = torch.full(tensor.shape, torch.nan)
                value: Any = state.get(f"{prefix}.{name}", unset)
                value = nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value
                value._is_hf_initialized = f"{prefix}.{name}" in state
                setattr(owner, name, value)
        model.transformer.initialise_marked(True)
        return model


def packages() -> dict[str, ModuleType]:
    """For `sys.modules`: none where the real package can be imported."""
    try:
        import transformers  # noqa: F401
    except ImportError:
        this = sys.modules[__name__]
        return dict.fromkeys(("transformers", "transformers.models.gpt2.modeling_gpt2"), this)
    return {}
