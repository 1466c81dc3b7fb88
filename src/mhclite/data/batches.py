"""Which windows of the corpus a step trains on: a pure function of seed and step.

So batches do not depend on the variant, on the number of processes, on evaluation, or on whether
the run was ever interrupted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mhclite.seeding import seed_sequence

Tokens = npt.NDArray[np.int64]


def batch_starts(n_tokens: int, length: int, count: int, seed: int, step: int) -> Tokens:
    """Where the windows of a step begin: uniform, with replacement, as the authors draw them.

    Args:
        n_tokens: tokens in the split.
        length: tokens per window.
        count: windows of the whole step, over all processes.
        seed: the run's seed.
        step: 0 for the first update.

    Returns:
        (count,) positions in [0, n_tokens - length].
    """
    generator = np.random.Generator(np.random.Philox(seed_sequence(seed, "batches", step)))
    return generator.integers(0, n_tokens - length, size=count, endpoint=True)


def evaluation_starts(n_tokens: int, length: int, count: int) -> Tokens:
    """Where the evaluation windows begin: spread evenly, always the same, (count,)."""
    return np.linspace(0, n_tokens - length, num=count).astype(np.int64)
