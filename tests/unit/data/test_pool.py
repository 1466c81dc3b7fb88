"""Jobs over processes: results, reports, errors, and processes that are killed."""

from __future__ import annotations

import os
import signal

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
