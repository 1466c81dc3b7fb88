"""The metrics: each with its source, its scale, its words, and which differences of it matter.

`collect` reads them from a run's records into one tidy table, which tables, figures and claims are
made of. Imports nothing that is slow: Snakemake reads the claims, and so this, in every job.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    `source` is the path of a field in the records that `collect` has of a run, then names of
    `REDUCE` for lists: `probe.use.identity.mean`, `probe.mixing.identity_distance mean`; or the
    ratio of two metrics, `a / b`. `equal` and `resolution` are in the unit of the comparison:
    natural logarithms where `log`.
    """

    label: str  # for readers
    source: str
    unit: str = ""
    log: bool = False  # means are geometric and effects are factors
    geometric: bool = False  # means are, though claims are not of logarithms
    share: bool = False  # a proportion with a point mass at 0 or 1: claims count seeds
    count: bool = False  # a whole number
    decimals: int | None = None  # of a mean for readers; None: as many as it needs
    always: bool = False  # of runs that diverged as well
    error: str = ""  # metric that is its standard error over windows of text
    equal: float | None = None  # smallest effect of interest: below it, practically equal
    worst: float = math.inf  # of a run that diverged, for claims; NaN: it has none
    resolution: float = 0.0  # a spread over seeds below it is rounding, and decides nothing

    @property
    def heading(self) -> str:
        """The label at the head of a column."""
        unit = " (%)" if self.share else f" ({self.unit})" if self.unit else ""
        return self.label + unit


REDUCE: dict[str, Callable[[Any], Any]] = {
    "mean": lambda values: sum(values) / len(values),
    "max": lambda values: max((x for x in values if x is not None), default=None),
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "count": len,
}
NATS = "nats/token"
MIXING, GEOMETRY = "probe.mixing", "probe.mixing.geometry"

# Kinds of metrics. The smallest effects of interest are this project's choice. Losses: a quarter of
# the lead over the plain residual that mHC reports at 27B (0.021 nats). Gradient norms: 5 %, their
# fluctuation (sd of the logarithm about a running median) 10 %. Rates: a quarter of a doubling.
loss = partial(Metric, unit=NATS, decimals=4)  # at the end of training
count = partial(Metric, count=True, always=True)
norm = partial(Metric, log=True, equal=0.05, resolution=1e-4)
fluctuation = partial(Metric, log=True, equal=0.1, resolution=1e-3)
deviation = partial(Metric, log=True, resolution=1e-3)

METRICS = {
    # Over the validation split as far as the probe reads it; over the fixed windows of training.
    "validation_loss": loss(
        "Validation loss", "probe.evaluation.loss", equal=0.005, resolution=1e-6
    ),
    "validation_bits_per_byte": Metric("Bits per byte", "derived.bits_per_byte", decimals=4),
    "validation_loss_windows": loss("Loss on the windows of training", "summary.validation_loss"),
    "best_validation_loss": loss("Best loss", "summary.best_validation_loss"),
    "train_loss": loss("Training loss", "summary.train_loss"),
    "seconds": Metric("Training time", "summary.seconds", "s", always=True),
    "tokens_per_second": Metric("Speed", "summary.tokens_per_second", "tokens/s", always=True),
    "parameters": count("Parameters", "record.parameters.total"),
    "connection_parameters": count("Parameters of the connections", "record.parameters.connection"),
    "diverged": count("Diverged runs", "stability.diverged", "per run"),
    "loss_spikes": count("Spikes of the loss", "stability.loss_spikes count"),
    "grad_norm_spikes": count("Spikes of the gradient norm", "stability.grad_norm_spikes count"),
    # Steps that could have been a spike: after warm-up, a full window before.
    "judged_steps": count("Judged steps", "stability.judged_steps"),
    "spikes_per_1000_steps": Metric(
        "Spikes per 1,000 judged steps", "stability.spikes_per_1000_steps", always=True
    ),
    "clipped_share": Metric("Steps clipped", "stability.clipped_share", share=True),
    "grad_norm_mean": norm("Gradient norm", "stability.grad_norm_mean"),
    "grad_norm_fluctuation": fluctuation("Gradient fluctuation", "stability.grad_norm_fluctuation"),
    "backbone_grad_norm_mean": norm(
        "Gradient norm of the backbone", "stability.backbone_grad_norm_mean"
    ),
    "backbone_grad_norm_fluctuation": fluctuation(
        "Gradient fluctuation of the backbone", "stability.backbone_grad_norm_fluctuation"
    ),
    # Of single matrices H_res, and of the product over the depth:
    "single_deviation_99": deviation(
        "99 % quantile of |row sum - 1|", f"{GEOMETRY}.single_deviation.quantile_99"
    ),
    "product_deviation_99": deviation(
        "99 % quantile of |row sum - 1| of the product",
        f"{GEOMETRY}.product_deviation.quantile_99",
    ),
    "gap_growth": deviation(
        "Product's deviation over a single one's",
        "product_deviation_99 / single_deviation_99",
        worst=math.nan,
    ),
    "single_max_deviation": Metric("Sums off, single", f"{MIXING}.single.error", log=True),
    "product_max_deviation": Metric("Sums off, product", f"{MIXING}.product.error", geometric=True),
    "orthogonality_error": deviation("Error of orthogonality", f"{GEOMETRY}.orthogonality mean"),
    "gain_forward": Metric(
        "Final gain, forward", f"{MIXING}.product.gain_forward last", log=True, resolution=1e-4
    ),
    "gain_forward_peak": Metric(
        "Largest gain", "evaluations.gain_forward max", log=True, resolution=1e-4
    ),
    "gain_backward": Metric(
        "Final gain, backward", f"{MIXING}.product.gain_backward last", log=True
    ),
    "singular_largest": Metric(
        "Largest singular value of the product", f"{GEOMETRY}.singular_values last first", log=True
    ),
    "singular_smallest": Metric(
        "Smallest singular value of the product", f"{GEOMETRY}.singular_values last last", log=True
    ),
    "sinkhorn_share_above_30": Metric(
        "log(1/ν) > 30", f"{MIXING}.sinkhorn_input.share_above_30", "of inputs", share=True
    ),
    "largest_log_inverse_nu": Metric("Largest log(1/ν)", f"{MIXING}.sinkhorn_input.max"),
    "identity_distance": Metric("Distance from identity", f"{MIXING}.identity_distance mean"),
    "start_distance": Metric("Distance", f"{GEOMETRY}.start_distance mean", log=True),
    # What is lost if every H_res is the identity, or its mean over tokens:
    "knockout_identity": loss(
        "Lost, H_res = I",
        "probe.use.identity.mean",
        error="knockout_identity_error",
        worst=math.nan,
        resolution=1e-6,
    ),
    "knockout_identity_error": Metric("Its standard error", "probe.use.identity.error", NATS),
    "knockout_mean": loss(
        "Lost, H_res = its mean", "probe.use.token_mean.mean", error="knockout_mean_error"
    ),
    "knockout_mean_error": Metric("Its standard error", "probe.use.token_mean.error", NATS),
    # Sub-layers whose H_res can change what the model computes.
    "functional_mixing": count("Functional H_res", "derived.functional_mixing"),
    "unigram": Metric("Unigram model", "manifest.baselines.unigram", NATS, always=True),
    "bigram": Metric("Bigram model", "manifest.baselines.bigram", NATS, always=True),
    # Of the study's search, where it has one (`results`): no source in a run.
    "critical_rate": Metric(
        "log2 of the largest rate", "", equal=0.25, resolution=0.01, worst=math.nan
    ),
}
COUNTS = ("loss_spikes", "grad_norm_spikes", "diverged")  # metrics of claims of kind `count`


def value_of(name: str, records: Mapping[str, Any]) -> float | None:
    """The value of a metric; None where a run has none.

    Args:
        records: what `collect` has of a run, by the names that sources begin with.
    """
    source = METRICS[name].source
    if " / " in source:
        above, below = (value_of(part, records) for part in source.split(" / "))
        return above / below if above is not None and below else None
    path, *reductions = source.split()
    value: Any = records
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part)
        if value is None:
            return None
    for reduction in reductions:
        value = REDUCE[reduction](value)
    return None if value is None else float(value)


# What else a row of runs.csv says of a run -> its pandas type. "order" becomes an ordered
# categorical in the study's order.
RUN_FACTS = {
    "run": "str",
    "corpus": "order",
    "model": "order",
    "n_layer": "int64",
    "n_embd": "int64",
    "variant": "order",
    "condition": "order",  # "base": the study's own settings
    "n_streams": "int64",
    "seed": "int64",
    "status": "str",  # completed | diverged
    "steps": "int64",
    "diverged_step": "Int64",
    "tokens": "int64",
    "key": "str",
}
OF_RUNS = [name for name, metric in METRICS.items() if metric.source]
RUN_COLUMNS = RUN_FACTS | {name: "Int64" if METRICS[name].count else "float64" for name in OF_RUNS}
# The tidy table, values.csv: a row for each number that a run has.
VALUE_COLUMNS = {
    **dict.fromkeys(("corpus", "model", "condition", "variant"), "order"),
    "seed": "int64",
    "metric": "str",
    "value": "float64",
}
CURVE_COLUMNS = {
    "run": "str",
    **dict.fromkeys(("corpus", "model", "variant", "condition"), "order"),
    "seed": "int64",
    "step": "int64",  # 0: evaluated before training, no loss
    "tokens": "int64",
    "loss": "float64",
    "grad_norm": "float64",  # before clipping
    "validation_loss": "float64",  # on evaluation steps
    "validation_bits_per_byte": "float64",
    "grad_norm_window_mean": "float64",  # empty until the window is full
}
