"""One file per subject of a study: its data, figures, tables and captions.

Importing this package registers them all; a new file is found once it is named here.
"""

from mhclite.evidence.topics import (
    claims,
    conditions,
    cost,
    depth,
    losses,
    mixing,
    overview,
    rates,
    sinkhorn,
    stability,
    stress,
)

__all__ = [
    "claims",
    "conditions",
    "cost",
    "depth",
    "losses",
    "mixing",
    "overview",
    "rates",
    "sinkhorn",
    "stability",
    "stress",
]
