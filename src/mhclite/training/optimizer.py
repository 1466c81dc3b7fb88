"""Learning-rate schedule and AdamW as the authors set them up."""

from __future__ import annotations

import math

import torch
from torch.optim.adamw import adamw

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


class AdamW:
    """AdamW over two groups of parameters, with and without weight decay, in torch's fused kernels.

    The update is `torch.optim.AdamW`'s own. That class is not used because building one imports
    torch's compiler, which costs every short run on a CPU as much again as importing torch.
    """

    def __init__(self, model: GPT, betas: tuple[float, float], weight_decay: float) -> None:
        decay, plain = model.decay_groups()
        self.betas = betas
        self.groups = ((decay, weight_decay), (plain, 0.0))
        parameters = (*decay, *plain)
        self.exp_avg = {p: torch.zeros_like(p) for p in parameters}
        self.exp_avg_sq = {p: torch.zeros_like(p) for p in parameters}
        # The kernel counts the updates of each parameter itself, on the parameter's device.
        self.updates = {p: torch.zeros((), device=p.device) for p in parameters}

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient."""
        for group, weight_decay in self.groups:
            parameters = [p for p in group if p.grad is not None]
            adamw(
                list(parameters),
                [p.grad for p in parameters if p.grad is not None],
                [self.exp_avg[p] for p in parameters],
                [self.exp_avg_sq[p] for p in parameters],
                [],
                [self.updates[p] for p in parameters],
                fused=True,
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=lr,
                weight_decay=weight_decay,
                eps=1e-8,
                maximize=False,
            )

    def tensors(self) -> list[torch.Tensor]:
        """The whole state, in an order that depends on the model alone."""
        states = (self.exp_avg, self.exp_avg_sq, self.updates)
        return [tensor for state in states for tensor in state.values()]

    def load(self, tensors: list[torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        for mine, saved in zip(self.tensors(), tensors, strict=True):
            mine.copy_(saved)


def apply_update(model: GPT, optimizer: AdamW, lr: float, grad_clip: float) -> torch.Tensor:
    """Clip, step, and clear the gradients. Returns the gradient norm before clipping, ()."""
    parameters = list(model.parameters())
    if grad_clip > 0:
        norm = torch.nn.utils.clip_grad_norm_(parameters, grad_clip)
    else:
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    optimizer.step(lr)
    model.zero_grad(set_to_none=True)
    return norm
