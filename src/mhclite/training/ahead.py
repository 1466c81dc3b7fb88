"""Reading the numbers of step k while the device computes step k + 1.

The host prepares a step much faster than a GPU computes it. If it asked for a step's loss as soon
as it had launched it, it would wait, and the GPU would then wait for the host to prepare the next
one. So the numbers are copied to the host behind the computation, and read one step late. On a CPU
a step is done when it is launched: nothing is late there.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor


class Launched(NamedTuple):
    """A step that the device was given to compute."""

    step: int  # steps done with it
    numbers: Tensor  # on the host
    arrived: torch.cuda.Event | None  # when they are there; None: they are
    began: float


class Ahead:
    """The clock and the copies of the steps of one run.

    Args:
        device: where the steps are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.possible = device.type == "cuda"
        self._read_until = 0.0  # when the numbers of the last step were there

    def launched(self, step: int, numbers: Tensor, began: float) -> Launched:
        """Note a step whose numbers (k) are on the device, or will be."""
        if not numbers.is_cuda:
            return Launched(step, numbers, None, began)
        # Pinned, or the copy would make the host wait for the device.
        copy = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        copy.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return Launched(step, copy, arrived, began)

    def read(self, launched: Launched) -> tuple[list[float], float]:
        """Wait for a step; its numbers, and the seconds that it took.

        They begin where the step before ended, if it was launched earlier.
        """
        if launched.arrived is not None:
            launched.arrived.synchronize()
        now = time.perf_counter()
        seconds = now - max(launched.began, self._read_until)
        self._read_until = now
        return launched.numbers.tolist(), seconds
