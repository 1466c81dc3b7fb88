"""Learning-rate schedule and AdamW as the authors set them up."""

from __future__ import annotations

import math
from typing import Any

import torch

from mhclite.model import GPT


def learning_rate(step: int, peak: float, final: float, warmup: int, steps: int) -> float:
    """Learning rate of a step: linear warm-up, then cosine to `final` (nanoGPT's rule).

    Args:
        step: 0 for the first update.
        warmup: steps of warm-up; step i < warmup has peak * (i + 1) / (warmup + 1).
        steps: where the cosine ends; later steps stay at `final`.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return final
    progress = (step - warmup) / (steps - warmup)
    return final + 0.5 * (1.0 + math.cos(math.pi * progress)) * (peak - final)


def make_optimizer(model: GPT, training: dict[str, Any], fused: bool) -> torch.optim.AdamW:
    """AdamW with weight decay where the authors' code has it; the learning rate is set per step."""
    decay, plain = model.decay_groups()
    return torch.optim.AdamW(
        [
            {"params": decay, "weight_decay": training["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=0.0,
        betas=tuple(training["betas"]),
        eps=1e-8,
        fused=fused,
    )


def apply_update(
    model: GPT, optimizer: torch.optim.AdamW, lr: float, grad_clip: float
) -> torch.Tensor:
    """Clip, step, and clear the gradients. Returns the gradient norm before clipping, ()."""
    parameters = list(model.parameters())
    if grad_clip > 0:
        norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    else:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
