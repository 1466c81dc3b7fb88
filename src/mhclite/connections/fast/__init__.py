"""The machinery that computes connections fast; the formulas are one folder up.

`projected.py`: what a variant says about itself. `functions.py`: `fast`, in plain torch.
`fused.py`, over `operators.py` and the Triton kernels in `kernels*.py`: `fused`. `sinkhorn_*.py`:
Sinkhorn-Knopp as one operator, for both. `availability.py`: which of them computes here;
`launch.py`: launch sizes.
"""
