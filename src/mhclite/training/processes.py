"""The processes of one run: one, or several started by torchrun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from mhclite.errors import UserError
from mhclite.training import torchrun
from mhclite.training.group import Group, deterministic


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """The device named in the study: `auto` takes a GPU where there is one."""
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("training.device is cuda but torch sees no GPU; set it to auto or cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"{local_rank + 1} processes on this machine but torch sees only "
            f"{torch.cuda.device_count()} GPUs; lower training.processes"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def processes(device: str, threads: int, repeatable: bool = True) -> Iterator[Group]:
    """Set up this process: torchrun's environment, threads, device.

    Args:
        repeatable: with deterministic algorithms, where the device has others.
    """
    torch.set_num_threads(threads)
    place = torchrun.place()
    chosen = choose_device(device, place.local_rank)
    deterministic(chosen, repeatable)
    if place.count == 1:
        yield Group(0, 1, chosen)
        return
    if place.count_here == place.count:
        torchrun.stay_on_this_machine()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Group(dist.get_rank(), place.count, chosen)
    finally:
        dist.destroy_process_group()
