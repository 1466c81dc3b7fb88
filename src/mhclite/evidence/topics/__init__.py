"""One file per subject of a study: its data, figures, tables and captions.

Importing this package registers them all; a new file is found once it is named here.
"""

# ruff: noqa: F401
from mhclite.evidence.topics import conditions, cost, depth, h_res, losses, rates, verdicts
