"""Named random streams: each use of randomness has a stream of its own under the run's seed.

So what one part draws never depends on how much another has drawn, nor on resuming.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seed_sequence(seed: int, stream: str, *counters: int) -> np.random.SeedSequence:
    """The seed material of a named stream, and of a step within it."""
    return np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *counters])


def generator_for(seed: int, stream: str) -> torch.Generator:
    """A CPU generator for weights: the same values wherever they are used."""
    state = seed_sequence(seed, stream).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))
