"""What a model in training looks like within: a few numbers at every evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhclite.model import GPT, CausalSelfAttention, SubLayer


def pairwise_cosine(x: Tensor) -> Tensor:
    """Mean cosine between the n streams of each token, for streams (..., n, C): (...)."""
    n = x.shape[-2]
    unit = torch.nn.functional.normalize(x, dim=-1)
    return (unit.sum(-2).square().sum(-1) - n) / (n * (n - 1))


@torch.no_grad()
def stream_statistics(model: GPT, tokens: Tensor) -> dict[str, Any]:
    """Means over the tokens (B, T), computed in float32; H_res in operator orientation.

    `identity_distance`: Frobenius norm of H_res - I, one a sub-layer. `stream_similarity`: cosine
    between the streams after each sub-layer, averaged over pairs. `gain_forward`, `gain_backward`:
    largest absolute row and column sum of the product of all H_res (mHC, arXiv 2512.24880).
    """
    x = model.embed(tokens)
    n = x.shape[-2]
    identity = torch.eye(n, device=x.device)
    product = identity
    distances, similarities = [], []
    for sublayer in model.sublayers:
        assert isinstance(sublayer, SubLayer)
        H_res = sublayer.connection.coefficients(x).H_res.float()
        distances.append((H_res - identity).flatten(-2).norm(dim=-1).mean())
        product = H_res @ product
        x = sublayer(x)
        similarities.append(pairwise_cosine(x.float()).mean())
    return {
        "identity_distance": torch.stack(distances).tolist(),
        "stream_similarity": torch.stack(similarities).tolist(),
        "gain_forward": product.abs().sum(-1).amax(-1).mean().item(),
        "gain_backward": product.abs().sum(-2).amax(-1).mean().item(),
    }


@torch.no_grad()
def largest_attention_logit(model: GPT, tokens: Tensor) -> float:
    """The largest absolute attention logit over layers, heads and pairs of the tokens (B, T).

    Where it grows without bound, an instability is the attention's (`qk_norm` bounds it).
    """
    found: list[Tensor] = []
    hooks = [
        body.register_forward_pre_hook(
            lambda body, inputs: found.append(body.largest_logit(*inputs))
        )
        for body in model.modules()
        if isinstance(body, CausalSelfAttention)
    ]
    try:
        model(tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).amax().item()
