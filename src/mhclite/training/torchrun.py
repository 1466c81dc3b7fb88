"""torchrun: how it is started, and what it tells the processes that it starts.

Standard library alone: the workflow and bundles read it too.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """Which of a run's processes this one is."""

    rank: int
    local_rank: int  # on this machine
    count: int
    count_here: int  # on this machine


def place() -> Place:
    """As torchrun says; alone where it did not start this process.

    Cluster operators and schedulers export WORLD_SIZE, RANK and MASTER_ADDR too, for a program that
    they believe to be started once per machine: those are no processes of this run.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place(0, 0, 1, 1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return Place(*(int(os.environ[name]) for name in names))


def stay_on_this_machine() -> None:
    """Have a run's processes meet on the loopback, whatever this machine's name resolves to."""
    interface = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ |= {
        "MASTER_ADDR": LOOPBACK,
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
    }


def launcher(processes: int) -> list[str]:
    """What stands between `python -m` and the module for a run of several processes."""
    if processes == 1:
        return []
    # Each option is given: torchrun takes what is left out from PET_* of the environment.
    return [
        "torch.distributed.run",
        "--standalone",
        *("--nnodes", "1"),
        *("--local-addr", LOOPBACK),
        *("--nproc-per-node", str(processes)),
        "-m",
    ]
