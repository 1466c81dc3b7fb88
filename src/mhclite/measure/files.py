"""The files that the measuring steps write, with named fields; read without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mhclite.records import read_record

SCHEMA = 2  # of the probe, throughput, stability and critical files


def _again(path: Path) -> str:
    return f"delete {path} and run `snakemake --cores all`"


# --- probe ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SingleSums:
    """Sums of single H_res, operator orientation. Quantiles are over tokens and rows or columns."""

    row_sum: list[list[float]]  # one list of quantiles per sub-layer
    column_sum: list[list[float]]
    row_sum_all: list[float]  # over all sub-layers
    column_sum_all: list[float]
    max_deviation: float  # of a row sum from 1


@dataclass(frozen=True)
class ProductSums:
    """Sums and gains of the product of the first H_res, one entry per number of matrices."""

    row_sum: list[list[float]]
    column_sum: list[list[float]]
    max_deviation: float  # of a row sum of the whole product from 1
    gain_forward: list[float]  # largest absolute row sum, mean over tokens
    gain_backward: list[float]  # largest absolute column sum, mean over tokens
    gain_forward_max: list[float]
    gain_backward_max: list[float]


@dataclass(frozen=True)
class SinkhornInput:
    """log(1/nu) of what Sinkhorn-Knopp is given, over all tokens and sub-layers."""

    bin_edges: list[float]  # the last bin is open
    counts: list[int]
    share_above_30: float
    max: float


@dataclass(frozen=True)
class Mixing:
    """What H_res does on held-out text."""

    sequences: int
    tokens: int
    n_sublayers: int
    quantile_levels: list[float]
    single: SingleSums
    product: ProductSums
    identity_distance: list[float]  # Frobenius norm of H_res - I, mean over tokens, per sub-layer
    sinkhorn_input: SinkhornInput | None  # None for variants without Sinkhorn-Knopp


@dataclass(frozen=True)
class Probe:
    """probes/<run>.json. Either `mixing`, or why there is none in `skipped`."""

    schema: int
    run: str
    variant: str
    n_streams: int
    skipped: str | None
    mixing: Mixing | None


def read_probe(path: Path, run: str) -> Probe:
    """Probe of a run; `UserError` if missing, damaged or of another version."""
    return read_record(Probe, path, f"the probe of run {run}", SCHEMA, _again(path))


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
class Throughput:
    """throughput/<model>.json."""

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


def read_throughput(path: Path, model: str) -> Throughput:
    """Throughput of a model size; `UserError` if missing, damaged or of another version."""
    return read_record(Throughput, path, f"the throughput of model {model}", SCHEMA, _again(path))


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
    too_few_steps: bool
    loss_spikes: list[int]
    grad_norm_spikes: list[int]
    spikes_per_1000_steps: float | None
    grad_norm_mean: float | None
    grad_norm_fluctuation: float | None
    diverged: bool
    diverged_step: int | None


@dataclass(frozen=True)
class Stability:
    """stability.json."""

    schema: int
    settings: StabilitySettings
    runs: dict[str, RunStability]


def read_stability(path: Path) -> Stability:
    """Stability of all runs; `UserError` if missing, damaged or of another version."""
    return read_record(Stability, path, "the stability of the runs", SCHEMA, _again(path))


# --- critical learning rate -----------------------------------------------------------------

SMOOTHING = 16  # steps of the mean training loss by which a run is judged unstable
RISE = 0.5  # nats per token above its smallest value so far: it is


@dataclass(frozen=True)
class CriticalSettings:
    """The section `critical_rate` of a study."""

    factors: list[float]  # of the learning rate, rising; tried for every run
    halvings: int
    below_unigram: float  # nats per token that a run must have learned


@dataclass(frozen=True)
class Try:
    """A run at another learning rate; `measure.critical` says what fails and what is unstable."""

    factor: float
    failed: bool
    initial_loss: float  # validation, before training; nats per token
    validation_loss: float | None  # at the end; None if it diverged
    steps: int
    unstable_step: int | None  # None: never within `steps`


@dataclass(frozen=True)
class Critical:
    """critical/<run>.json."""

    schema: int
    run: str
    made_of: str  # digest of all that decides the tries
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


def read_critical(path: Path, run: str) -> Critical:
    """Critical rate of a run; `UserError` if missing, damaged or of another version."""
    return read_record(Critical, path, f"the critical rate of run {run}", SCHEMA, _again(path))
