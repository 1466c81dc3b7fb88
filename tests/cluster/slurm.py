"""A real SLURM on this machine: controller, accounting and two nodes, for the tests.

Needs root and a Debian or Ubuntu whose packages can be installed. The configuration must be in
/etc/slurm: the Snakemake plugin starts its inner `srun` without SLURM_CONF. Where a configuration
that is not ours is there already, this machine has a cluster of its own and is left alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from leftovers import MARKER, OF_SESSION

T = TypeVar("T")
MARK = "# of mhclite's cluster tests"
ETC = Path("/etc/slurm")
LOCK = Path("/run/mhclite-tests-slurm.lock")
PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
NODES = ("n1", "n2")
CPUS = 4  # of each node, whatever the machine has

SLURM_CONF = """{mark}
ClusterName=mhclite
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={state}/controller
SlurmdSpoolDir={state}/%n
SlurmctldPidFile={state}/slurmctld.pid
SlurmdPidFile={state}/%n.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdLogFile={state}/%n.log
SlurmctldPort=6817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=0
GresTypes=gpu
# A node may say that it has more than there is.
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=15
KillWait=20
MinJobAge=300
JobRequeue=1
BatchStartTimeout=10
# A requeued job is held until its credential has expired: two minutes by default.
AuthInfo=cred_expire=5
MailProg=/bin/true
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
"""
NODE = (
    "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
    "RealMemory=64000 Gres=gpu:1 State=UNKNOWN\n"
)
PARTITION = "PartitionName=main Nodes={nodes} Default=YES MaxTime=2-00:00:00 State=UP\n"
SLURMDBD_CONF = """{mark}
AuthType=auth/munge
DbdHost=localhost
SlurmUser=root
PidFile={state}/slurmdbd.pid
LogFile={state}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""


class NotHere(Exception):  # noqa: N818 - the reason for a skip, not an error
    """Why SLURM cannot run on this machine."""


def run(*command: str, check: bool = True, timeout: float = 60) -> str:
    """Output of a command."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout
    )
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
    return done.stdout


def wait_until(condition: Callable[[], T], what: str, seconds: float = 60, every: float = 0.2) -> T:
    """Poll until `condition` holds; what it returned."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain until {what}"
        time.sleep(every)
    return found


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def install() -> None:
    """Install SLURM's packages without starting anything; `NotHere` where that is impossible."""
    if os.geteuid() != 0:
        raise NotHere("SLURM's daemons must be installed and started as root")
    conf = ETC / "slurm.conf"
    if conf.exists() and not conf.read_text().startswith(MARK):
        raise NotHere(f"{conf} is of another cluster")
    if all(map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"))):
        return
    if not shutil.which("apt-get"):
        raise NotHere("no apt-get: the packages of SLURM cannot be installed")
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:  # a package must not start its daemon
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES],
        ):
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=600)
            if done.returncode:
                last = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
                raise NotHere(f"`{' '.join(command)}` failed: {last[-1]}")
    finally:
        if made:
            policy.unlink()


class Slurm:
    """The cluster; `state` is a folder for its logs and its memory."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.host = socket.gethostname().split(".")[0]
        self.processes: list[subprocess.Popen[bytes]] = []

    # --- up and down ------------------------------------------------------------------------

    def up(self) -> None:
        """Start everything; returns when both nodes are idle."""
        self._configure()
        self._start_munge()
        self._start_database()
        self._start("slurmdbd", "-D")
        wait_until(lambda: _succeeds("sacctmgr", "-n", "show", "cluster"), "slurmdbd answers")
        run("sacctmgr", "-i", "add", "cluster", "mhclite", check=False)
        self._start("slurmctld", "-D")
        wait_until(lambda: _succeeds("scontrol", "ping"), "slurmctld answers")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: set(self.idle()) == set(NODES), "both nodes are idle")

    def down(self) -> None:
        """Stop everything that `up` started."""
        _succeeds("scancel", "--user", "root")
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for name in ("slurm.conf", "gres.conf", "slurmdbd.conf"):
            (ETC / name).unlink(missing_ok=True)

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.state / f"{Path(command[0]).name}.out").open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
                # It outlives the module that needs it first.
                env={**os.environ, MARKER: OF_SESSION},
            )
        self.processes.append(process)
        return process

    def _configure(self) -> None:
        ETC.mkdir(exist_ok=True)
        for folder in ("controller", "devices", *NODES):
            (self.state / folder).mkdir(parents=True, exist_ok=True)
        words = {"mark": MARK, "host": self.host, "state": self.state}
        conf = SLURM_CONF.format(**words)
        gres = f"{MARK}\nAutoDetect=off\n"
        for port, node in enumerate(NODES, start=17001):
            conf += NODE.format(node=node, host=self.host, port=port, cpus=CPUS)
            device = self.state / "devices" / node  # a GPU by name; reading it gives nothing
            if not device.exists():
                run("mknod", str(device), "c", "1", "3")
            gres += f"NodeName={node} Name=gpu File={device}\n"
        (ETC / "slurm.conf").write_text(conf + PARTITION.format(nodes=",".join(NODES)))
        (ETC / "gres.conf").write_text(gres)
        dbd = ETC / "slurmdbd.conf"
        dbd.touch(mode=0o600)
        dbd.write_text(SLURMDBD_CONF.format(**words))

    def _start_munge(self) -> None:
        def answers() -> bool:
            return _succeeds("sh", "-c", "munge -n </dev/null | unmunge")

        if answers():
            return
        key = Path("/etc/munge/munge.key")
        for folder in ("/run/munge", "/var/log/munge", "/var/lib/munge", key.parent):
            Path(folder).mkdir(parents=True, exist_ok=True)
            shutil.chown(folder, "munge", "munge")
        if not key.exists() or key.stat().st_size == 0:
            key.write_bytes(os.urandom(1024))
            shutil.chown(key, "munge", "munge")
            key.chmod(0o400)
        as_munge = ("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups")
        self._start(*as_munge, "/usr/sbin/munged", "--foreground")
        wait_until(answers, "munge answers")

    def _start_database(self) -> None:
        assert not _succeeds("mariadb", "-e", "select 1"), (
            "a database runs here already, perhaps of tests that were killed: "
            "end slurmd, slurmctld, slurmdbd and mariadbd"
        )
        data = self.state / "mysql"
        data.mkdir(exist_ok=True)
        shutil.chown(data, "mysql", "mysql")
        socket_folder = Path("/run/mysqld")
        socket_folder.mkdir(exist_ok=True)
        shutil.chown(socket_folder, "mysql", "mysql")
        for parent in self.state.parents:  # as another user than root, it must get here
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(parent.stat().st_mode | 0o001)
        self.state.chmod(0o755)
        run(
            *("mariadb-install-db", "--user=mysql", f"--datadir={data}"),
            *("--auth-root-authentication-method=socket", "--skip-test-db"),
            timeout=120,
        )
        self._start(
            *("mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}"),
            *("--skip-networking", f"--socket={socket_folder}/mysqld.sock"),
            *(f"--pid-file={data}/pid", "--innodb-buffer-pool-size=64M"),
            *("--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"),
        )
        wait_until(lambda: _succeeds("mariadb", "-e", "select 1"), "the database answers")
        run(
            *("mariadb", "-e"),
            "create user slurm@localhost identified by ''; create database slurm_acct_db; "
            "grant all on slurm_acct_db.* to slurm@localhost",
        )

    # --- nodes and jobs ---------------------------------------------------------------------

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._start("slurmd", "-D", "-N", node)

    def lose_node(self, node: str) -> None:
        """What a power cut does: the daemon and every process of its jobs are gone at once. SLURM
        is told that the node is down, which it would find by itself in time; it comes back."""
        victims = [process for process in self.processes if list(process.args)[-2:] == ["-N", node]]
        pids = {process.pid for process in victims}
        # Each job is a slurmstepd of its own; its processes carry the node's name.
        for folder in filter(lambda folder: folder.name.isdigit(), Path("/proc").iterdir()):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if f"SLURMD_NODENAME={node}".encode() in environment or (
                command.startswith(b"slurmstepd") and self._parent_session(folder, pids)
            ):
                pids.add(int(folder.name))
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in victims:
            process.wait()
            self.processes.remove(process)
        run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
        self.start_node(node)

    @staticmethod
    def _parent_session(folder: Path, pids: set[int]) -> bool:
        """Whether a process was started by one of `pids`."""
        try:
            return int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) in pids
        except OSError:
            return False

    def idle(self) -> list[str]:
        """Names of the idle nodes."""
        return run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()

    def jobs(self, state: str = "running") -> dict[str, str]:
        """Comment (rule and wildcards) -> job id, of the jobs in a state."""
        lines = run("squeue", "-h", "-t", state, "-o", "%i %k").splitlines()
        return {comment: job for job, _, comment in (line.partition(" ") for line in lines)}

    def history(self, fields: str) -> list[list[str]]:
        """What accounting knows of all jobs, requeued ones each time that they ran."""
        lines = run("sacct", "-X", "-n", "-P", "--duplicates", "-o", fields).splitlines()
        return [line.split("|") for line in lines]
