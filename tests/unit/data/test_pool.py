"""Jobs over processes: results, reports, errors, and processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mhclite.data.pool import run_jobs
from mhclite.errors import UserError

# What workers run is at the top of the module, where they find it.


def square(job: int) -> tuple[int, int]:
    return job * job, os.getpid()


def refuse(job: int) -> None:
    raise UserError(f"job {job} cannot be done")


def die(job: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_every_job_is_done_once(processes: int) -> None:
    found = list(run_jobs(square, range(4), processes))
    assert sorted(value for value, _ in found) == [0, 1, 4, 9]
    assert (os.getpid() in {process for _, process in found}) == (processes == 1)
    assert list(run_jobs(square, [], processes)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_mistake_comes_back_as_it_is(processes: int) -> None:
    with pytest.raises(UserError, match=r"^job \d cannot be done$"):
        list(run_jobs(refuse, range(3), processes))


def test_a_killed_worker_is_one_clear_line() -> None:
    with pytest.raises(UserError, match=r"was killed, .* run the same command again") as error:
        list(run_jobs(die, range(3), 2))
    assert "\n" not in str(error.value)


def wait_and_tell(job: Path) -> None:
    job.write_text(str(os.getpid()))
    time.sleep(60)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, test_pool; from mhclite.data.pool import run_jobs; "
        "jobs = [pathlib.Path(name) for name in sys.argv[1:]]; "
        "list(run_jobs(test_pool.wait_and_tell, jobs, 2))"
    )
    told = [tmp_path / "one", tmp_path / "two"]
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-c", code, *map(str, told)]
    # Its resource tracker may have a last word about the semaphores of a killed process.
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as parent:
        deadline = time.monotonic() + 60
        while not all(path.exists() and path.read_text() for path in told):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = [int(path.read_text()) for path in told]
        assert all(map(running, workers))
        parent.kill()
    while any(map(running, workers)):
        assert time.monotonic() < deadline, "a worker is left behind"
        time.sleep(0.05)
