"""How many parameters the connections of a model have, before one is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mhclite.connections import connection_class
from mhclite.connections.head import Head


def connection_parameters(
    variant: str, n_streams: int, n_embd: int, n_layer: int, options: Mapping[str, Any], head: bool
) -> int:
    """Parameters of all connections of a model, and with `head` of its learned final read."""
    with torch.device("meta"):
        one = connection_class(variant)(n_streams, n_embd, 0, **options)
        read = Head(n_streams, n_embd) if head and n_streams > 1 else None
    count = 2 * n_layer * sum(p.numel() for p in one.parameters())
    return count if read is None else count + sum(p.numel() for p in read.parameters())
