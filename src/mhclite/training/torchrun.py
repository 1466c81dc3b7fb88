"""torchrun: how it is started, and what it tells the processes that it starts.

    python -m mhclite.training.torchrun NODES PROCESSES CPUS MODULE ARGUMENT...

starts it on every node of a SLURM job, PROCESSES on each. Standard library alone: the workflow and
bundles read it too.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
# Asks to stop: of people and schedulers, a connection that is lost, submitit, a limit of CPU time.
STOPS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


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


def stops() -> list[signal.Signals]:
    """The signals that stop a run, which saves first; what `nohup` has ignored stays so."""
    ignored = {"SIGHUP"} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return [signal.Signals[name] for name in STOPS if name not in ignored]


def environment() -> dict[str, str]:
    """Environment of torchrun: the signals that it hands on to its processes."""
    return {"PET_SIGNALS_TO_HANDLE": ",".join(["SIGQUIT", *(stop.name for stop in stops())])}


def launcher(processes: int, nodes: int = 1, threads: int = 1) -> list[str]:
    """What stands between `python -m` and the module for a run of several processes.

    Args:
        processes: of the run; a multiple of `nodes`.
        threads: of each process.
    """
    if nodes > 1:
        each = processes // nodes
        return [f"{__package__}.torchrun", str(nodes), str(each), str(each * threads)]
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


def over_nodes(nodes: int, processes: int, cpus: int, job: str, meeting: str) -> list[str]:
    """The command that starts torchrun once on each node of a SLURM job, before the module.

    Args:
        processes: on each node.
        cpus: of the processes of a node together.
        job: id of the job.
        meeting: host and port, on one of the nodes, at which all find each other.
    """
    return [
        *("srun", "--nodes", str(nodes), "--ntasks", str(nodes), "--ntasks-per-node", "1"),
        # Left out, a step has one CPU a task. A node whose processes fail ends those of the others,
        # which would wait for them.
        *("--cpus-per-task", str(cpus), "--kill-on-bad-exit=1"),
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(nodes), "--nproc-per-node", str(processes)),
        *("--rdzv-backend", "c10d", "--rdzv-id", job, "--rdzv-endpoint", meeting),
        "-m",
    ]


def main(arguments: Sequence[str]) -> None:
    """Become `srun`. Runs on a node of the job, outside of its steps."""
    nodes, processes, cpus = map(int, arguments[:3])
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        sys.exit(
            f"error: training.nodes is {nodes}, and several nodes are started by SLURM alone, "
            "within a job: use --profile profiles/slurm, or set it to 1"
        )
    with socket.socket() as free:
        free.bind(("", 0))
        meeting = f"{socket.gethostname()}:{free.getsockname()[1]}"
    command = [*over_nodes(nodes, processes, cpus, job, meeting), *arguments[3:]]
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
