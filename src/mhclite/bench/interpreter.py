"""Triton's interpreter, made to round as a GPU does.

That of Triton 3.7.1 cuts bits off when it makes float32 a bf16 number; compiled for a GPU the same
conversion goes to the nearest, ties to even. Cut off at every boundary, streams shrink with depth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_cut = interpreter.InterpreterBuilder.cast_impl


def _nearest(builder: Any, source: Any, to: Any) -> Any:
    if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
        return _cut(builder, source, to)
    bits = np.ascontiguousarray(source.data).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    finite = np.isfinite(source.data)
    kept = np.where(finite, rounded, bits >> 16 | np.isnan(source.data) << 6)
    return interpreter.TensorHandle(kept.astype(np.uint16), to.scalar)


def round_to_nearest() -> None:
    """From here on, in this process."""
    interpreter.InterpreterBuilder.cast_impl = _nearest
