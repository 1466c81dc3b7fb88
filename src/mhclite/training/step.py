"""One step of training. Read this first: everything else in this package is around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from mhclite.config import TrainingConfig
from mhclite.training.group import Group
from mhclite.training.optimizer import AdamW


class StepResult(NamedTuple):
    """What a step comes to: numbers () on the device, which the host has not waited for."""

    loss: Tensor  # mean over this process's windows, times its share of the batch
    grad_norm: Tensor  # of the whole gradient, before clipping
    backbone_grad_norm: Tensor  # the same without the connections: what all variants have


def train_step(
    loss: Callable[[Tensor], Tensor],
    micro_batches: Iterable[Tensor],
    optimizer: AdamW,
    rate: float,
    settings: TrainingConfig,
    group: Group,
) -> StepResult:
    """Forward, backward, sum over processes, update.

    Args:
        loss: of the model, (b, T + 1) -> (), in nats per token.
        micro_batches: this process's windows of the batch, (b, T + 1) each.
        rate: learning rate of this step.
    """
    total = torch.zeros((), device=group.device)
    for windows in micro_batches:
        with autocast(settings.precision, group.device):
            part = loss(windows) * (len(windows) / settings.batch_size)
        part.backward()
        total += part.detach()
    group.sum_gradients(optimizer.parameters)
    norms = optimizer.update(rate, settings.grad_clip)
    return StepResult(total, norms.all, norms.backbone)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """What a forward pass runs under: `bf16` is autocast, `fp32` nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()
