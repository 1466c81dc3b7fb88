"""The files that the measuring steps write, with named fields; read without torch.

`RETIRED`: what earlier versions wrote besides, in published files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mhclite.arguments import json_argument
from mhclite.errors import UserError
from mhclite.records import Misfit, build, read_record

PROBE_SCHEMA = 3
THROUGHPUT_SCHEMA = 3
STABILITY_SCHEMA = 4
CRITICAL_SCHEMA = 1
SWEEP_SCHEMA = 1

T = TypeVar("T")


def settings_argument(kind: type[T], text: str, option: str) -> T:
    """The settings that an option gives as JSON or @FILE; `UserError` if they are none."""
    try:
        return build(kind, json_argument(text, option), option)
    except Misfit as problem:
        raise UserError(f"{problem}: {option} {text[:60]!r} is not what a study resolves") from None


# --- probe ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Loss on the validation split: all of it, or windows spread evenly over it."""

    RETIRED = ("whole_split", "document_tokens", "document_losses")
    loss: float  # nats per token
    tokens: int  # predicted


@dataclass(frozen=True)
class SingleSums:
    """Sums of single H_res, operator orientation: quantiles over tokens, sub-layers, and rows or
    columns."""

    RETIRED = ("row_sum", "column_sum", "max_deviation")
    row_sum_all: list[float]
    column_sum_all: list[float]

    @property
    def error(self) -> float:
        """How far they are from doubly stochastic: the largest |row or column sum - 1|."""
        return largest_error(self.row_sum_all, self.column_sum_all)


@dataclass(frozen=True)
class ProductSums:
    """Sums and gains of the product over the depth: the last entry. Earlier versions have one entry
    per number of matrices, the first ones multiplied."""

    RETIRED = ("max_deviation", "gain_forward_max", "gain_backward_max")
    row_sum: list[list[float]]  # quantiles over tokens and rows
    column_sum: list[list[float]]
    gain_forward: list[float]  # largest absolute row sum, mean over tokens
    gain_backward: list[float]  # largest absolute column sum, mean over tokens

    @property
    def error(self) -> float:
        """How far the whole product is from doubly stochastic."""
        return largest_error(self.row_sum[-1], self.column_sum[-1])


def largest_error(*sums: list[float]) -> float:
    """Largest |sum - 1| of lists of quantiles that begin with the least and end with the most."""
    return max(abs(end - 1) for quantiles in sums for end in (quantiles[0], quantiles[-1]))


@dataclass(frozen=True)
class SinkhornInput:
    """log(1/nu) of what Sinkhorn-Knopp is given, over all tokens and sub-layers."""

    RETIRED = ("bin_edges", "counts")
    share_above_30: float
    max: float


@dataclass(frozen=True)
class Deviation:
    """|row sum - 1|, over tokens and rows. What a larger probe measures more exactly, where a
    maximum grows with it."""

    RETIRED = ("mean",)
    quantile_99: float


@dataclass(frozen=True)
class Geometry:
    """What else H_res and its product do; lists have one entry per sub-layer, or as above."""

    RETIRED = ("effective_rank", "mean_product", "log_inverse_nu", "product_orthogonality")
    single_deviation: Deviation  # over all sub-layers
    product_deviation: Deviation  # of the whole product
    orthogonality: list[float]  # Frobenius norm of H^T H - I, mean over tokens
    singular_values: list[list[float]]  # of the product, (matrices, n), falling; mean over tokens
    start_distance: list[float]  # Frobenius norm of H_res minus that of the untrained connection
    mean_matrix: list[list[list[float]]]  # (sub-layers, n, n): H_res, mean over tokens


@dataclass(frozen=True)
class Mixing:
    """What H_res does on held-out text."""

    RETIRED = ("sequences", "tokens", "n_sublayers")
    quantile_levels: list[float]
    single: SingleSums
    product: ProductSums
    identity_distance: list[float]  # Frobenius norm of H_res - I, mean over tokens, per sub-layer
    sinkhorn_input: SinkhornInput | None  # None for variants without Sinkhorn-Knopp
    geometry: Geometry


@dataclass(frozen=True)
class Cost:
    """How much the loss rises if something is changed, in nats per token."""

    mean: float
    error: float | None  # standard error of the mean over windows; None for one window


@dataclass(frozen=True)
class Use:
    """What the loss of a trained model depends on: `mixing.knockouts` says what is changed."""

    RETIRED = (
        *("windows", "loss", "identity_by_sublayer", "token_mean_by_sublayer", "stream_dropped"),
    )
    # On the windows of the final loss; older probes have some on the probe's own.
    identity: Cost  # every H_res is the identity
    token_mean: Cost  # every H_res is its mean over tokens


@dataclass(frozen=True)
class Probe:
    """probes/<run>.json. Parts are None where `skipped` says why, or with one stream; and in
    published files, `use` where it was found wrong, without weights to measure it again."""

    RETIRED = ("parameters", "variant", "n_streams")
    schema: int
    run: str
    key: str | None  # of the run; None for a model from elsewhere
    made_of: str  # digest of weights, text, settings and code
    skipped: str | None
    evaluation: Evaluation | None
    mixing: Mixing | None
    use: Use | None


def read_probe(path: Path, run: str) -> Probe:
    """Probe of a run; `UserError` if missing, damaged or of another version."""
    again = f"delete {path.parent}.json and run `snakemake --cores all`"  # what it knows them by
    return read_record(Probe, path, f"the probe of run {run}", PROBE_SCHEMA, again)


# --- throughput -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Quartiles:
    """Of the timed rounds."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Timing:
    """Training steps of one connection, computed in one way."""

    step_seconds: list[float]  # one per round
    ratio: list[float]  # to the plain residual's step of the same round
    tokens_per_second: Quartiles
    ratio_quartiles: Quartiles
    peak_memory_bytes: int


@dataclass(frozen=True)
class Measured(Timing):
    """The same under the study's own implementation, with what was counted."""

    flops_per_token: float
    parameters: int
    extra_parameters: int  # beyond the plain residual's


@dataclass(frozen=True)
class Unfit:
    """A connection whose training step needs more memory than the device has."""

    RETIRED = ("deterministic",)
    implementation: str  # reference, fast or fused
    name: str  # of the connection
    reason: str
    # Counted all the same:
    flops_per_token: float
    parameters: int
    extra_parameters: int


@dataclass(frozen=True)
class Throughput:
    """throughput/<model>.json."""

    RETIRED = ("free",)
    schema: int
    model: str
    device: str
    hardware: dict[str, Any]
    threads: int
    precision: str
    compile: bool
    batch_size: int
    block_size: int
    rounds: int
    warmup_rounds: int
    implementation: str | None  # of `variants`; None where there is the plain residual alone
    variants: dict[str, Measured]
    others: dict[str, dict[str, Timing]]  # implementation -> name -> timing
    # Whether with torch's deterministic algorithms: as training on a GPU; on a CPU nothing varies.
    deterministic: bool
    did_not_fit: list[Unfit]  # and stand in none of the above

    def counted(self, name: str) -> Measured | Unfit | None:
        """What was counted of a connection, whether it could be timed or not."""
        unfit = (u for u in self.did_not_fit if u.name == name)
        return self.variants.get(name) or next(unfit, None)


def read_throughput(path: Path, model: str) -> Throughput:
    """Throughput of a model size; `UserError` if missing, damaged or of another version."""
    what = f"the throughput of model {model}"
    return read_record(Throughput, path, what, THROUGHPUT_SCHEMA)


# --- stability ------------------------------------------------------------------------------


@dataclass(frozen=True)
class StabilitySettings:
    """What counts as an instability: the section `stability` of a study."""

    spike_window: int
    spike_sigmas: float
    fluctuation_window: int


@dataclass(frozen=True)
class RunStability:
    """Spikes, fluctuation and divergence of one run; `measure.stability.judge` says how."""

    steps: int
    judged_steps: int
    loss_spikes: list[int]  # steps, as of all lists here
    grad_norm_spikes: list[int]
    spikes_per_1000_steps: float | None
    grad_norm_mean: float | None
    grad_norm_fluctuation: float | None
    backbone_grad_norm_mean: float | None  # None where it was not recorded
    backbone_grad_norm_fluctuation: float | None
    diverged: bool
    clipped_share: float | None


@dataclass(frozen=True)
class Stability:
    """stability.json."""

    schema: int
    settings: StabilitySettings
    runs: dict[str, RunStability]


def read_stability(path: Path) -> Stability:
    """Stability of all runs; `UserError` if missing, damaged or of another version."""
    return read_record(Stability, path, "the stability of the runs", STABILITY_SCHEMA)


# --- critical learning rate -----------------------------------------------------------------


@dataclass(frozen=True)
class CriticalSettings:
    """The section `critical_rate` of a study."""

    factors: list[float]  # of the learning rate, rising; tried for every run
    halvings: int
    below_unigram: float  # nats per token that a run must have learned


@dataclass(frozen=True)
class Try:
    """A run at another learning rate; `measure.critical` says what fails."""

    RETIRED = ("initial_loss", "unstable_step")
    factor: float
    failed: bool
    validation_loss: float | None  # at the end, nats per token; None if it diverged
    steps: int


@dataclass(frozen=True)
class Critical:
    """critical/<run>.json."""

    RETIRED = ("made_of",)
    schema: int
    run: str
    bar: float  # nats per token: a run that does not end below it has failed
    settings: CriticalSettings
    tries: list[Try]  # the common factors first


def critical_interval(tries: Sequence[Try]) -> tuple[float | None, float | None]:
    """(largest factor that holds below the first failure, smallest that fails).

    None: all fail, or all hold.
    """
    high = min((one.factor for one in tries if one.failed), default=None)
    below = [one.factor for one in tries if high is None or one.factor < high]
    return max(below, default=None), high


def critical_rate(tries: Sequence[Try]) -> dict[str, Any]:
    """`critical_rate`: log2 of the factor at which a run ceases to learn.

    The middle of `low` and `high` (log2 as well), between which it lies. Where all tries fail or
    all hold, one of them is missing, `beyond` says so ("below" or "above" the rates tried), and the
    value is the end: differences to others are then too small, never too large.
    """
    low, high = (None if f is None else math.log2(f) for f in critical_interval(tries))
    ends = [end for end in (low, high) if end is not None]
    beyond = "below" if low is None else "above" if high is None else ""
    return {"critical_rate": sum(ends) / len(ends), "low": low, "high": high, "beyond": beyond}


def read_critical(path: Path, run: str) -> Critical:
    """Critical rate of a run; `UserError` if missing, damaged or of another version."""
    return read_record(Critical, path, f"the critical rate of run {run}", CRITICAL_SCHEMA)


# --- sweep of learning rates ----------------------------------------------------------------


@dataclass(frozen=True)
class SweepSettings:
    """The section `sweep` of a study, and the seeds of the grid."""

    ratio: float
    steps: int
    widest: int
    finalists: int
    margin: float  # nats per token
    final_seeds: list[int]
    band: float  # nats per token
    seeds: list[int]


@dataclass(frozen=True)
class Trial:
    """One training of a sweep. It belongs to the grid unless its seed is a final one."""

    rate: float
    seed: int
    steps: int
    loss: float | None  # final validation loss, nats per token; None if it diverged


@dataclass(frozen=True)
class Sweep:
    """sweep/<arm>.json."""

    schema: int
    corpus: str
    model: str
    condition: str
    variant: str
    settings: SweepSettings
    shared_rate: float  # of the model size
    bracketed: bool  # the best of the grid is inside it
    rate: float | None  # None: not bracketed, or every finalist diverged
    band: list[float] | None  # least and largest rate that end so close to the best of the grid
    trials: list[Trial]


def read_sweep(path: Path) -> Sweep:
    """Sweep of an arm; `UserError` if missing, damaged or of another version."""
    return read_record(Sweep, path, f"the sweep of {path.stem}", SWEEP_SCHEMA)
