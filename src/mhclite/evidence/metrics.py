"""What is compared: each metric of a claim, its scale, and which differences of it matter.

Imports nothing that is slow: Snakemake reads the claims, and so this, in every job.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How values of a metric are compared.

    `equal` and `resolution` are in the unit of the comparison: natural logarithms where `log`.
    """

    words: str  # for readers
    unit: str = ""
    log: bool = False  # logarithms are compared: the effect is a factor
    share: bool = False  # a proportion with a point mass at 0 or 1: seeds are counted
    equal: float | None = None  # smallest effect of interest: below it, practically equal
    worst: float = math.inf  # of a run that diverged; NaN: it has none, and says nothing
    resolution: float = 0.0  # a spread over seeds below it is rounding, and decides nothing


# The smallest effects of interest are this project's choice. Losses: a quarter of the lead over the
# plain residual that mHC reports at 27B (0.021 nats). Gradient norms: 5 %, their fluctuation 10 %.
# Rates: a quarter of a doubling.
METRICS = {
    "validation_loss": Metric("validation loss", "nats/token", equal=0.005, resolution=1e-6),
    "grad_norm_mean": Metric("gradient norm", log=True, equal=0.05, resolution=1e-4),
    "grad_norm_fluctuation": Metric("its fluctuation", log=True, equal=0.1, resolution=1e-3),
    "backbone_grad_norm_mean": Metric(
        "gradient norm of the backbone", log=True, equal=0.05, resolution=1e-4
    ),
    "backbone_grad_norm_fluctuation": Metric(
        "fluctuation of the backbone's gradient norm", log=True, equal=0.1, resolution=1e-3
    ),
    "single_deviation_99": Metric("99 % quantile of |row sum - 1|", log=True, resolution=1e-3),
    "product_deviation_99": Metric(
        "99 % quantile of |row sum - 1| of the product", log=True, resolution=1e-3
    ),
    "product_max_deviation": Metric("largest |row or column sum - 1| of the product"),
    "orthogonality_error": Metric("error of orthogonality", log=True, resolution=1e-3),
    "gain_forward": Metric("composite gain", log=True, resolution=1e-4),
    "gain_forward_peak": Metric("largest composite gain", log=True, resolution=1e-4),
    "gap_growth": Metric(
        "product's deviation over a single one's", log=True, resolution=1e-3, worst=math.nan
    ),
    "sinkhorn_share_above_30": Metric("share of inputs", "of inputs", share=True),
    "knockout_identity": Metric("cost of H_res = I", "nats/token", resolution=1e-6, worst=math.nan),
    "critical_rate": Metric(
        "log2 of the largest rate", equal=0.25, resolution=0.01, worst=math.nan
    ),
    "loss_spikes": Metric("spikes of the loss", "per 1,000 judged steps"),
    "grad_norm_spikes": Metric("spikes of the gradient norm", "per 1,000 judged steps"),
    "diverged": Metric("diverged runs", "per run"),
}
COUNTS = ("loss_spikes", "grad_norm_spikes", "diverged")  # metrics of claims of kind `count`
