"""Learning-rate schedule and AdamW as the authors set them up."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
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


class GradientNorms(NamedTuple):
    """Before clipping, () each."""

    all: Tensor
    # Without the connections: the part that all variants have.
    backbone: Tensor


class AdamW:
    """AdamW over the model's groups of parameters, in torch's fused kernels.

    The update is `torch.optim.AdamW`'s own. That class is not used because building one imports
    torch's compiler, which costs every short run on a CPU as much again as importing torch.
    """

    def __init__(self, model: GPT, betas: tuple[float, float], weight_decay: float) -> None:
        self.betas = betas
        self.weight_decay = weight_decay
        self.groups = model.parameter_groups()
        self.parameters = list(model.parameters())
        self.backbone = [p for _, p in model.backbone_parameters()]
        ordered = [p for group in self.groups for p in group.parameters]
        self.exp_avg = {p: torch.zeros_like(p) for p in ordered}
        self.exp_avg_sq = {p: torch.zeros_like(p) for p in ordered}
        # The kernel counts the updates of each parameter itself, on the parameter's device.
        self.updates = {p: torch.zeros((), device=p.device) for p in ordered}

    @torch.no_grad()
    def update(self, rate: float, grad_clip: float) -> GradientNorms:
        """Clip to a gradient norm (0: do not), step, and clear the gradients.

        On a GPU they are scaled within the step, which saves a pass over all of them. On a CPU they
        are scaled before it, as the stored results were.
        """
        norms = self.gradient_norms()
        divisor = None
        if grad_clip > 0 and norms.all.is_cuda:
            divisor = clip_divisor(norms.all, grad_clip)
        elif grad_clip > 0:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, (grad_clip / (norms.all + 1e-6)).clamp(max=1.0))
        self.step(rate, divisor)
        for parameter in self.parameters:
            parameter.grad = None
        return norms

    def gradient_norms(self) -> GradientNorms:
        """Norms of all gradients and of the backbone's; the norm of each is taken once."""
        present = [p for p in self.parameters if p.grad is not None]
        norms = torch._foreach_norm([p.grad for p in present if p.grad is not None])
        of = dict(zip(present, norms, strict=True))
        own = [of[p] for p in self.backbone if p in of]
        total, backbone = (torch.linalg.vector_norm(torch.stack(n)) for n in (norms, own))
        return GradientNorms(total, backbone)

    @torch.no_grad()
    def step(self, lr: float, divisor: Tensor | None = None) -> None:
        """Update every parameter that has a gradient.

        Args:
            divisor: () of the gradients, which the same kernel divides them by.
        """
        for group in self.groups:
            parameters = [p for p in group.parameters if p.grad is not None]
            # AdamW decays by rate times decay: a faster rate must not decay faster.
            decay = self.weight_decay / group.rate_factor if group.decayed else 0.0
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
                lr=lr * group.rate_factor,
                weight_decay=decay,
                eps=1e-8,
                maximize=False,
                grad_scale=divisor,
            )

    def tensors(self) -> list[Tensor]:
        """The whole state, in an order that depends on the model alone."""
        states = (self.exp_avg, self.exp_avg_sq, self.updates)
        return [tensor for state in states for tensor in state.values()]

    def load(self, tensors: list[Tensor]) -> None:
        """Take over what `tensors` gave."""
        for mine, saved in zip(self.tensors(), tensors, strict=True):
            mine.copy_(saved)


def clip_divisor(norm: Tensor, largest: float) -> Tensor:
    """What gradients of this norm are divided by, for a norm of at most `largest`: ()."""
    return ((norm + 1e-6) / largest).clamp(min=1.0)
