"""How long a device works on something, by its own clock, on data that is not in its cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from mhclite.measure.steps import quartiles

FLUSHED_BYTES = 2**28  # written before each launch: several times a GPU's L2 cache
WARM_UP = 3


class Timed(NamedTuple):
    """Seconds of one launch."""

    median: float
    q1: float
    q3: float
    launches: int


def timed(work: Callable[[], object], device: torch.device, launches: int = 50) -> Timed:
    """Launch some work many times.

    On a GPU each launch stands between two events of its own. Before it, memory is written that
    replaces what the cache holds, and that takes the GPU longer than the host needs to submit the
    launch: the time is the GPU's, without Python's.
    """
    for _ in range(WARM_UP):
        work()
    clock = _events if device.type == "cuda" else _host
    found = quartiles(clock(work, device, launches))
    return Timed(found.median, found.q1, found.q3, launches)


def _host(work: Callable[[], object], device: torch.device, launches: int) -> list[float]:
    found = []
    for _ in range(launches):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return found


def _events(work: Callable[[], object], device: torch.device, launches: int) -> list[float]:
    flushed = torch.empty(FLUSHED_BYTES // 4, dtype=torch.int32, device=device)
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(launches)]
    for before, after in pairs:
        flushed.zero_()
        before.record()
        work()
        after.record()
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1000 for before, after in pairs]


def limits(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Bytes per second of a large copy (read plus write) and FLOP/s of a large product.

    Of random numbers: zeros move and multiply with less power, and faster.
    """
    cuda = device.type == "cuda"
    source = torch.randn(2**28 if cuda else 2**24, device=device)
    target = torch.empty_like(source)
    size = 8192 if cuda else 2048
    a = torch.randn(size, size, dtype=dtype, device=device)
    launches = 20 if cuda else 10
    copy = timed(lambda: target.copy_(source), device, launches).median
    product = timed(lambda: a @ a, device, launches).median
    return {
        "bytes_per_second": 2 * source.numel() * source.element_size() / copy,
        "flops_per_second": 2 * size**3 / product,
    }
