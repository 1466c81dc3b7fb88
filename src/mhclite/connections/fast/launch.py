"""How the Triton kernels are launched: what is tuned for a GPU, apart from what is computed.

Sums in floating point depend on their order, so the last bits of a result depend on the launch:

- `tokens`: the gradient of the LayerNorm's gain is summed over the tokens of a program, then over
  programs.
- `columns`: every sum over the width C, and the matrix product of the projection, goes chunk by
  chunk.
- `warps`, and again `tokens` and `columns`: by them Triton lays a tile out over threads, and the
  layout decides in which order a row of a chunk is summed, or that of a matrix in Sinkhorn-Knopp.
- `stages`: orders loads, not sums; but the compiler may choose another layout with it.

So whoever trains with the kernels records `settings()` beside the result. A launch is not part of
what is computed: another one rounds otherwise, as another GPU does.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Launch(NamedTuple):
    """How a kernel of a boundary runs."""

    tokens: int  # per program
    columns: int  # per chunk, at most
    warps: int  # per program, at most
    stages: int  # chunks in flight, the one that is computed with among them

    def programs(self, tokens: int) -> int:
        """Programs for so many tokens."""
        return -(-tokens // self.tokens)


# By what the compiler makes of them for sm_90 (tests/unit/test_machine_code.py).
# Eight warps forward take the registers of a multiprocessor: with one program on each, what is read
# a second time is more likely to be in the L2 cache still.
FORWARD = Launch(tokens=16, columns=128, warps=8, stages=2)
BACKWARD = Launch(tokens=16, columns=32, warps=4, stages=2)
# Forward, of float32 streams: their products are of two parts each, for which wider chunks leave no
# registers.
FLOAT32_COLUMNS = 32
SINKHORN_TOKENS = 64  # per program
SINKHORN_WARPS = 4


def settings() -> dict[str, Any]:
    """What the bits of a kernel's result depend on besides inputs, code and GPU."""
    return {
        "boundary": FORWARD._asdict(),
        "boundary_float32_columns": FLOAT32_COLUMNS,
        "boundary_backward": BACKWARD._asdict(),
        "sinkhorn": {"tokens": SINKHORN_TOKENS, "warps": SINKHORN_WARPS},
    }
